// Package bamba holds two families: Bamba, which is Mamba-2 state-space layers with a few attention
// layers among them, and Mamba-2. [Block] and [Mamba2Block] are their blocks. The state-space layer
// and its scan are in package statespace.
package bamba

import (
	"slices"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/nn"
)

// Block is a state-space layer or attention, then a feed-forward layer, each after a normalization
// and added to its input.
type Block struct {
	MixerNorm *nn.RMSNorm       `weight:"input_layernorm"`
	Mixer     *statespace.Mixer `weight:"mamba"`     // nil in an attention layer
	Attention *model.Attention  `weight:"self_attn"` // nil in a state-space layer
	MLPNorm   *nn.RMSNorm       `weight:"pre_ff_layernorm"`
	MLP       *nn.SwiGLU        `weight:"feed_forward"`
}

// InputProjection is that of the state-space layer or of attention.
func (b *Block) InputProjection() nn.InputProjection {
	if b.Mixer != nil {
		return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Mixer.In}
	}
	return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Attention.QKV}
}

// SplitsSequence marks the block for [model.Split].
func (b *Block) SplitsSequence() {}

// Forward computes h = x + mixer(norm(x)), y = h + mlp(norm(h)): [B,L,D] to [B,L,D].
func (b *Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	projected := pass.InputProjection(b.InputProjection(), x)
	tail := nn.BlockTail{MLPNorm: b.MLPNorm, MLP: b.MLP}
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

// New makes a model without weights from a Hugging Face config of model_type "bamba"
// (BambaForCausalLM). Without attention layers it is a Mamba-2 stack with feed-forward layers.
func New(config model.Config) (model.Model, error) {
	s, err := read(config)
	if err != nil {
		return nil, err
	}
	chunking := statespace.NewChunking(s.chunk)
	var blocks []model.Block
	for i := range s.layers {
		block := &Block{
			MixerNorm: nn.NewRMSNorm(s.stack.Width, s.stack.Eps),
			MLPNorm:   nn.NewRMSNorm(s.stack.Width, s.stack.Eps),
			MLP:       nn.NewSwiGLU(s.stack.Width, s.inner, s.mlpBias),
		}
		if slices.Contains(s.attentionLayers, i) {
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
