package torch

// #include "conquer.h"
import "C"

import (
	"math"

	"github.com/sugarme/gotch/libtch"
)

// Linear is x [..., D] times weight [N,D] transposed, plus bias [N] (or no tensor): [..., N].
func Linear(x, weight, bias Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_linear(x.handle(), weight.handle(), bias.handle(), &out), "linear", x, weight, bias)
	return Tensor{libtch.Ctensor(out)}
}

// Matmul is the matrix product over the last two dimensions, broadcasting the others.
func (t Tensor) Matmul(o Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_matmul(t.handle(), o.handle(), &out), "matmul", t, o)
	return Tensor{libtch.Ctensor(out)}
}

// AddMatmul adds a [M,K] times b [K,N] to t [M,N] in place.
func (t Tensor) AddMatmul(a, b Tensor) Tensor {
	check(C.cq_add_matmul(t.handle(), a.handle(), b.handle()), "add matmul", t, a, b)
	return t
}

// LinearAdd is residual [..., N] plus Linear.
func LinearAdd(x, weight, bias, residual Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_linear_add(x.handle(), weight.handle(), bias.handle(), residual.handle(), &out),
		"linear add", x, weight, bias, residual)
	return Tensor{libtch.Ctensor(out)}
}

// NormLinear is Linear of RMSNorm(x, norm), norm [D].
func NormLinear(x, norm Tensor, eps float64, weight, bias Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_norm_linear(x.handle(), norm.handle(), C.double(eps), weight.handle(), bias.handle(),
		&out), "norm linear", x, norm, weight, bias)
	return Tensor{libtch.Ctensor(out)}
}

// NormLinearAdd is residual [..., N] plus NormLinear.
func NormLinearAdd(x, norm Tensor, eps float64, weight, bias, residual Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_norm_linear_add(x.handle(), norm.handle(), C.double(eps), weight.handle(),
		bias.handle(), residual.handle(), &out), "norm linear add", x, norm, weight, bias, residual)
	return Tensor{libtch.Ctensor(out)}
}

// NormLinearSwiGLU is SwiGLU of NormLinear with weight [2F,D], gate first: [..., F].
func NormLinearSwiGLU(x, norm Tensor, eps float64, weight, bias Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_norm_linear_swiglu(x.handle(), norm.handle(), C.double(eps), weight.handle(),
		bias.handle(), &out), "norm linear swiglu", x, norm, weight, bias)
	return Tensor{libtch.Ctensor(out)}
}

// Tail holds the weights of a block tail and of the next block's input projection. A is the width
// of the mixer's result, D the model's, F the feed-forward layer's, N the input projection's. Norm,
// the biases and Next with its norm and bias may be no tensors.
type Tail struct {
	Norm, Output, OutputBias Tensor // [A], [D,A], [D]
	MLPNorm                  Tensor // [D]
	GateUp, GateUpBias       Tensor // [2F,D], the gate first, [2F]
	Down, DownBias           Tensor // [D,F], [D]
	NextNorm, Next, NextBias Tensor // [D], [N,D], [N]
	Eps, MLPEps, NextEps     float64
}

// BlockTail computes a block's output y [..., D] and the next block's input projection next [...,
// N] from the block's input x and its mixer's result mixed [..., A]:
//
//	z = x + Output·RMSNorm(mixed) (without the norm if Norm is undefined)
//	y = z + Down·SwiGLU(GateUp·RMSNorm(z))
//	next = Next·RMSNorm(y) (no tensor if Next is none)
//
// On a GPU, fused kernels do this for up to 64 rows without gradients; a Hopper GPU runs one kernel
// for a single row. Otherwise the operations run separately and unfusedReason says why.
func BlockTail(x, mixed Tensor, t Tail) (y, next Tensor, unfusedReason string) {
	in := C.cq_tail{
		norm:         t.Norm.handle(),
		output:       t.Output.handle(),
		output_bias:  t.OutputBias.handle(),
		mlp_norm:     t.MLPNorm.handle(),
		gate_up:      t.GateUp.handle(),
		gate_up_bias: t.GateUpBias.handle(),
		down:         t.Down.handle(),
		down_bias:    t.DownBias.handle(),
		next_norm:    t.NextNorm.handle(),
		next:         t.Next.handle(),
		next_bias:    t.NextBias.handle(),
		eps:          C.double(t.Eps),
		mlp_eps:      C.double(t.MLPEps),
		next_eps:     C.double(t.NextEps),
	}
	var out, ahead C.cq_tensor
	var why *C.char
	check(C.cq_block_tail(x.handle(), mixed.handle(), &in, &out, &ahead, &why), "block tail", x,
		mixed, t.Output, t.GateUp, t.Down, t.Next)
	return Tensor{libtch.Ctensor(out)}, Tensor{libtch.Ctensor(ahead)}, C.GoString(why)
}

