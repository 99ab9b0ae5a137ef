package torch

// #include "conquer.h"
import "C"

import (
	"math"

	"github.com/sugarme/gotch/libtch"
)

// Linear is x [..., D] times weight [N, D] transposed, plus bias [N] or no tensor: [..., N].
func Linear(x, weight, bias Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_linear(x.handle(), weight.handle(), bias.handle(), &out), "linear", x, weight, bias)
	return Tensor{libtch.Ctensor(out)}
}

// LinearAdd is residual [..., N] plus Linear.
func LinearAdd(x, weight, bias, residual Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_linear_add(x.handle(), weight.handle(), bias.handle(), residual.handle(), &out), "linear add", x, weight, bias, residual)
	return Tensor{libtch.Ctensor(out)}
}

// NormLinear is Linear of RMSNorm of x with the weight norm [D].
func NormLinear(x, norm Tensor, eps float64, weight, bias Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_norm_linear(x.handle(), norm.handle(), C.double(eps), weight.handle(), bias.handle(), &out), "norm linear", x, norm, weight, bias)
	return Tensor{libtch.Ctensor(out)}
}

// NormLinearAdd is residual [..., N] plus NormLinear.
func NormLinearAdd(x, norm Tensor, eps float64, weight, bias, residual Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_norm_linear_add(x.handle(), norm.handle(), C.double(eps), weight.handle(), bias.handle(), residual.handle(), &out),
		"norm linear add", x, norm, weight, bias, residual)
	return Tensor{libtch.Ctensor(out)}
}

// NormLinearSwiGLU is SwiGLU of NormLinear: weight [2F,D] holds the gate first, the result is [..., F].
func NormLinearSwiGLU(x, norm Tensor, eps float64, weight, bias Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_norm_linear_swiglu(x.handle(), norm.handle(), C.double(eps), weight.handle(), bias.handle(), &out), "norm linear swiglu", x, norm, weight, bias)
	return Tensor{libtch.Ctensor(out)}
}

// Tail is what follows a block's mixer up to the next block's first product: A the width of the mixer's result, D the model's,
// F the feed-forward layer's, N the next product's. Biases may be no tensors; so may Norm, and all of Next.
type Tail struct {
	Norm, Output, OutputBias Tensor // [A], [D,A], [D]
	MLPNorm                  Tensor // [D]
	GateUp, GateUpBias       Tensor // [2F,D], the gate first, [2F]
	Down, DownBias           Tensor // [D,F], [D]
	NextNorm, Next, NextBias Tensor // [D], [N,D], [N]
	Eps, MLPEps, NextEps     float64
}

// BlockTail is, of a block's input x and its mixer's result [..., A], the block's output y [..., D] and the next product
// [..., N]: z = x + Output·RMSNorm(mixed), where there is a Norm; y = z + Down·SwiGLU(GateUp·RMSNorm(z)); next =
// Next·RMSNorm(y), no tensor where there is no Next. On a Hopper GPU a single row without gradients is one kernel; where it is
// not, apart says why.
func BlockTail(x, mixed Tensor, t Tail) (y, next Tensor, apart string) {
	in := C.cq_tail{
		norm: t.Norm.handle(), output: t.Output.handle(), output_bias: t.OutputBias.handle(), mlp_norm: t.MLPNorm.handle(),
		gate_up: t.GateUp.handle(), gate_up_bias: t.GateUpBias.handle(), down: t.Down.handle(), down_bias: t.DownBias.handle(),
		next_norm: t.NextNorm.handle(), next: t.Next.handle(), next_bias: t.NextBias.handle(),
		eps: C.double(t.Eps), mlp_eps: C.double(t.MLPEps), next_eps: C.double(t.NextEps),
	}
	var out, ahead C.cq_tensor
	var why *C.char
	check(C.cq_block_tail(x.handle(), mixed.handle(), &in, &out, &ahead, &why), "block tail", x, mixed, t.Output, t.GateUp, t.Down, t.Next)
	return Tensor{libtch.Ctensor(out)}, Tensor{libtch.Ctensor(ahead)}, C.GoString(why)
}

// Embedding picks the rows ids (int64, any shape) of weight [V,D]: [..., D]. Its backward adds to the weight's gradient where
// there is one, so it is for gradients that accumulate, as those of [Backward] do.
func Embedding(weight, ids Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_embedding(weight.handle(), ids.handle(), &out), "embedding", weight, ids)
	return Tensor{libtch.Ctensor(out)}
}

// RMSNorm divides x [..., D] by the root of its mean square plus eps, in float32, and multiplies the result, rounded to
// x's dtype, by weight [D] (Zhang and Sennrich, arXiv 1910.07467).
func RMSNorm(x, weight Tensor, eps float64) Tensor {
	var out C.cq_tensor
	check(C.cq_rms_norm(x.handle(), weight.handle(), C.double(eps), &out), "rms_norm", x, weight)
	return Tensor{libtch.Ctensor(out)}
}

// RotaryQKV takes q, k and v out of a fused projection, qkv [B,L,(H+2K)·P] with H query heads and K key and value heads, and
// turns q and k by the angles whose cosines and sines are cos and sin [B or 1, L, R/2] (float32): the first R of the P
// dimensions, the i-th paired with the (R/2+i)-th; the rest passes (Su et al., arXiv 2104.09864, in Hugging Face's pairing).
// The results are laid out for attention: [B,H,L,P], [B,K,L,P] and [B,K,L,P].
func RotaryQKV(qkv Tensor, heads, keyHeads int, cos, sin Tensor) (q, k, v Tensor) {
	var outQ, outK, outV C.cq_tensor
	check(C.cq_rope_qkv(qkv.handle(), C.int64_t(heads), C.int64_t(keyHeads), cos.handle(), sin.handle(), &outQ, &outK, &outV),
		"rotary", qkv, cos, sin)
	return Tensor{libtch.Ctensor(outQ)}, Tensor{libtch.Ctensor(outK)}, Tensor{libtch.Ctensor(outV)}
}

