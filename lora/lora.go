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
// weight without calling the layer. In Granite's mixtures, whose checkpoints stack the experts,
// neither the experts nor the router are linear layers to it.
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
			refused := restricted && slices.Contains(refusedNames, lastComponent(names[i])) ||
				l.Weight.Stack > 0 || strings.HasSuffix(names[i], ".router.layer") ||
				kind == "nemotron_h" && ofExperts(names[i])
			list = append(list, Layer{l, i, names[i], refused})
		}
	})
	return list
}

// ofExperts reports whether a layer of Nemotron-H is the router or an expert of a mixture: to PEFT
// these are parameters, not layers.
func ofExperts(name string) bool {
	return lastComponent(name) == "gate" || strings.Contains(name, ".experts.")
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

// newAdapter declares the adapter that c gives the layer, without values.
func (l Layer) newAdapter(c Config) *nn.LoRA {
	rank, scale := c.of(l.Name)
	a := &nn.LoRA{
		Name: l.Name, Scale: scale, Dropout: c.Dropout,
		A: nn.NewParam(nn.Normal, rank, l.Linear.Weight.Shape[1]),
		B: nn.NewParam(nn.Zeros, l.Linear.Rows[l.Index], rank),
	}
	if c.DoRA {
		a.M = nn.NewParam(nn.Ones, l.Linear.Rows[l.Index])
	}
	return a
}

// first returns the row of the fused weight at which the layer begins.
func (l Layer) first() (row int) {
	for _, rows := range l.Linear.Rows[:l.Index] {
		row += rows
	}
	return row
}

// weight returns the layer's rows of the fused weight.
func (l Layer) weight(fused torch.Tensor) torch.Tensor {
	return fused.Narrow(0, l.first(), l.Linear.Rows[l.Index])
}

// Attach adds fresh float32 adapters to the layers of m that c adapts, with which the model's
// output does not change yet. With From, the adapters are those of its folder, and m was made from
// the result of [Replace]. Attach fails if m has adapters, or if a part of c names no layer. PiSSA
// changes the weights of the layers.
func Attach(m model.Model, c Config) error {
	c = c.Complete()
	all := Layers(m)
	if slices.ContainsFunc(all, func(l Layer) bool { return l.adapter() != nil }) {
		return fmt.Errorf("the model already has adapters: merge them first")
	}
	if err := c.CheckModel(m); err != nil {
		return err
	}
	if c.From != "" {
		err := load(m, c.From, true)
		for _, a := range Adapters(m) {
			a.Dropout = c.Dropout
		}
		return err
	}
	return torch.Run(func() (err error) {
		torch.NoGrad(func() {
			for _, l := range all {
				if err == nil && c.Adapts(l) {
					torch.Scoped(func() { err = l.attachFresh(c) })
				}
			}
		})
		return err
	})
}

// attachFresh gives the layer the adapter that c begins with.
func (l Layer) attachFresh(c Config) error {
	a := l.newAdapter(c)
	device := l.Linear.Weight.Device()
	var weight torch.Tensor
	if c.Init == InitPiSSA || c.DoRA {
		all, err := l.Linear.Weight.Values()
		if err != nil {
			return err
		}
		weight = l.weight(all).ToDevice(device).To(torch.Float32)
	}
	l.attach(a)
	if c.Init == InitPiSSA {
		principal(a, weight)
		weight = weight.Sub(a.Delta()) // a copy: the weight itself changes below
		l.subtract(a)
	} else {
		bound := 1 / math.Sqrt(float64(a.A.Shape[1]))
		a.A.Tensor = torch.Empty(a.A.Shape, torch.Float32, device).Uniform(-bound, bound).Own()
		a.B.Tensor = torch.Zeros(a.B.Shape, torch.Float32, device).Own()
	}
	if c.DoRA {
		a.Reset(weight)
	}
	return nil
}

// principal sets A and B, whose scaled product is the best approximation of the weight of their
// rank, and remembers them in A0 and B0.
func principal(a *nn.LoRA, weight torch.Tensor) {
	u, s, v := weight.SVD()
	n := min(a.A.Shape[0], s.Size(0))
	roots := s.Narrow(0, 0, n).MulScalar(1 / a.Scale).PowScalar(0.5)
	rows := v.Transpose(0, 1).Narrow(0, 0, n).Mul(roots.Unsqueeze(1))
	columns := u.Narrow(1, 0, n).Mul(roots)
	full := func(part torch.Tensor, shape []int) torch.Tensor { // a rank beyond the weight's
		t := torch.Zeros(shape, torch.Float32, weight.Device())
		t.Narrow(0, 0, part.Size(0)).Narrow(1, 0, part.Size(1)).Copy(part)
		return t.Own()
	}
	a.A.Tensor, a.B.Tensor = full(rows, a.A.Shape), full(columns, a.B.Shape)
	a.A0, a.B0 = full(rows, a.A.Shape), full(columns, a.B.Shape)
}

// subtract takes the product of A0 and B0 from the layer's weight, now or when it is read.
func (l Layer) subtract(a *nn.LoRA) {
	change := func(fused torch.Tensor) {
		torch.NoGrad(func() {
			torch.Scoped(func() {
				first := a.B0.Matmul(a.A0).MulScalar(a.Scale).ToDevice(fused.Device())
				weight := l.weight(fused.Detach())
				weight.Copy(weight.To(torch.Float32).Sub(first))
			})
		})
	}
	p := l.Linear.Weight
	read := p.Deferred
	if read == nil {
		change(p.Tensor)
		return
	}
	p.Deferred = func(into *nn.Param) error {
		err := read(into)
		if err == nil {
			change(into.Tensor)
		}
		return err
	}
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
				if a := l.adapter(); a != nil {
					torch.Scoped(func() {
						weight := l.weight(l.Linear.Weight.Detach())
						weight.Copy(a.Merge(weight))
					})
					l.detach()
				}
			}
		})
		Remove(m)
		return nil
	})
}

// Remove frees m's adapters. The base weights stay as they are: after PiSSA without what A and B
// began as.
func Remove(m model.Model) {
	for _, l := range Layers(m) {
		if l.adapter() != nil {
			l.detach()
		}
	}
	nn.Linears(m, func(_ []string, l *nn.Linear) { l.LoRA = nil })
}

// detach frees the layer's adapter.
func (l Layer) detach() {
	l.adapter().Free()
	l.Linear.LoRA[l.Index] = nil
}
