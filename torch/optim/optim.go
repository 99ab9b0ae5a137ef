// Package optim has the optimizers AdamW, Lion and Muon, learning-rate schedules, and gradient
// clipping by global norm.
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

// Param is a weight to optimize, or a part of one, under the name that its state is saved by.
type Param struct {
	Name string
	torch.Tensor
	NoDecay bool // no weight decay
	// Rows are the rows of each matrix that the weight holds, one below the other. Muon
	// orthogonalizes their updates; it updates weights without Rows as AdamW does.
	Rows []int
}

// Optimization methods.
const (
	AdamW = "adamw" // Loshchilov and Hutter, arXiv 1711.05101
	Lion  = "lion"  // Chen et al., arXiv 2302.06675: steps by the sign of averaged gradients
	// Muon orthogonalizes the updates of matrices (Jordan et al.; Liu et al., arXiv 2502.16982).
	// Other weights take AdamW's steps.
	Muon = "muon"
)

// Methods lists the optimization methods.
var Methods = []string{AdamW, Lion, Muon}

// Data types of AdamW's moments. Types smaller than float32 are rounded stochastically, which keeps
// the mean: the second moment changes by a thousandth in each step, and rounding to nearest would
// lose that.
const (
	Float32  = "float32"
	BFloat16 = "bfloat16"
	Int8     = "int8" // an 8-bit float, with one exponent for every 256 of them
)

// MomentTypes lists the data types of moments.
var MomentTypes = []string{Float32, BFloat16, Int8}

// MomentBytes returns the size of the moments of n weights, for Muon of n weights of matrices.
func MomentBytes(method, moments string, n float64) float64 {
	switch {
	case method == Lion || method == Muon:
		return 4 * n
	case moments == BFloat16:
		return 4 * n
	case moments == Int8:
		return 2 * (n + math.Ceil(n/torch.MomentBlock))
	}
	return 8 * n
}

// Options choose a method and its constants.
type Options struct {
	Method            string // "" means AdamW
	Moments           string // of AdamW; "" means Float32
	Beta1, Beta2, Eps float64
	Decay             float64 // weight decay, for parameters without NoDecay
	Momentum          float64 // of Muon; 0 means 0.95
	// Stochastic keeps no float32 master weights of bfloat16 weights, and AdamW's moments in
	// bfloat16 unless Moments is Int8: half the memory or less. Weights and moments are rounded
	// stochastically. It does not affect weights of other types.
	Stochastic bool
	Seed       int // seed of the stochastic rounding
}

// Optimizer is AdamW, Lion or Muon over a list of weights.
//
// Its state is float32 unless the options say otherwise. 16-bit weights have float32 master
// weights: a step is added to those, and the weight is rounded from them. A step with learning rate
// 1e-4 is smaller than half the distance between neighbouring bfloat16 numbers above 0.05, so
// without master weights most updates would be rounded away. One epoch over examples/lighthouse
// took SmolLM2-135M from a validation loss of 4.09 to 2.27 with master weights, and to 2.91 with
// weights and moments rounded to nearest bfloat16, at the same speed. The price is 16 bytes a
// weight instead of 8.
type Optimizer struct {
	options Options
	params  []Param
	states  []state
	steps   int
}

type state struct {
	mean, square torch.Tensor // square is undefined with Lion, and for Muon's matrices
	exponents    torch.Tensor // of 8-bit moments
	master       torch.Tensor // float32; no tensor if the weight is float32 itself
}

// New returns an optimizer of params. Free releases its state.
func New(params []Param, options Options) *Optimizer {
	if options.Eps == 0 {
		options.Eps = 1e-8
	}
	if options.Momentum == 0 {
		options.Momentum = 0.95
	}
	o := &Optimizer{options: options, params: params, states: make([]state, len(params))}
	torch.NoGrad(func() {
		for i, p := range params {
			torch.Scoped(func() {
				s, dtype := &o.states[i], options.momentType(p.DType())
				s.mean = torch.Zeros(p.Shape(), dtype, p.Device()).Own()
				if options.hasSquare(p.Rows) {
					s.square = torch.Zeros(p.Shape(), dtype, p.Device()).Own()
				}
				if dtype == torch.Uint8 {
					blocks := (p.Numel() + torch.MomentBlock - 1) / torch.MomentBlock
					s.exponents = torch.Zeros([]int{2, blocks}, dtype, p.Device()).Own()
				}
				if p.DType() != torch.Float32 && !options.stochastic(p.DType()) {
					s.master = p.Detach().To(torch.Float32).Own()
				}
			})
		}
	})
	return o
}

func (o Options) stochastic(weight torch.DType) bool {
	return o.Stochastic && weight == torch.BFloat16
}

// hasSquare reports whether a weight with these Rows has a second moment.
func (o Options) hasSquare(rows []int) bool {
	return o.Method != Lion && (o.Method != Muon || rows == nil)
}

// momentType returns the type of the moments of weights of a type.
func (o Options) momentType(weight torch.DType) torch.DType {
	switch {
	case o.Method == Lion:
		return torch.Float32
	case o.Moments == Int8:
		return torch.Uint8
	case o.stochastic(weight), o.Moments == BFloat16:
		return torch.BFloat16
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
		s.master.Free()
	}
	o.states = nil
}

// Gradients returns the weights' present gradients, which belong to the innermost scope.
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

// Step takes one step at the given learning rate, with every gradient multiplied by scale (1, or
// the result of Factor). A weight without a gradient does not change, not even by decay.
func (o *Optimizer) Step(rate, scale float64) {
	torch.Scoped(func() { o.Prepare().Apply(rate, scale) })
}

