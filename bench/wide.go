package bench

import (
	"context"
	"fmt"

	"conquer/bamba"
	"conquer/llama"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/nn"
)

// wideTokens is the number of tokens that the float64 reference takes at once.
const wideTokens = 512

// wideModel computes a model's hidden states in float64 from the weights that the model holds, in
// plain operations of libtorch. It shares no kernel, cache or batching with the model. Rotary
// tables are the model's own, which are float32 by definition.
type wideModel struct {
	model model.Model
	norm  *nn.RMSNorm // before the head
}

// newWide returns the reference of m, or an error if m has layers that it does not know.
func newWide(m model.Model) (w wideModel, err error) {
	w.model = m
	switch s := m.(type) {
	case *statespace.Model:
		w.norm = s.FinalNorm
	case *model.Stack:
		w.norm = s.FinalNorm
	}
	for _, block := range m.Blocks() {
		known := w.norm != nil
		switch b := block.(type) {
		case *bamba.Block, *bamba.Mamba2Block:
		case *llama.Block:
			_, plain := b.MLP.(*nn.SwiGLU)
			known = known && plain && b.ResidualScale == 0
		default:
			known = false
		}
		if !known {
			return w, fmt.Errorf("the float64 reference knows the layers of bamba, mamba2 and "+
				"llama, not all those of %s", m.Architecture())
		}
	}
	nn.Linears(m, func(_ []string, l *nn.Linear) {
		if len(l.LoRA) > 0 || l.Weight.Shard != nil || l.Weight.Tensor.InBlocks() {
			err = fmt.Errorf("the float64 reference needs floating-point weights in one process, " +
				"without adapters beside them")
		}
	})
	return w, err
}

func wide(t torch.Tensor) torch.Tensor { return t.To(torch.Float64) }

// hidden returns the normalized hidden states [L,D] of one sequence, float64.
func (w wideModel) hidden(ctx context.Context, ids []int32) (h torch.Tensor, err error) {
	m := w.model
	all := torch.From(ids, 1, len(ids)).To(torch.Int64).ToDevice(model.Device(m))
	pass := m.Begin(model.Sequence{IDs: all})
	x := wide(m.Embed(all)).Squeeze(0)
	for _, block := range m.Blocks() {
		if err = ctx.Err(); err != nil {
			return x, err
		}
		x = torch.Scoped1(func() torch.Tensor {
			switch b := block.(type) {
			case *bamba.Mamba2Block:
				return x.Add(w.mixer(b.Mixer, wideNorm(b.Norm, x)))
			case *bamba.Block:
				mixed := wideNorm(b.MixerNorm, x)
				if b.Mixer != nil {
					mixed = w.mixer(b.Mixer, mixed)
				} else {
					mixed = w.attention(b.Attention, pass, mixed)
				}
				x := x.Add(mixed)
				return x.Add(wideSwiGLU(b.MLP, wideNorm(b.MLPNorm, x)))
			case *llama.Block:
				x := x.Add(w.attention(b.Attention, pass, wideNorm(b.AttentionNorm, x)))
				return x.Add(wideSwiGLU(b.MLP.(*nn.SwiGLU), wideNorm(b.MLPNorm, x)))
			}
			panic("unreachable: newWide knows the blocks")
		})
	}
	return wideNorm(w.norm, x), nil
}

// wideLinear is x·Wᵀ + b for x [L,D].
func wideLinear(l *nn.Linear, x torch.Tensor) torch.Tensor {
	y := x.Matmul(wide(l.Weight.Tensor).Transpose(0, 1))
	if l.Bias != nil {
		y = y.Add(wide(l.Bias.Tensor))
	}
	return y
}

// rms divides x by its root mean square over the last dimension.
func rms(x torch.Tensor, eps float64) torch.Tensor {
	mean := x.PowScalar(2).SumDim(-1, true).MulScalar(1 / float64(x.Size(-1)))
	return x.Mul(mean.AddScalar(eps).Rsqrt())
}

func wideNorm(n *nn.RMSNorm, x torch.Tensor) torch.Tensor {
	return rms(x, n.Eps).Mul(wide(n.Weight.Tensor))
}

func wideSwiGLU(s *nn.SwiGLU, x torch.Tensor) torch.Tensor {
	both := wideLinear(s.GateUp, x)
	inner := both.Size(1) / 2
	return wideLinear(s.Down, both.Narrow(1, 0, inner).Silu().Mul(both.Narrow(1, inner, inner)))
}

