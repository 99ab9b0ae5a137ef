package torch

// #include "conquer.h"
import "C"

import "github.com/sugarme/gotch/libtch"

// AdamWStep is one step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) over weights of one
// device, in place.
type AdamWStep struct {
	// Lists of one length: the weights; their float32 master weights, from which 16-bit weights are
	// rounded (a float32 weight is its own master); gradients in the weights' dtype; the moments.
	// Moments are float32, bfloat16, or uint8 with Exponents as [PackMoment] makes them. Moments
	// smaller than float32 are rounded stochastically. Without Master, the weights are bfloat16 and
	// rounded stochastically too, and the moments are smaller than float32.
	Weights, Master, Gradients, Means, Squares, Exponents []Tensor
	Decays                                                []float64 // weight decay of each weight
	Step                                                  int       // counted from 1
	Scale                                                 float64   // factor of the gradients
	Rate, Beta1, Beta2, Eps                               float64
	Seed                                                  int // seed of the stochastic rounding
}

// Apply takes the step.
func (s AdamWStep) Apply() {
	if len(s.Weights) == 0 {
		return
	}
	parameters := make([]C.cq_parameter, len(s.Weights))
	for i := range parameters {
		parameters[i] = C.cq_parameter{
			weight:    s.Weights[i].handle(),
			gradient:  s.Gradients[i].handle(),
			master:    at(s.Master, i),
			mean:      s.Means[i].handle(),
			square:    s.Squares[i].handle(),
			exponents: at(s.Exponents, i),
			decay:     C.double(s.Decays[i]),
		}
	}
	options := C.cq_adamw_options{
		step:  C.int64_t(s.Step),
		scale: C.double(s.Scale),
		rate:  C.double(s.Rate),
		beta1: C.double(s.Beta1),
		beta2: C.double(s.Beta2),
		eps:   C.double(s.Eps),
		seed:  C.int64_t(s.Seed),
	}
	check(C.cq_adamw(&parameters[0], C.int(len(parameters)), &options), "adamw", s.Weights...)
}

// at is the i'th handle of a list that may be empty.
func at(ts []Tensor, i int) C.cq_tensor {
	if len(ts) == 0 {
		return nil
	}
	return ts[i].handle()
}

// MomentBlock is the number of elements of an 8-bit moment that share an exponent.
const MomentBlock = 256

// PackMoment rounds values to 8 bits: codes (uint8, of the values' shape) and, for every
// MomentBlock of them, an exponent in row 0 of exponents (uint8 [2, blocks]), or in row 1 for
// squares. CPU tensors.
func PackMoment(values, codes, exponents Tensor, squares bool) {
	check(
		C.cq_moment_pack(values.handle(), codes.handle(), exponents.handle(), C.int(flag(squares))),
		"pack", values, codes)
}

// UnpackMoment returns what PackMoment packed, exactly, as bfloat16.
func UnpackMoment(codes, exponents Tensor, squares bool) Tensor {
	var out C.cq_tensor
	check(C.cq_moment_unpack(codes.handle(), exponents.handle(), C.int(flag(squares)), &out),
		"unpack", codes)
	return Tensor{libtch.Ctensor(out)}
}

// LionStep is one step of Lion (Chen et al., arXiv 2302.06675) over weights of one device, in
// place.
type LionStep struct {
	// As in AdamWStep; Master is required and the means are float32.
	Weights, Master, Gradients, Means []Tensor
	Decays                            []float64
	Scale, Rate, Beta1, Beta2         float64
}

// Apply takes the step.
func (s LionStep) Apply() {
	if len(s.Weights) == 0 {
		return
	}
	parameters := make([]C.cq_parameter, len(s.Weights))
	for i := range parameters {
		parameters[i] = C.cq_parameter{
			weight: s.Weights[i].handle(), gradient: s.Gradients[i].handle(),
			master: s.Master[i].handle(), mean: s.Means[i].handle(), decay: C.double(s.Decays[i]),
		}
	}
	check(C.cq_lion(&parameters[0], C.int(len(parameters)), C.double(s.Scale), C.double(s.Rate),
		C.double(s.Beta1), C.double(s.Beta2)), "lion", s.Weights...)
}

// GlobalNorm is the 2-norm of all the elements of ts together.
func GlobalNorm(ts []Tensor) float64 {
	var out C.double
	check(C.cq_global_norm(handles(ts), C.int(len(ts)), &out), "global norm", ts...)
	return float64(out)
}
