// Package lora adds low-rank adapters to the linear layers of a model (Hu et al., arXiv
// 2106.09685), folds them into the weights, and reads and writes them in PEFT's format.
package lora

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// AllLinear as the only target selects every linear layer of the blocks that PEFT adapts too: on
// Mamba-2 that excludes out_proj, which can be named besides it or instead of it.
const AllLinear = "all-linear"

// Defaults of a [Config].
const (
	DefaultRank = 16
	// DefaultAlphaPerRank is the default of Alpha divided by Rank: the scale of an adapter.
	DefaultAlphaPerRank = 2
)

// Config describes the adapters of a model. The zero Config is complete: rank 16, alpha 32, no
// dropout, on all linear layers.
type Config struct {
	Rank    int     `json:"rank"`    // 0 means DefaultRank
	Alpha   float64 `json:"alpha"`   // output is scaled by Alpha/Rank; 0 means twice the rank
	Dropout float64 `json:"dropout"` // share of an adapter's inputs that is dropped
	// Targets are the last components of layer names (q_proj, gate_proj, …), or AllLinear alone;
	// nil means AllLinear.
	Targets []string `json:"targets"`
}

// Complete returns c with the defaults of its zero fields filled in.
func (c Config) Complete() Config {
	if c.Rank == 0 {
		c.Rank = DefaultRank
	}
	if c.Alpha == 0 {
		c.Alpha = DefaultAlphaPerRank * float64(c.Rank)
	}
	if len(c.Targets) == 0 {
		c.Targets = []string{AllLinear}
	}
	return c
}

// maxRank is the largest rank: the widths of common models are smaller.
const maxRank = 1 << 16

// Check returns an error if a field is out of range.
func (c Config) Check() error {
	switch c = c.Complete(); {
	case c.Rank < 1:
		return fmt.Errorf("LoRA rank is %d: it must be at least 1", c.Rank)
	case c.Rank > maxRank:
		return fmt.Errorf("LoRA rank is %d: it must be at most %d", c.Rank, maxRank)
	case !(c.Alpha > 0):
		return fmt.Errorf("LoRA alpha is %g: it must be positive", c.Alpha)
	case !(c.Dropout >= 0 && c.Dropout < 1):
		return fmt.Errorf("LoRA dropout is %g: it must be at least 0 and below 1", c.Dropout)
	}
	return nil
}

// Adapts reports whether l gets an adapter.
func (c Config) Adapts(l Layer) bool {
	targets := c.Complete().Targets
	return slices.Contains(targets, lastComponent(l.Name)) ||
		slices.Contains(targets, AllLinear) && !l.Refused
}

// Layer is a linear layer as the checkpoint names it: one component of an [nn.Linear], which may
// fuse several.
type Layer struct {
	Linear *nn.Linear
	Index  int    // of the component in Linear
	Name   string // model.layers.0.self_attn.q_proj
	// Refused is true if PEFT loads no adapter on this layer.
	Refused bool
}

// PEFT refuses adapters on layers of these names in models of these types: their kernels take the
// weight without calling the layer.
var (
	refusedNames = []string{"out_proj", "conv1d"}
	refusedTypes = []string{"mamba2", "mamba", "falcon_h1", "falcon_mamba", "nemotron_h"}
)

// Layers lists the linear layers of m's blocks. The head is left out: its GEMM and its loss are one
// operation, which supports no adapter.
func Layers(m model.Model) []Layer {
	var list []Layer
	kind, _ := m.Config()["model_type"].(string)
	restricted := slices.Contains(refusedTypes, kind)
	nn.Linears(m, func(names []string, l *nn.Linear) {
		if l.Weight == m.Head().Param {
			return
		}
		for i := range l.Rows {
			refused := restricted && slices.Contains(refusedNames, lastComponent(names[i]))
			list = append(list, Layer{l, i, names[i], refused})
		}
	})
	return list
}

