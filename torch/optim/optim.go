// Package optim changes weights along their gradients: AdamW and Lion, learning-rate schedules, and clipping by the global norm.
//
//	optimizer := optim.New(params, optim.Options{Beta1: 0.9, Beta2: 0.999, Decay: 0.01})
//	defer optimizer.Free()
//	for step := range steps {
//		… // a backward pass
//		norm := optim.Norm(optimizer.Gradients())
//		if optim.Finite(norm) {
//			optimizer.Step(schedule.Rate(step), optim.Factor(norm, 1))
//		}
//		optimizer.ClearGradients()
//	}
package optim

import (
	"fmt"
	"math"

	"conquer/torch"
)

// Param is a weight to optimize, or a stretch of one, by the name under which its state is saved.
type Param struct {
	Name string
	torch.Tensor
	NoDecay bool // the weight does not decay
}

// The methods.
const (
	AdamW = "adamw" // Loshchilov and Hutter, arXiv 1711.05101
	Lion  = "lion"  // Chen et al., arXiv 2302.06675: the sign of an average of the gradients is the step
)

// Methods lists them.
var Methods = []string{AdamW, Lion}

// What AdamW keeps its running averages (moments) in. Those smaller than float32 are rounded at random, with the probabilities
// that keep their means: the average of the squares changes by a thousandth a step, which rounding to the nearest would lose.
const (
	Float32  = "float32"
	BFloat16 = "bfloat16"
	Int8     = "int8" // 8 bits: a small float, and an exponent for each 256 of them
)

// Moments lists them.
var Moments = []string{Float32, BFloat16, Int8}

// AverageBytes is what the running averages of n weights take.
func AverageBytes(method, moments string, n float64) float64 {
	switch {
	case method == Lion:
		return 4 * n
	case moments == BFloat16:
		return 4 * n
	case moments == Int8:
		return 2 * (n + math.Ceil(n/torch.AverageBlock))
	}
	return 8 * n
}

// Options are a method and its constants.
type Options struct {
	Method            string // "" means AdamW
	Moments           string // of AdamW; "" means Float32
	Beta1, Beta2, Eps float64
	Decay             float64 // of the weights that decay
	// Stochastic keeps no float32 originals, and AdamW's averages in bfloat16 as the weights are: half the memory. All three
	// are rounded at random. Weights that are not bfloat16 are treated as without it.
	Stochastic bool
	Seed       int // decides how is rounded at random
}

// Optimizer is AdamW or Lion, over some weights.
//
// Its state is float32 whatever the weights are, unless the options say otherwise. Weights of 16 bits have a float32 original
// that the steps are added to and that they are rounded from after each one: a step of learning rate 1e-4 is smaller than half
// the distance between neighbouring bfloat16 numbers above 0.05, so that without an original most of what is learned would be
// rounded away. An epoch over examples/lighthouse took SmolLM2-135M from a validation loss of 4.09 to 2.27 this way, and to
// 2.91 with weights and moments in bfloat16 alone, at the same speed; the price is 16 bytes a weight in place of 8.
type Optimizer struct {
	options Options
	params  []Param
	states  []state
	taken   int
}

type state struct {
	mean, square torch.Tensor // square: no tensor with Lion
	exponents    torch.Tensor // of averages of 8 bits
	original     torch.Tensor // float32, no tensor where the weight is float32 itself
}

// New prepares to optimize params. The state is freed with Free.
func New(params []Param, options Options) *Optimizer {
	if options.Eps == 0 {
		options.Eps = 1e-8
	}
	o := &Optimizer{options: options, params: params, states: make([]state, len(params))}
	torch.NoGrad(func() {
		for i, p := range params {
			torch.Scoped(func() {
				s, dtype := &o.states[i], o.averages(p.DType())
				s.mean = torch.Zeros(p.Shape(), dtype, p.Device()).Own()
				if options.Method != Lion {
					s.square = torch.Zeros(p.Shape(), dtype, p.Device()).Own()
				}
				if dtype == torch.Uint8 {
					s.exponents = torch.Zeros([]int{2, (p.Numel() + torch.AverageBlock - 1) / torch.AverageBlock}, dtype, p.Device()).Own()
				}
				if p.DType() != torch.Float32 && !o.stochastic(p.DType()) {
					s.original = p.Detach().To(torch.Float32).Own()
				}
			})
		}
	})
	return o
}

