// Package granitehybrid is IBM's Granite 4.0 family: Mamba-2 layers with a few attention layers
// among them, or attention alone, each followed by a feed-forward layer, beside which there may be
// a mixture of experts; and Granite's multipliers of the embedding, the attention scores, the
// residual branches and the logits.
package granitehybrid

import (
	"fmt"
	"slices"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/nn"
)

// Block is a state-space layer or attention, then a feed-forward layer, each after a normalization,
// scaled, and added to its input.
type Block struct {
	MixerNorm     *nn.RMSNorm       `weight:"input_layernorm"`
	Mixer         *statespace.Mixer `weight:"mamba"`     // nil in an attention layer
	Attention     *model.Attention  `weight:"self_attn"` // nil in a state-space layer
	MLPNorm       *nn.RMSNorm       `weight:"post_attention_layernorm"`
	MLP           nn.FeedForward    `weight:""` // with experts an nn.MoE, whose shared layer it is
	ResidualScale float64           // multiplier of both branches
}

// InputProjection is that of the state-space layer or of attention.
func (b *Block) InputProjection() nn.InputProjection {
	if b.Mixer != nil {
		return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Mixer.In}
	}
	return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Attention.QKV}
}

// Forward computes h = x + r·mixer(norm(x)), y = h + r·mlp(norm(h)), with the multiplier r: [B,L,D]
// to [B,L,D].
func (b *Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	projected := pass.InputProjection(b.InputProjection(), x)
	tail := nn.BlockTail{MLPNorm: b.MLPNorm, MLP: b.MLP, Scale: b.ResidualScale}
	var mixed torch.Tensor
	if b.Mixer != nil {
		mixed, tail.Norm = b.Mixer.Forward(projected, pass, layer)
		tail.Output = b.Mixer.Out
	} else {
		mixed, tail.Output = b.Attention.Forward(projected, pass, layer), b.Attention.Output
	}
	return pass.BlockTail(tail, x, mixed)
}

// NewCache makes an empty state or an empty key and value cache.
func (b *Block) NewCache(batch, capacity int, dtype torch.DType,
	device torch.Device) model.LayerCache {
	if b.Mixer != nil {
		return b.Mixer.NewCache(batch, dtype, device)
	}
	return b.Attention.NewCache(batch, capacity, dtype, device)
}

// settings is a config, read and checked.
type settings struct {
	stack                 model.StackConfig
	attention             model.AttentionConfig
	mixer                 statespace.MixerConfig
	isAttention           []bool // of each layer
	inner, expand, chunk  int
	residual, logitsScale float64

	routing nn.Routing // no experts if it is the zero value
	experts int        // the width of an expert
}

// feedForward declares the feed-forward layer of a block.
func (s settings) feedForward() nn.FeedForward {
	const shared = "shared_mlp"
	if s.routing.Experts == 0 {
		return nn.NewFusedSwiGLU(s.stack.Width, s.inner, shared+".input_linear",
			shared+".output_linear")
	}
	experts := nn.NewExperts(s.routing, s.stack.Width, s.experts, nn.ExpertNames{
		Up: "input_linear", Down: "output_linear", Stacked: true}, nil)
	mixture := nn.NewMoE(s.stack.Width, s.routing, experts, nn.MoENames{
		Router: "block_sparse_moe.router.layer", Experts: "block_sparse_moe", Shared: shared})
	mixture.Shared = nn.NewFusedSwiGLU(s.stack.Width, s.inner, "input_linear", "output_linear")
	return mixture
}

// defaults are the values of GraniteMoeHybridConfig.
var defaults = model.Config{
	"vocab_size": 32000.0, "hidden_size": 4096.0, "num_hidden_layers": 32.0,
	"num_attention_heads": 32.0, "max_position_embeddings": 2048.0, "rms_norm_eps": 1e-6,
	"tie_word_embeddings": false, "embedding_multiplier": 1.0, "attention_multiplier": 1.0,
	"residual_multiplier": 1.0, "logits_scaling": 1.0, "num_local_experts": 8.0,
	"num_experts_per_tok": 2.0, "intermediate_size": 11008.0,
	"shared_intermediate_size": 1024.0, "mamba_n_heads": 128.0, "mamba_n_groups": 1.0,
	"mamba_d_state": 256.0, "mamba_d_head": "auto", "mamba_d_conv": 4.0, "mamba_expand": 2.0,
	"mamba_chunk_size": 256.0, "mamba_conv_bias": true, "mamba_proj_bias": false,
}

