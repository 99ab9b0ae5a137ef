package nn

import (
	"slices"

	"conquer/torch"
	"conquer/torch/dist"
)

// Part is what this process holds of a weight that the processes of a group have divided among them (Shoeybi et al., arXiv
// 1909.08053): some of its rows, of which each makes an output, or some of its columns, of which each takes an input. Layers
// look at nothing else: one that has rows alone is handed the whole input (spread), one that has columns gives a part of a
// sum (collect).
//
// The gradient that a pass leaves at elements that are Shared is a part, too: it must be summed over the group. So it is in
// a norm before a layer that is divided, whose own input is handed out.
type Shard struct {
	Group  *dist.Group
	Dim    int       // 0: rows are divided, 1: columns are
	Ranges [][]Range // by rank of the group, what each holds, one behind the other
	Tokens *Tokens   // where the hidden states between the layers are divided as well, else nil
}

// Tokens is the batch that a model's layers work on, [Batch,Length] tokens. Between the layers each process has the hidden
// states of an equal stretch of all of them, [1,N,D], and normalizes those (sequence parallelism: Korthikanti et al., arXiv
// 2205.05198): the input of a layer is put together, and its output, a part of a sum, is added up and given out. The embedding
// sets the numbers; Batch·Length must be a multiple of the number of processes. It is for passes without a cache.
type Tokens struct{ Batch, Length int }

// Range is the rows or columns [First, First+Count) of a weight. Where it is Shared, all processes hold it.
type Range struct {
	First, Count int
	Replicated   bool
}

// Own lists the ranges that this process holds.
func (p *Shard) Own() []Range { return p.Ranges[p.Group.Rank] }

// Count is how many rows or columns the group's rank holds.
func (p *Shard) Count(rank int) (n int) {
	for _, s := range p.Ranges[rank] {
		n += s.Count
	}
	return n
}

// Replicated reports whether all processes of the group hold something of the weight.
func (p *Shard) Replicated() bool {
	return p != nil && slices.ContainsFunc(p.Own(), func(s Range) bool { return s.Replicated })
}

// Local is the shape of the tensor: Shape, or its part's.
func (p *Param) Local() []int {
	if p.Shard == nil {
		return p.Shape
	}
	return p.Shard.shape(p, p.Shard.Group.Rank)
}

func (part *Shard) shape(p *Param, rank int) []int {
	shape := slices.Clone(p.Shape)
	shape[part.Dim] = part.Count(rank)
	return shape
}

// heldRows are the rows that this process holds of each of the pieces that a fused weight consists of.
func (p *Param) heldRows() []int {
	if p.Shard == nil || p.Shard.Dim != 0 {
		return p.Rows
	}
	held, start := make([]int, len(p.Rows)), 0
	for i, rows := range p.Rows {
		for _, s := range p.Shard.Own() {
			held[i] += max(0, min(s.First+s.Count, start+rows)-max(s.First, start))
		}
		start += rows
	}
	return held
}

// Divide keeps, of p's tensor, what part says, in memory of its own on device; of values that are promised, the promise of
// that. p remains a leaf if it was one.
func (p *Param) Divide(part *Shard, device torch.Device) {
	if p.Deferred != nil {
		p.Shard = part
		p.Defer(p.DType(), device, p.Deferred)
		return
	}
	torch.NoGrad(func() {
		torch.Scoped(func() {
			var held []torch.Tensor
			for _, s := range part.Own() {
				held = append(held, p.Detach().Narrow(part.Dim, s.First, s.Count))
			}
			own, trained := torch.Cat(part.Dim, held...).ToDevice(device).Contiguous().Own(), p.RequiresGrad()
			p.Tensor.Free()
			p.Tensor, p.Shard = own, part
			p.RequireGrad(trained)
		})
	})
}

// Store copies rows [start, start+t.Size(0)) of the whole weight into the tensor, as far as they are here.
func (p *Param) Store(start int, t torch.Tensor) {
	rows := t.Size(0)
	if p.Shard == nil {
		p.Narrow(0, start, rows).Copy(t.ToDevice(p.Device())) // by way of pinned memory
		return
	}
	at := 0
	for _, s := range p.Shard.Own() {
		first, end := max(s.First, start), min(s.First+s.Count, start+rows)
		switch {
		case p.Shard.Dim == 1:
			p.Narrow(0, start, rows).Narrow(1, at, s.Count).Copy(t.Narrow(1, s.First, s.Count))
		case first < end:
			p.Narrow(0, at+first-s.First, end-first).Copy(t.Narrow(0, first-start, end-first))
		}
		at += s.Count
	}
}

