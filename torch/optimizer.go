package torch

// #include "conquer.h"
import "C"

import "github.com/sugarme/gotch/libtch"

// AdamWStep is one step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), libtorch's fused kernel, over parameters of one
// device and dtype, in place: means and squares are the running averages of the gradients and of their squares, steps
// float32 scalars that count the steps taken and are increased first. All lists have the same length.
func AdamWStep(params, grads, means, squares, steps []Tensor, rate, beta1, beta2, decay, eps float64) {
	check(C.cq_adamw(handles(params), handles(grads), handles(means), handles(squares), handles(steps), C.int(len(params)),
		C.double(rate), C.double(beta1), C.double(beta2), C.double(decay), C.double(eps)), "adamw", params...)
}

// GlobalNorm is the 2-norm of all the elements of ts together, a float32 scalar.
func GlobalNorm(ts []Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_global_norm(handles(ts), C.int(len(ts)), &out), "global norm", ts...)
	return Tensor{libtch.Ctensor(out)}
}

// ScaleAll multiplies every tensor of ts by factor, a scalar tensor on their device, in place.
func ScaleAll(ts []Tensor, factor Tensor) {
	check(C.cq_scale_all(handles(ts), C.int(len(ts)), factor.handle()), "scale all", factor)
}
