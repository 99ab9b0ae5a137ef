// Package parallel divides a model's weights over the processes of a group (tensor parallelism:
// Shoeybi et al., arXiv 1909.08053). Each parameter then knows its [nn.Shard], and the layers sum
// over the group where a shard computes one term of a sum.
//
//	d, err := parallel.Divide(m, world.All, device)
//
// Each layer says how it divides ([nn.Divisible]): attention by key and value heads with their
// query heads, SwiGLU by its inner width, a state-space layer by groups of heads, or, if it has a
// single group, by heads with B and C in every process, and the embedding and the head by the
// vocabulary. Every process holds the rest, such as norms. A layer costs one sum over the group
// forward and one backward, and so does the embedding. The head's loss exchanges two numbers per
// token. Sizes that the group's size does not divide are shared as evenly as possible.
package parallel

import (
	"fmt"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// Division is a model whose weights are divided over a group.
type Division struct {
	Group  *dist.Group
	params []*nn.Param
	shards map[*nn.Param]*nn.Shard
	aside  []torch.Tensor // this process's shards, while the weights are gathered
}

// Divide replaces each of m's weights, adapters included, by this process's shard, in memory of its
// own on device. In a model without weights it sets which shards will be loaded. All processes of
// the group call it, with equal weights.
func Divide(m model.Model, group *dist.Group, device torch.Device) (*Division, error) {
	d := &Division{Group: group, shards: map[*nn.Param]*nn.Shard{}}
	if err := d.plan(m); err != nil {
		return nil, err
	}
	return d, torch.Run(func() error {
		for _, p := range d.params {
			if p.Defined() {
				p.Divide(d.shards[p], device)
			} else {
				p.Shard = d.shards[p]
			}
		}
		return nil
	})
}

// plan asks the layers how their weights divide.
func (d *Division) plan(m model.Model) (err error) {
	plan := divider{d}
	plan.Rows(m.Head().Param, nn.Span{Start: 0, Count: m.Head().Shape[0], Unit: 1})
	nn.Layers(m, func(name string, layer any) {
		if l, ok := layer.(nn.Divisible); ok && err == nil {
			if err = l.Divide(plan); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
		}
	})
	if err != nil {
		return err
	}
	// Every process holds the rest.
	names := map[*nn.Param]string{}
	nn.Walk(m, func(p nn.Component) { names[p.Param] = p.Name })
	for _, p := range nn.Params(m) {
		if d.shards[p] == nil && len(p.Shape) > 1 {
			return fmt.Errorf("%s cannot be divided over processes: its layer does not say how",
				names[p])
		}
		d.replicate(p)
	}
	return nil
}

// divider is a Division as layers see it.
type divider struct{ *Division }

// Size is the number of processes.
func (d divider) Size() int { return d.Group.Size }

// ranges divides spans over the ranks.
func (d divider) ranges(spans []nn.Span) [][]nn.Range {
	ranges := make([][]nn.Range, d.Size())
	for rank := range ranges {
		for _, s := range spans {
			if s.Unit == 0 {
				ranges[rank] = append(ranges[rank], nn.Range{First: s.Start, Count: s.Count,
					Replicated: true})
				continue
			}
			first, end := s.Count*rank/d.Size(), s.Count*(rank+1)/d.Size()
			r := nn.Range{First: s.Start + first*s.Unit, Count: (end - first) * s.Unit}
			ranges[rank] = append(ranges[rank], r)
		}
	}
	return ranges
}

// Rows divides the rows of p.
func (d divider) Rows(p *nn.Param, spans ...nn.Span) { d.cut(p, 0, d.ranges(spans)) }

// Outputs divides what l produces.
func (d divider) Outputs(l *nn.Linear, spans ...nn.Span) {
	ranges := d.ranges(spans)
	d.cut(l.Weight, 0, ranges)
	if l.Bias != nil {
		d.cut(l.Bias, 0, ranges)
	}
	start := 0
	for i, adapter := range l.LoRA {
		end := start + l.Rows[i]
		if adapter != nil {
			d.replicate(adapter.A)
			inside := make([][]nn.Range, len(ranges))
			for rank, list := range ranges {
				for _, r := range list {
					if start <= r.First && r.First < end {
						r.First -= start
						inside[rank] = append(inside[rank], r)
					}
				}
			}
			d.cut(adapter.B, 0, inside)
		}
		start = end
	}
}

// Inputs divides what l consumes.
func (d divider) Inputs(l *nn.Linear, spans ...nn.Span) {
	ranges := d.ranges(spans)
	d.cut(l.Weight, 1, ranges)
	if l.Bias != nil {
		d.replicate(l.Bias)
	}
	for _, adapter := range l.LoRA {
		if adapter != nil {
			d.cut(adapter.A, 1, ranges)
			d.replicate(adapter.B)
		}
	}
}

// cut sets the shard of a weight, unless it is set already: a head may be the embedding.
func (d *Division) cut(p *nn.Param, dim int, ranges [][]nn.Range) {
	if d.shards[p] == nil {
		d.shards[p] = &nn.Shard{Group: d.Group, Dim: dim, Ranges: ranges}
		d.params = append(d.params, p)
	}
}

// replicate gives every process all of p.
func (d *Division) replicate(p *nn.Param) {
	divider{d}.Rows(p, nn.Span{Start: 0, Count: p.Shape[0], Unit: 0})
}

// DivideTokens divides the hidden states between the layers as well ([nn.Tokens]), for training on
// batches whose number of tokens is a multiple of the group's size.
func (d *Division) DivideTokens() {
	tokens := &nn.Tokens{}
	for _, part := range d.shards {
		part.Tokens = tokens
	}
}

// Gather makes the weights whole on every process where keep is set; the others only send their
// shards. Until [Division.Release] the model works like an undivided one. All processes call it.
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

// Release ends Gather. Changes of the whole weights are lost. If a whole weight was freed, its
// shard is freed, too.
func (d *Division) Release() {
	for i := range d.aside {
		p := d.params[i]
		if p.Defined() {
			p.Tensor.Free()
			p.Tensor = d.aside[i]
		} else {
			d.aside[i].Free()
		}
		p.Shard = d.shards[p]
	}
	d.aside = nil
}

// Forget undoes Divide for a model without weights.
func (d *Division) Forget() {
	for _, p := range d.params {
		p.Shard = nil
	}
}

// Mixed reports whether a weight has both replicated ranges and ranges of single processes.
func (d *Division) Mixed() bool {
	for _, part := range d.shards {
		for _, s := range part.Own() {
			if s.Replicated != part.Own()[0].Replicated {
				return true
			}
		}
	}
	return false
}

// Even reports whether the processes' shards of every weight with replicated ranges have equal
// sizes.
func (d *Division) Even() bool {
	for _, part := range d.shards {
		for rank := range part.Ranges {
			if part.Replicated() && part.Count(rank) != part.Count(0) {
				return false
			}
		}
	}
	return true
}