// Gather puts the whole weight together, on every process of the group, in memory of its own.
func (p *Param) Gather() (whole torch.Tensor) {
	part := p.Shard
	torch.NoGrad(func() {
		torch.Scoped(func() {
			longest := 0
			for rank := range part.Ranges {
				longest = max(longest, count(part.shape(p, rank)))
			}
			mine := torch.Zeros([]int{longest}, p.DType(), p.Device())
			mine.Narrow(0, 0, p.Numel()).Copy(p.Detach().Reshape(-1))
			all := torch.Empty([]int{len(part.Ranges), longest}, p.DType(), p.Device())
			part.Group.AllGather(all, mine).Wait()
			whole = torch.Empty(p.Shape, p.DType(), p.Device()).Own()
			for rank, sections := range part.Ranges {
				shape, start := part.shape(p, rank), 0
				from := all.Select(0, rank).Narrow(0, 0, count(shape)).View(shape...)
				for _, s := range sections {
					whole.Narrow(part.Dim, s.First, s.Count).Copy(from.Narrow(part.Dim, start, s.Count))
					start += s.Count
				}
			}
		})
	})
	return whole
}

func count(shape []int) int {
	n := 1
	for _, size := range shape {
		n *= size
	}
	return n
}

// spread is hidden states x as the input of a product with p, or of a norm before it.
func (p *Param) spread(x torch.Tensor) torch.Tensor {
	switch part := p.Shard; {
	case part == nil || part.Dim != 0:
		return x
	case part.Tokens != nil:
		width := x.Size(-1)
		return part.Group.Gather(x.View(-1, width)).View(part.Tokens.Batch, part.Tokens.Length, width)
	default:
		return part.Group.Spread(x)
	}
}

// collect is what p's product made of the input, y, as the whole weight's would have.
func (p *Param) collect(y torch.Tensor) torch.Tensor {
	switch part := p.Shard; {
	case part == nil || part.Dim != 1:
		return y
	case part.Tokens != nil:
		return part.Group.Scatter(y.Reshape(-1, y.Size(-1))).Unsqueeze(0)
	default:
		return part.Group.Collect(y)
	}
}

// tokens reports whether the hidden states, too, are divided.
func (p *Param) tokens() bool { return p.Shard != nil && p.Shard.Tokens != nil }

// Pick takes rows (int64 [N]) of hidden states [B,L,D], counted over all of their tokens, as the input of the head p or of a
// norm before it: [N,D].
func (p *Param) Pick(hidden, rows torch.Tensor) torch.Tensor {
	if p.tokens() { // some are another's
		hidden = p.spread(hidden)
	}
	picked := hidden.View(-1, hidden.Size(-1)).IndexSelect(0, rows)
	if p.tokens() {
		return picked
	}
	return p.spread(picked)
}

// lookup picks the rows ids of an embedding whose rows are divided: those that are not here are zero, and others' to give.
func (p *Param) lookup(ids torch.Tensor) torch.Tensor {
	s := p.Shard.Own()[0]
	local := ids.AddScalar(-float64(s.First))
	row := local.Clamp(0, float64(s.Count-1))
	here := local.Equal(row).Unsqueeze(-1).To(p.DType())
	part := torch.Embedding(p.Tensor, row).Mul(here)
	if t := p.Shard.Tokens; t != nil {
		t.Batch, t.Length = ids.Size(0), ids.Size(1)
		return p.Shard.Group.Scatter(part.View(-1, part.Size(-1))).Unsqueeze(0)
	}
	return p.Shard.Group.Collect(part)
}

// together is Forward where each process has some of the channels that are normalized together.
func (n *GatedRMSNorm) together(x, z torch.Tensor) torch.Tensor {
	gated := x.To(torch.Float32).Mul(z.To(torch.Float32).Silu())
	// Every process's channels depend on the sum, so that its gradient, too, is a sum over all.
	group := n.Weight.Shard.Group
	mean := group.Spread(group.Collect(gated.Mul(gated).SumDim(-1, true))).MulScalar(1 / float64(n.Group))
	return gated.Mul(mean.AddScalar(n.Eps).Rsqrt()).To(x.DType()).Mul(n.Weight.Tensor)
}
