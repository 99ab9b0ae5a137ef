// Package llama is the Llama family: Llama 1 to 3.x, SmolLM, Mistral and Qwen2 (Touvron et al.,
// arXiv 2302.13971 and 2307.09288; Grattafiori et al., arXiv 2407.21783). They differ in their
// config.json only. Other families of attention and SwiGLU layers are a [Decoder] with other
// settings.
package llama

import (
	"cmp"
	"fmt"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Block is attention and a feed-forward layer, each after a normalization and added to its input.
type Block struct {
	AttentionNorm *nn.RMSNorm
	Attention     *model.Attention
	MLPNorm       *nn.RMSNorm
	MLP           nn.FeedForward
	MLPName       string  // in checkpoints, mlp or another
	ResidualScale float64 // multiplier of both branches; 0 means 1
}

// Children names the parts as checkpoints do.
func (b *Block) Children() []nn.Child {
	return []nn.Child{{Name: "input_layernorm", Layer: b.AttentionNorm},
		{Name: "self_attn", Layer: b.Attention},
		{Name: "post_attention_layernorm", Layer: b.MLPNorm}, {Name: b.MLPName, Layer: b.MLP}}
}

// InputProjection is the projection to queries, keys and values.
func (b *Block) InputProjection() nn.InputProjection {
	return nn.InputProjection{Norm: b.AttentionNorm, Linear: b.Attention.QKV}
}

// SplitsSequence marks the block for [model.Split].
func (b *Block) SplitsSequence() {}

// Forward computes h = x + attention(norm(x)), y = h + mlp(norm(h)): [B,L,D] to [B,L,D].
func (b *Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	qkv := pass.InputProjection(b.InputProjection(), x)
	attended := b.Attention.Forward(qkv, pass, layer)
	tail := nn.BlockTail{Output: b.Attention.Output, MLPNorm: b.MLPNorm, MLP: b.MLP,
		Scale: b.ResidualScale}
	return pass.BlockTail(tail, x, attended)
}

// NewCache makes an empty key and value cache.
func (b *Block) NewCache(batch, capacity int, dtype torch.DType,
	device torch.Device) model.LayerCache {
	return b.Attention.NewCache(batch, capacity, dtype, device)
}

// Decoder describes a stack of attention and SwiGLU layers.
type Decoder struct {
	model.StackConfig
	Layers        int
	Attention     model.AttentionConfig // of every layer, unless Layer changes it
	Inner         int                   // F, the width of the feed-forward layer
	MLPBias       bool
	ResidualScale float64 // multiplier of both branches of a block; 0 means 1
	// Layer, if not nil, changes the attention of layer i (from 0): its window or its rotary
	// embedding.
	Layer func(i int, c *model.AttentionConfig)
	// FeedForward, if not nil, makes the feed-forward layer of layer i in place of SwiGLU, if it
	// does not return nil. MLPName is its name in checkpoints, mlp if empty.
	FeedForward func(i int) nn.FeedForward
	MLPName     string
	Experts     int // of the layers that are mixtures; 0 for none
}

// AttentionOf is the attention of layer i.
func (d *Decoder) AttentionOf(i int) model.AttentionConfig {
	c := d.Attention
	if d.Layer != nil {
		d.Layer(i, &c)
	}
	return c
}

// SetWindows gives the layers that layer_types calls sliding_attention a window of the given number
// of positions. Without layer_types these are the layers for which sliding is true. window 0 is
// none.
func (d *Decoder) SetWindows(r *model.Reader, window int, sliding func(i int) bool) {
	types := r.Strings("layer_types", d.Layers)
	for _, kind := range types {
		switch kind {
		case "full_attention", "attention":
		case "sliding_attention":
			if window == 0 {
				r.Fail(fmt.Errorf("config.json: layer_types asks for sliding_attention, but the " +
					"config gives no sliding_window to use"))
			}
		default:
			r.Fail(fmt.Errorf("config.json: layer_types has %.40q, which is not supported: "+
				"expected full_attention or sliding_attention", kind))
		}
	}
	if types != nil {
		sliding = func(i int) bool { return types[i] == "sliding_attention" }
	}
	before := d.Layer
	d.Layer = func(i int, c *model.AttentionConfig) {
		if before != nil {
			before(i, c)
		}
		if c.Window = 0; sliding(i) {
			c.Window = window
		}
	}
}

// QwenWindows reads the sliding windows of Qwen's families: use_sliding_window allows them, and the
// layers from max_window_layers on have them unless layer_types says otherwise.
func (d *Decoder) QwenWindows(r *model.Reader) {
	window, first := 0, r.Natural("max_window_layers")
	if r.Bool("use_sliding_window") && r.Has("sliding_window") {
		window = r.Int("sliding_window")
	}
	d.SetWindows(r, window, func(i int) bool { return i >= first })
}

// Read reads the fields that families of this kind have in common from their config.json, whose
// defaults the reader's config includes. Problems are kept in r.
func Read(r *model.Reader, architecture string) *Decoder {
	d := &Decoder{StackConfig: model.StackConfig{
		Architecture: architecture, Config: r.Config,
		Vocabulary: r.IntUpTo("vocab_size", model.Vocabulary),
		Width:      r.IntUpTo("hidden_size", model.Widths),
		MaxLength:  r.Int("max_position_embeddings"), Eps: r.Eps("rms_norm_eps"),
		Tied: r.Bool("tie_word_embeddings"),
	}}
	r.Refuse("per_layer_config")
	d.Layers = r.IntUpTo("num_hidden_layers", model.Layers)
	d.Inner = r.IntUpTo("intermediate_size", model.Widths)
	d.MLPBias = r.BoolOr("mlp_bias", false)
	heads := r.Int("num_attention_heads")
	bias := r.BoolOr("attention_bias", false)
	d.Attention = model.AttentionConfig{
		Width: d.Width, Heads: heads, KeyHeads: heads, HeadDim: d.Width / heads, NormEps: d.Eps,
		QKVBias: bias, OutputBias: bias,
	}
	if r.Has("num_key_value_heads") {
		d.Attention.KeyHeads = r.Int("num_key_value_heads")
	}
	if r.Has("head_dim") {
		d.Attention.HeadDim = r.IntUpTo("head_dim", model.HeadDims)
	}
	if d.Attention.HeadDim > model.HeadDims {
		r.Fail(fmt.Errorf("config.json: hidden_size %d and num_attention_heads %d give heads of "+
			"%d dimensions, expected at most %d", d.Width, heads, d.Attention.HeadDim,
			model.HeadDims))
		d.Attention.HeadDim = 1
	}
	r.SiLU()
	rotary := r.Rotary(d.Attention.HeadDim, 0)
	d.Rotary = &rotary
	return d
}

// New makes the model without weights. r is the reader of its config, whose error New returns.
func (d *Decoder) New(r *model.Reader) (model.Model, error) {
	if r.Err != nil {
		return nil, r.Err
	}
	blocks := make([]model.Block, d.Layers)
	for i := range blocks {
		attention, err := model.NewAttention(d.AttentionOf(i))
		if err != nil {
			return nil, err
		}
		var mlp nn.FeedForward
		if d.FeedForward != nil {
			mlp = d.FeedForward(i)
		}
		if mlp == nil {
			mlp = nn.NewSwiGLU(d.Width, d.Inner, d.MLPBias)
		}
		blocks[i] = &Block{
			AttentionNorm: nn.NewRMSNorm(d.Width, d.Eps),
			Attention:     attention,
			MLPNorm:       nn.NewRMSNorm(d.Width, d.Eps),
			MLP:           mlp,
			MLPName:       cmp.Or(d.MLPName, "mlp"),
			ResidualScale: d.ResidualScale,
		}
	}
	stack, err := model.NewStack(d.StackConfig, blocks)
	if err != nil {
		return nil, err
	}
	return stack, nil
}
