// Package bamba is Bamba, Mamba-2 state-space layers with a few attention layers among them, and the plain Mamba-2 stack;
// the chunked scan that both live on; and the strategies by which its chunks share their states.
//
// [Bamba] and [Mamba2] are the models, [Mixer] is the layer, [SSD] is the scan on one page, [Chunking] chooses how it runs.
package bamba

import (
	"slices"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Bamba is a stack of blocks between an embedding and a head: Hugging Face's BambaForCausalLM. Without attention layers
// it is a Mamba-2 stack with feed-forward layers.
type Bamba struct {
	Embedding *nn.Embedding `weight:"model.embed_tokens"`
	Layers    []*Block      `weight:"model.layers"`
	FinalNorm *nn.RMSNorm   `weight:"model.final_layernorm"`
	Output    *nn.Linear    `weight:"lm_head"` // nil when tied to the embedding

	settings settings
	rotary   *nn.Rotary // nil without attention layers
	chunking *Chunking
}

// Block is a state-space layer or attention, then a feed-forward layer, each after a normalization and added to its input.
type Block struct {
	MixerNorm *nn.RMSNorm      `weight:"input_layernorm"`
	Mixer     *Mixer           `weight:"mamba"`     // nil in an attention layer
	Attention *model.Attention `weight:"self_attn"` // nil in a state-space layer
	MLPNorm   *nn.RMSNorm      `weight:"pre_ff_layernorm"`
	MLP       *nn.SwiGLU       `weight:"feed_forward"`
}

// First is the mixer's first product.
func (b *Block) InputProjection() nn.InputProjection {
	if b.Mixer != nil {
		return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Mixer.In}
	}
	return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Attention.QKV}
}

// Forward maps x [B,L,D] to [B,L,D].
func (b *Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	first, tail := pass.InputProjection(b.InputProjection(), x), nn.BlockTail{MLPNorm: b.MLPNorm, MLP: b.MLP}
	var mixed torch.Tensor
	if b.Mixer != nil {
		mixed, tail.Norm = b.Mixer.Forward(first, pass, layer)
		tail.Output = b.Mixer.Out
	} else {
		mixed, tail.Output = b.Attention.Forward(first, pass, layer), b.Attention.Output
	}
	return pass.BlockTail(tail, x, mixed)
}

// New makes a model without weights from a Hugging Face config of model_type "bamba".
func New(config model.Config) (model.Model, error) {
	h, err := read(config)
	if err != nil {
		return nil, err
	}
	m := &Bamba{
		Embedding: nn.NewEmbedding(h.vocabulary, h.width),
		FinalNorm: nn.NewRMSNorm(h.width, h.eps),
		settings:  h,
		chunking:  &Chunking{Strategy: Default, ChunkSize: h.chunk, Optimized: true},
	}
	if !h.tied {
		m.Output = nn.NewLinear(h.width, false, h.vocabulary)
	}
	if len(h.attentionLayers) > 0 {
		if m.rotary, err = nn.NewRotary(h.rotary); err != nil {
			return nil, err
		}
	}
	for i := range h.layers {
		block := &Block{
			MixerNorm: nn.NewRMSNorm(h.width, h.eps),
			MLPNorm:   nn.NewRMSNorm(h.width, h.eps),
			MLP:       nn.NewSwiGLU(h.width, h.inner, h.mlpBias),
		}
		if slices.Contains(h.attentionLayers, i) {
			block.Attention = model.NewAttention(h.width, h.heads, h.keyHeads, h.headDim, h.attentionBias, h.attentionBias)
		} else {
			block.Mixer = newMixer(h.width, h.mixer, m.chunking)
		}
		m.Layers = append(m.Layers, block)
	}
	return m, nil
}

// Architecture is "bamba".
func (m *Bamba) Architecture() string { return "bamba" }

// Config is the config.json that the model was made from.
func (m *Bamba) Config() model.Config { return m.settings.config }

// Begin prepares the rotary tables, the mask, and what the state-space layers know about segments and padding.
func (m *Bamba) Begin(seq model.Sequence) *model.Pass { return begin(seq, m.rotary) }

// Embed maps ids (int64 [B,L]) to [B,L,D].
func (m *Bamba) Embed(ids torch.Tensor) torch.Tensor { return m.Embedding.Forward(ids) }

// Blocks lists the blocks.
func (m *Bamba) Blocks() []model.Block {
	blocks := make([]model.Block, len(m.Layers))
	for i, layer := range m.Layers {
		blocks[i] = layer
	}
	return blocks
}

// Norm is the normalization before the head.
func (m *Bamba) Norm(x torch.Tensor) torch.Tensor { return m.FinalNorm.Forward(x) }

// Head is the projection to the vocabulary [V,D].
func (m *Bamba) Head() *nn.Param {
	if m.Output == nil {
		return m.Embedding.Weight
	}
	return m.Output.Weight
}

// FreeTables frees the rotary table, which grows again when it is used.
func (m *Bamba) FreeTables() {
	if m.rotary != nil {
		m.rotary.Free()
	}
}

// MaxLength is max_position_embeddings.
func (m *Bamba) MaxLength() int { return m.settings.maxLength }

// NewCache makes empty key and value caches for the attention layers and empty states for the others.
func (m *Bamba) NewCache(batch, capacity int, dtype torch.DType, device torch.Device) *model.Cache {
	cache := &model.Cache{Layers: make([]model.LayerCache, len(m.Layers)), Capacity: capacity}
	for i, block := range m.Layers {
		layer := &cache.Layers[i]
		if block.Mixer != nil {
			layer.Conv, layer.State = block.Mixer.newState(batch, dtype, device)
			continue
		}
		_, keyHeads, headDim := block.Attention.Sizes()
		shape := []int{batch, keyHeads, capacity, headDim}
		layer.Keys = torch.Zeros(shape, dtype, device).Own()
		layer.Values = torch.Zeros(shape, dtype, device).Own()
	}
	return cache
}

// Chunked is a model whose state-space layers' chunking can be chosen: [Bamba] and [Mamba2].
type Chunked interface {
	model.Model
	// Chunking returns the current choice; a new model's is default-optimized with its config's chunk size.
	Chunking() Chunking
	// SetChunking changes it for the passes that follow.
	SetChunking(Chunking) error
}

// Chunking returns how the state-space layers scan.
func (m *Bamba) Chunking() Chunking { return *m.chunking }

// SetChunking changes how the state-space layers scan, from the next pass on.
func (m *Bamba) SetChunking(c Chunking) error { return m.chunking.set(c, m.settings.chunk) }

func (c *Chunking) set(to Chunking, size int) error {
	if err := to.Check(); err != nil {
		return err
	}
	if to.ChunkSize == 0 {
		to.ChunkSize = size
	}
	*c = to
	return nil
}
