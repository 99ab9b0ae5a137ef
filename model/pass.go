package model

import (
	"fmt"
	"slices"

	"conquer/torch"
	"conquer/torch/nn"
)

// Sequence is the input of one pass.
type Sequence struct {
	IDs torch.Tensor // int64 [B,L]
	// Positions (int64 [B,L], all below Limit) replace the default positions: 0, 1, … after what
	// the cache holds.
	Positions torch.Tensor
	Limit     int
	// Segments (int64 [B,L]) numbers the samples packed into a row from 1; 0 is padding. A token
	// attends to its own segment only. No tensor: each row is one sample.
	Segments torch.Tensor
	Cache    *Cache
	// Split, if not nil, says that IDs are one part of each sequence, and that other processes have
	// the others. There are then no Positions, Segments and Cache.
	Split *Split
}

// Pass is what the blocks share during one pass.
type Pass struct {
	// [B or 1, L, R/2], float32: the rotary embedding of the first R dimensions of a head
	Cos, Sin torch.Tensor
	Segments torch.Tensor // as in Sequence, int32
	// boolean [B,L]: the tokens that pad a row on the left; no tensor without padding
	Padding torch.Tensor
	Cache   *Cache
	Start   int          // the cache column of the pass's first token, unless Columns differ by row
	Columns torch.Tensor // int64 [1 or B,L]: the cache columns of its tokens
	// Begins says that the cache was empty. Layers that keep a state clear it.
	Begins bool
	Split  *Split // as in Sequence

	views map[int]*View
	// [1,L,P/2]: cosines and sines of the angle 0, for layers without rotary embedding
	fixedCos, fixedSin torch.Tensor

	next *nn.InputProjection // of the block after the current one; nil if there is none
	// next's projection, once the current block's fused kernel has computed it
	projected torch.Tensor
}

// View says which columns each token attends to, for one size of sliding window.
type View struct {
	Mask   torch.Tensor // boolean [B or 1, 1, L, S], or no tensor
	Causal bool         // hide the columns after each row
	// In a pass over one token per sequence, the token attends to the columns [Starts, Lengths) of
	// the cache, both int64 [B].
	Lengths, Starts torch.Tensor
}

// PassOptions says what the blocks of a model need of a pass.
type PassOptions struct {
	Rotary *nn.Rotary // nil for none
	// Windows lists the distinct sliding windows of the attention layers; 0 means that all earlier
	// positions are seen. A model without attention has none.
	Windows []int
	// Unrotated is the head dimension of attention layers without rotary embedding; 0 if there are
	// none.
	Unrotated int
}

// View returns what layers with the given sliding window attend to.
func (p *Pass) View(window int) *View { return p.views[window] }

// InputProjection returns the block's first projection of its input x [B,L,D]. If the previous
// block's fused kernel already computed it, that result is returned and cleared.
func (p *Pass) InputProjection(projection nn.InputProjection, x torch.Tensor) torch.Tensor {
	if projected := p.projected; projected.Defined() {
		p.projected = torch.Tensor{}
		return projected
	}
	return projection.Forward(x)
}

// BlockTail computes the output of a block from its input x [B,L,D] and its mixer's result. It may
// also compute the next block's input projection, in the same kernels.
func (p *Pass) BlockTail(tail nn.BlockTail, x, mixed torch.Tensor) torch.Tensor {
	y, projected, reason := tail.Forward(x, mixed, p.next)
	if projected.Defined() {
		p.projected = projected.Keep()
	}
	if p.Cache != nil && x.Size(1) == 1 {
		if reason == "" {
			p.Cache.Fused = true
		} else if p.Cache.UnfusedReason == "" {
			p.Cache.UnfusedReason = reason
		}
	}
	return y
}