// Embedding returns the rows ids (int64, any shape) of weight [V,D]: [..., D]. Its backward pass
// adds to the weight's gradient in place if it has one, so gradients must accumulate, as those of
// [Backward] do.
func Embedding(weight, ids Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_embedding(weight.handle(), ids.handle(), &out), "embedding", weight, ids)
	return Tensor{libtch.Ctensor(out)}
}

// RMSNorm divides x [..., D] by the root of its mean square plus eps in float32, rounds to x's
// dtype and multiplies by weight [D] (Zhang and Sennrich, arXiv 1910.07467).
func RMSNorm(x, weight Tensor, eps float64) Tensor {
	var out C.cq_tensor
	check(C.cq_rms_norm(x.handle(), weight.handle(), C.double(eps), &out), "rms_norm", x, weight)
	return Tensor{libtch.Ctensor(out)}
}

// RotaryQKV splits a fused projection qkv [B,L,(H+2K)·P] with H query heads and K key and value
// heads into q [B,H,L,P], k and v [B,K,L,P], and applies the rotary embedding to q and k (Su et
// al., arXiv 2104.09864, with Hugging Face's pairing). cos and sin are float32 [B or 1, L, R/2].
// The first R of the P dimensions rotate, the i-th paired with the (R/2+i)-th; the others do not
// change.
func RotaryQKV(qkv Tensor, heads, keyHeads int, cos, sin Tensor) (q, k, v Tensor) {
	var outQ, outK, outV C.cq_tensor
	check(C.cq_rope_qkv(qkv.handle(), C.int64_t(heads), C.int64_t(keyHeads), cos.handle(),
		sin.handle(), &outQ, &outK, &outV), "rotary", qkv, cos, sin)
	return Tensor{libtch.Ctensor(outQ)}, Tensor{libtch.Ctensor(outK)}, Tensor{libtch.Ctensor(outV)}
}

// RotaryQKVCache is RotaryQKV that writes k and v in place into caches [B,K,S,P] at columns (int64
// [B or 1, L]) and returns q. It records no gradients.
func RotaryQKVCache(qkv Tensor, heads int, cos, sin, columns, keys, values Tensor) (q Tensor) {
	var out C.cq_tensor
	check(C.cq_rope_qkv_cache(qkv.handle(), C.int64_t(heads), cos.handle(), sin.handle(),
		columns.handle(), keys.handle(), values.handle(), &out), "rotary", qkv, cos, sin, columns,
		keys, values)
	return Tensor{libtch.Ctensor(out)}
}

// UnpackCache returns the values, as dtype, of a cache of keys or values in 8 bits: [B,K,S,P] of
// uint8 [B,K,S,P/32·34], in which 32 numbers of a head are a float16 scale and 32 levels, as in a
// block of Q8_0. [RotaryQKVCache] and [DecodeAttention] take such caches on the CPU.
func UnpackCache(cache Tensor, dtype DType) Tensor {
	var out C.cq_tensor
	check(C.cq_cache_unpack(cache.handle(), C.int(dtype), &out), "unpack cache", cache)
	return Tensor{libtch.Ctensor(out)}
}

// SwiGLU is silu(gate) · up of gateUp [..., 2F], gate first: [..., F] (Shazeer, arXiv 2002.05202).
func SwiGLU(gateUp Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_swiglu(gateUp.handle(), &out), "swiglu", gateUp)
	return Tensor{libtch.Ctensor(out)}
}

// Attention is scaled dot-product attention with grouped queries: q [B,H,L,P], k and v [B,K,S,P]
// with K dividing H. mask is undefined, or boolean and broadcastable to [B,H,L,S]. With causal,
// query i sees keys 0 to i. scale multiplies q·k; 0 means 1/√P.
func Attention(q, k, v, mask Tensor, causal bool, scale float64) Tensor {
	var out C.cq_tensor
	check(C.cq_sdpa(q.handle(), k.handle(), v.handle(), mask.handle(), 0, C.int(flag(causal)),
		C.double(scale), &out), "attention", q, k, v, mask)
	return Tensor{libtch.Ctensor(out)}
}