// Prepared is a step that lacks only its learning rate and gradient scale.
type Prepared struct {
	optimizer *Optimizer
	steps     [2]torch.AdamWStep // with master weights, and with stochastic rounding
	matrices  []muonStep
}

// Prepare collects the tensors of a step, the present gradients included, so that the host's work
// is done before the gradient norm is known. Its tensors belong to the innermost scope.
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
			master := p.Detach()
			if s.master.Defined() {
				master = s.master.Detach()
			}
			if o.options.Method == Muon && p.Rows != nil {
				ready.matrices = append(ready.matrices,
					muonStep{p.Detach(), master, g, s.mean, p.Rows, decay})
				continue
			}
			step := &ready.steps[0]
			if o.options.stochastic(p.DType()) {
				step = &ready.steps[1]
			} else {
				step.Master = append(step.Master, master)
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

// Apply takes the step, as Optimizer.Step does.
func (r *Prepared) Apply(rate, scale float64) {
	o := r.optimizer
	o.steps++
	torch.NoGrad(func() {
		torch.Scoped(func() {
			for _, step := range r.steps {
				if o.options.Method == Lion {
					torch.LionStep{
						Weights: step.Weights, Master: step.Master, Gradients: step.Gradients,
						Means: step.Means, Decays: step.Decays, Scale: scale, Rate: rate,
						Beta1: o.options.Beta1, Beta2: o.options.Beta2,
					}.Apply()
					continue
				}
				step.Step, step.Scale, step.Rate, step.Seed = o.steps, scale, rate, o.options.Seed
				step.Beta1, step.Beta2, step.Eps = o.options.Beta1, o.options.Beta2, o.options.Eps
				step.Apply()
			}
			for _, step := range r.matrices {
				torch.Scoped(func() { step.apply(rate, scale, o.options.Momentum) })
			}
		})
	})
}

// Steps returns the number of steps taken.
func (o *Optimizer) Steps() int { return o.steps }

// State lists the tensors that a later run needs to continue exactly, besides the weights and
// Steps. Each is named after its weight, with the suffix .mean, .square, .exponents or .original
// (the master weight). They are the state itself, not copies.
func (o *Optimizer) State() []Param {
	var list []Param
	for i, p := range o.params {
		s := o.states[i]
		for _, part := range []Param{
			{Name: ".mean", Tensor: s.mean}, {Name: ".square", Tensor: s.square},
			{Name: ".exponents", Tensor: s.exponents}, {Name: ".original", Tensor: s.master},
		} {
			if part.Defined() {
				list = append(list, Param{Name: p.Name + part.Name, Tensor: part.Tensor})
			}
		}
	}
	return list
}

// Master returns the i'th weight's float32 master weight, or no tensor if it has none.
func (o *Optimizer) Master(i int) torch.Tensor { return o.states[i].master }

// Moment is a running average of a weight's gradients ("mean") or of their squares ("square"),
// element by element.
type Moment struct {
	Name string
	torch.Tensor
}

// Moments returns the moments of the i'th weight as float32 or bfloat16: the state itself, or for
// 8-bit moments a copy with the same values, which belongs to the innermost scope.
func (o *Optimizer) Moments(i int) (list []Moment) {
	s := o.states[i]
	for which, a := range []Moment{{"mean", s.mean}, {"square", s.square}} {
		if !a.Defined() {
			continue
		}
		if s.exponents.Defined() {
			a.Tensor = torch.UnpackMoment(a.Tensor, s.exponents, which == 1)
		}
		list = append(list, a)
	}
	return list
}

// MomentNames lists the moments of a weight with these Rows, and their type in Moments.
func (o *Optimizer) MomentNames(weight torch.DType, rows []int) (
	names []string, dtype torch.DType,
) {
	if dtype = o.options.momentType(weight); dtype == torch.Uint8 {
		dtype = torch.BFloat16
	}
	if o.options.hasSquare(rows) {
		return []string{"mean", "square"}, dtype
	}
	return []string{"mean"}, dtype
}

// SetMoments stores what was changed in the i'th weight's Moments.
func (o *Optimizer) SetMoments(i int, list []Moment) {
	s := o.states[i]
	if !s.exponents.Defined() {
		return
	}
	torch.PackMoment(list[0].Tensor, s.mean, s.exponents, false)
	torch.PackMoment(list[1].Tensor, s.square, s.exponents, true)
}

// SetSteps sets the number of steps taken, for a state that was loaded by other means than Restore.
func (o *Optimizer) SetSteps(n int) { o.steps = n }

// Restore loads a state. tensor returns the saved tensor of a name that State listed; steps is the
// saved number of steps.
func (o *Optimizer) Restore(steps int, tensor func(name string) (torch.Tensor, error)) error {
	for _, s := range o.State() {
		var failed error
		torch.Scoped(func() {
			saved, err := tensor(s.Name)
			switch {
			case err != nil:
				failed = err
			case fmt.Sprint(saved.Shape()) != fmt.Sprint(s.Shape()):
				failed = fmt.Errorf("tensor %q has shape %v, expected %v", s.Name, saved.Shape(),
					s.Shape())
			default:
				s.Tensor.Copy(saved)
			}
		})
		if failed != nil {
			return failed
		}
	}
	o.steps = steps
	return nil
}

// Norm returns the 2-norm of all elements of grads.
func Norm(grads []torch.Tensor) float64 { return torch.GlobalNorm(grads) }

// Factor returns the factor that reduces a global gradient norm to limit, 1 if it is below. A limit
// of 0 does not clip.
func Factor(norm, limit float64) float64 {
	if limit > 0 && norm > limit {
		return limit / (norm + 1e-6)
	}
	return 1
}

// Finite reports whether x is neither NaN nor infinite.
func Finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
