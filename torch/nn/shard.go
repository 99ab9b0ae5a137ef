package nn

import (
	"slices"

	"conquer/torch"
	"conquer/torch/dist"
)

// Shard is what this process holds of a parameter that is divided over a group (tensor parallelism:
// Shoeybi et al., arXiv 1909.08053): some of its rows, each of which computes an output, or some of
// its columns, each of which takes an input. A layer with rows gets the whole input
// ([Param.spread]); the outputs of a layer with columns are summed over the group
// ([Param.collect]).
//
// The gradient of replicated ranges, and of a norm before a divided layer, is one term of a sum
// over the group.
type Shard struct {
	Group  *dist.Group
	Dim    int       // 0: rows are divided, 1: columns are
	Ranges [][]Range // by rank of the group, in the order in which they lie in the tensor
	Tokens *Tokens   // if the hidden states between the layers are divided as well, else nil
}

// Tokens is the size of the batch that a model's layers work on, [Batch,Length] tokens, under
// sequence parallelism (Korthikanti et al., arXiv 2205.05198): between the layers each process
// holds and normalizes the hidden states of an equal share of the tokens, [1,N,D]. The input of a
// layer is gathered, its output is reduced and scattered. The embedding sets the sizes;
// Batch·Length must be a multiple of the number of processes. Passes with a cache do not support
// it.
type Tokens struct{ Batch, Length int }

// Range is the rows or columns [First, First+Count) of a parameter. If it is Replicated, all
// processes hold it.
type Range struct {
	First, Count int
	Replicated   bool
}

// Own lists the ranges that this process holds.
func (p *Shard) Own() []Range { return p.Ranges[p.Group.Rank] }

// Count is the number of rows or columns that a rank of the group holds.
func (p *Shard) Count(rank int) (n int) {
	for _, s := range p.Ranges[rank] {
		n += s.Count
	}
	return n
}

// Replicated reports whether all processes of the group hold some range of the parameter.
func (p *Shard) Replicated() bool {
	return p != nil && slices.ContainsFunc(p.Own(), func(s Range) bool { return s.Replicated })
}

// Local is the shape of the tensor: Shape, or that of this process's shard.
func (p *Param) Local() []int {
	if p.Shard == nil {
		return p.Shape
	}
	return p.Shard.shape(p, p.Shard.Group.Rank)
}

func (shard *Shard) shape(p *Param, rank int) []int {
	shape := slices.Clone(p.Shape)
	shape[shard.Dim] = shard.Count(rank)
	return shape
}

// localRows is the number of rows that this process holds of each component.
func (l *Linear) localRows() []int {
	p := l.Weight
	if p.Shard == nil || p.Shard.Dim != 0 {
		return l.Rows
	}
	ranges, start := make([]int, len(l.Rows)), 0
	for i, rows := range l.Rows {
		for _, s := range p.Shard.Own() {
			ranges[i] += max(0, min(s.First+s.Count, start+rows)-max(s.First, start))
		}
		start += rows
	}
	return ranges
}

// Divide replaces p's tensor by this process's shard, in memory of its own on device. A deferred
// parameter stays deferred. p remains a leaf of autograd if it was one.
func (p *Param) Divide(shard *Shard, device torch.Device) {
	if p.Deferred != nil {
		p.Shard = shard
		p.Defer(p.DType(), device, p.Deferred)
		return
	}
	torch.NoGrad(func() {
		torch.Scoped(func() {
			var ranges []torch.Tensor
			for _, s := range shard.Own() {
				ranges = append(ranges, p.Detach().Narrow(shard.Dim, s.First, s.Count))
			}
			own, trained := torch.Cat(shard.Dim, ranges...).ToDevice(device).Contiguous().Own(),
				p.RequiresGrad()
			p.Tensor.Free()
			p.Tensor, p.Shard = own, shard
			p.RequireGrad(trained)
		})
	})
}

