package nn

import (
	"math"

	"conquer/torch"
)

// Conv1D is a causal depthwise convolution followed by SiLU, as state-space layers use it. Each
// channel has W taps of its own; the last tap is the token itself.
type Conv1D struct {
	Weight *Param `weight:"weight"` // [D, 1, W]
	Bias   *Param `weight:"bias"`   // [D], or nil
}

// NewConv1D declares a convolution of width taps over the given number of channels. Fresh taps are
// drawn uniformly from ±1/√W, as PyTorch's Conv1d draws them: each channel has only W inputs, so
// much smaller taps would pass almost no signal.
func NewConv1D(channels, width int, bias bool) *Conv1D {
	bound := 1 / math.Sqrt(float64(width))
	c := &Conv1D{Weight: NewParam(Normal, channels, 1, width)}
	c.Weight.Draw = func(t torch.Tensor) { t.Uniform(-bound, bound) }
	if bias {
		c.Bias = NewParam(Zeros, channels)
	}
	return c
}

func (c *Conv1D) weights() (weight, bias torch.Tensor) {
	weight = c.Weight.Tensor.Squeeze(1)
	if c.Bias != nil {
		bias = c.Bias.Tensor
	}
	return weight, bias
}

// Forward filters x [B,L,D] to [B,L,D]. state [B,W-1,D], or no tensor, holds the inputs before the
// first and is overwritten with the last ones. A tap sees inputs of its token's segment only
// (segments: int32 [B,L], or no tensor).
func (c *Conv1D) Forward(x, state, segments torch.Tensor) torch.Tensor {
	weight, bias := c.weights()
	y, last := torch.CausalConv1D(x, weight, bias, state, segments, true)
	if state.Defined() {
		state.Copy(last)
	}
	return y
}

// Carry is Forward that leaves state as it is and returns the last inputs, without a gradient.
func (c *Conv1D) Carry(x, state, segments torch.Tensor) (y, last torch.Tensor) {
	weight, bias := c.weights()
	return torch.CausalConv1D(x, weight, bias, state, segments, true)
}

// Step filters one token, x [B,D], and updates state [B,W-1,D].
func (c *Conv1D) Step(x, state torch.Tensor) torch.Tensor {
	weight, bias := c.weights()
	return torch.Conv1DStep(state, x, weight, bias, true)
}

// GatedRMSNorm is root-mean-square normalization of x·silu(z), in groups of channels.
type GatedRMSNorm struct {
	Weight *Param `weight:"weight"` // [D]
	Eps    float64
	Group  int  // channels that are normalized together
	First  bool // normalize x alone, and gate the result
}

// Gate is x·silu(z) in x's dtype, computed in float32. Both are [..., D].
func Gate(x, z torch.Tensor) torch.Tensor {
	return x.To(torch.Float32).Mul(z.To(torch.Float32).Silu()).To(x.DType())
}

// NewGatedRMSNorm declares a normalization over a last dimension of the given width, in equal
// groups.
func NewGatedRMSNorm(width, groups int, eps float64) *GatedRMSNorm {
	return &GatedRMSNorm{Weight: NewParam(Ones, width), Eps: eps, Group: width / groups}
}

// Forward normalizes x [..., D] gated by z [..., D].
func (n *GatedRMSNorm) Forward(x, z torch.Tensor) torch.Tensor {
	gate := z
	if n.First {
		z = torch.Tensor{}
	}
	var y torch.Tensor
	if n.Group > x.Size(-1) { // other processes hold the rest of the group
		y = n.divided(x, z)
	} else {
		y = torch.GatedRMSNorm(x, z, n.Weight.Tensor, n.Eps, n.Group)
	}
	if n.First {
		return Gate(y, gate)
	}
	return y
}