// NewPass prepares a pass over seq: positions, the rotary table's rows, and the masks.
func NewPass(seq Sequence, o PassOptions) *Pass {
	length, device := seq.IDs.Size(1), seq.IDs.Device()
	pass := &Pass{Cache: seq.Cache, Segments: seq.Segments, views: map[int]*View{},
		Split: seq.Split}
	if seq.Split != nil {
		pass.Start = seq.Split.Rank * length
	}
	if pass.Segments.Defined() {
		pass.Segments = pass.Segments.To(torch.Int32)
	}
	if o.Unrotated > 0 {
		shape := []int{1, length, o.Unrotated / 2}
		pass.fixedCos = torch.Ones(shape, torch.Float32, device)
		pass.fixedSin = torch.Zeros(shape, torch.Float32, device)
	}
	if seq.Cache != nil && seq.Cache.Position.Defined() && length == 1 {
		pass.recorded(seq, o)
		return pass
	}
	if c := seq.Cache; c != nil {
		pass.Start, pass.Begins = c.Length, c.Length == 0
		pass.Columns = torch.Arange(c.Length, c.Length+length, torch.Int64, device).Unsqueeze(0)
		if c.Length+length > c.Capacity {
			message := fmt.Sprintf("%d positions do not fit a cache of %d", c.Length+length,
				c.Capacity)
			panic(&torch.Error{Op: "cache", Message: message})
		}
	}
	var starts torch.Tensor // int64 [B,1]
	if c := seq.Cache; c != nil && c.Starts != nil {
		list := make([]int64, len(c.Starts))
		for i, s := range c.Starts {
			list[i] = int64(s)
		}
		starts = torch.From(list, len(list), 1).ToDevice(device)
	}
	var columns torch.Tensor // int64 [1,L]
	if starts.Defined() {
		columns = torch.Arange(pass.Start, pass.Start+length, torch.Int64, device).Unsqueeze(0)
		if slices.Max(seq.Cache.Starts) > pass.Start {
			pass.Padding = columns.Less(starts)
		}
	}
	if o.Rotary != nil {
		switch {
		case seq.Positions.Defined():
			pass.Cos, pass.Sin = o.Rotary.At(seq.Positions, seq.Limit)
		case starts.Defined():
			pass.Cos, pass.Sin = o.Rotary.At(columns.Sub(starts).Clamp(0, 1<<31), pass.Start+length)
		default:
			pass.Cos, pass.Sin = o.Rotary.Range(pass.Start, length, device)
		}
	}
	for _, window := range o.Windows {
		pass.views[window] = pass.view(seq, starts, window)
	}
	return pass
}

// recorded prepares a pass over one token whose position only the device knows, so that it can be
// recorded into a graph.
func (p *Pass) recorded(seq Sequence, o PassOptions) {
	cache, batch, device := seq.Cache, seq.IDs.Size(0), seq.IDs.Device()
	p.Start = cache.Length
	p.Columns = cache.Position.View(-1, 1)
	if len(o.Windows) == 0 {
		return
	}
	positions, lengths := p.Columns, cache.Position.AddScalar(1).Expand(batch).Contiguous()
	last := p.Columns
	var starts torch.Tensor
	if cache.Starts != nil {
		starts = startsOf(cache, device)
		positions = p.Columns.Sub(starts.View(batch, 1))
		last = p.Columns.AddScalar(-float64(slices.Min(cache.Starts)))
	}
	for _, window := range o.Windows {
		view := &View{Causal: true, Lengths: lengths, Starts: starts}
		if window > 0 {
			first := lengths.AddScalar(-float64(window)).Clamp(0, 1<<31)
			if starts.Defined() {
				first = torch.Where(first.Less(starts), starts, first)
			}
			view.Starts = first
		}
		p.views[window] = view
	}
	if o.Rotary != nil {
		p.Cos, p.Sin = o.Rotary.Step(positions, last, cache.Capacity)
	}
}

// startsOf is the cache's Starts as a tensor, int64 [B], made on the device: a recorded pass may
// not wait for the host.
func startsOf(c *Cache, device torch.Device) torch.Tensor {
	parts := make([]torch.Tensor, len(c.Starts))
	for i, s := range c.Starts {
		parts[i] = torch.Full([]int{1}, float64(s), torch.Int64, device)
	}
	return torch.Cat(0, parts...)
}

// view chooses the cheapest description of which columns each token attends to.
func (p *Pass) view(seq Sequence, starts torch.Tensor, window int) *View {
	batch, length, device := seq.IDs.Size(0), seq.IDs.Size(1), seq.IDs.Device()
	end := p.Start + length
	windowed := window > 0 && end > window
	view := &View{Causal: true}
	if seq.Cache != nil && length == 1 {
		view.Lengths = torch.Full([]int{batch}, float64(end), torch.Int64, device)
		if starts.Defined() {
			view.Starts = starts.View(batch)
		}
		if windowed {
			first := torch.Full([]int{batch}, float64(end-window), torch.Int64, device)
			if starts.Defined() {
				first = torch.Where(first.Less(view.Starts), view.Starts, first)
			}
			view.Starts = first
		}
		return view
	}
	if !windowed && !starts.Defined() && !seq.Segments.Defined() && p.Start == 0 {
		return view
	}
	rows := torch.Arange(p.Start, end, torch.Int64, device).Unsqueeze(1)
	columns := torch.Arange(0, end, torch.Int64, device).Unsqueeze(0)
	mask := columns.LessEqual(rows).View(1, 1, length, end)
	if windowed {
		mask = mask.And(rows.Sub(columns).Less(torch.Full([]int{1}, float64(window), torch.Int64,
			device)))
	}
	if starts.Defined() {
		// A softmax over no column would be NaN, so padding attends to itself.
		valid := starts.View(batch, 1, 1, 1).LessEqual(columns)
		mask = torch.Where(rows.Equal(columns), columns.Equal(columns), mask.And(valid))
	}
	if seq.Segments.Defined() {
		mask = mask.And(seq.Segments.Unsqueeze(2).Equal(seq.Segments.Unsqueeze(1)).Unsqueeze(1))
	}
	view.Mask, view.Causal = mask, false
	return view
}
