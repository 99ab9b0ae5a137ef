// Package model holds what all architectures have in common: the interface that training and
// generation work through, the stack and the attention layer that families are built of, the
// caches, and the registry that opens a checkpoint as the right architecture.
package model

import (
	"conquer/torch"
	"conquer/torch/nn"
)

// Model is a causal language model as training and generation see it: a row of blocks between an
// embedding and a head. B is the batch, L the length of the input, D the model's width. [Stack]
// implements it.
type Model interface {
	// Architecture is the name in the registry, e.g. "llama".
	Architecture() string
	// Config is the model's Hugging Face config.json.
	Config() Config
	// Begin prepares what all blocks share for one pass over seq: rotary tables and masks.
	Begin(seq Sequence) *Pass
	// Embed maps ids (int64 [B,L]) to [B,L,D].
	Embed(ids torch.Tensor) torch.Tensor
	// Blocks lists the blocks, first to last.
	Blocks() []Block
	// Norm is the normalization before the head: [B,L,D] to [B,L,D].
	Norm(x torch.Tensor) torch.Tensor
	// Head is the projection to the vocabulary.
	Head() nn.Head
	// NewCache makes empty caches for batch sequences of at most capacity positions.
	NewCache(batch, capacity int, dtype torch.DType, device torch.Device) *Cache
	// MaxLength is the number of positions that the model was made for.
	MaxLength() int
}

// Block is one layer of a model: h = x + mixer(norm(x)), then, if it has a feed-forward layer, y =
// h + mlp(norm(h)). It gets its input projection from [Pass.InputProjection] and ends with
// [Pass.BlockTail]. For a few tokens, one operation may compute the tail and the next block's input
// projection.
type Block interface {
	// InputProjection is the block's norm and first GEMM.
	InputProjection() nn.InputProjection
	// Forward maps x [B,L,D] to [B,L,D]. layer holds the block's cache, nil without one.
	Forward(x torch.Tensor, pass *Pass, layer *LayerCache) torch.Tensor
	// NewCache makes the block's empty cache.
	NewCache(batch, capacity int, dtype torch.DType, device torch.Device) LayerCache
}

// Hidden runs the blocks over seq and returns the normalized hidden states [B,L,D]. It advances the
// cache, if there is one.
func Hidden(m Model, seq Sequence) torch.Tensor {
	pass := m.Begin(seq)
	if pass.Begins && seq.Cache.Held.Defined() {
		seq.Cache.Held.Zero()
	}
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
		seq.Cache.advance(seq.IDs.Size(1))
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

// Active counts the weights that a token is multiplied by, the embedding included: of a mixture of
// experts those of the token's experts.
func Active(m Model) int {
	active := Parameters(m)
	nn.Linears(m, func(_ []string, l *nn.Linear) {
		if l.Experts > 0 {
			shape := l.Weight.Shape
			active -= shape[0] / l.Experts * (l.Experts - l.TopK) * shape[1]
		}
	})
	return active
}

// Device is where a loaded model's weights are.
func Device(m Model) torch.Device { return m.Head().Device() }

// DType is the dtype of a loaded model's weights.
func DType(m Model) torch.DType { return m.Head().DType() }

// Free frees a model's weights, the adapters on them, and its tables.
func Free(m Model) {
	for _, p := range nn.Params(m) {
		p.Tensor.Free()
	}
	nn.Linears(m, func(_ []string, l *nn.Linear) {
		for _, adapter := range l.LoRA {
			if adapter != nil {
				adapter.Free()
			}
		}
		l.LoRA = nil
	})
	if tables, ok := m.(interface{ FreeTables() }); ok {
		tables.FreeTables()
	}
}
