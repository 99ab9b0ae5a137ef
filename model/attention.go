package model

import (
	"conquer/torch"
	"conquer/torch/nn"
)

// Attention is attention with grouped queries: H query heads share K key and value heads of P dimensions. The pass turns as
// much of a head by its position as its rotary table is wide.
type Attention struct {
	QKV    *nn.Linear `weight:"q_proj+k_proj+v_proj"`
	Output *nn.Linear `weight:"o_proj"`

	headDim, share int // P, H/K
}

// NewAttention declares a layer of the given width and heads, with biases of its two products where they are asked for.
func NewAttention(width, heads, keyHeads, headDim int, qkvBias, outputBias bool) *Attention {
	q, kv := heads*headDim, keyHeads*headDim
	return &Attention{QKV: nn.NewLinear(width, qkvBias, q, kv, kv), Output: nn.NewLinear(q, outputBias, width),
		headDim: headDim, share: heads / keyHeads}
}

// Sizes are the layer's H, K and P: in a process that holds a part of the heads, of that part.
func (a *Attention) Sizes() (heads, keyHeads, headDim int) {
	keyHeads = a.QKV.Weight.Local()[0] / a.headDim / (a.share + 2)
	return keyHeads * a.share, keyHeads, a.headDim
}

// Forward is attention without its two products: qkv [B,L,(H+2K)·P], what QKV makes, to [B,L,H·P], what Output takes. The
// queries, turned by their positions, see the keys and values that qkv holds after them and those that layer remembers, to which
// they are added.
func (a *Attention) Forward(qkv torch.Tensor, pass *Pass, layer *LayerCache) torch.Tensor {
	batch, length := qkv.Size(0), qkv.Size(1)
	heads, keyHeads, headDim := a.Sizes()
	if layer != nil && length == 1 {
		return torch.DecodeAttention(qkv, heads, pass.Cos, pass.Sin, layer.Keys, layer.Values, pass.Starts, pass.Lengths)
	}
	var q, k, v torch.Tensor
	if layer != nil {
		end := pass.Start + length
		q = torch.RotaryQKVCache(qkv, heads, pass.Cos, pass.Sin, pass.Columns, layer.Keys, layer.Values)
		k, v = layer.Keys.Narrow(2, 0, end), layer.Values.Narrow(2, 0, end)
	} else {
		q, k, v = torch.RotaryQKV(qkv, heads, keyHeads, pass.Cos, pass.Sin)
	}
	return torch.Attention(q, k, v, pass.Mask, pass.Causal).Transpose(1, 2).Reshape(batch, length, heads*headDim)
}
