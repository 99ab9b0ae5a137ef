package statespace

import (
	"fmt"
	"math"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Mixer is a Mamba-2 layer (Dao and Gu, arXiv 2405.21060, section 7): H heads of P dimensions, each
// with a state of P×N, in G groups that share B and C. One projection computes the gate, the input,
// B, C and the time steps. A short convolution mixes neighbouring tokens, the scan carries state
// along the sequence, and the gate scales the result, which is normalized, after that or before.
type Mixer struct {
	// D to the gate (HP), then x (HP), B (GN) and C (GN), then dt (H)
	In     *nn.Linear       `weight:"in_proj"`
	Conv   *nn.Conv1D       `weight:"conv1d"`  // over x, B and C
	DTBias *nn.Param        `weight:"dt_bias"` // [H]
	ALog   *nn.Param        `weight:"A_log"`   // [H]: A = -e^ALog
	D      *nn.Param        `weight:"D"`       // [H]
	Norm   *nn.GatedRMSNorm `weight:"norm"`    // nil with NoNorm
	Out    *nn.Linear       `weight:"out_proj"`

	config   MixerConfig
	chunking *Chunking // the model's: one choice for all its layers
}

// MixerConfig describes a Mamba-2 layer.
type MixerConfig struct {
	Width                         int     // D
	Heads, HeadDim, Groups, State int     // H, P, G, N
	Taps                          int     // W, the convolution's width
	InBias, OutBias, ConvBias     bool    // of the projections and the convolution
	NoNorm                        bool    // the result is gated, but not normalized
	NormFirst                     bool    // the result is normalized before it is gated
	DTMin, DTMax                  float64 // bounds of the time steps
	Eps                           float64
}

// NewMixer declares a layer, without weights, that scans by chunking.
func NewMixer(c MixerConfig, chunking *Chunking) *Mixer {
	inner, mixed := c.Heads*c.HeadDim, c.Heads*c.HeadDim+2*c.Groups*c.State
	m := &Mixer{
		In:     nn.NewLinear(c.Width, c.InBias, inner+mixed+c.Heads),
		Conv:   nn.NewConv1D(mixed, c.Taps, c.ConvBias),
		DTBias: nn.NewParam(nn.Ones, c.Heads),
		ALog:   nn.NewParam(nn.Zeros, c.Heads),
		D:      nn.NewParam(nn.Ones, c.Heads),
		Out:    nn.NewLinear(inner, c.OutBias, c.Width), config: c, chunking: chunking,
	}
	if !c.NoNorm {
		m.Norm = nn.NewGatedRMSNorm(inner, c.Groups, c.Eps)
		m.Norm.First = c.NormFirst
	}
	// The paper's initialization: time steps log-uniform between 0.001 and 0.1, and A between -1
	// and -16, so that the heads remember over very different spans. dt_bias is softplus's inverse,
	// dt + log(1 - e^-dt).
	m.DTBias.Draw = func(t torch.Tensor) {
		dt := t.Uniform(math.Log(0.001), math.Log(0.1)).Exp()
		t.Copy(dt.Add(dt.Neg().Exp().Neg().AddScalar(1).Log()))
	}
	m.ALog.Draw = func(t torch.Tensor) { t.Copy(t.Uniform(1, 16).Log()) }
	return m
}

// Config is the configuration of the whole layer, also under tensor parallelism.
func (m *Mixer) Config() MixerConfig { return m.config }

// Sizes returns the layer's H, P, G and N; under tensor parallelism, those of this process's shard.
func (m *Mixer) Sizes() (heads, headDim, groups, state int) {
	heads = m.D.Local()[0]
	return heads, m.config.HeadDim,
		(m.Conv.Weight.Local()[0] - heads*m.config.HeadDim) / (2 * m.config.State), m.config.State
}

// Forward is the layer without its two projections: from the output of In [B,L,2HP+2GN+H] to the
// input of Out [B,L,HP]. If norm is not nil, the caller must still normalize the result with it.
func (m *Mixer) Forward(projected torch.Tensor, pass *model.Pass,
	layer *model.LayerCache) (mixed torch.Tensor, norm *nn.RMSNorm) {
	heads, headDim, groups, states := m.Sizes()
	inner, shared := heads*headDim, groups*states
	parts := projected.Split(2, inner, inner+2*shared, heads)
	gate, xBC, dt := parts[0], parts[1], parts[2]
	batch, length := gate.Size(0), gate.Size(1)

	var before, state torch.Tensor // the cache's [B,W-1,HP+2GN] and [B,H,P,N]
	carried := layer != nil && layer.After != nil
	if layer != nil {
		before, state = layer.Conv, layer.State
		if pass.Begins && !carried {
			before.Zero()
			state.Zero()
		}
	}
	var ring torch.SSDRing
	if layer != nil && layer.Ring.X.Defined() {
		ring = layer.Ring
		if ring.Held = pass.Cache.Held; length > 1 && !pass.Begins {
			torch.SSDFold(state, m.ALog.Tensor, ring)
		}
	}
	// Padding is zeroed twice: the taps of the first tokens must read zeros there, and the
	// convolution's bias must not reach the state.
	xBC = withoutPadding(xBC, pass)
	if pass.Split != nil {
		xBC, _ = m.Conv.Carry(xBC, tailOf(pass.Split, xBC, m.config.Taps), torch.Tensor{})
	} else if carried {
		var last torch.Tensor
		xBC, last = m.Conv.Carry(xBC, before, pass.Segments)
		layer.After.Conv = last.Own()
	} else if layer != nil && length == 1 {
		xBC = m.Conv.Step(xBC.Squeeze(1), before).Unsqueeze(1)
	} else {
		xBC = m.Conv.Forward(xBC, before, pass.Segments)
	}
	parts = withoutPadding(xBC, pass).Split(2, inner, shared, shared)

	in := torch.SSDInput{
		X: parts[0].View(batch, length, heads, headDim), DT: dt,
		B: parts[1].View(batch, length, groups, states),
		C: parts[2].View(batch, length, groups, states),
		D: m.D.Tensor, DTBias: m.DTBias.Tensor, Softplus: true, DTMin: m.config.DTMin,
		DTMax:        m.config.DTMax,
		InitialState: state, Segments: pass.Segments,
	}
	if layer != nil && length == 1 && !carried {
		in.X, in.DT, in.B, in.C, in.ALog = in.X.Squeeze(1), in.DT.Squeeze(1), in.B.Squeeze(1),
			in.C.Squeeze(1), m.ALog.Tensor
		in.Ring = ring
		switch {
		case m.Norm == nil:
			in.Z = gate.Reshape(batch, heads, headDim)
		case m.Norm.Group == inner && !m.Norm.First:
			// SSDStep applies the gate, Out's GEMM the norm
			in.Z = gate.Reshape(batch, heads, headDim)
			norm = &nn.RMSNorm{Weight: m.Norm.Weight, Eps: m.Norm.Eps}
		}
		y := torch.SSDStep(state, in).Reshape(batch, 1, inner)
		if in.Z.Defined() {
			return y, norm
		}
		return m.Norm.Forward(y, gate), nil
	}
	in.A = m.ALog.To(torch.Float32).Exp().Neg()
	var y, final torch.Tensor
	if pass.Split != nil {
		y = m.chunking.scanSplit(pass.Split, in)
	} else {
		y, final = m.chunking.Scan(in)
	}
	switch {
	case carried:
		layer.After.State = final.Detach().Own()
	case layer != nil:
		state.Copy(final.Detach())
	}
	y = y.Reshape(batch, length, inner)
	if m.Norm == nil {
		return nn.Gate(y, gate), nil
	}
	return m.Norm.Forward(y, gate), nil
}

func withoutPadding(x torch.Tensor, pass *model.Pass) torch.Tensor {
	if !pass.Padding.Defined() {
		return x
	}
	return x.MaskedFill(pass.Padding.Unsqueeze(2), 0)
}

// NewCache makes the layer's empty convolution and state-space states.
func (m *Mixer) NewCache(batch int, dtype torch.DType, device torch.Device) model.LayerCache {
	heads, headDim, groups, states := m.Sizes()
	conv := []int{batch, m.config.Taps - 1, m.Conv.Weight.Local()[0]}
	cache := model.LayerCache{
		Conv: torch.Zeros(conv, dtype, device).Own(),
		State: torch.Zeros([]int{batch, heads, headDim, states}, m.chunking.stateDType(),
			device).Own(),
	}
	if ring := torch.NewSSDRing(cache.State, dtype, groups); ring.X.Defined() {
		cache.Ring = torch.SSDRing{X: ring.X.Own(), B: ring.B.Own(), DT: ring.DT.Own()}
	}
	return cache
}

// Divide shares the groups of heads, or the heads of a single group, whose B and C every process
// holds.
func (m *Mixer) Divide(d nn.Divider) error {
	c := m.config
	inner, shared := c.Heads*c.HeadDim, c.Groups*c.State
	units, common := c.Groups, func(start int) nn.Span {
		return nn.Span{Start: start,
			Count: c.Groups, Unit: c.State}
	}
	if c.Groups == 1 {
		units, common = c.Heads, func(start int) nn.Span {
			return nn.Span{Start: start,
				Count: c.State}
		}
	}
	if units < d.Size() {
		return nn.TooManyProcesses(fmt.Sprintf("%d heads in %d groups", c.Heads, c.Groups), d,
			units)
	}
	channels := func(start int) nn.Span {
		return nn.Span{Start: start, Count: units,
			Unit: inner / units}
	}
	perHead := func(start int) nn.Span {
		return nn.Span{Start: start, Count: units,
			Unit: c.Heads / units}
	}
	d.Outputs(m.In, channels(0), channels(inner), common(2*inner), common(2*inner+shared),
		perHead(2*inner+2*shared))
	d.Rows(m.Conv.Weight, channels(0), common(inner), common(inner+shared))
	if m.Conv.Bias != nil {
		d.Rows(m.Conv.Bias, channels(0), common(inner), common(inner+shared))
	}
	for _, p := range []*nn.Param{m.DTBias, m.ALog, m.D} {
		d.Rows(p, perHead(0))
	}
	if m.Norm != nil {
		d.Rows(m.Norm.Weight, channels(0))
	}
	d.Inputs(m.Out, channels(0))
	return nil
}