func read(config model.Config) (settings, error) {
	r := &model.Reader{Config: config.Or(defaults)}
	r.Refuse("per_layer_config")
	s := settings{
		stack: model.StackConfig{
			Architecture: "granitehybrid", Config: statespace.Decimals(config),
			Vocabulary:     r.IntUpTo("vocab_size", model.Vocabulary),
			Width:          r.IntUpTo("hidden_size", model.Widths),
			MaxLength:      r.Int("max_position_embeddings"),
			Eps:            r.Eps("rms_norm_eps"),
			Tied:           r.Bool("tie_word_embeddings"),
			EmbeddingScale: r.Multiplier("embedding_multiplier"),
		},
		isAttention: attentionLayers(r),
		inner:       r.IntUpTo("shared_intermediate_size", model.Widths),
		expand:      r.Int("mamba_expand"),
		chunk:       r.IntUpTo("mamba_chunk_size", model.Chunk),
		residual:    r.Multiplier("residual_multiplier"),
		logitsScale: r.Multiplier("logits_scaling"),
	}
	s.stack.LogitsScale = 1 / s.logitsScale
	if r.Natural("num_local_experts") > 0 {
		s.routing = nn.Routing{Experts: r.IntUpTo("num_local_experts", model.Experts),
			TopK: r.Int("num_experts_per_tok"), Renormalize: true}
		s.experts = r.IntUpTo("intermediate_size", model.Widths)
		r.Fail(s.routing.Check())
	}
	width := s.stack.Width
	heads, bias := r.Int("num_attention_heads"), r.BoolOr("attention_bias", false)
	s.attention = model.AttentionConfig{
		Width: width, Heads: heads, KeyHeads: r.IntOr("num_key_value_heads", heads),
		HeadDim: min(width/heads, model.HeadDims), QKVBias: bias, OutputBias: bias,
		Scale: r.Multiplier("attention_multiplier"),
	}
	if r.Has("head_dim") {
		s.attention.HeadDim = r.IntUpTo("head_dim", model.HeadDims)
	}
	switch kind := r.StringOr("position_embedding_type", ""); kind {
	case "rope":
		rotary := r.Rotary(s.attention.HeadDim, 0)
		s.stack.Rotary = &rotary
	default: // transformers rotates for "rope" alone
		s.attention.NoRotary = true
	}
	if !slices.Contains(s.isAttention, false) {
		r.SiLU()
		return s, r.Err
	}
	inner := s.expand * width
	s.mixer = statespace.MixerConfig{
		Width: width, Heads: r.Int("mamba_n_heads"), Groups: r.Int("mamba_n_groups"),
		State: r.Int("mamba_d_state"), Taps: r.Int("mamba_d_conv"),
		InBias: r.BoolOr("mamba_proj_bias", false), OutBias: r.BoolOr("mamba_proj_bias", false),
		ConvBias: r.BoolOr("mamba_conv_bias", false), Eps: s.stack.Eps,
	}
	if s.mixer.HeadDim = inner / s.mixer.Heads; r.Config["mamba_d_head"] != "auto" {
		s.mixer.HeadDim = r.Int("mamba_d_head")
	}
	if r.Err != nil {
		return s, r.Err
	}
	return s, s.mixer.Check(r, inner, statespace.MixerNames{Heads: "mamba_n_heads",
		HeadDim: "mamba_d_head", State: "mamba_d_state", Taps: "mamba_d_conv"})
}

// attentionLayers reads which layers are attention. Released configs call the kinds mamba and
// attention, transformers 5 linear_attention and full_attention. Without a list all are Mamba-2.
func attentionLayers(r *model.Reader) []bool {
	layers := r.IntUpTo("num_hidden_layers", model.Layers)
	key := "layer_types"
	if !r.Has(key) {
		key = "layers_block_type" // as transformers calls the field, too
	}
	is := make([]bool, layers)
	for i, kind := range r.Strings(key, layers) {
		switch kind {
		case "mamba", "linear_attention":
		case "attention", "full_attention":
			is[i] = true
		default:
			r.Fail(fmt.Errorf("config.json: %s has %.40q, expected mamba or attention", key, kind))
		}
	}
	return is
}

// New makes a model without weights from a Hugging Face config of model_type "granitemoehybrid"
// (GraniteMoeHybridForCausalLM).
func New(config model.Config) (model.Model, error) {
	s, err := read(config)
	if err != nil {
		return nil, err
	}
	chunking := statespace.NewChunking(s.chunk)
	var blocks []model.Block
	for _, attention := range s.isAttention {
		block := &Block{
			MixerNorm: nn.NewRMSNorm(s.stack.Width, s.stack.Eps),
			MLPNorm:   nn.NewRMSNorm(s.stack.Width, s.stack.Eps),
			MLP:       s.feedForward(), ResidualScale: s.residual,
		}
		if attention {
			if block.Attention, err = model.NewAttention(s.attention); err != nil {
				return nil, err
			}
		} else {
			block.Mixer = statespace.NewMixer(s.mixer, chunking)
		}
		blocks = append(blocks, block)
	}
	return statespace.NewModel(s.stack, blocks, chunking)
}
