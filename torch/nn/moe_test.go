package nn

import (
	"math"
	"slices"
	"testing"

	"conquer/torch"
)

// picked runs the choice of experts for one row of logits.
func picked(t *testing.T, r Routing, logits, bias []float32) (experts []int64, weights []float32) {
	t.Helper()
	err := torch.Run(func() error {
		var b torch.Tensor
		if bias != nil {
			b = torch.From(bias, len(bias))
		}
		w, e := r.choose(torch.From(logits, 1, len(logits)), b)
		experts, weights = torch.Values[int64](e), torch.Values[float32](w)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return experts, weights
}

func TestRouting_ChoosesExpertsAndWeights(t *testing.T) {
	logits := []float32{1, 3, -2, 2}
	sum := 0.0
	for _, l := range logits {
		sum += math.Exp(float64(l))
	}
	soft := func(l float64) float64 { return math.Exp(l) / sum }
	sigmoid := func(l float64) float64 { return 1 / (1 + math.Exp(-l)) }
	for name, c := range map[string]struct {
		routing Routing
		bias    []float32
		experts []int64
		weights []float64
	}{
		"softmax": {Routing{TopK: 2}, nil, []int64{1, 3}, []float64{soft(3), soft(2)}},
		"renormalized": {Routing{TopK: 2, Renormalize: true}, nil, []int64{1, 3},
			[]float64{sigmoid(1), sigmoid(-1)}},
		"sigmoid, scaled": {Routing{TopK: 1, Sigmoid: true, Scale: 2.5}, nil, []int64{1},
			[]float64{2.5 * sigmoid(3)}},
		"bias": {Routing{TopK: 2, Sigmoid: true}, []float32{0, 0, 5, 0}, []int64{2, 1},
			[]float64{sigmoid(-2), sigmoid(3)}},
		// The first group has the scores 1 and 3, the second -2 and 2.
		"groups": {Routing{TopK: 2, Sigmoid: true, Groups: 2, TopGroups: 1}, nil, []int64{1, 0},
			[]float64{sigmoid(3), sigmoid(1)}},
	} {
		c.routing.Experts = len(logits)
		if err := c.routing.Check(); err != nil {
			t.Fatal(err)
		}
		experts, weights := picked(t, c.routing, logits, c.bias)
		if !slices.Equal(experts, c.experts) {
			t.Errorf("%s: experts %v, expected %v", name, experts, c.experts)
		}
		for i, w := range c.weights {
			if math.Abs(float64(weights[i])-w) > 1e-6 {
				t.Errorf("%s: weight %d is %g, expected %g", name, i, weights[i], w)
			}
		}
	}
}

func TestRouting_ImpossibleSizesAreRefused(t *testing.T) {
	for _, r := range []Routing{{Experts: 4}, {Experts: 4, TopK: 5}, {TopK: 1},
		{Experts: 6, TopK: 1, Groups: 4, TopGroups: 1}, {Experts: 4, TopK: 1, Groups: 4,
			TopGroups: 2}, {Experts: 8, TopK: 3, Groups: 4, TopGroups: 1}} {
		if r.Check() == nil {
			t.Errorf("%+v is accepted", r)
		}
	}
}

// A mixture is the sum over a token's experts of weight times SwiGLU, forward and backward; so are
// the adapters of experts, of which some have none and ranks differ.
func TestMoE_IsTheSumOfItsExperts(t *testing.T) {
	const width, inner, rows = 8, 6, 11
	r := Routing{Experts: 4, TopK: 2, Renormalize: true}
	for name, adapt := range map[string]bool{"weights": false, "adapters": true} {
		err := torch.Run(func() error {
			experts := NewExperts(r, width, inner,
				ExpertNames{Gate: "w1", Up: "w3", Down: "w2"}, nil)
			m := NewMoE(width, r, experts, MoENames{Router: "gate", Experts: "experts"})
			norm := NewRMSNorm(width, 1e-5)
			names := []string{}
			Walk(m, func(c Component) { names = append(names, c.Name) })
			if len(names) != 13 || names[0] != "gate.weight" || names[2] != "experts.0.w3.weight" ||
				names[12] != "experts.3.w2.weight" {
				t.Errorf("names %v", names)
			}
			for _, p := range append(Params(m), norm.Weight) {
				p.Tensor = torch.Empty(p.Shape, torch.Float32, torch.CPU).Normal(0, 0.5)
				p.RequireGrad(true)
			}
			adapter := func(l *Linear, component, rank int) {
				if len(l.LoRA) == 0 {
					l.LoRA = make([]*LoRA, len(l.Rows))
				}
				a := &LoRA{Scale: 0.7, A: NewParam(Normal, rank, l.Weight.Shape[1]),
					B: NewParam(Normal, l.Rows[component], rank)}
				for _, p := range a.Params() {
					p.Tensor = torch.Empty(p.Shape, torch.Float32, torch.CPU).Normal(0, 0.5)
					p.RequireGrad(true)
				}
				l.LoRA[component] = a
			}
			if adapt {
				adapter(m.Experts.In, 0, 2)
				adapter(m.Experts.In, 3, 3)
				adapter(m.Experts.Out, 1, 1)
				adapter(m.Experts.Out, 2, 2)
			}
			x := torch.Empty([]int{1, rows, width}, torch.Float32, torch.CPU).Normal(0, 1)
			x.RequireGrad(true)
			linear := func(l *Linear, component int, in torch.Tensor) torch.Tensor {
				first := 0
				for _, n := range l.Rows[:component] {
					first += n
				}
				w := l.Weight.Narrow(0, first, l.Rows[component])
				y := torch.Linear(in, w, torch.Tensor{})
				if len(l.LoRA) > 0 && l.LoRA[component] != nil {
					y = y.Add(l.LoRA[component].Forward(in))
				}
				return y
			}
			plain := func() torch.Tensor {
				h := norm.Forward(x)
				weights, experts := r.choose(m.Router.Forward(h.View(rows, width)), torch.Tensor{})
				var all []torch.Tensor
				for e := range r.Experts {
					gate, up := linear(m.Experts.In, 2*e, h), linear(m.Experts.In, 2*e+1, h)
					in := torch.Cat(-1, gate, up)
					all = append(all, linear(m.Experts.Out, e, torch.SwiGLU(in)).View(rows, width))
				}
				outputs := torch.Stack(1, all...) // [rows,E,width]
				index := experts.Unsqueeze(2).Expand(rows, r.TopK, width)
				return outputs.Gather(1, index).Mul(weights.Unsqueeze(2)).SumDim(1, false)
			}
			leaves := append(Params(m), norm.Weight, &Param{Tensor: x})
			for _, l := range []*Linear{m.Experts.In, m.Experts.Out} {
				for _, a := range l.LoRA {
					if a != nil {
						leaves = append(leaves, a.Params()...)
					}
				}
			}
			gradient := torch.Empty([]int{rows, width}, torch.Float32, torch.CPU).Normal(0, 1)
			off := func(got, want torch.Tensor) float64 {
				return torch.Item[float64](got.Sub(want).Abs().Max())
			}
			// An expert that no token reaches may have no gradient.
			slope := func(p *Param) torch.Tensor {
				if g := p.Grad(); g.Defined() {
					return g
				}
				return torch.Zeros(p.Shape, torch.Float32, torch.CPU)
			}
			want := plain()
			torch.Backward([]torch.Tensor{want}, []torch.Tensor{gradient})
			var grads []torch.Tensor
			for _, p := range leaves {
				grads = append(grads, slope(p).Clone())
				p.Tensor.ClearGrad()
			}
			got := m.Forward(norm, x).View(rows, width)
			if d := off(got, want); !(d < 1e-5) {
				t.Errorf("%s: off by %g", name, d)
			}
			torch.Backward([]torch.Tensor{got}, []torch.Tensor{gradient})
			for i, p := range leaves {
				if d := off(slope(p), grads[i]); !(d < 1e-4) {
					t.Errorf("%s: gradient %d of shape %v is off by %g", name, i, p.Shape, d)
				}
			}
			torch.NoGrad(func() {
				one := m.ForwardAdd(norm, x.Narrow(1, 3, 1)).View(1, width)
				sum := want.Narrow(0, 3, 1).Add(x.Narrow(1, 3, 1).View(1, width))
				if d := off(one, sum); !(d < 1e-5) {
					t.Errorf("%s: one token is off by %g", name, d)
				}
			})
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
