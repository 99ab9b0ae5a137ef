package model

import (
	"fmt"
	"slices"

	"conquer/torch"
	"conquer/torch/nn"
)

// AttentionConfig describes one attention layer. The zero value of each optional field means that
// the layer lacks it.
type AttentionConfig struct {
	Width, Heads, KeyHeads, HeadDim int // D, H, K, P

	QKVBias, OutputBias bool
	// normalize each head of the queries and keys, before the rotary embedding
	QKNorm   bool
	NormEps  float64 // of QKNorm
	Scale    float64 // multiplier of q·k; 0 means 1/√P
	Window   int     // positions that a token attends to, itself included; 0 means all
	NoRotary bool    // leave queries and keys without rotary embedding
	SoftCap  float64 // bound c of the scores, c·tanh(score/c); not supported
}

// check reports what cannot be computed.
func (c AttentionConfig) check() error {
	switch {
	case c.SoftCap != 0:
		return fmt.Errorf("config.json: a soft cap of attention scores (%g) is not supported",
			c.SoftCap)
	case c.HeadDim < 1 || c.Heads > Widths || c.Heads*c.HeadDim > Widths:
		return fmt.Errorf("config.json: %d heads of %d dimensions, expected at least one "+
			"dimension, and at most %d in all heads", c.Heads, c.HeadDim, Widths)
	case c.Heads%c.KeyHeads != 0:
		return fmt.Errorf("config.json: num_key_value_heads %d does not divide "+
			"num_attention_heads %d", c.KeyHeads,
			c.Heads)
	}
	return nil
}

// Attention is attention with grouped queries: H query heads share K key and value heads of P
// dimensions.
type Attention struct {
	QKV    *nn.Linear  `weight:"q_proj+k_proj+v_proj"`
	QNorm  *nn.RMSNorm `weight:"q_norm"` // nil without QKNorm
	KNorm  *nn.RMSNorm `weight:"k_norm"`
	Output *nn.Linear  `weight:"o_proj"`

	config   AttentionConfig
	eightBit bool // new caches hold keys and values in 8 bits
}

// NewAttention declares a layer, without weights.
func NewAttention(c AttentionConfig) (*Attention, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	q, kv := c.Heads*c.HeadDim, c.KeyHeads*c.HeadDim
	a := &Attention{QKV: nn.NewLinear(c.Width, c.QKVBias, q, kv, kv),
		Output: nn.NewLinear(q, c.OutputBias, c.Width),
		config: c}
	if c.QKNorm {
		a.QNorm, a.KNorm = nn.NewRMSNorm(c.HeadDim, c.NormEps), nn.NewRMSNorm(c.HeadDim, c.NormEps)
	}
	return a, nil
}

// Config is the configuration of the whole layer, also under tensor parallelism.
func (a *Attention) Config() AttentionConfig { return a.config }

// Sizes returns the layer's H, K and P; under tensor parallelism, those of this process's shard.
func (a *Attention) Sizes() (heads, keyHeads, headDim int) {
	group := a.config.Heads / a.config.KeyHeads
	keyHeads = a.QKV.Weight.Local()[0] / a.config.HeadDim / (group + 2)
	return keyHeads * group, keyHeads, a.config.HeadDim
}

// Forward is attention without its two projections: from qkv [B,L,(H+2K)·P], which QKV computes, to
// [B,L,H·P], which Output takes. If layer is not nil, the keys and values of qkv are appended to
// it, and the queries attend to all that it holds.
func (a *Attention) Forward(qkv torch.Tensor, pass *Pass, layer *LayerCache) torch.Tensor {
	batch, length := qkv.Size(0), qkv.Size(1)
	heads, keyHeads, headDim := a.Sizes()
	qkv = a.normalized(qkv)
	cos, sin, view := pass.Cos, pass.Sin, pass.View(a.config.Window)
	if a.config.NoRotary {
		cos, sin = pass.fixedCos, pass.fixedSin
	}
	if layer != nil && length == 1 {
		return torch.DecodeAttention(qkv, heads, cos, sin, layer.Keys, layer.Values, view.Starts,
			view.Lengths, a.config.Scale)
	}
	var q, k, v torch.Tensor
	if layer != nil {
		end := pass.Start + length
		q = torch.RotaryQKVCache(qkv, heads, cos, sin, pass.Columns, layer.Keys, layer.Values)
		k, v = layer.Keys.Narrow(2, 0, end), layer.Values.Narrow(2, 0, end)
		if k.DType() == torch.Uint8 {
			k, v = torch.UnpackCache(k, q.DType()), torch.UnpackCache(v, q.DType())
		}
	} else {
		q, k, v = torch.RotaryQKV(qkv, heads, keyHeads, cos, sin)
	}
	if pass.Split != nil {
		k, v = pass.Split.columns(k), pass.Split.columns(v)
	}
	y := torch.Attention(q, k, v, view.Mask, view.Causal, a.config.Scale)
	return y.Transpose(1, 2).Reshape(batch, length, heads*headDim)
}

// normalized applies QNorm and KNorm to qkv.
func (a *Attention) normalized(qkv torch.Tensor) torch.Tensor {
	if a.QNorm == nil {
		return qkv
	}
	heads, keyHeads, headDim := a.Sizes()
	parts := qkv.Split(-1, heads*headDim, keyHeads*headDim, keyHeads*headDim)
	for i, norm := range []*nn.RMSNorm{a.QNorm, a.KNorm} {
		shape := parts[i].Shape()
		perHead := append(slices.Clone(shape[:2]), -1, headDim)
		parts[i] = norm.Forward(parts[i].Reshape(perHead...)).Reshape(shape...)
	}
	return torch.Cat(-1, parts...)
}

// Activations say that attention's result, the input of Output, is not recomputed.
func (a *Attention) Activations() nn.Activations {
	return nn.Activations{Recomputable: -float64(a.Output.Weight.Local()[1])}
}

// NewCache makes an empty key and value cache.
func (a *Attention) NewCache(batch, capacity int, dtype torch.DType,
	device torch.Device) LayerCache {
	_, keyHeads, headDim := a.Sizes()
	shape := []int{batch, keyHeads, capacity, headDim}
	if a.eightBit {
		shape[3], dtype = headDim/32*34, torch.Uint8
	}
	return LayerCache{Keys: torch.Zeros(shape, dtype, device).Own(),
		Values: torch.Zeros(shape, dtype, device).Own()}
}

// Divide shares the key and value heads, each with the query heads that use it.
func (a *Attention) Divide(d nn.Divider) error {
	c := a.config
	if c.KeyHeads < d.Size() {
		return nn.TooManyProcesses(fmt.Sprintf("%d heads of keys and values", c.KeyHeads), d,
			c.KeyHeads)
	}
	queries := nn.Span{Start: 0, Count: c.KeyHeads, Unit: c.HeadDim * c.Heads / c.KeyHeads}
	keys := nn.Span{Start: c.Heads * c.HeadDim, Count: c.KeyHeads, Unit: c.HeadDim}
	values := nn.Span{Start: (c.Heads + c.KeyHeads) * c.HeadDim, Count: c.KeyHeads, Unit: c.HeadDim}
	d.Outputs(a.QKV, queries, keys, values)
	d.Inputs(a.Output, queries)
	return nil
}