// Store copies t, a component as checkpoints hold it that begins at row start of the whole
// parameter, into the tensor, as far as this process holds its rows.
func (p *Param) Store(start int, t torch.Tensor) {
	if p.Stack > 0 {
		t = t.Reshape(-1, t.Size(-1))
	}
	rows := t.Size(0)
	if p.Shard == nil {
		p.Narrow(0, start, rows).Copy(t.ToDevice(p.Device())) // through pinned memory
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

// Gather returns the whole parameter, on every process of the group, in memory of its own.
func (p *Param) Gather() (whole torch.Tensor) {
	shard := p.Shard
	torch.NoGrad(func() {
		torch.Scoped(func() {
			longest := 0
			for rank := range shard.Ranges {
				longest = max(longest, count(shard.shape(p, rank)))
			}
			mine := torch.Zeros([]int{longest}, p.DType(), p.Device())
			mine.Narrow(0, 0, p.Numel()).Copy(p.Detach().Reshape(-1))
			all := torch.Empty([]int{len(shard.Ranges), longest}, p.DType(), p.Device())
			shard.Group.AllGather(all, mine).Wait()
			whole = torch.Empty(p.Shape, p.DType(), p.Device()).Own()
			for rank, ranges := range shard.Ranges {
				shape, start := shard.shape(p, rank), 0
				from := all.Select(0, rank).Narrow(0, 0, count(shape)).View(shape...)
				for _, s := range ranges {
					whole.Narrow(shard.Dim, s.First, s.Count).Copy(from.Narrow(shard.Dim, start,
						s.Count))
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

// spread gives hidden states x as the input of a GEMM with p, or of a norm before it.
func (p *Param) spread(x torch.Tensor) torch.Tensor {
	switch shard := p.Shard; {
	case shard == nil || shard.Dim != 0:
		return x
	case shard.Tokens != nil:
		width := x.Size(-1)
		return shard.Group.Gather(x.View(-1, width)).View(shard.Tokens.Batch, shard.Tokens.Length,
			width)
	default:
		return shard.Group.Spread(x)
	}
}

// collect turns y, the output of a GEMM with this process's shard, into that of the whole
// parameter.
func (p *Param) collect(y torch.Tensor) torch.Tensor {
	switch shard := p.Shard; {
	case shard == nil || shard.Dim != 1:
		return y
	case shard.Tokens != nil:
		return shard.Group.Scatter(y.Reshape(-1, y.Size(-1))).Unsqueeze(0)
	default:
		return shard.Group.Collect(y)
	}
}

// tokens reports whether the hidden states are divided, too.
func (p *Param) tokens() bool { return p.Shard != nil && p.Shard.Tokens != nil }

// Pick selects rows (int64 [N], indices over all B·L tokens) of hidden states [B,L,D] as the input
// of the head p or of a norm before it: [N,D].
func (p *Param) Pick(hidden, rows torch.Tensor) torch.Tensor {
	if p.tokens() { // other processes hold some of the rows
		hidden = p.spread(hidden)
	}
	picked := hidden.View(-1, hidden.Size(-1)).IndexSelect(0, rows)
	if p.tokens() {
		return picked
	}
	return p.spread(picked)
}

// lookup selects the rows ids of an embedding whose rows are divided. Rows of other processes are
// zero here, and added by them.
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

// divided is the norm of x, gated by z if that is a tensor, if several processes hold the channels
// of a group.
func (n *GatedRMSNorm) divided(x, z torch.Tensor) torch.Tensor {
	gated := x.To(torch.Float32)
	if z.Defined() {
		gated = gated.Mul(z.To(torch.Float32).Silu())
	}
	// Every process's channels depend on the sum, so its gradient is a sum over all processes, too.
	group := n.Weight.Shard.Group
	mean := group.Spread(group.Collect(gated.Mul(gated).SumDim(-1,
		true))).MulScalar(1 / float64(n.Group))
	return gated.Mul(mean.AddScalar(n.Eps).Rsqrt()).To(x.DType()).Mul(n.Weight.Tensor)
}
