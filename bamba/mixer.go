package bamba

import (
	"math"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Mixer is a Mamba-2 layer (Dao and Gu, arXiv 2405.21060, section 7): H heads of P dimensions, each with a state of P×N,
// in G groups that share B and C. One projection makes the gate, the input, B, C and the time steps; a short convolution
// looks a few tokens back; the scan looks back as far as the decays let it; and the gate closes what is not wanted.
type Mixer struct {
	In     *nn.Linear       `weight:"in_proj"` // D to the gate (HP), then x (HP), B (GN) and C (GN), then dt (H)
	Conv   *nn.Conv1D       `weight:"conv1d"`  // over x, B and C
	DTBias *nn.Param        `weight:"dt_bias"` // [H]
	ALog   *nn.Param        `weight:"A_log"`   // [H]: A = -e^ALog
	D      *nn.Param        `weight:"D"`       // [H]
	Norm   *nn.GatedRMSNorm `weight:"norm"`
	Out    *nn.Linear       `weight:"out_proj"`

	mixerConfig
	chunking *Chunking // the model's: one setting for all its layers
}

// mixerConfig is what a config says about its Mamba-2 layers.
type mixerConfig struct {
	heads, headDim, groups, state int // H, P, G, N
	taps                          int // W
	projBias, convBias            bool
	dtMin, dtMax                  float64
	eps                           float64
}

func newMixer(width int, c mixerConfig, chunking *Chunking) *Mixer {
	inner, mixed := c.heads*c.headDim, c.heads*c.headDim+2*c.groups*c.state
	m := &Mixer{
		In:     nn.NewLinear(width, c.projBias, inner+mixed+c.heads),
		Conv:   nn.NewConv1D(mixed, c.taps, c.convBias),
		DTBias: nn.NewParam(nn.Ones, c.heads),
		ALog:   nn.NewParam(nn.Zeros, c.heads),
		D:      nn.NewParam(nn.Ones, c.heads),
		Norm:   nn.NewGatedRMSNorm(inner, c.groups, c.eps),
		Out:    nn.NewLinear(inner, c.projBias, width), mixerConfig: c, chunking: chunking,
	}
	// The paper's beginning: time steps between 0.001 and 0.1, even in their logarithm, and A between -1 and -16, so that
	// fresh heads remember over very different spans. dt_bias is softplus's inverse, dt + log(1 - e^-dt).
	m.DTBias.Draw = func(t torch.Tensor) {
		dt := t.Uniform(math.Log(0.001), math.Log(0.1)).Exp()
		t.Copy(dt.Add(dt.Neg().Exp().Neg().AddScalar(1).Log()))
	}
	m.ALog.Draw = func(t torch.Tensor) { t.Copy(t.Uniform(1, 16).Log()) }
	return m
}

// Sizes are the layer's H, P, G and N.
func (m *Mixer) Sizes() (heads, headDim, groups, state int) {
	heads = m.D.Local()[0]
	return heads, m.headDim, (m.Conv.Weight.Local()[0] - heads*m.headDim) / (2 * m.state), m.state
}

// Forward is the layer without its two products: what In makes [B,L,2HP+2GN+H] to what Out takes, [B,L,HP]. Where norm is not
// nil, Out takes it normalized by that.
func (m *Mixer) Forward(first torch.Tensor, pass *model.Pass, layer *model.LayerCache) (mixed torch.Tensor, norm *nn.RMSNorm) {
	heads, headDim, groups, states := m.Sizes()
	inner, shared := heads*headDim, groups*states
	parts := first.Split(2, inner, inner+2*shared, heads)
	gate, xBC, dt := parts[0], parts[1], parts[2]
	batch, length := gate.Size(0), gate.Size(1)

	var before, state torch.Tensor // what the cache remembers: [B,W-1,HP+2GN] and [B,H,P,N]
	if layer != nil {
		before, state = layer.Conv, layer.State
		if pass.Start == 0 {
			before.Zero()
			state.Zero()
		}
	}
	// Padding is shut out twice: the taps of the first tokens must find zeros where it lies, and what the convolution's
	// bias makes of it must not reach the state.
	xBC = withoutPadding(xBC, pass)
	if layer != nil && length == 1 {
		xBC = m.Conv.Step(xBC.Squeeze(1), before).Unsqueeze(1)
	} else {
		xBC = m.Conv.Forward(xBC, before, pass.Segments)
	}
	parts = withoutPadding(xBC, pass).Split(2, inner, shared, shared)

	in := torch.SSDInput{
		X: parts[0].View(batch, length, heads, headDim), DT: dt,
		B: parts[1].View(batch, length, groups, states), C: parts[2].View(batch, length, groups, states),
		D: m.D.Tensor, DTBias: m.DTBias.Tensor, Softplus: true, DTMin: m.dtMin, DTMax: m.dtMax,
		InitialState: state, Segments: pass.Segments,
	}
	if layer != nil && length == 1 {
		in.X, in.DT, in.B, in.C, in.ALog = in.X.Squeeze(1), in.DT.Squeeze(1), in.B.Squeeze(1), in.C.Squeeze(1), m.ALog.Tensor
		if m.Norm.Group == inner { // the step opens the gate, and the last product normalizes
			in.Z = gate.Reshape(batch, heads, headDim)
			return torch.SSDStep(state, in).Reshape(batch, 1, inner), &nn.RMSNorm{Weight: m.Norm.Weight, Eps: m.Norm.Eps}
		}
		y := torch.SSDStep(state, in)
		return m.Norm.Forward(y.Reshape(batch, length, inner), gate), nil
	}
	in.A = m.ALog.To(torch.Float32).Exp().Neg()
	y, final := m.chunking.Scan(in)
	if layer != nil {
		state.Copy(final.Detach())
	}
	return m.Norm.Forward(y.Reshape(batch, length, inner), gate), nil
}

func withoutPadding(x torch.Tensor, pass *model.Pass) torch.Tensor {
	if !pass.Padding.Defined() {
		return x
	}
	return x.MaskedFill(pass.Padding.Unsqueeze(2), 0)
}

// newState makes a layer's empty conv and state-space states.
func (m *Mixer) newState(batch int, dtype torch.DType, device torch.Device) (conv, state torch.Tensor) {
	heads, headDim, _, states := m.Sizes()
	return torch.Zeros([]int{batch, m.taps - 1, m.Conv.Weight.Local()[0]}, dtype, device).Own(),
		torch.Zeros([]int{batch, heads, headDim, states}, torch.Float32, device).Own()
}

// begin prepares a pass: rotary is nil for a model without attention.
func begin(seq model.Sequence, rotary *nn.Rotary) *model.Pass {
	pass := model.NewPass(seq, rotary, 0)
	if pass.Segments.Defined() {
		pass.Segments = pass.Segments.To(torch.Int32) // as the kernels take them
	}
	return pass
}
