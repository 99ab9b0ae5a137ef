package bamba

import (
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/nn"
)

// Mamba2Block is a state-space layer after a normalization, added to its input.
type Mamba2Block struct {
	Norm  *nn.RMSNorm       `weight:"norm"`
	Mixer *statespace.Mixer `weight:"mixer"`
}

// InputProjection is that of the state-space layer.
func (b *Mamba2Block) InputProjection() nn.InputProjection {
	return nn.InputProjection{Norm: b.Norm, Linear: b.Mixer.In}
}

// SplitsSequence marks the block for [model.Split].
func (b *Mamba2Block) SplitsSequence() {}

// Forward computes x + mixer(norm(x)): [B,L,D] to [B,L,D], of x's dtype. If the config asks for
// residual_in_fp32, that is float32, whatever the weights are.
func (b *Mamba2Block) Forward(x torch.Tensor, pass *model.Pass,
	layer *model.LayerCache) torch.Tensor {
	mixed, norm := b.Mixer.Forward(pass.InputProjection(b.InputProjection(), x), pass, layer)
	return nn.BlockTail{Norm: norm, Output: b.Mixer.Out}.Add(x, mixed)
}

// NewCache makes an empty state, whose size does not depend on capacity.
func (b *Mamba2Block) NewCache(batch, _ int, dtype torch.DType,
	device torch.Device) model.LayerCache {
	return b.Mixer.NewCache(batch, dtype, device)
}

// mamba2Defaults are the values of Mamba2Config.
var mamba2Defaults = model.Config{
	"vocab_size": 32768.0, "hidden_size": 4096.0, "num_hidden_layers": 64.0, "num_heads": 128.0,
	"head_dim": 64.0, "state_size": 128.0, "n_groups": 8.0, "expand": 2.0, "conv_kernel": 4.0,
	"chunk_size": 256.0, "use_bias": false, "use_conv_bias": true, "layer_norm_epsilon": 1e-5,
	"residual_in_fp32": true, "tie_word_embeddings": false,
}

// NewMamba2 makes a model without weights from a Hugging Face config of model_type "mamba2"
// (Mamba2ForCausalLM): the paper's stack of Mamba-2 layers, without attention or feed-forward
// layers.
func NewMamba2(config model.Config) (model.Model, error) {
	r := &model.Reader{Config: config.Or(mamba2Defaults)}
	r.Refuse("per_layer_config")
	stack := model.StackConfig{
		Architecture: "mamba2", Config: statespace.Decimals(config),
		Vocabulary:   r.IntUpTo("vocab_size", model.Vocabulary),
		Width:        r.IntUpTo("hidden_size", model.Widths),
		MaxLength:    1 << 20, // for training and generation: a state-space model has no positions
		Eps:          r.Eps("layer_norm_epsilon"),
		Tied:         r.Bool("tie_word_embeddings"),
		WideResidual: r.Bool("residual_in_fp32"),
		Names: model.StackNames{Embedding: "backbone.embeddings", Layers: "backbone.layers",
			FinalNorm: "backbone.norm_f"},
	}
	c := statespace.MixerConfig{
		Width: stack.Width, Heads: r.Int("num_heads"), HeadDim: r.Int("head_dim"),
		Groups: r.Int("n_groups"), State: r.Int("state_size"), Taps: r.Int("conv_kernel"),
		InBias: r.Bool("use_bias"), OutBias: r.Bool("use_bias"),
		ConvBias: r.Bool("use_conv_bias"), Eps: stack.Eps,
	}
	layers, inner := r.IntUpTo("num_hidden_layers", model.Layers), r.Int("expand")*stack.Width
	chunking := statespace.NewChunking(r.IntUpTo("chunk_size", model.Chunk))
	if r.Err != nil {
		return nil, r.Err
	}
	names := statespace.MixerNames{Heads: "num_heads", HeadDim: "head_dim", State: "state_size",
		Taps: "conv_kernel"}
	if err := c.Check(r, inner, names); err != nil {
		return nil, err
	}
	var blocks []model.Block
	for range layers {
		blocks = append(blocks, &Mamba2Block{Norm: nn.NewRMSNorm(c.Width, c.Eps),
			Mixer: statespace.NewMixer(c, chunking)})
	}
	return statespace.NewModel(stack, blocks, chunking)
}
