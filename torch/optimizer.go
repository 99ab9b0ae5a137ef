package torch

// #include "conquer.h"
import "C"

import "github.com/sugarme/gotch/libtch"

// AdamWStep is one step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) over weights of one device, in place.
type AdamWStep struct {
	// Weights, the float32 tensors that 16-bit ones are rounded from (float32 weights are their own originals), gradients in
	// the weights' dtype, and the running averages of the gradients and of their squares: lists of one length. The averages
	// are float32, or on the CPU bfloat16, or uint8 with Exponents as [PackAverage] has them; but float32 they are rounded at
	// random. Without Originals, weights and averages are bfloat16 and all rounded at random.
	Weights, Originals, Gradients, Means, Squares, Exponents []Tensor
	Decays                                                   []float64 // each weight's decay
	Step                                                     int       // which step this is, from 1
	Scale                                                    float64   // what the gradients are multiplied by
	Rate, Beta1, Beta2, Eps                                  float64
	Seed                                                     int // what decides how is rounded
}

// Take takes the step.
func (s AdamWStep) Take() {
	if len(s.Weights) == 0 {
		return
	}
	check(C.cq_adamw(handles(s.Weights), handles(s.Originals), handles(s.Gradients), handles(s.Means), handles(s.Squares),
		handles(s.Exponents), (*C.double)(&s.Decays[0]), C.int(len(s.Weights)), C.int64_t(s.Step), C.double(s.Scale),
		C.double(s.Rate), C.double(s.Beta1), C.double(s.Beta2), C.double(s.Eps), C.int64_t(s.Seed)), "adamw", s.Weights...)
}

// AverageBlock is how many elements of an average of 8 bits share an exponent.
const AverageBlock = 256

// PackAverage rounds values to 8 bits: codes (uint8, of the values' shape) and, for every AverageBlock of them, an exponent in
// row 0 of exponents (uint8 [2, blocks]), or for averages of squares in row 1. CPU tensors.
func PackAverage(values, codes, exponents Tensor, squares bool) {
	check(C.cq_average_pack(values.handle(), codes.handle(), exponents.handle(), C.int(flag(squares))), "pack", values, codes)
}

// UnpackAverage is what PackAverage packed, exactly, as bfloat16.
func UnpackAverage(codes, exponents Tensor, squares bool) Tensor {
	var out C.cq_tensor
	check(C.cq_average_unpack(codes.handle(), exponents.handle(), C.int(flag(squares)), &out), "unpack", codes)
	return Tensor{libtch.Ctensor(out)}
}

// LionStep is one step of Lion (Chen et al., arXiv 2302.06675) over weights of one device, in place.
type LionStep struct {
	// As in AdamWStep; the means are float32.
	Weights, Originals, Gradients, Means []Tensor
	Decays                               []float64
	Scale, Rate, Beta1, Beta2            float64
}

// Take takes the step.
func (s LionStep) Take() {
	if len(s.Weights) == 0 {
		return
	}
	check(C.cq_lion(handles(s.Weights), handles(s.Originals), handles(s.Gradients), handles(s.Means), (*C.double)(&s.Decays[0]),
		C.int(len(s.Weights)), C.double(s.Scale), C.double(s.Rate), C.double(s.Beta1), C.double(s.Beta2)), "lion", s.Weights...)
}

// GlobalNorm is the 2-norm of all the elements of ts together.
func GlobalNorm(ts []Tensor) float64 {
	var out C.double
	check(C.cq_global_norm(handles(ts), C.int(len(ts)), &out), "global norm", ts...)
	return float64(out)
}
