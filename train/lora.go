package train

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// AllLinear as the only target of LoRA means every linear layer of the blocks.
const AllLinear = "all-linear"

// LoRA says how a model is tuned by low-rank additions to frozen weights (Hu et al., arXiv 2106.09685).
type LoRA struct {
	Rank    int     `json:"rank"`
	Alpha   float64 `json:"alpha"` // additions are scaled by Alpha/Rank
	Dropout float64 `json:"dropout"`
	// Targets names the layers by the last part of their names (q_proj, gate_proj, …), or is AllLinear alone.
	Targets []string `json:"targets"`
}

func (l LoRA) check() error {
	switch {
	case l.Rank < 1:
		return fmt.Errorf("LoRA of rank %d: the rank must be at least 1", l.Rank)
	case !(l.Alpha > 0):
		return fmt.Errorf("LoRA with alpha %g: it must be positive", l.Alpha)
	case !(l.Dropout >= 0 && l.Dropout < 1):
		return fmt.Errorf("LoRA with dropout %g: it must be at least 0 and below 1", l.Dropout)
	case len(l.Targets) == 0:
		return fmt.Errorf("LoRA without targets: name layers such as q_proj, or %s", AllLinear)
	}
	return nil
}

// adapts reports whether p gets an adapter.
func (l LoRA) adapts(p part) bool {
	return slices.Equal(l.Targets, []string{AllLinear}) || slices.Contains(l.Targets, lastPart(p.name))
}

// part is one of the side-by-side parts of a linear layer.
type part struct {
	layer *nn.Linear
	index int
	name  string // model.layers.0.self_attn.q_proj
}

// parts lists the linear layers of m's blocks, part by part. The head is not among them: it is multiplied a slice of the
// vocabulary at a time, which an adapter does not survive.
func parts(m model.Model) []part {
	var list []part
	nn.Linears(m, func(names []string, l *nn.Linear) {
		if l.Weight == m.Head() {
			return
		}
		for i := range l.Rows {
			list = append(list, part{l, i, names[i]})
		}
	})
	return list
}

// adapter returns the part's adapter, nil if it has none.
func (p part) adapter() *nn.LoRA {
	if len(p.layer.LoRA) == 0 {
		return nil
	}
	return p.layer.LoRA[p.index]
}

// attach gives the part an adapter.
func (p part) attach(a *nn.LoRA) {
	if len(p.layer.LoRA) == 0 {
		p.layer.LoRA = make([]*nn.LoRA, len(p.layer.Rows))
	}
	p.layer.LoRA[p.index] = a
}

// newAdapter declares an adapter for the part, without weights.
func (p part) newAdapter(rank int, scale, dropout float64) *nn.LoRA {
	return &nn.LoRA{
		Name: p.name, Scale: scale, Dropout: dropout,
		A: nn.NewParam(nn.Normal, rank, p.layer.Weight.Shape[1]),
		B: nn.NewParam(nn.Zeros, p.layer.Rows[p.index], rank),
	}
}

// AddAdapters gives the targets of l in m fresh adapters, float32 whatever the model is, that change nothing yet: A is
// drawn as PyTorch draws a linear layer's weight, B is zero. It fails if m has adapters or a target names nothing.
func AddAdapters(m model.Model, l LoRA) error {
	if err := l.check(); err != nil {
		return err
	}
	all := parts(m)
	var known []string
	for _, p := range all {
		if p.adapter() != nil {
			return fmt.Errorf("the model has adapters already: merge them first")
		}
		if name := lastPart(p.name); !slices.Contains(known, name) {
			known = append(known, name)
		}
	}
	for _, t := range l.Targets {
		if !slices.Contains(known, t) && len(l.Targets) > 1 || !slices.Contains(append(known, AllLinear), t) {
			return fmt.Errorf("LoRA target %q names no layer: choose %s or among %s", t, AllLinear, strings.Join(known, ", "))
		}
	}
	return torch.Run(func() error {
		for _, p := range all {
			if !l.adapts(p) {
				continue
			}
			a := p.newAdapter(l.Rank, l.Alpha/float64(l.Rank), l.Dropout)
			device, bound := p.layer.Weight.Device(), 1/math.Sqrt(float64(a.A.Shape[1]))
			torch.Scoped(func() {
				a.A.Tensor = torch.Empty(a.A.Shape, torch.Float32, device).Uniform(-bound, bound).Own()
				a.B.Tensor = torch.Zeros(a.B.Shape, torch.Float32, device).Own()
			})
			p.attach(a)
		}
		return nil
	})
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// adapters lists m's adapters.
func adapters(m model.Model) []*nn.LoRA {
	var list []*nn.LoRA
	for _, p := range parts(m) {
		if a := p.adapter(); a != nil {
			list = append(list, a)
		}
	}
	return list
}

// MergeAdapter folds m's adapters into its weights and removes them. The sum is computed in float32 and rounded once to
// the weights' dtype.
func MergeAdapter(m model.Model) error {
	return torch.Run(func() error {
		torch.NoGrad(func() {
			for _, p := range parts(m) {
				a := p.adapter()
				if a == nil {
					continue
				}
				first := 0
				for _, rows := range p.layer.Rows[:p.index] {
					first += rows
				}
				torch.Scoped(func() {
					weight := p.layer.Weight.Detach().Narrow(0, first, p.layer.Rows[p.index])
					delta := a.B.To(torch.Float32).Matmul(a.A.To(torch.Float32)).MulScalar(a.Scale)
					weight.Copy(weight.To(torch.Float32).Add(delta))
				})
			}
		})
		RemoveAdapter(m)
		return nil
	})
}

// RemoveAdapter frees m's adapters, which leaves the weights below them.
func RemoveAdapter(m model.Model) {
	for _, p := range parts(m) {
		if a := p.adapter(); a != nil {
			a.A.Tensor.Free()
			a.B.Tensor.Free()
			p.layer.LoRA[p.index] = nil
		}
	}
	nn.Linears(m, func(_ []string, l *nn.Linear) { l.LoRA = nil })
}
