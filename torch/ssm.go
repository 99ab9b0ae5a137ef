package torch

// #include "conquer.h"
import "C"

import "github.com/sugarme/gotch/libtch"

// SSDInput is the input of Mamba-2's state-space recurrence (Dao and Gu, arXiv 2405.21060):
//
//	dt  = clamp(softplus(dt + dtBias), dtMin, dtMax)
//	h_t = exp(dt_t·A)·h_{t-1} + dt_t·B_t⊗x_t
//	y_t = C_t·h_t + D·x_t, times silu(z_t) if Z is given
//
// B batch, L sequence, H heads, P head dimension, N state, G groups of heads that share B and C. A
// single step has no L.
type SSDInput struct {
	X            Tensor // [B,L,H,P]
	DT           Tensor // [B,L,H]
	A            Tensor // [H], negative
	ALog         Tensor // [H], log(-A), replaces A in a single step
	B, C         Tensor // [B,L,G,N], G dividing H
	D            Tensor // [H], or no tensor
	Z            Tensor // [B,L,H,P], or no tensor
	DTBias       Tensor // [H], or no tensor
	Softplus     bool   // whether dt passes through softplus
	DTMin, DTMax float64
	// InitialState is [B,H,P,N], or no tensor for zeros.
	InitialState Tensor
	Ring         SSDRing // of SSDStep, or none
	// Segments (int32 [B,L], or no tensor) numbers the samples packed into a row. The state is
	// reset to zero where the number changes; the initial state belongs to the first sample.
	Segments Tensor
}

// SSDScan runs the recurrence over a sequence, with gradients for every floating-point input. It
// returns y [B,L,H,P] in x's dtype and the state after the last token, float32 [B,H,P,N]. State is
// carried across `window` chunks of chunkSize tokens (a power of two from 16 to 256). A negative
// window means all chunks, and the result then does not depend on chunkSize; 0 means none. The
// initial state counts as the chunk before the first.
func SSDScan(in SSDInput, chunkSize, window int) (y, final Tensor) {
	scan := C.cq_scan{
		x:             in.X.handle(),
		dt:            in.DT.handle(),
		a:             in.A.handle(),
		b:             in.B.handle(),
		c:             in.C.handle(),
		d:             in.D.handle(),
		z:             in.Z.handle(),
		dt_bias:       in.DTBias.handle(),
		initial_state: in.InitialState.handle(),
		seq_idx:       in.Segments.handle(),
		chunk_size:    C.int64_t(chunkSize),
		window:        C.int64_t(window),
		dt_softplus:   C.int(flag(in.Softplus)),
		dt_min:        C.double(in.DTMin),
		dt_max:        C.double(in.DTMax),
	}
	var cy, cfinal C.cq_tensor
	check(C.cq_ssd_scan(&scan, &cy, &cfinal), "ssd scan", in.X, in.DT, in.A, in.B, in.C)
	return Tensor{libtch.Ctensor(cy)}, Tensor{libtch.Ctensor(cfinal)}
}

// SSDRing holds a layer's last inputs, up to T tokens, which its state does not hold yet (the idea
// of ReplaySSM). The state is then read at each token and written at every T-th only, when the ring
// is full. Before anything else reads the state, [SSDFold] must bring it up to date.
type SSDRing struct {
	X  Tensor // [B,H,T,P], of the model's dtype
	B  Tensor // [B,G,T,N], of the model's dtype
	DT Tensor // [B,H,T], float32: the time steps after softplus and clamp
	// Held (int32 [B]) counts the tokens since each sequence's ring was empty; the ring holds Held
	// mod T of them. All layers of a model share it: it changes between tokens.
	Held Tensor
}

// NewSSDRing makes an empty ring without Held for a layer whose activations are of dtype and whose
// state is like state [B,H,P,N], with B and C of groups groups. It returns no tensors where writing
// the state at each token is faster, or no kernel takes the shape: on the CPU, for few sequences,
// and for other dtypes than bfloat16.
func NewSSDRing(state Tensor, dtype DType, groups int) SSDRing {
	var length C.int64_t
	check(C.cq_ssd_ring_length(state.handle(), C.int(dtype), C.int64_t(groups), &length),
		"ssd ring", state)
	if length == 0 {
		return SSDRing{}
	}
	batch, heads, t, device := state.Size(0), state.Size(1), int(length), state.Device()
	return SSDRing{
		X:  Zeros([]int{batch, heads, t, state.Size(2)}, dtype, device),
		B:  Zeros([]int{batch, groups, t, state.Size(3)}, dtype, device),
		DT: Zeros([]int{batch, heads, t}, Float32, device),
	}
}

