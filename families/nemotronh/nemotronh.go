// Package nemotronh is NVIDIA's Nemotron-H family (arXiv 2504.03624) with Nemotron Nano 2 and 3:
// layers that are each one thing, a Mamba-2 layer, attention without positions, a feed-forward
// layer of squared ReLU, or a mixture of experts.
package nemotronh

import (
	"math"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/nn"
)

// Block is one layer after a normalization, added to its input. All of Mixer, Attention, MLP and
// MoE but one are nil.
type Block struct {
	Norm      *nn.RMSNorm       `weight:"norm"`
	Mixer     *statespace.Mixer `weight:"mixer"`
	Attention *model.Attention  `weight:"mixer"`
	MLP       *MLP              `weight:"mixer"`
	MoE       *nn.MoE           `weight:"mixer"`
}

// InputProjection is the norm and the layer's first GEMM; for a mixture of experts that of its
// router.
func (b *Block) InputProjection() nn.InputProjection {
	switch {
	case b.Mixer != nil:
		return nn.InputProjection{Norm: b.Norm, Linear: b.Mixer.In}
	case b.Attention != nil:
		return nn.InputProjection{Norm: b.Norm, Linear: b.Attention.QKV}
	case b.MLP != nil:
		return nn.InputProjection{Norm: b.Norm, Linear: b.MLP.Up}
	}
	return nn.InputProjection{Norm: b.Norm, Linear: b.MoE.Router}
}

// Forward computes x + layer(norm(x)): [B,L,D] to [B,L,D].
func (b *Block) Forward(x torch.Tensor, pass *model.Pass, layer *model.LayerCache) torch.Tensor {
	if b.MLP != nil {
		return b.MLP.ForwardAdd(b.Norm, x)
	}
	if b.MoE != nil {
		return b.MoE.ForwardAdd(b.Norm, x)
	}
	projected := pass.InputProjection(b.InputProjection(), x)
	if b.Attention != nil {
		return b.Attention.Output.ForwardAdd(b.Attention.Forward(projected, pass, layer), x)
	}
	mixed, norm := b.Mixer.Forward(projected, pass, layer)
	return nn.BlockTail{Norm: norm, Output: b.Mixer.Out}.Add(x, mixed)
}

// NewCache makes an empty state, an empty key and value cache, or nothing.
func (b *Block) NewCache(batch, capacity int, dtype torch.DType,
	device torch.Device) model.LayerCache {
	switch {
	case b.Mixer != nil:
		return b.Mixer.NewCache(batch, dtype, device)
	case b.Attention != nil:
		return b.Attention.NewCache(batch, capacity, dtype, device)
	}
	return model.LayerCache{}
}

// MLP is the feed-forward layer down(max(up(x), 0)²).
type MLP struct {
	Up   *nn.Linear `weight:"up_proj"`
	Down *nn.Linear `weight:"down_proj"`
}

// NewMLP declares a feed-forward layer of the given widths.
func NewMLP(width, inner int, bias bool) *MLP {
	return &MLP{Up: nn.NewLinear(width, bias, inner), Down: nn.NewLinear(inner, bias, width)}
}

// Forward maps x, normalized by norm, to the layer's output: all [..., D].
func (m *MLP) Forward(norm *nn.RMSNorm, x torch.Tensor) torch.Tensor {
	return m.Down.Forward(squaredReLU(m.Up.ForwardNormed(norm, x)))
}

// ForwardAdd is x + Forward(norm, x).
func (m *MLP) ForwardAdd(norm *nn.RMSNorm, x torch.Tensor) torch.Tensor {
	return m.Down.ForwardAdd(squaredReLU(m.Up.ForwardNormed(norm, x)), x)
}

// Divide shares the inner width F.
func (m *MLP) Divide(d nn.Divider) error {
	inner := nn.Span{Count: m.Down.Weight.Shape[1], Unit: 1}
	d.Outputs(m.Up, inner)
	d.Inputs(m.Down, inner)
	return nil
}

// Activations are the rectified values, which their square keeps.
func (m *MLP) Activations() nn.Activations {
	n := float64(m.Up.Weight.Local()[0])
	return nn.Activations{Kept: n, Recomputable: -n}
}

func squaredReLU(x torch.Tensor) torch.Tensor {
	x = x.Clamp(0, math.Inf(1))
	return x.Mul(x)
}

// New makes a model without weights from a Hugging Face config of model_type "nemotron_h"
// (NemotronHForCausalLM).
func New(config model.Config) (model.Model, error) {
	s, err := read(config)
	if err != nil {
		return nil, err
	}
	chunking := statespace.NewChunking(s.chunk)
	var blocks []model.Block
	for _, kind := range s.layers {
		block := &Block{Norm: nn.NewRMSNorm(s.stack.Width, s.stack.Eps)}
		switch kind {
		case mamba:
			block.Mixer = statespace.NewMixer(s.mixer, chunking)
		case attention:
			if block.Attention, err = model.NewAttention(s.attention); err != nil {
				return nil, err
			}
		case mlp:
			block.MLP = NewMLP(s.stack.Width, s.inner, s.mlpBias)
		case moe:
			block.MoE = nn.NewMoE(s.stack.Width, s.routing, nn.NewExperts(s.routing, s.stack.Width,
				s.experts, nn.ExpertNames{Up: "up_proj", Down: "down_proj"}, squaredReLU),
				nn.MoENames{Router: "gate", Bias: "gate.e_score_correction_bias",
					Experts: "experts", Shared: "shared_experts"})
			block.MoE.Bias = nn.NewParam(nn.Zeros, s.routing.Experts)
			block.MoE.Shared = NewMLP(s.stack.Width, s.shared, s.mlpBias)
		}
		blocks = append(blocks, block)
	}
	return statespace.NewModel(s.stack, blocks, chunking)
}