func (o *Optimizer) stochastic(weight torch.DType) bool {
	return o.options.Stochastic && weight == torch.BFloat16
}

// averages is what the averages of weights of a dtype are kept in.
func (o *Optimizer) averages(weight torch.DType) torch.DType {
	switch {
	case o.options.Method == Lion:
		return torch.Float32
	case o.stochastic(weight), o.options.Moments == BFloat16:
		return torch.BFloat16
	case o.options.Moments == Int8:
		return torch.Uint8
	}
	return torch.Float32
}

// Free frees the state, not the weights.
func (o *Optimizer) Free() {
	for i := range o.states {
		s := &o.states[i]
		s.mean.Free()
		s.square.Free()
		s.exponents.Free()
		s.original.Free()
	}
	o.states = nil
}

// Gradients lists the gradients that the weights have now. They belong to the innermost scope.
func (o *Optimizer) Gradients() []torch.Tensor {
	var grads []torch.Tensor
	for _, p := range o.params {
		if g := p.Grad(); g.Defined() {
			grads = append(grads, g)
		}
	}
	return grads
}

// ClearGradients drops the weights' gradients.
func (o *Optimizer) ClearGradients() {
	for _, p := range o.params {
		p.ClearGrad()
	}
}

// Step takes one step at the given learning rate, with every gradient multiplied by scale (1, or what Factor says). A weight
// without a gradient stays as it is, decay included.
func (o *Optimizer) Step(rate, scale float64) {
	torch.Scoped(func() { o.Prepare().Take(rate, scale) })
}

// Prepared is a step that only waits for its numbers.
type Prepared struct {
	optimizer *Optimizer
	steps     [2]torch.AdamWStep // of weights with an original, and of those that are rounded at random
}

// Prepare gathers what a step works on, the gradients that the weights have now among it, so that the host has done its part
// when the gradients' norm is known. What it gives belongs to the innermost scope.
func (o *Optimizer) Prepare() *Prepared {
	ready := &Prepared{optimizer: o}
	torch.NoGrad(func() {
		for i, p := range o.params {
			g := p.Grad()
			if !g.Defined() {
				continue
			}
			s, decay := o.states[i], o.options.Decay
			if p.NoDecay {
				decay = 0
			}
			step := &ready.steps[0]
			if o.stochastic(p.DType()) {
				step = &ready.steps[1]
			} else if original := s.original; original.Defined() {
				step.Originals = append(step.Originals, original.Detach())
			} else {
				step.Originals = append(step.Originals, p.Detach())
			}
			step.Weights, step.Gradients = append(step.Weights, p.Tensor), append(step.Gradients, g)
			step.Decays = append(step.Decays, decay)
			step.Means, step.Squares = append(step.Means, s.mean), append(step.Squares, s.square)
			if s.exponents.Defined() {
				step.Exponents = append(step.Exponents, s.exponents)
			}
		}
	})
	return ready
}

// Take takes the step, as Optimizer.Step does.
func (r *Prepared) Take(rate, scale float64) {
	o := r.optimizer
	o.taken++
	torch.NoGrad(func() {
		torch.Scoped(func() {
			for _, step := range r.steps {
				if o.options.Method == Lion {
					torch.LionStep{Weights: step.Weights, Originals: step.Originals, Gradients: step.Gradients, Means: step.Means,
						Decays: step.Decays, Scale: scale, Rate: rate, Beta1: o.options.Beta1, Beta2: o.options.Beta2}.Take()
					continue
				}
				step.Step, step.Scale, step.Rate, step.Seed = o.taken, scale, rate, o.options.Seed
				step.Beta1, step.Beta2, step.Eps = o.options.Beta1, o.options.Beta2, o.options.Eps
				step.Take()
			}
		})
	})
}