// SSDFold adds the inputs that a ring holds to the state [B,H,P,N]. aLog [H] is log(-A). The caller
// sets the ring's Held to 0 after the last layer.
func SSDFold(state, aLog Tensor, ring SSDRing) {
	check(C.cq_ssd_fold(state.handle(), aLog.handle(), ring.X.handle(), ring.B.handle(),
		ring.DT.handle(), ring.Held.handle()), "ssd fold", state, ring.X, ring.B)
}

// SSDStep runs the recurrence for one token without gradients and returns y [B,H,P]. The fields of
// in have no dimension L; InitialState and Segments are ignored. state [B,H,P,N] is updated in
// place; with a ring, the token enters the ring, and the caller adds 1 to Held after the last
// layer.
func SSDStep(state Tensor, in SSDInput) Tensor {
	a, log := in.A, in.ALog.Defined()
	if log {
		a = in.ALog
	}
	step := C.cq_step{
		x:           in.X.handle(),
		dt:          in.DT.handle(),
		a:           a.handle(),
		b:           in.B.handle(),
		c:           in.C.handle(),
		d:           in.D.handle(),
		z:           in.Z.handle(),
		dt_bias:     in.DTBias.handle(),
		a_log:       C.int(flag(log)),
		dt_softplus: C.int(flag(in.Softplus)),
		dt_min:      C.double(in.DTMin),
		dt_max:      C.double(in.DTMax),
		ring_x:      in.Ring.X.handle(),
		ring_b:      in.Ring.B.handle(),
		ring_dt:     in.Ring.DT.handle(),
		held:        in.Ring.Held.handle(),
	}
	var y C.cq_tensor
	check(C.cq_ssd_step(state.handle(), &step, &y), "ssd step", state, in.X, in.DT, a, in.B, in.C)
	return Tensor{libtch.Ctensor(y)}
}

// CausalConv1D is a causal depthwise convolution of x [B,L,D], followed by SiLU if silu is set:
// channel d of y[t] is bias[d] + Σ_k weight[d,k]·x[t-(W-1)+k, d]. weight is [D,W] with W from 2 to
// 4, bias [D] or no tensor. initial [B,W-1,D] holds the inputs before the first, oldest first; no
// tensor means zeros. Taps do not cross a change of segments (int32 [B,L], or no tensor). last
// [B,W-1,D] holds the last W-1 inputs, without a gradient.
func CausalConv1D(x, weight, bias, initial, segments Tensor, silu bool) (y, last Tensor) {
	var cy, clast C.cq_tensor
	check(C.cq_causal_conv1d(x.handle(), weight.handle(), bias.handle(), initial.handle(),
		segments.handle(), C.int(flag(silu)), &cy, &clast), "causal conv1d", x, weight, bias)
	return Tensor{libtch.Ctensor(cy)}, Tensor{libtch.Ctensor(clast)}
}

// Conv1DStep is CausalConv1D of one token x [B,D] without gradients. It updates state [B,W-1,D],
// the last inputs, in place.
func Conv1DStep(state, x, weight, bias Tensor, silu bool) Tensor {
	var y C.cq_tensor
	check(C.cq_conv1d_step(state.handle(), x.handle(), weight.handle(), bias.handle(),
		C.int(flag(silu)), &y), "conv1d step", state, x, weight, bias)
	return Tensor{libtch.Ctensor(y)}
}

// GatedRMSNorm is the RMS norm of x·silu(z) times weight [D], over the last dimension of x and z
// [..., D] in groups of groupSize channels (0: all channels). z may be no tensor, which means no
// gate.
func GatedRMSNorm(x, z, weight Tensor, eps float64, groupSize int) Tensor {
	var y C.cq_tensor
	check(C.cq_gated_rms_norm(x.handle(), z.handle(), weight.handle(), C.double(eps),
		C.int64_t(groupSize), &y), "gated rms norm", x, z, weight)
	return Tensor{libtch.Ctensor(y)}
}
