// Package llama is the Llama family: Llama 1 to 3.x, SmolLM, Mistral and Qwen2 (Touvron et al., arXiv 2302.13971 and
// 2307.09288; Grattafiori et al., arXiv 2407.21783). They differ in what their config.json says.
package llama

import (
	"fmt"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Llama is a stack of blocks between an embedding and a head.
type Llama struct {
	Embedding *nn.Embedding `weight:"model.embed_tokens"`
	Layers    []*Block      `weight:"model.layers"`
	FinalNorm *nn.RMSNorm   `weight:"model.norm"`
	Output    *nn.Linear    `weight:"lm_head"` // nil when tied to the embedding

	settings settings
	rotary   *nn.Rotary
}

// Block is attention, then a feed-forward layer, each after a normalization and added to its input.
type Block struct {
	AttentionNorm *nn.RMSNorm      `weight:"input_layernorm"`
	Attention     *model.Attention `weight:"self_attn"`
	MLPNorm       *nn.RMSNorm      `weight:"post_attention_layernorm"`
	MLP           *nn.SwiGLU       `weight:"mlp"`
}

// First is the product with queries, keys and values.
func (b *Block) InputProjection() nn.InputProjection {
	return nn.InputProjection{Norm: b.AttentionNorm, Linear: b.Attention.QKV}
}

// Forward maps x [B,L,D] to [B,L,D].
func (b *Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	attended := b.Attention.Forward(pass.InputProjection(b.InputProjection(), x), pass, layer)
	return pass.BlockTail(nn.BlockTail{Output: b.Attention.Output, MLPNorm: b.MLPNorm, MLP: b.MLP}, x, attended)
}

// settings is what the config says, read and checked.
type settings struct {
	config                                      model.Config
	vocabulary, width, inner, layers            int
	heads, keyHeads, headDim, maxLength, window int
	eps                                         float64
	tied, qkvBias, outputBias, mlpBias          bool
	rotary                                      nn.RotaryConfig
}

// New makes a model without weights from a Hugging Face config. It fails where the config asks for something that this
// family does not have.
func New(config model.Config) (model.Model, error) {
	h, err := read(config)
	if err != nil {
		return nil, err
	}
	rotary, err := nn.NewRotary(h.rotary)
	if err != nil {
		return nil, err
	}
	m := &Llama{
		Embedding: nn.NewEmbedding(h.vocabulary, h.width),
		FinalNorm: nn.NewRMSNorm(h.width, h.eps),
		settings:  h,
		rotary:    rotary,
	}
	if !h.tied {
		m.Output = nn.NewLinear(h.width, false, h.vocabulary)
	}
	for range h.layers {
		m.Layers = append(m.Layers, &Block{
			AttentionNorm: nn.NewRMSNorm(h.width, h.eps),
			Attention:     model.NewAttention(h.width, h.heads, h.keyHeads, h.headDim, h.qkvBias, h.outputBias),
			MLPNorm:       nn.NewRMSNorm(h.width, h.eps),
			MLP:           nn.NewSwiGLU(h.width, h.inner, h.mlpBias),
		})
	}
	return m, nil
}

func read(config model.Config) (settings, error) {
	r := &model.Reader{Config: config}
	h := settings{
		config:     config,
		vocabulary: r.Int("vocab_size"), width: r.Int("hidden_size"), inner: r.Int("intermediate_size"),
		layers: r.Int("num_hidden_layers"), heads: r.Int("num_attention_heads"),
		maxLength: r.IntOr("max_position_embeddings", 2048), eps: r.FloatOr("rms_norm_eps", 1e-6),
		tied: r.BoolOr("tie_word_embeddings", false), mlpBias: r.BoolOr("mlp_bias", false),
	}
	h.keyHeads = r.IntOr("num_key_value_heads", h.heads)
	h.headDim = r.IntOr("head_dim", h.width/h.heads)
	switch family := r.StringOr("model_type", "llama"); family {
	case "llama":
		h.qkvBias = r.BoolOr("attention_bias", false)
		h.outputBias = h.qkvBias
	case "mistral":
		h.window = r.IntOr("sliding_window", 0)
	case "qwen2":
		h.qkvBias = true
		if r.BoolOr("use_sliding_window", false) {
			if r.IntOr("max_window_layers", 0) < h.layers {
				return h, fmt.Errorf("config.json: a sliding window in some layers only (use_sliding_window with max_window_layers %v) is not supported", config["max_window_layers"])
			}
		}
	default:
		return h, fmt.Errorf("config.json: model_type %q is not of the Llama family (llama, mistral, qwen2)", family)
	}
	if act := r.StringOr("hidden_act", "silu"); act != "silu" {
		return h, fmt.Errorf("config.json: hidden_act %q is not supported, expected silu", act)
	}
	h.rotary = r.Rotary(h.headDim, 1)
	if r.Err != nil {
		return h, r.Err
	}
	if h.heads%h.keyHeads != 0 {
		return h, fmt.Errorf("config.json: num_key_value_heads %d does not divide num_attention_heads %d", h.keyHeads, h.heads)
	}
	return h, nil
}

// Architecture is "llama".
func (m *Llama) Architecture() string { return "llama" }

// Config is the config.json that the model was made from.
func (m *Llama) Config() model.Config { return m.settings.config }

// Begin prepares the rotary tables and the mask.
func (m *Llama) Begin(seq model.Sequence) *model.Pass {
	return model.NewPass(seq, m.rotary, m.settings.window)
}

// Embed maps ids (int64 [B,L]) to [B,L,D].
func (m *Llama) Embed(ids torch.Tensor) torch.Tensor { return m.Embedding.Forward(ids) }

// Blocks lists the blocks.
func (m *Llama) Blocks() []model.Block {
	blocks := make([]model.Block, len(m.Layers))
	for i, layer := range m.Layers {
		blocks[i] = layer
	}
	return blocks
}

// Norm is the normalization before the head.
func (m *Llama) Norm(x torch.Tensor) torch.Tensor { return m.FinalNorm.Forward(x) }

// Head is the projection to the vocabulary [V,D].
func (m *Llama) Head() *nn.Param {
	if m.Output == nil {
		return m.Embedding.Weight
	}
	return m.Output.Weight
}

// FreeTables frees the rotary table, which grows again when it is used.
func (m *Llama) FreeTables() { m.rotary.Free() }

// MaxLength is max_position_embeddings.
func (m *Llama) MaxLength() int { return m.settings.maxLength }

// NewCache makes empty key and value caches.
func (m *Llama) NewCache(batch, capacity int, dtype torch.DType, device torch.Device) *model.Cache {
	cache := &model.Cache{Layers: make([]model.LayerCache, len(m.Layers)), Capacity: capacity}
	for i := range cache.Layers {
		_, keyHeads, headDim := m.Layers[i].Attention.Sizes()
		shape := []int{batch, keyHeads, capacity, headDim}
		cache.Layers[i].Keys = torch.Zeros(shape, dtype, device).Own()
		cache.Layers[i].Values = torch.Zeros(shape, dtype, device).Own()
	}
	return cache
}
