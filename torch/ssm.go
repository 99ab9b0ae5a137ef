package torch

// #include "conquer.h"
import "C"

import "github.com/sugarme/gotch/libtch"

// SSDInput is what Mamba-2's state-space recurrence reads (Dao and Gu, arXiv 2405.21060):
//
//	dt  = clamp(softplus(dt + dtBias), dtMin, dtMax)
//	h_t = exp(dt_t·A)·h_{t-1} + dt_t·B_t⊗x_t
//	y_t = C_t·h_t + D·x_t, times silu(z_t) where there is a gate z
//
// B batch, L sequence, H heads, P head dimension, N state, G groups of heads that share B and C. For a single step there is
// no L.
type SSDInput struct {
	X            Tensor // [B,L,H,P]
	DT           Tensor // [B,L,H]
	A            Tensor // [H], negative
	ALog         Tensor // [H], log(-A) in A's place, for a single step
	B, C         Tensor // [B,L,G,N], G dividing H
	D            Tensor // [H], or no tensor
	Z            Tensor // [B,L,H,P], or no tensor
	DTBias       Tensor // [H], or no tensor
	Softplus     bool   // whether dt passes through softplus
	DTMin, DTMax float64
	// InitialState is [B,H,P,N], or no tensor for zeros.
	InitialState Tensor
	// Segments (int32 [B,L], or no tensor) numbers the samples packed into a row: where it changes the state starts from
	// zero. The initial state goes to the first sample.
	Segments Tensor
}

// SSDScan runs the recurrence over a sequence with the project's kernels, with gradients for every floating-point input: y
// [B,L,H,P] of x's dtype, and the state after the last token, [B,H,P,N] float32. State is carried across `window` chunks of
// chunkSize tokens (a power of two from 16 to 256): all of them where window is negative, and then chunkSize does not
// matter; none where it is 0. The initial state counts as the chunk before the first.
func SSDScan(in SSDInput, chunkSize, window int) (y, final Tensor) {
	var cy, cfinal C.cq_tensor
	check(C.cq_ssd_scan(in.X.handle(), in.DT.handle(), in.A.handle(), in.B.handle(), in.C.handle(), in.D.handle(),
		in.Z.handle(), in.DTBias.handle(), in.InitialState.handle(), in.Segments.handle(), C.int64_t(chunkSize),
		C.int64_t(window), C.int(flag(in.Softplus)), C.double(in.DTMin), C.double(in.DTMax), &cy, &cfinal),
		"ssd scan", in.X, in.DT, in.A, in.B, in.C)
	return Tensor{libtch.Ctensor(cy)}, Tensor{libtch.Ctensor(cfinal)}
}

// SSDStep runs the recurrence for one token, in.X [B,H,P] and the other fields without L likewise, updating state
// [B,H,P,N] in place, without gradients: y [B,H,P]. InitialState and Segments are not looked at.
func SSDStep(state Tensor, in SSDInput) Tensor {
	a, log := in.A, in.ALog.Defined()
	if log {
		a = in.ALog
	}
	var y C.cq_tensor
	check(C.cq_ssd_step(state.handle(), in.X.handle(), in.DT.handle(), a.handle(), C.int(flag(log)), in.B.handle(), in.C.handle(),
		in.D.handle(), in.Z.handle(), in.DTBias.handle(), C.int(flag(in.Softplus)), C.double(in.DTMin),
		C.double(in.DTMax), &y), "ssd step", state, in.X, in.DT, in.A, in.B, in.C)
	return Tensor{libtch.Ctensor(y)}
}

// CausalConv1D is a causal depthwise convolution over x [B,L,D] followed by SiLU where silu is true: channel d of y[t] is
// bias[d] + Σ_k weight[d,k]·x[t-(W-1)+k, d]. weight is [D,W] with W from 2 to 4, bias [D] or no tensor; initial [B,W-1,D],
// or no tensor for zeros, holds the inputs before the first, oldest first; no tap reaches across a change of segments
// (int32 [B,L], or no tensor). last holds the last W-1 inputs, [B,W-1,D], without a gradient.
func CausalConv1D(x, weight, bias, initial, segments Tensor, silu bool) (y, last Tensor) {
	var cy, clast C.cq_tensor
	check(C.cq_causal_conv1d(x.handle(), weight.handle(), bias.handle(), initial.handle(), segments.handle(),
		C.int(flag(silu)), &cy, &clast), "causal conv1d", x, weight, bias)
	return Tensor{libtch.Ctensor(cy)}, Tensor{libtch.Ctensor(clast)}
}

// Conv1DStep is CausalConv1D for one token, x [B,D], updating the last inputs, state [B,W-1,D], in place; no gradients.
func Conv1DStep(state, x, weight, bias Tensor, silu bool) Tensor {
	var y C.cq_tensor
	check(C.cq_conv1d_step(state.handle(), x.handle(), weight.handle(), bias.handle(), C.int(flag(silu)), &y),
		"conv1d step", state, x, weight, bias)
	return Tensor{libtch.Ctensor(y)}
}

// GatedRMSNorm is RMSNorm of x·silu(z) times weight [D], over the last dimension of x and z [..., D] in groups of groupSize
// channels (0: all of them together); z may be no tensor.
func GatedRMSNorm(x, z, weight Tensor, eps float64, groupSize int) Tensor {
	var y C.cq_tensor
	check(C.cq_gated_rms_norm(x.handle(), z.handle(), weight.handle(), C.double(eps), C.int64_t(groupSize), &y),
		"gated rms norm", x, z, weight)
	return Tensor{libtch.Ctensor(y)}
}
