// Package bamba holds two families: Bamba, which is Mamba-2 state-space layers with a few attention
// layers among them, and Mamba-2. It also holds the chunked scan that both use, and the strategies
// by which chunks share their states.
//
// [Block] and [Mamba2Block] are the models' blocks, [Mixer] is the state-space layer, [SSD] is the
// scan on one page, [Chunking] chooses how it runs.
package bamba

import (
	"slices"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Block is a state-space layer or attention, then a feed-forward layer, each after a normalization
// and added to its input.
type Block struct {
	MixerNorm *nn.RMSNorm      `weight:"input_layernorm"`
	Mixer     *Mixer           `weight:"mamba"`     // nil in an attention layer
	Attention *model.Attention `weight:"self_attn"` // nil in a state-space layer
	MLPNorm   *nn.RMSNorm      `weight:"pre_ff_layernorm"`
	MLP       *nn.SwiGLU       `weight:"feed_forward"`
}

// InputProjection is that of the state-space layer or of attention.
func (b *Block) InputProjection() nn.InputProjection {
	if b.Mixer != nil {
		return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Mixer.In}
	}
	return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Attention.QKV}
}

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
	chunking := NewChunking(s.chunk)
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
			block.Mixer = NewMixer(s.mixer, chunking)
		}
		blocks = append(blocks, block)
	}
	return NewModel(s.stack, blocks, chunking)
}

// Model is a [model.Stack] whose state-space layers share one [Chunking].
type Model struct {
	*model.Stack
	chunking *Chunking
	chunk    int // the config's chunk size
}

// NewModel makes a model, without weights, whose state-space layers were made with the given
// chunking.
func NewModel(c model.StackConfig, blocks []model.Block, chunking *Chunking) (model.Model, error) {
	stack, err := model.NewStack(c, blocks)
	if err != nil {
		return nil, err
	}
	return &Model{Stack: stack, chunking: chunking, chunk: chunking.ChunkSize}, nil
}

// Chunked is a model whose state-space layers can be given another chunking. [Model] implements it.
type Chunked interface {
	model.Model
	// Chunking returns the current choice; a new model's is default-optimized with its config's
	// chunk size.
	Chunking() Chunking
	// SetChunking changes it for the passes that follow.
	SetChunking(Chunking) error
}

// Chunking returns how the state-space layers scan.
func (m *Model) Chunking() Chunking { return *m.chunking }

// SetChunking changes how the state-space layers scan, from the next pass on.
func (m *Model) SetChunking(c Chunking) error {
	if err := c.Check(); err != nil {
		return err
	}
	if c.ChunkSize == 0 {
		c.ChunkSize = m.chunk
	}
	*m.chunking = c
	return nil
}

// NewChunking returns the chunking of a new model: default-optimized, with the chunk size of its
// config, rounded to a size that the kernels have. Under the default strategy the size changes the
// speed only.
func NewChunking(size int) *Chunking {
	chunk := 16
	for chunk < 256 && 2*chunk <= size {
		chunk *= 2
	}
	return &Chunking{Strategy: Default, ChunkSize: chunk, Optimized: true}
}
