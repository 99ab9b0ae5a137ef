// Package model is what every architecture has in common: the interface that training and generation work through, the
// caches, and the registry that opens a checkpoint as the right architecture.
package model

import (
	"fmt"
	"slices"

	"conquer/torch"
	"conquer/torch/nn"
)

// Model is a causal language model as training and generation see it: a row of blocks between an embedding and a head.
// B is the batch, L the length of the input, D the model's width.
type Model interface {
	// Architecture is the name in the registry, e.g. "llama".
	Architecture() string
	// Config is the model's Hugging Face config.json.
	Config() Config
	// Begin prepares what all blocks share for one pass over seq: rotary tables, masks.
	Begin(seq Sequence) *Pass
	// Embed maps ids (int64 [B,L]) to [B,L,D].
	Embed(ids torch.Tensor) torch.Tensor
	// Blocks lists the blocks, first to last.
	Blocks() []Block
	// Norm is the normalization before the head: [B,L,D] to [B,L,D].
	Norm(x torch.Tensor) torch.Tensor
	// Head is the projection to the vocabulary, [V,D]; tied to the embedding where the config says so.
	Head() *nn.Param
	// NewCache makes empty caches for batch sequences of at most capacity positions.
	NewCache(batch, capacity int, dtype torch.DType, device torch.Device) *Cache
	// MaxLength is the most positions that the model was made for.
	MaxLength() int
}

// Block is one layer of a model. It begins with a product, which it gets from [Pass.First]; one with a feed-forward layer ends
// with [Pass.Finish].
type Block interface {
	// First is the product that the block begins with.
	InputProjection() nn.InputProjection
	// Forward maps x [B,L,D] to [B,L,D]. layer holds the block's cache, nil when there is none.
	Forward(x torch.Tensor, pass *Pass, layer *LayerCache) torch.Tensor
}

// Sequence is the input of one pass.
type Sequence struct {
	IDs torch.Tensor // int64 [B,L]
	// Positions (int64 [B,L], all below Limit) where they are not simply 0, 1, … after what the cache holds.
	Positions torch.Tensor
	Limit     int
	// Segments (int64 [B,L]) numbers the samples packed into a row from 1; tokens see their own segment only, 0 is padding.
	// No tensor: each row is one sample.
	Segments torch.Tensor
	Cache    *Cache
}

// Pass is what the blocks share during one pass.
type Pass struct {
	Cos, Sin torch.Tensor // [B or 1, L, R/2], float32
	Mask     torch.Tensor // boolean [B or 1, 1, L, S], or no tensor
	Causal   bool         // hide the columns after each row
	Segments torch.Tensor // as in Sequence
	Padding  torch.Tensor // boolean [B,L]: the tokens that only fill a row up on the left; no tensor where there are none
	Cache    *Cache
	Start    int          // the column that the pass's first token takes in the cache
	Columns  torch.Tensor // int64 [1,L]: the columns that its tokens take
	// One token a sequence: the columns [Starts, Lengths) of the cache are attended to.
	Lengths, Starts torch.Tensor

	next  *nn.InputProjection // what the block after the one that runs begins with, where this one may make it
	ahead torch.Tensor        // and what came of it
}

// First is what first makes of a block's input x [B,L,D], unless the block before has made it already.
func (p *Pass) InputProjection(first nn.InputProjection, x torch.Tensor) torch.Tensor {
	if made := p.ahead; made.Defined() {
		p.ahead = torch.Tensor{}
		return made
	}
	return first.Forward(x)
}

