package bamba

import (
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Mamba2 is the plain stack of Mamba-2 layers of the paper, without attention or feed-forward layers: Hugging Face's
// Mamba2ForCausalLM.
type Mamba2 struct {
	Embedding *nn.Embedding  `weight:"backbone.embeddings"`
	Layers    []*Mamba2Block `weight:"backbone.layers"`
	FinalNorm *nn.RMSNorm    `weight:"backbone.norm_f"`
	Output    *nn.Linear     `weight:"lm_head"` // nil when tied to the embedding

	config   model.Config
	mixer    mixerConfig
	chunk    int
	wide     bool // residual_in_fp32
	chunking *Chunking
}

// Mamba2Block is a state-space layer after a normalization, added to its input.
type Mamba2Block struct {
	Norm  *nn.RMSNorm `weight:"norm"`
	Mixer *Mixer      `weight:"mixer"`
}

// First is the mixer's first product.
func (b *Mamba2Block) InputProjection() nn.InputProjection {
	return nn.InputProjection{Norm: b.Norm, Linear: b.Mixer.In}
}

// Forward maps x [B,L,D] to [B,L,D], of x's dtype: where the config asks for residual_in_fp32 that is float32, whatever the
// weights are.
func (b *Mamba2Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	mixed, norm := b.Mixer.Forward(pass.InputProjection(b.InputProjection(), x), pass, layer)
	return nn.BlockTail{Norm: norm, Output: b.Mixer.Out}.Add(x, mixed)
}

// NewMamba2 makes a model without weights from a Hugging Face config of model_type "mamba2".
func NewMamba2(config model.Config) (model.Model, error) {
	r := &model.Reader{Config: config}
	vocabulary, width, layers := r.Int("vocab_size"), r.Int("hidden_size"), r.Int("num_hidden_layers")
	c := mixerConfig{
		heads: r.Int("num_heads"), headDim: r.Int("head_dim"), groups: r.IntOr("n_groups", 8), state: r.IntOr("state_size", 128),
		taps: r.IntOr("conv_kernel", 4), projBias: r.BoolOr("use_bias", false), convBias: r.BoolOr("use_conv_bias", true),
		eps: r.FloatOr("layer_norm_epsilon", 1e-5),
	}
	tied, inner := r.BoolOr("tie_word_embeddings", false), r.IntOr("expand", 2)*width
	m := &Mamba2{config: decimals(config), chunk: nearestChunk(r.IntOr("chunk_size", 256)), wide: r.BoolOr("residual_in_fp32", true)}
	if r.Err != nil {
		return nil, r.Err
	}
	if err := c.check(r, inner, [4]string{"num_heads", "head_dim", "state_size", "conv_kernel"}); err != nil {
		return nil, err
	}
	m.mixer, m.chunking = c, &Chunking{Strategy: Default, ChunkSize: m.chunk, Optimized: true}
	m.Embedding, m.FinalNorm = nn.NewEmbedding(vocabulary, width), nn.NewRMSNorm(width, c.eps)
	if !tied {
		m.Output = nn.NewLinear(width, false, vocabulary)
	}
	for range layers {
		m.Layers = append(m.Layers, &Mamba2Block{Norm: nn.NewRMSNorm(width, c.eps), Mixer: newMixer(width, c, m.chunking)})
	}
	return m, nil
}

// Architecture is "mamba2".
func (m *Mamba2) Architecture() string { return "mamba2" }

// Config is the config.json that the model was made from.
func (m *Mamba2) Config() model.Config { return m.config }

// Begin prepares what the layers know about segments and padding.
func (m *Mamba2) Begin(seq model.Sequence) *model.Pass { return begin(seq, nil) }

// Embed maps ids (int64 [B,L]) to [B,L,D].
func (m *Mamba2) Embed(ids torch.Tensor) torch.Tensor {
	x := m.Embedding.Forward(ids)
	if m.wide {
		return x.To(torch.Float32)
	}
	return x
}

// Blocks lists the blocks.
func (m *Mamba2) Blocks() []model.Block {
	blocks := make([]model.Block, len(m.Layers))
	for i, layer := range m.Layers {
		blocks[i] = layer
	}
	return blocks
}

// Norm is the normalization before the head, in the weights' dtype.
func (m *Mamba2) Norm(x torch.Tensor) torch.Tensor {
	return m.FinalNorm.Forward(x).To(m.FinalNorm.Weight.DType())
}

// Head is the projection to the vocabulary [V,D].
func (m *Mamba2) Head() *nn.Param {
	if m.Output == nil {
		return m.Embedding.Weight
	}
	return m.Output.Weight
}

// MaxLength is only what training and generation take as a sensible bound: a state-space model has no positions.
func (m *Mamba2) MaxLength() int { return 1 << 20 }

// NewCache makes empty states; they take the same memory whatever the capacity.
func (m *Mamba2) NewCache(batch, capacity int, dtype torch.DType, device torch.Device) *model.Cache {
	cache := &model.Cache{Layers: make([]model.LayerCache, len(m.Layers)), Capacity: capacity}
	for i := range cache.Layers {
		cache.Layers[i].Conv, cache.Layers[i].State = m.Layers[i].Mixer.newState(batch, dtype, device)
	}
	return cache
}

// Chunking returns how the layers scan.
func (m *Mamba2) Chunking() Chunking { return *m.chunking }

// SetChunking changes how the layers scan, from the next pass on.
func (m *Mamba2) SetChunking(c Chunking) error { return m.chunking.set(c, m.chunk) }