// Taken is how many steps were taken.
func (o *Optimizer) Taken() int { return o.taken }

// State lists the tensors that a later run needs to go on exactly, besides the weights and Taken, each named after its
// weight and what it is to it: mean, square, exponents, original. They are the state itself, not copies.
func (o *Optimizer) State() []Param {
	var list []Param
	for i, p := range o.params {
		s := o.states[i]
		for _, part := range []Param{{Name: ".mean", Tensor: s.mean}, {Name: ".square", Tensor: s.square},
			{Name: ".exponents", Tensor: s.exponents}, {Name: ".original", Tensor: s.original}} {
			if part.Defined() {
				list = append(list, Param{Name: p.Name + part.Name, Tensor: part.Tensor})
			}
		}
	}
	return list
}

// Original is the i'th weight's float32 original, no tensor where the weight is its own.
func (o *Optimizer) Original(i int) torch.Tensor { return o.states[i].original }

// Average is a running average of a weight, element for element: "mean", of its gradients, or "square", of their squares.
type Average struct {
	Name string
	torch.Tensor
}

// Averages gives the running averages of the i'th weight as float32 or bfloat16: the state itself, or where that has 8 bits a
// copy with the same values, which belongs to the innermost scope.
func (o *Optimizer) Averages(i int) (list []Average) {
	s := o.states[i]
	for which, a := range []Average{{"mean", s.mean}, {"square", s.square}} {
		if !a.Defined() {
			continue
		}
		if s.exponents.Defined() {
			a.Tensor = torch.UnpackAverage(a.Tensor, s.exponents, which == 1)
		}
		list = append(list, a)
	}
	return list
}

// AverageNames lists the averages that a weight of a dtype has, and their dtype in Averages.
func (o *Optimizer) AverageNames(weight torch.DType) (names []string, dtype torch.DType) {
	if dtype = o.averages(weight); dtype == torch.Uint8 {
		dtype = torch.BFloat16
	}
	if o.options.Method == Lion {
		return []string{"mean"}, dtype
	}
	return []string{"mean", "square"}, dtype
}

// SetAverages takes over what was changed of the i'th weight's Averages.
func (o *Optimizer) SetAverages(i int, list []Average) {
	s := o.states[i]
	if !s.exponents.Defined() {
		return
	}
	torch.PackAverage(list[0].Tensor, s.mean, s.exponents, false)
	torch.PackAverage(list[1].Tensor, s.square, s.exponents, true)
}

// SetTaken says how many steps a state that was put into place by other means has seen.
func (o *Optimizer) SetTaken(n int) { o.taken = n }

// Restore goes back to a state: tensor gives the saved tensor of a name of State, taken is what Taken was.
func (o *Optimizer) Restore(taken int, tensor func(name string) (torch.Tensor, error)) error {
	for _, s := range o.State() {
		var failed error
		torch.Scoped(func() {
			saved, err := tensor(s.Name)
			switch {
			case err != nil:
				failed = err
			case fmt.Sprint(saved.Shape()) != fmt.Sprint(s.Shape()):
				failed = fmt.Errorf("tensor %q has shape %v, expected %v", s.Name, saved.Shape(), s.Shape())
			default:
				s.Tensor.Copy(saved)
			}
		})
		if failed != nil {
			return failed
		}
	}
	o.taken = taken
	return nil
}

// Norm is the 2-norm of all the elements of grads together.
func Norm(grads []torch.Tensor) float64 { return torch.GlobalNorm(grads) }

// Factor is what to multiply gradients of a global norm by so that it is at most limit. A limit of 0 does not clip.
func Factor(norm, limit float64) float64 {
	if limit > 0 && norm > limit {
		return limit / (norm + 1e-6)
	}
	return 1
}

// Finite reports whether x is a number, and not an infinite one.
func Finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
