// Package falconh1 is TII's Falcon-H1 family (arXiv 2507.22448): attention and a Mamba-2 layer side
// by side in each block, whose results are added, then a feed-forward layer. Fixed multipliers
// scale the inputs and results of the layers.
package falconh1

import (
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/nn"
)

// Block is attention beside a state-space layer, then a feed-forward layer, each part after a
// normalization and added to its input.
type Block struct {
	MixerNorm *nn.RMSNorm       `weight:"input_layernorm"`
	Mixer     *statespace.Mixer `weight:"mamba"`
	Attention *model.Attention  `weight:"self_attn"`
	MLPNorm   *nn.RMSNorm       `weight:"pre_ff_layernorm"`
	MLP       *MLP              `weight:"feed_forward"`

	scales *scales // the model's
}

// InputProjection is that of the state-space layer.
func (b *Block) InputProjection() nn.InputProjection {
	return nn.InputProjection{Norm: b.MixerNorm, Linear: b.Mixer.In}
}

// Forward computes h = x + s·mixer(norm(x)) + a·attention(norm(x)), y = h + mlp(norm(h)), with the
// multipliers s and a: [B,L,D] to [B,L,D].
func (b *Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	s := b.scales
	projected := pass.InputProjection(b.InputProjection(), x)
	projected = input(projected, b.Mixer.In, s.ssm(projected, b.Mixer), s.SSMIn)
	mixed, norm := b.Mixer.Forward(projected, pass, layer)
	if norm != nil {
		mixed = norm.Forward(mixed)
	}
	qkv := nn.InputProjection{Norm: b.MixerNorm, Linear: b.Attention.QKV}.Forward(x)
	qkv = input(qkv, b.Attention.QKV, torch.Tensor{}, s.AttentionIn)
	attended := b.Attention.Output.Forward(b.Attention.Forward(qkv, pass, layer))
	h := x.Add(scaled(b.Mixer.Out.Forward(mixed), s.SSMOut)).Add(scaled(attended, s.AttentionOut))
	return b.MLP.ForwardAdd(b.MLPNorm, h)
}

// NewCache makes an empty key and value cache, and an empty state.
func (b *Block) NewCache(batch, capacity int, dtype torch.DType,
	device torch.Device) model.LayerCache {
	cache, state := b.Attention.NewCache(batch, capacity, dtype, device),
		b.Mixer.NewCache(batch, dtype, device)
	cache.Conv, cache.State = state.Conv, state.State
	return cache
}

// scaled is x times a multiplier.
func scaled(x torch.Tensor, by float64) torch.Tensor {
	if by == 1 {
		return x
	}
	return x.MulScalar(by)
}

// input turns y = W·x + b, the result of l, into rows·(by·W·x + b): the multiplier by belongs to
// the input. rows [N] are multipliers of the results, or no tensor.
func input(y torch.Tensor, l *nn.Linear, rows torch.Tensor, by float64) torch.Tensor {
	y = scaled(y, by)
	if by != 1 && l.Bias != nil {
		y = y.Add(l.Bias.MulScalar(1 - by))
	}
	if rows.Defined() {
		y = y.Mul(rows)
	}
	return y
}

// MLP is SwiGLU with multipliers of the gate and of the result.
type MLP struct {
	*nn.SwiGLU
	scales *scales
}

// Forward maps x, normalized by norm, to the layer's output: all [..., D].
func (m *MLP) Forward(norm *nn.RMSNorm, x torch.Tensor) torch.Tensor {
	if m.scales.Gate == 1 {
		return scaled(m.SwiGLU.Forward(norm, x), m.scales.Down)
	}
	both := m.GateUp.ForwardNormed(norm, x)
	both = both.Mul(m.scales.gate(both))
	return scaled(m.Down.Forward(torch.SwiGLU(both)), m.scales.Down)
}

// ForwardAdd is x + Forward(norm, x).
func (m *MLP) ForwardAdd(norm *nn.RMSNorm, x torch.Tensor) torch.Tensor {
	if m.scales.Gate == 1 && m.scales.Down == 1 {
		return m.SwiGLU.ForwardAdd(norm, x)
	}
	return x.Add(m.Forward(norm, x))
}

// Model is a [statespace.Model] whose blocks share tables of multipliers.
type Model struct {
	*statespace.Model
	scales *scales
}

// FreeTables frees the tables, which are made again when they are used.
func (m *Model) FreeTables() {
	m.Model.FreeTables()
	m.scales.free()
}

// New makes a model without weights from a Hugging Face config of model_type "falcon_h1"
// (FalconH1ForCausalLM).
func New(config model.Config) (model.Model, error) {
	s, err := read(config)
	if err != nil {
		return nil, err
	}
	chunking := statespace.NewChunking(s.chunk)
	shared := &scales{multipliers: s.multipliers}
	var blocks []model.Block
	for range s.layers {
		attention, err := model.NewAttention(s.attention)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, &Block{
			MixerNorm: nn.NewRMSNorm(s.stack.Width, s.stack.Eps),
			Mixer:     statespace.NewMixer(s.mixer, chunking),
			Attention: attention,
			MLPNorm:   nn.NewRMSNorm(s.stack.Width, s.stack.Eps),
			MLP:       &MLP{nn.NewSwiGLU(s.stack.Width, s.inner, s.mlpBias), shared},
			scales:    shared,
		})
	}
	m, err := statespace.NewModel(s.stack, blocks, chunking)
	if err != nil {
		return nil, err
	}
	return &Model{m.(*statespace.Model), shared}, nil
}