// Finish is the end of a block with the input x [B,L,D], whose mixer came to mixed. With the product that the next block
// begins with, nothing but products is left between one mixer and the next, which over a single token are one kernel.
func (p *Pass) BlockTail(tail nn.BlockTail, x, mixed torch.Tensor) torch.Tensor {
	y, ahead, reason := tail.Forward(x, mixed, p.next)
	if ahead.Defined() {
		p.ahead = ahead.Keep()
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

// Cache is what a model remembers of the tokens it has seen. All sequences of a batch fill the same columns; a shorter one
// is padded on the left and begins at its column of Starts.
type Cache struct {
	Layers   []LayerCache
	Length   int // columns filled
	Capacity int
	Starts   []int // first valid column of each sequence; nil when all begin at 0
	// Position (int64 [1] on the device), where it is a tensor, is what passes over a single token read in place of Length, so
	// that a recorded pass serves every position.
	Position torch.Tensor
	// What passes over a single token came to: whether a block ended in the GPU's one kernel for that (see [nn.BlockTail]), and why
	// the first that did not went without.
	Fused         bool
	UnfusedReason string
}

// LayerCache is one block's part of a Cache; a block uses the fields that it needs.
type LayerCache struct {
	Keys, Values torch.Tensor // [B,K,S,P]
	Conv         torch.Tensor // [B, width, channels]: the last inputs of a causal convolution
	State        torch.Tensor // [B,H,P,N]: a state-space layer's state, float32
}

// Layer returns the cache of block i, nil for a nil cache.
func (c *Cache) Layer(i int) *LayerCache {
	if c == nil {
		return nil
	}
	return &c.Layers[i]
}

// Free frees the cache's tensors.
func (c *Cache) Free() {
	for i := range c.Layers {
		layer := &c.Layers[i]
		layer.Keys.Free()
		layer.Values.Free()
		layer.Conv.Free()
		layer.State.Free()
	}
	c.Layers = nil
}

// NewPass prepares a pass over seq: positions, the rotary table's rows and the attention mask for a sliding window of the
// given number of positions (0: none). A model without attention passes no rotary table and gets no mask.
func NewPass(seq Sequence, rotary *nn.Rotary, window int) *Pass {
	length, device := seq.IDs.Size(1), seq.IDs.Device()
	pass := &Pass{Cache: seq.Cache, Segments: seq.Segments, Causal: true}
	if seq.Cache != nil && seq.Cache.Position.Defined() && length == 1 {
		pass.anywhere(seq, rotary, window)
		return pass
	}
	if c := seq.Cache; c != nil {
		pass.Start = c.Length
		pass.Columns = torch.Arange(c.Length, c.Length+length, torch.Int64, device).Unsqueeze(0)
		if c.Length+length > c.Capacity {
			panic(&torch.Error{Op: "cache", Message: fmt.Sprintf("%d positions do not fit a cache of %d", c.Length+length, c.Capacity)})
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
	if rotary != nil {
		switch {
		case seq.Positions.Defined():
			pass.Cos, pass.Sin = rotary.At(seq.Positions, seq.Limit)
		case starts.Defined():
			pass.Cos, pass.Sin = rotary.At(columns.Sub(starts).Clamp(0, 1<<31), pass.Start+length)
		default:
			pass.Cos, pass.Sin = rotary.Range(pass.Start, length, device)
		}
		pass.mask(seq, starts, window)
	}
	return pass
}

// anywhere prepares a pass over one token whose position only the device knows.
func (p *Pass) anywhere(seq Sequence, rotary *nn.Rotary, window int) {
	cache, batch, device := seq.Cache, seq.IDs.Size(0), seq.IDs.Device()
	p.Start = cache.Length
	p.Columns = cache.Position.View(1, 1)
	if rotary == nil {
		return
	}
	positions, end := p.Columns, cache.Position.AddScalar(1)
	p.Lengths = end.Expand(batch).Contiguous()
	if cache.Starts != nil {
		p.Starts = startsOf(cache, device)
		positions = p.Columns.Sub(p.Starts.View(batch, 1))
	}
	if window > 0 {
		first := end.AddScalar(-float64(window)).Clamp(0, 1<<31).Expand(batch)
		if p.Starts.Defined() {
			first = torch.Where(first.Less(p.Starts), p.Starts, first)
		}
		p.Starts = first.Contiguous()
	}
	p.Cos, p.Sin = rotary.At(positions, cache.Capacity)
}

// startsOf is the cache's Starts as a tensor, int64 [B], made where it is: a recorded pass may not wait for the host.
func startsOf(c *Cache, device torch.Device) torch.Tensor {
	parts := make([]torch.Tensor, len(c.Starts))
	for i, s := range c.Starts {
		parts[i] = torch.Full([]int{1}, float64(s), torch.Int64, device)
	}
	return torch.Cat(0, parts...)
}

// mask chooses the cheapest description of which columns each token sees.
func (p *Pass) mask(seq Sequence, starts torch.Tensor, window int) {
	batch, length, device := seq.IDs.Size(0), seq.IDs.Size(1), seq.IDs.Device()
	end := p.Start + length
	windowed := window > 0 && end > window
	if seq.Cache != nil && length == 1 {
		p.Lengths = torch.Full([]int{batch}, float64(end), torch.Int64, device)
		if starts.Defined() {
			p.Starts = starts.View(batch)
		}
		if windowed {
			first := torch.Full([]int{batch}, float64(end-window), torch.Int64, device)
			if starts.Defined() {
				first = torch.Where(first.Less(p.Starts), p.Starts, first)
			}
			p.Starts = first
		}
		return
	}
	if !windowed && !starts.Defined() && !seq.Segments.Defined() && p.Start == 0 {
		return // plainly causal
	}
	rows := torch.Arange(p.Start, end, torch.Int64, device).Unsqueeze(1)
	columns := torch.Arange(0, end, torch.Int64, device).Unsqueeze(0)
	mask := columns.LessEqual(rows).View(1, 1, length, end)
	if windowed {
		mask = mask.And(rows.Sub(columns).Less(torch.Full([]int{1}, float64(window), torch.Int64, device)))
	}
	if starts.Defined() {
		// Padding must see something, or its softmax has nothing to divide by: it sees itself.
		valid := starts.View(batch, 1, 1, 1).LessEqual(columns)
		mask = torch.Where(rows.Equal(columns), columns.Equal(columns), mask.And(valid))
	}
	if seq.Segments.Defined() {
		mask = mask.And(seq.Segments.Unsqueeze(2).Equal(seq.Segments.Unsqueeze(1)).Unsqueeze(1))
	}
	p.Mask, p.Causal = mask, false
}

// Hidden runs the blocks over seq and returns the normalized hidden states [B,L,D]; the cache, if any, moves on.
func Hidden(m Model, seq Sequence) torch.Tensor {
	pass := m.Begin(seq)
	x := m.Embed(seq.IDs)
	blocks := m.Blocks()
	for i, block := range blocks {
		layer := seq.Cache.Layer(i)
		if pass.next = nil; i+1 < len(blocks) {
			next := blocks[i+1].InputProjection()
			pass.next = &next
		}
		x = torch.Scoped1(func() torch.Tensor { return block.Forward(x, pass, layer) })
	}
	if seq.Cache != nil {
		seq.Cache.Length += seq.IDs.Size(1)
	}
	return m.Norm(x)
}

// Logits runs the model over seq: [B,L,V].
func Logits(m Model, seq Sequence) torch.Tensor {
	return m.Head().Logits(Hidden(m, seq))
}

// LastLogits is Logits at the last position alone: [B,V].
func LastLogits(m Model, seq Sequence) torch.Tensor {
	hidden := Hidden(m, seq)
	return m.Head().Logits(hidden.Select(1, hidden.Size(1)-1))
}

// Parameters counts a model's weights.
func Parameters(m Model) int {
	total := 0
	for _, p := range nn.Params(m) {
		n := 1
		for _, size := range p.Shape {
			n *= size
		}
		total += n
	}
	return total
}

// Device returns where a loaded model lives.
func Device(m Model) torch.Device { return m.Head().Device() }

// DType returns the dtype of a loaded model's weights.
func DType(m Model) torch.DType { return m.Head().DType() }

// Free frees a model's weights, the adapters on them, and the tables that it made for itself.
func Free(m Model) {
	for _, p := range nn.Params(m) {
		p.Tensor.Free()
	}
	nn.Linears(m, func(_ []string, l *nn.Linear) {
		for _, adapter := range l.LoRA {
			if adapter != nil {
				adapter.A.Tensor.Free()
				adapter.B.Tensor.Free()
			}
		}
		l.LoRA = nil
	})
	if tables, ok := m.(interface{ FreeTables() }); ok {
		tables.FreeTables()
	}
}