// DecodeAttention is attention of one new position of each sequence. Like [RotaryQKVCache] it
// writes the keys and values of qkv [B,1,(H+2K)·P] into the caches [B,K,S,P] at the columns
// lengths-1. Then the queries attend to the columns [starts, lengths), and no other columns are
// read. The result is [B,1,H·P]. starts and lengths are int64 [B]; starts may be no tensor, which
// means 0. scale is as in Attention.
func DecodeAttention(
	qkv Tensor, heads int, cos, sin, keys, values, starts, lengths Tensor, scale float64,
) Tensor {
	if scale == 0 {
		width := qkv.Size(-1) / (heads + 2*keys.Size(1)) // keys may be in 8 bits
		scale = 1 / math.Sqrt(float64(width))
	}
	decode := C.cq_decode{
		qkv: qkv.handle(), heads: C.int64_t(heads), cos: cos.handle(), sin: sin.handle(),
		k_cache: keys.handle(), v_cache: values.handle(), lengths: lengths.handle(),
		starts: starts.handle(), scale: C.double(scale),
	}
	var out C.cq_tensor
	check(C.cq_decode_attention(&decode, &out), "decode attention",
		qkv, cos, sin, keys, values, lengths)
	return Tensor{libtch.Ctensor(out)}
}

// Loss holds the options of [HeadCrossEntropy]. The zero value is the mean cross-entropy.
type Loss struct {
	// Divisor divides the sum over the counted labels; 0 means their number.
	Divisor float64
	// LabelSmoothing is the share of a label spread evenly over the vocabulary (Szegedy et al.,
	// arXiv 1512.00567).
	LabelSmoothing float64
	// ZLoss is the coefficient of the squared log-sum-exp (Chowdhery et al., arXiv 2204.02311).
	ZLoss float64
	// Weights (float32 [N], no gradient) weight each label's loss; no tensor means 1.
	Weights Tensor
}

// HeadCrossEntropy computes the logits hidden [N,D] · weight [V,D] transposed and their
// cross-entropy with labels (int64 [N]; -100: not counted). It returns the loss, a float32 scalar,
// and each label's negative log-likelihood in nats, float32 [N] without a gradient, 0 where not
// counted. It works on some rows at a time, so the logits of a whole batch are never in memory.
// Gradients are computed in the forward pass, so the result allows one backward pass only.
func HeadCrossEntropy(hidden, weight, labels Tensor, o Loss) (loss, nll Tensor) {
	var out, each C.cq_tensor
	options := C.cq_loss{
		divisor:         C.double(o.Divisor),
		label_smoothing: C.double(o.LabelSmoothing),
		z_loss:          C.double(o.ZLoss),
	}
	check(C.cq_cross_entropy_head(hidden.handle(), weight.handle(), labels.handle(),
		o.Weights.handle(), &options, &out, &each), "head cross-entropy", hidden, weight, labels)
	return Tensor{libtch.Ctensor(out)}, Tensor{libtch.Ctensor(each)}
}

// Sampling holds the options of [Choose]; csrc/conquer.h describes each filter. The zero value is
// argmax.
type Sampling struct {
	Temperature, TopP, MinP float64
	TopK                    int
	RepetitionPenalty       float64 // of the tokens marked in seen
}

// Choose returns the next token of each row of logits [B,V], on their device: int64 [B], -1 where
// logits are NaN. seen (bool [B,V], or no tensor) marks the tokens that the repetition penalty
// applies to. uniform (float64 [B], from [0,1)) selects the token; it may be no tensor if
// Temperature is 0.
func Choose(logits, seen, uniform Tensor, o Sampling) Tensor {
	options := C.cq_sampling{
		repetition_penalty: C.double(o.RepetitionPenalty),
		temperature:        C.double(o.Temperature),
		top_p:              C.double(o.TopP),
		min_p:              C.double(o.MinP),
		top_k:              C.int64_t(o.TopK),
	}
	var out C.cq_tensor
	check(C.cq_choose(logits.handle(), seen.handle(), uniform.handle(), &options, &out), "choose",
		logits)
	return Tensor{libtch.Ctensor(out)}
}