// mixer is a Mamba-2 layer on x [L,D]: the convolution as a sum over taps, the scan by SSD.
func (w wideModel) mixer(m *statespace.Mixer, x torch.Tensor) torch.Tensor {
	heads, headDim, groups, states := m.Sizes()
	config, inner, shared, length := m.Config(), heads*headDim, groups*states, x.Size(0)
	parts := wideLinear(m.In, x).Split(1, inner, inner+2*shared, heads)
	gate, dt := parts[0], parts[2]
	taps := config.Taps
	padded := torch.Cat(0, torch.Zeros([]int{taps - 1, inner + 2*shared}, torch.Float64,
		x.Device()), parts[1])
	mixed := parts[1].ZerosLike()
	for k := range taps {
		tap := wide(m.Conv.Weight.Tensor).Select(2, k).Squeeze(1)
		mixed = mixed.Add(padded.Narrow(0, k, length).Mul(tap))
	}
	if m.Conv.Bias != nil {
		mixed = mixed.Add(wide(m.Conv.Bias.Tensor))
	}
	parts = mixed.Silu().Split(1, inner, shared, shared)
	a := wide(m.ALog.Tensor).Exp().Neg()
	var state torch.Tensor
	var outputs []torch.Tensor
	for start := 0; start < length; start += wideTokens {
		count := min(wideTokens, length-start)
		rows := func(t torch.Tensor, shape ...int) torch.Tensor {
			return t.Narrow(0, start, count).Reshape(append([]int{1, count}, shape...)...)
		}
		y, final := statespace.SSD(torch.SSDInput{
			X: rows(parts[0], heads, headDim), DT: rows(dt, heads), A: a,
			B: rows(parts[1], groups, states), C: rows(parts[2], groups, states),
			D: wide(m.D.Tensor), DTBias: wide(m.DTBias.Tensor), Softplus: true,
			DTMin: config.DTMin, DTMax: config.DTMax, InitialState: state,
		}, 64, -1)
		state = final
		outputs = append(outputs, y.Reshape(count, inner))
	}
	y := torch.Cat(0, outputs...)
	if m.Norm == nil || !m.Norm.First {
		y = y.Mul(gate.Silu())
	}
	if n := m.Norm; n != nil {
		grouped := y.Reshape(length, inner/n.Group, n.Group)
		y = rms(grouped, n.Eps).Reshape(length, inner).Mul(wide(n.Weight.Tensor))
		if n.First {
			y = y.Mul(gate.Silu())
		}
	}
	return wideLinear(m.Out, y)
}

// attention is attention on x [L,D], some queries at a time.
func (w wideModel) attention(a *model.Attention, pass *model.Pass, x torch.Tensor) torch.Tensor {
	heads, keyHeads, headDim := a.Sizes()
	config, length := a.Config(), x.Size(0)
	split := wideLinear(a.QKV, x).Split(1, heads*headDim, keyHeads*headDim, keyHeads*headDim)
	perHead := func(t torch.Tensor, heads int, norm *nn.RMSNorm) torch.Tensor { // [heads,L,P]
		t = t.Reshape(length, heads, headDim)
		if norm != nil {
			t = wideNorm(norm, t)
		}
		return t.Transpose(0, 1)
	}
	q, k := perHead(split[0], heads, a.QNorm), perHead(split[1], keyHeads, a.KNorm)
	v := perHead(split[2], keyHeads, nil)
	if !config.NoRotary {
		q, k = rotate(q, pass), rotate(k, pass)
	}
	repeat := func(t torch.Tensor) torch.Tensor { // each key head serves H/K query heads
		return t.Unsqueeze(1).Expand(keyHeads, heads/keyHeads, length, headDim).Reshape(heads,
			length, headDim)
	}
	k, v = repeat(k), repeat(v)
	scale := config.Scale
	if scale == 0 {
		scale = 1 / sqrt(headDim)
	}
	columns := torch.Arange(0, length, torch.Int64, x.Device()).Unsqueeze(0)
	var outputs []torch.Tensor
	for start := 0; start < length; start += wideTokens {
		count := min(wideTokens, length-start)
		outputs = append(outputs, torch.Scoped1(func() torch.Tensor {
			rows := torch.Arange(start, start+count, torch.Int64, x.Device()).Unsqueeze(1)
			hidden := rows.Less(columns)
			scores := q.Narrow(1, start, count).Matmul(k.Transpose(1, 2)).MulScalar(scale)
			scores = scores.MaskedFill(hidden, minusInfinity)
			if config.Window > 0 {
				far := columns.LessEqual(rows.AddScalar(-float64(config.Window)))
				scores = scores.MaskedFill(far, minusInfinity)
			}
			return scores.Softmax(-1).Matmul(v)
		}))
	}
	y := torch.Cat(1, outputs...).Transpose(0, 1).Reshape(length, heads*headDim)
	return wideLinear(a.Output, y)
}

// rotate applies the pass's rotary embedding to the first dimensions of x [H,L,P].
func rotate(x torch.Tensor, pass *model.Pass) torch.Tensor {
	cos, sin := wide(pass.Cos), wide(pass.Sin) // [1,L,R/2]
	half := cos.Size(2)
	first, second := x.Narrow(2, 0, half), x.Narrow(2, half, half)
	parts := []torch.Tensor{first.Mul(cos).Sub(second.Mul(sin)),
		second.Mul(cos).Add(first.Mul(sin))}
	if rest := x.Size(2) - 2*half; rest > 0 {
		parts = append(parts, x.Narrow(2, 2*half, rest))
	}
	return torch.Cat(2, parts...)
}
