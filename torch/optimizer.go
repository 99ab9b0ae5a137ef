package torch

// #include "conquer.h"
import "C"

// AdamWStep is one step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) over weights of one device, in place.
type AdamWStep struct {
	// Weights, the float32 tensors that 16-bit ones are rounded from (float32 weights are their own originals), gradients in
	// the weights' dtype, and the float32 running averages of the gradients and of their squares: lists of one length. Without Originals, weights and averages are bfloat16 and rounded at random.
	Weights, Originals, Gradients, Means, Squares []Tensor
	Decays                                        []float64 // each weight's decay
	Step                                          int       // which step this is, from 1
	Scale                                         float64   // what the gradients are multiplied by
	Rate, Beta1, Beta2, Eps                       float64
	Seed                                          int // without Originals: what decides how is rounded
}

// Take takes the step.
func (s AdamWStep) Take() {
	if len(s.Weights) == 0 {
		return
	}
	check(C.cq_adamw(handles(s.Weights), handles(s.Originals), handles(s.Gradients), handles(s.Means), handles(s.Squares),
		(*C.double)(&s.Decays[0]), C.int(len(s.Weights)), C.int64_t(s.Step), C.double(s.Scale), C.double(s.Rate),
		C.double(s.Beta1), C.double(s.Beta2), C.double(s.Eps), C.int64_t(s.Seed)), "adamw", s.Weights...)
}

// GlobalNorm is the 2-norm of all the elements of ts together.
func GlobalNorm(ts []Tensor) float64 {
	var out C.double
	check(C.cq_global_norm(handles(ts), C.int(len(ts)), &out), "global norm", ts...)
	return float64(out)
}
