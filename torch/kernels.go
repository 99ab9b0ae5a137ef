package torch

// #include "conquer.h"
import "C"

import (
	"math"

	"github.com/sugarme/gotch/libtch"
)

// Linear is x [..., D] times weight [N, D] transposed, plus bias [N] or no tensor.
func Linear(x, weight, bias Tensor) Tensor {
	c := begin()
	libtch.AtgLinear(&c.out[0], x.c, weight.c, bias.c)
	return c.end("linear", x, weight, bias)
}

// RMSNorm divides x [..., D] by the root of its mean square plus eps, in float32, and multiplies the result, rounded to
// x's dtype, by weight [D] (Zhang and Sennrich, arXiv 1910.07467).
func RMSNorm(x, weight Tensor, eps float64) Tensor {
	x32 := x.To(Float32)
	mean := x32.PowScalar(2).SumDim(-1, true).MulScalar(1 / float64(x.Size(-1)))
	return weight.Mul(x32.Mul(mean.AddScalar(eps).Rsqrt()).To(x.DType()))
}

// Rotary turns q [B,L,H,P] and k [B,L,K,P] by the angles whose cosines and sines are cos and sin [B or 1, L, R/2]
// (float32): the first R of the P dimensions, the i-th paired with the (R/2+i)-th; the rest passes. The results are laid
// out for attention: [B,H,L,P] and [B,K,L,P] (Su et al., arXiv 2104.09864, in Hugging Face's pairing).
func Rotary(q, k, cos, sin Tensor) (Tensor, Tensor) {
	half := cos.Size(-1)
	cos, sin = cos.Unsqueeze(2), sin.Unsqueeze(2)
	turn := func(x Tensor) Tensor {
		dtype, width := x.DType(), x.Size(-1)
		x = x.To(Float32)
		a, b := x.Narrow(-1, 0, half), x.Narrow(-1, half, half)
		parts := []Tensor{a.Mul(cos).Sub(b.Mul(sin)), b.Mul(cos).Add(a.Mul(sin))}
		if width > 2*half {
			parts = append(parts, x.Narrow(-1, 2*half, width-2*half))
		}
		return Cat(-1, parts...).To(dtype).Transpose(1, 2)
	}
	return turn(q), turn(k)
}

// SwiGLU is silu(gate) · up for gateUp [..., 2F] that holds the gate first: [..., F] (Shazeer, arXiv 2002.05202).
func SwiGLU(gateUp Tensor) Tensor {
	width := gateUp.Size(-1) / 2
	return gateUp.Narrow(-1, 0, width).Silu().Mul(gateUp.Narrow(-1, width, width))
}

// Attention is scaled dot-product attention with grouped queries: q [B,H,L,P], k and v [B,K,S,P] with K dividing H, scaled
// by 1/√P. mask is no tensor, or boolean and broadcastable to [B,H,L,S]; causal hides the columns after each row.
func Attention(q, k, v, mask Tensor, causal bool) Tensor {
	var out C.cq_tensor
	check(C.cq_sdpa(q.handle(), k.handle(), v.handle(), mask.handle(), 0, C.int(flag(causal)), 0, &out), "attention", q, k, v, mask)
	return Tensor{libtch.Ctensor(out)}
}

// DecodeAttention is Attention for one query position a sequence, q [B,H,1,P], over the columns [starts, lengths) of static
// caches [B,K,S,P]; starts and lengths are int64 [B] on the CPU's or the caches' device, starts may be no tensor.
func DecodeAttention(q, keys, values, starts, lengths Tensor) Tensor {
	columns := Arange(0, keys.Size(2), Int64, q.Device()).Unsqueeze(0)
	mask := columns.Less(lengths.Unsqueeze(1))
	if starts.Defined() {
		mask = mask.And(starts.Unsqueeze(1).LessEqual(columns))
	}
	return Attention(q, keys, values, mask.Unsqueeze(1).Unsqueeze(1), false)
}

// HeadCrossEntropy is the mean negative log-likelihood, in nats, of labels (int64 [N], -100 = not counted) under the logits
// hidden [N,D] · weight [V,D] transposed, as a float32 scalar, without holding all logits at once. divisor replaces the
// number of counted labels where it is not 0 (gradient accumulation).
func HeadCrossEntropy(hidden, weight, labels Tensor, divisor float64) Tensor {
	logits := Linear(hidden, weight, Tensor{}).To(Float32).LogSoftmax(-1)
	counted := labels.ZerosLike().LessEqual(labels).To(Float32)
	nll := logits.Gather(-1, labels.Clamp(0, math.MaxInt32).Unsqueeze(-1)).Squeeze(-1).Neg()
	total := nll.Mul(counted).Sum()
	if divisor == 0 {
		return total.Div(counted.Sum())
	}
	return total.MulScalar(1 / divisor)
}
