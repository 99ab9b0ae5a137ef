// Package parallel divides a model's weights over the processes of a group (tensor parallelism: Shoeybi et al., arXiv
// 1909.08053). The model is one that knows nothing of it: its layers find in each weight which part of it is here
// ([nn.Shard]), and sum where that makes a part of a sum.
//
//	d, err := parallel.Divide(m, world.All, device)
//
// Attention is divided by heads, in whole groups that share keys and values; a feed-forward layer by its inner width; a
// state-space layer by heads, in whole groups that share B and C, or, where it has a single group, with B and C in every
// process; the embedding and the head by the vocabulary. What remains, normalizations above all, every process holds. A layer
// costs one sum over the group forward and one backward, and so does the embedding; the head's loss needs two numbers a
// token. Numbers that the group's size does not divide are cut as evenly as they can be.
package parallel

import (
	"fmt"

	"conquer/bamba"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// Division is a model whose weights are divided over a group.
type Division struct {
	Group  *dist.Group
	params []*nn.Param
	parts  map[*nn.Param]*nn.Shard
	// While the weights are whole: what they were before.
	aside []torch.Tensor
}

// Divide leaves of each of m's weights, adapters included, this process's part in memory of its own on device. Of a model
// without weights it says which part is to be loaded. All processes of the group call it, with equal weights.
func Divide(m model.Model, group *dist.Group, device torch.Device) (*Division, error) {
	d := &Division{Group: group, parts: map[*nn.Param]*nn.Shard{}}
	if err := d.plan(m); err != nil {
		return nil, err
	}
	return d, torch.Run(func() error {
		for _, p := range d.params {
			if p.Defined() {
				p.Divide(d.parts[p], device)
			} else {
				p.Shard = d.parts[p]
			}
		}
		return nil
	})
}

// plan decides what becomes of every weight.
func (d *Division) plan(m model.Model) (err error) {
	d.rows(m.Head(), d.each(one(m.Head().Shape[0])))
	nn.Layers(m, func(name string, layer any) {
		if err != nil {
			return
		}
		switch l := layer.(type) {
		case *nn.Embedding:
			d.rows(l.Weight, d.each(one(l.Weight.Shape[0])))
		case *model.Attention:
			err = d.attention(l)
		case *bamba.Mixer:
			err = d.mixer(l)
		case *nn.SwiGLU:
			inner := l.Down.Weight.Shape[1]
			d.outputs(l.GateUp, d.each(one(inner), section{inner, inner, 1}))
			d.inputs(l.Down, d.each(one(inner)))
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	})
	if err != nil {
		return err
	}
	// The rest is whole everywhere.
	names := map[*nn.Param]string{}
	nn.Walk(m, func(p nn.Component) { names[p.Param] = p.Name })
	for _, p := range nn.Params(m) {
		if d.parts[p] == nil && len(p.Shape) > 1 {
			return fmt.Errorf("%s cannot be divided over processes: its layer is unknown here", names[p])
		}
		d.shared(p)
	}
	return nil
}

// section is `count` of something in a row, beginning with row or column start of a weight, each of unit rows or columns.
// shared ones go to all.
type section struct{ start, count, unit int }

func one(count int) section { return section{0, count, 1} }

// each divides sections over the ranks. A unit of 0 marks count rows that all ranks hold.
func (d *Division) each(sections ...section) [][]nn.Range {
	held := make([][]nn.Range, d.Group.Size)
	for rank := range held {
		for _, s := range sections {
			if s.unit == 0 {
				held[rank] = append(held[rank], nn.Range{First: s.start, Count: s.count, Replicated: true})
				continue
			}
			first, end := s.count*rank/d.Group.Size, s.count*(rank+1)/d.Group.Size
			held[rank] = append(held[rank], nn.Range{First: s.start + first*s.unit, Count: (end - first) * s.unit})
		}
	}
	return held
}

// attention divides a layer by its key and value heads, with the queries that share them.
func (d *Division) attention(l *model.Attention) error {
	heads, keyHeads, headDim := l.Sizes()
	if keyHeads < d.Group.Size {
		return fmt.Errorf("%d heads of keys and values cannot be divided over %d processes: choose %d or fewer", keyHeads, d.Group.Size, keyHeads)
	}
	queries, keys := headDim*heads/keyHeads, headDim*keyHeads
	d.outputs(l.QKV, d.each(section{0, keyHeads, queries}, section{keyHeads * queries, keyHeads, headDim}, section{keyHeads*queries + keys, keyHeads, headDim}))
	d.inputs(l.Output, d.each(section{0, keyHeads, queries}))
	return nil
}

// mixer divides a state-space layer by groups of heads, or a single group by heads.
func (d *Division) mixer(l *bamba.Mixer) error {
	heads, headDim, groups, state := l.Sizes()
	inner, shared := heads*headDim, groups*state
	units, common := groups, func(start int) section { return section{start, groups, state} } // B or C
	if groups == 1 {
		units, common = heads, func(start int) section { return section{start, state, 0} }
	}
	if units < d.Group.Size {
		return fmt.Errorf("%d heads in %d groups cannot be divided over %d processes: choose %d or fewer", heads, groups, d.Group.Size, units)
	}
	channels := func(start int) section { return section{start, units, inner / units} }
	perHead := func(start int) section { return section{start, units, heads / units} }
	d.outputs(l.In, d.each(channels(0), channels(inner), common(2*inner), common(2*inner+shared), perHead(2*inner+2*shared)))
	d.rows(l.Conv.Weight, d.each(channels(0), common(inner), common(inner+shared)))
	if l.Conv.Bias != nil {
		d.rows(l.Conv.Bias, d.each(channels(0), common(inner), common(inner+shared)))
	}
	for _, p := range []*nn.Param{l.DTBias, l.ALog, l.D} {
		d.rows(p, d.each(perHead(0)))
	}
	d.rows(l.Norm.Weight, d.each(channels(0)))
	d.inputs(l.Out, d.each(channels(0)))
	return nil
}

// outputs divides a layer by what it makes: rows of its weight, and of the second factors of its adapters.
func (d *Division) outputs(l *nn.Linear, held [][]nn.Range) {
	d.rows(l.Weight, held)
	if l.Bias != nil {
		d.rows(l.Bias, held)
	}
	start := 0
	for i, adapter := range l.LoRA {
		end := start + l.Rows[i]
		if adapter != nil {
			d.shared(adapter.A)
			inside := make([][]nn.Range, len(held))
			for rank, sections := range held {
				for _, s := range sections {
					if start <= s.First && s.First < end {
						inside[rank] = append(inside[rank], nn.Range{First: s.First - start, Count: s.Count, Replicated: s.Replicated})
					}
				}
			}
			d.rows(adapter.B, inside)
		}
		start = end
	}
}

// inputs divides a layer by what it takes: columns of its weight, and of the first factor of its adapter.
func (d *Division) inputs(l *nn.Linear, held [][]nn.Range) {
	d.cut(l.Weight, 1, held)
	if l.Bias != nil {
		d.shared(l.Bias)
	}
	for _, adapter := range l.LoRA {
		if adapter != nil {
			d.cut(adapter.A, 1, held)
			d.shared(adapter.B)
		}
	}
}

func (d *Division) rows(p *nn.Param, held [][]nn.Range) { d.cut(p, 0, held) }
func (d *Division) shared(p *nn.Param)                  { d.cut(p, 0, d.each(section{0, p.Shape[0], 0})) }

// cut decides about a weight, unless that is done: a head may be the embedding.
func (d *Division) cut(p *nn.Param, dim int, held [][]nn.Range) {
	if d.parts[p] == nil {
		d.parts[p] = &nn.Shard{Group: d.Group, Dim: dim, Held: held}
		d.params = append(d.params, p)
	}
}

// DivideTokens divides the hidden states between the layers, too, see [nn.Tokens]: for training, on batches whose tokens the
// group's size divides.
func (d *Division) DivideTokens() {
	tokens := &nn.Tokens{}
	for _, part := range d.parts {
		part.Tokens = tokens
	}
}

// Whole makes the weights whole again, on every process where keep is set; the others only give their parts. Until Part, the
// model is one that no processes have divided. All processes call it.
func (d *Division) Gather(keep bool) {
	for _, p := range d.params {
		whole := p.Gather()
		if !keep {
			whole.Free()
			continue
		}
		d.aside = append(d.aside, p.Tensor)
		p.Tensor, p.Shard = whole, nil
	}
}

// Part ends Whole. What was done to the whole weights is lost; the part of a weight that was freed is freed.
func (d *Division) Release() {
	for i := range d.aside {
		p := d.params[i]
		if p.Defined() {
			p.Tensor.Free()
			p.Tensor = d.aside[i]
		} else {
			d.aside[i].Free()
		}
		p.Shard = d.parts[p]
	}
	d.aside = nil
}

// Forget lets a model without weights, whose parts were only to be looked at, be whole again.
func (d *Division) Forget() {
	for _, p := range d.params {
		p.Shard = nil
	}
}

// Mixed reports whether there is a weight of which every process holds some of its own and some that all hold.
func (d *Division) Mixed() bool {
	for _, part := range d.parts {
		for _, s := range part.Mine() {
			if s.Replicated != part.Mine()[0].Replicated {
				return true
			}
		}
	}
	return false
}

// Even reports whether the processes hold equally much of every weight of which they share a part.
func (d *Division) Even() bool {
	for _, part := range d.parts {
		for rank := range part.Held {
			if part.Replicated() && part.Count(rank) != part.Count(0) {
				return false
			}
		}
	}
	return true
}
