package network

import (
	"fmt"

	"conquer/model"
	"conquer/torch"
)

// Carry is the states that the state-space layers carry from a micro-batch to the one that goes on
// with its rows: of each convolution and of each scan, without gradients.
type Carry struct {
	layers []model.LayerCache // of each block; those without states are empty
	after  []model.LayerCache // after the micro-batch that ran last
}

// NewCarry returns empty states for rows rows, or an error if m has blocks whose states cannot be
// carried.
func NewCarry(m model.Model, rows int) (*Carry, error) {
	c := &Carry{}
	states := 0
	for i, block := range m.Blocks() {
		layer := block.NewCache(rows, 1, model.DType(m), model.Device(m))
		one := &model.Cache{Layers: []model.LayerCache{layer}}
		var kept model.LayerCache
		if layer.State.Defined() {
			if layer.Keys.Defined() {
				one.Free()
				return nil, fmt.Errorf("block %d has attention beside its state-space layer, and "+
					"only states are carried", i)
			}
			states++
			torch.Scoped(func() {
				kept.Conv = layer.Conv.ZerosLike().Own()
				kept.State = layer.State.To(torch.Float32).ZerosLike().Own()
			})
		}
		one.Free()
		c.layers = append(c.layers, kept)
	}
	c.after = make([]model.LayerCache, len(c.layers))
	if states == 0 {
		return nil, fmt.Errorf("the architecture %s has no state-space layers", m.Architecture())
	}
	return c, nil
}

// Begin prepares the states for a micro-batch: those after the last one, with zeros for the rows
// that do not continue. A Carry that is nil stays so.
func (c *Carry) Begin(continues []bool) {
	if c == nil {
		return
	}
	c.settle()
	keep := make([]float32, len(continues))
	for r, goes := range continues {
		if goes {
			keep[r] = 1
		}
	}
	torch.NoGrad(func() {
		torch.Scoped(func() {
			for i := range c.layers {
				for _, t := range states(&c.layers[i]) {
					if !t.Defined() {
						continue
					}
					shape := append([]int{len(keep)}, make([]int, t.Rank()-1)...)
					for d := 1; d < len(shape); d++ {
						shape[d] = 1
					}
					mask := torch.From(keep, shape...).ToDevice(t.Device())
					none := mask.Equal(mask.ZerosLike())
					t.Copy(t.MaskedFill(none, 0))
				}
			}
		})
	})
}

// settle makes the states after the last micro-batch those that the next one begins with.
func (c *Carry) settle() {
	for i := range c.after {
		to := states(&c.layers[i])
		for j, t := range states(&c.after[i]) {
			if t.Defined() {
				to[j].Free()
				*to[j], *t = *t, torch.Tensor{}
			}
		}
	}
}

// Reset makes all states zero, as before the first micro-batch.
func (c *Carry) Reset() {
	c.settle()
	torch.NoGrad(func() {
		for i := range c.layers {
			for _, t := range states(&c.layers[i]) {
				if t.Defined() {
					t.Zero()
				}
			}
		}
	})
}

// Each calls visit with every state [rows, ...] and a name that is unique among them.
func (c *Carry) Each(visit func(name string, t torch.Tensor)) {
	c.settle()
	for i := range c.layers {
		for j, t := range states(&c.layers[i]) {
			if t.Defined() {
				visit(fmt.Sprintf("%d.%s", i, []string{"conv", "state"}[j]), *t)
			}
		}
	}
}

// Layer returns what block i of a pass takes, nil if it carries nothing.
func (c *Carry) layer(i int) *model.LayerCache {
	if c == nil || !c.layers[i].State.Defined() {
		return nil
	}
	after := &c.after[i]
	for _, t := range states(after) { // of the same block before it runs again
		t.Free()
		*t = torch.Tensor{}
	}
	layer := c.layers[i]
	layer.After = after
	return &layer
}

// Free frees the states.
func (c *Carry) Free() {
	if c == nil {
		return
	}
	for _, list := range [][]model.LayerCache{c.layers, c.after} {
		for i := range list {
			for _, t := range states(&list[i]) {
				t.Free()
				*t = torch.Tensor{}
			}
		}
	}
}

func states(l *model.LayerCache) []*torch.Tensor { return []*torch.Tensor{&l.Conv, &l.State} }