// adapter returns the layer's adapter, nil if it has none.
func (l Layer) adapter() *nn.LoRA {
	if len(l.Linear.LoRA) == 0 {
		return nil
	}
	return l.Linear.LoRA[l.Index]
}

func (l Layer) attach(a *nn.LoRA) {
	if len(l.Linear.LoRA) == 0 {
		l.Linear.LoRA = make([]*nn.LoRA, len(l.Linear.Rows))
	}
	l.Linear.LoRA[l.Index] = a
}

// newAdapter declares an adapter for the layer, without values.
func (l Layer) newAdapter(rank int, scale, dropout float64) *nn.LoRA {
	return &nn.LoRA{
		Name: l.Name, Scale: scale, Dropout: dropout,
		A: nn.NewParam(nn.Normal, rank, l.Linear.Weight.Shape[1]),
		B: nn.NewParam(nn.Zeros, l.Linear.Rows[l.Index], rank),
	}
}

// Attach adds fresh float32 adapters to the targets of c in m. A is drawn as PyTorch draws a linear
// layer's weight and B is zero, so the model's output does not change yet. Attach fails if m has
// adapters or if a target names no layer.
func Attach(m model.Model, c Config) error {
	c = c.Complete()
	if err := c.Check(); err != nil {
		return err
	}
	all := Layers(m)
	var known []string
	for _, l := range all {
		if l.adapter() != nil {
			return fmt.Errorf("the model already has adapters: merge them first")
		}
		if name := lastComponent(l.Name); !slices.Contains(known, name) {
			known = append(known, name)
		}
	}
	for _, t := range c.Targets {
		if t != AllLinear && !slices.Contains(known, t) {
			return fmt.Errorf("LoRA target %q names no layer: choose %s, or from %s", t, AllLinear,
				strings.Join(known, ", "))
		}
	}
	return torch.Run(func() error {
		for _, l := range all {
			if !c.Adapts(l) {
				continue
			}
			a := l.newAdapter(c.Rank, c.Alpha/float64(c.Rank), c.Dropout)
			device, bound := l.Linear.Weight.Device(), 1/math.Sqrt(float64(a.A.Shape[1]))
			torch.Scoped(func() {
				a.A.Tensor = torch.Empty(a.A.Shape, torch.Float32, device).
					Uniform(-bound, bound).
					Own()
				a.B.Tensor = torch.Zeros(a.B.Shape, torch.Float32, device).Own()
			})
			l.attach(a)
		}
		return nil
	})
}

func lastComponent(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// Adapters lists m's adapters in the order of its layers.
func Adapters(m model.Model) []*nn.LoRA {
	var list []*nn.LoRA
	for _, l := range Layers(m) {
		if a := l.adapter(); a != nil {
			list = append(list, a)
		}
	}
	return list
}

// Merge folds m's adapters into its weights and removes them. The sum is computed in float32 and
// rounded once to the weights' dtype.
func Merge(m model.Model) error {
	return torch.Run(func() error {
		torch.NoGrad(func() {
			for _, l := range Layers(m) {
				a := l.adapter()
				if a == nil {
					continue
				}
				first := 0
				for _, rows := range l.Linear.Rows[:l.Index] {
					first += rows
				}
				torch.Scoped(func() {
					weight := l.Linear.Weight.Detach().Narrow(0, first, l.Linear.Rows[l.Index])
					delta := a.B.To(torch.Float32).Matmul(a.A.To(torch.Float32)).MulScalar(a.Scale)
					weight.Copy(weight.To(torch.Float32).Add(delta))
				})
			}
		})
		Remove(m)
		return nil
	})
}

// Remove frees m's adapters. The base weights stay unchanged.
func Remove(m model.Model) {
	for _, l := range Layers(m) {
		if a := l.adapter(); a != nil {
			a.A.Tensor.Free()
			a.B.Tensor.Free()
			l.Linear.LoRA[l.Index] = nil
		}
	}
	nn.Linears(m, func(_ []string, l *nn.Linear) { l.LoRA = nil })
}