// RotaryQKVCache is RotaryQKV that writes k and v into caches [B,K,S,P], in place, at the given columns (int64 [B or 1, L]),
// and returns q; without gradients.
func RotaryQKVCache(qkv Tensor, heads int, cos, sin, columns, keys, values Tensor) (q Tensor) {
	var out C.cq_tensor
	check(C.cq_rope_qkv_cache(qkv.handle(), C.int64_t(heads), cos.handle(), sin.handle(), columns.handle(), keys.handle(),
		values.handle(), &out), "rotary", qkv, cos, sin, columns, keys, values)
	return Tensor{libtch.Ctensor(out)}
}

// SwiGLU is silu(gate) · up for gateUp [..., 2F] that holds the gate first: [..., F] (Shazeer, arXiv 2002.05202).
func SwiGLU(gateUp Tensor) Tensor {
	var out C.cq_tensor
	check(C.cq_swiglu(gateUp.handle(), &out), "swiglu", gateUp)
	return Tensor{libtch.Ctensor(out)}
}

// Attention is scaled dot-product attention with grouped queries: q [B,H,L,P], k and v [B,K,S,P] with K dividing H.
// mask is no tensor, or boolean and broadcastable to [B,H,L,S]; causal hides the columns after each row. scale
// multiplies q·k; 0 means 1/√P.
func Attention(q, k, v, mask Tensor, causal bool, scale float64) Tensor {
	var out C.cq_tensor
	check(C.cq_sdpa(q.handle(), k.handle(), v.handle(), mask.handle(), 0, C.int(flag(causal)), C.double(scale), &out),
		"attention", q, k, v, mask)
	return Tensor{libtch.Ctensor(out)}
}

// DecodeAttention is attention of one new position of each sequence: [RotaryQKVCache] of qkv [B,1,(H+2K)·P] at the columns
// lengths - 1, and Attention of its queries over the columns [starts, lengths) of the caches [B,K,S,P]: [B,1,H·P]. starts and
// lengths are int64 [B], starts may be no tensor (0 for all). Other columns are not read.
func DecodeAttention(qkv Tensor, heads int, cos, sin, keys, values, starts, lengths Tensor, scale float64) Tensor {
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(keys.Size(-1)))
	}
	var out C.cq_tensor
	check(C.cq_decode_attention(qkv.handle(), C.int64_t(heads), cos.handle(), sin.handle(), keys.handle(), values.handle(), lengths.handle(),
		starts.handle(), C.double(scale), &out), "decode attention", qkv, cos, sin, keys, values, lengths)
	return Tensor{libtch.Ctensor(out)}
}

// Loss says what [HeadCrossEntropy] computes; the zero value is the mean cross-entropy.
type Loss struct {
	// Divisor is what the sum over the counted labels is divided by; 0 for their number.
	Divisor float64
	// LabelSmoothing is the part of a label that is spread evenly over the vocabulary (Szegedy et al., arXiv 1512.00567).
	LabelSmoothing float64
	// ZLoss is the coefficient of the squared logarithm of the softmax's denominator (Chowdhery et al., arXiv 2204.02311).
	ZLoss float64
	// Weights (float32 [N], no gradient) is what each label's loss counts; no tensor: 1.
	Weights Tensor
}

// HeadCrossEntropy is the loss of labels (int64 [N], -100 = not counted) under the logits hidden [N,D] · weight [V,D]
// transposed, a float32 scalar, and each label's plain negative log-likelihood in nats, float32 [N], 0 where it is not
// counted, without a gradient. It goes through the rows a chunk at a time, so that the logits of a batch are never held, and
// computes the gradients with the forward: one backward is all that the result has to give.
func HeadCrossEntropy(hidden, weight, labels Tensor, o Loss) (loss, nll Tensor) {
	var out, each C.cq_tensor
	options := C.cq_loss{divisor: C.double(o.Divisor), label_smoothing: C.double(o.LabelSmoothing), z_loss: C.double(o.ZLoss)}
	check(C.cq_cross_entropy_head(hidden.handle(), weight.handle(), labels.handle(), o.Weights.handle(), &options, &out, &each),
		"head cross-entropy", hidden, weight, labels)
	return Tensor{libtch.Ctensor(out)}, Tensor{libtch.Ctensor(each)}
}

// Sampling says how [Choose] chooses; see csrc/conquer.h for what each filter does. The zero value takes the likeliest token.
type Sampling struct {
	Temperature, TopP, MinP float64
	TopK                    int
	RepetitionPenalty       float64 // of the tokens marked as seen
}

// Choose picks the next token of each row of logits [B,V] where they are: int64 [B], -1 where the logits are no numbers. seen
// (bool [B,V]) marks the tokens that the repetition penalty is for, or is no tensor; uniform (float64 [B], each from [0,1))
// decides which token is drawn, and may be no tensor where Temperature is 0.
func Choose(logits, seen, uniform Tensor, o Sampling) Tensor {
	options := C.cq_sampling{
		repetition_penalty: C.double(o.RepetitionPenalty), temperature: C.double(o.Temperature), top_p: C.double(o.TopP),
		min_p: C.double(o.MinP), top_k: C.int64_t(o.TopK),
	}
	var out C.cq_tensor
	check(C.cq_choose(logits.handle(), seen.handle(), uniform.handle(), &options, &out), "choose", logits)
	return Tensor{libtch.Ctensor(out)}
}
