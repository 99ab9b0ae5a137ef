package statespace

import (
	"math"

	"conquer/torch"
)

// SSD is Mamba-2's chunked scan in libtorch's operations: the paper's ssd_minimal (Dao and Gu,
// arXiv 2405.21060, listing 1), in its letters. It is the reference for the kernels.
//
// With a_t = dt_t·A the recurrence h_t = e^{a_t}·h_{t-1} + B_t⊗(dt_t·x_t), y_t = C_t·h_t unrolls to
//
//	y_t = Σ_{s≤t} e^{a_{s+1}+…+a_t} · (C_t·B_s) · dt_s·x_s
//
// a lower-triangular matrix times X. Its diagonal blocks, one for each chunk, are computed
// directly. The part below them has rank N and is computed through the chunks' states. y [B,L,H,P]
// has x's dtype. final [B,H,P,N] is the state after the last token as that token's chunk sees it.
// Everything is computed in float32, or in float64 if x is.
//
// State is carried across `window` chunks of `chunk` tokens, or across all of them if window is
// negative. The initial state counts as chunk -1.
func SSD(in torch.SSDInput, chunk, window int) (y, final torch.Tensor) {
	wide := torch.Float32
	if in.X.DType() == torch.Float64 {
		wide = torch.Float64
	}
	batch, length, heads, headDim := in.X.Size(0), in.X.Size(1), in.X.Size(2), in.X.Size(3)
	groups, state := in.B.Size(2), in.B.Size(3)
	chunk = min(chunk, length)
	chunks := (length + chunk - 1) / chunk
	// the logarithm of the decay factor 0
	never := torch.Full([]int{1}, math.Inf(-1), wide, in.X.Device())

	// chunked turns [B,L,H,...] into [B,H,chunks,chunk,...]. The last chunk is padded with zeros:
	// tokens with dt = 0 neither add to a state nor let it decay.
	chunked := func(t torch.Tensor) torch.Tensor {
		width := t.Size(3)
		if missing := chunks*chunk - length; missing > 0 {
			t = torch.Cat(1, t, torch.Zeros([]int{batch, missing, heads, width}, wide, t.Device()))
		}
		return t.View(batch, chunks, chunk, heads, width).Permute(0, 3, 1, 2, 4)
	}
	perHead := func(t torch.Tensor) torch.Tensor { // [B,L,G,N] to [B,L,H,N]
		return t.To(wide).Unsqueeze(3).Expand(batch, length, groups, heads/groups,
			state).Reshape(batch, length, heads, state)
	}
	x, dt := in.X.To(wide), timeSteps(in, wide)
	a := dt.Mul(in.A.To(wide))
	if in.Segments.Defined() { // no state is carried into the next sample
		previous := torch.Cat(1, in.Segments.Narrow(1, 0, 1), in.Segments.Narrow(1, 0, length-1))
		a = torch.Where(previous.Equal(in.Segments).Unsqueeze(2), a, never)
	}
	X, A := chunked(x.Mul(dt.Unsqueeze(3))), chunked(a.Unsqueeze(3)).Squeeze(4)
	B, C := chunked(perHead(in.B)), chunked(perHead(in.C))

	// 1. Within a chunk: Y = (L ∘ C·Bᵀ)·X, with L_ts = e^{a_{s+1}+…+a_t}.
	L := segsum(A).Exp() // [B,H,chunks,chunk,chunk]
	Y := C.Matmul(B.Transpose(3, 4)).Mul(L).Matmul(X)

	// 2. The contribution of each chunk to the state at its end: Σ_s e^{a_{s+1}+…+a_end}·X_s⊗B_s.
	toEnd := L.Select(3, chunk-1)
	states := X.Mul(toEnd.Unsqueeze(4)).Transpose(3, 4).Matmul(B) // [B,H,chunks,P,N]

	// 3. Over the chunks: the initial state of each is the sum of earlier contributions, decayed by
	// the chunks between. Column j of the matrix is chunk j-1, so the initial state is column 0.
	initial := torch.Zeros([]int{batch, heads, headDim, state}, wide, x.Device())
	if in.InitialState.Defined() {
		initial = in.InitialState.To(wide)
	}
	decay := A.SumDim(3, false) // [B,H,chunks]
	between := segsum(torch.Cat(2, decay.Narrow(2, 0, 1).ZerosLike(), decay.Narrow(2, 0, chunks-1)))
	if window >= 0 {
		row := torch.Arange(0, chunks, torch.Int64, x.Device())
		// row - column < window
		near := row.Unsqueeze(1).Less(row.AddScalar(float64(window)).Unsqueeze(0))
		between = torch.Where(near, between, never)
	}
	earlier := torch.Cat(2, initial.Unsqueeze(2), states.Narrow(2, 0, chunks-1)).View(batch, heads,
		chunks, headDim*state)
	starts := between.Exp().Matmul(earlier).View(batch, heads, chunks, headDim, state)
	last := chunks - 1
	final = starts.Select(2, last).Mul(decay.Select(2, last).Exp().View(batch, heads, 1,
		1)).Add(states.Select(2, last))

	// 4. From a chunk's initial state to its tokens: Y += e^{a_1+…+a_t}·C_t·h.
	fromStart := A.Cumsum(3).Exp()
	Y = Y.Add(C.Matmul(starts.Transpose(3, 4)).Mul(fromStart.Unsqueeze(4)))

	y = Y.Permute(0, 2, 3, 1, 4).Reshape(batch, chunks*chunk, heads, headDim).Narrow(1, 0, length)
	if in.D.Defined() {
		y = y.Add(x.Mul(in.D.To(wide).Unsqueeze(-1)))
	}
	if in.Z.Defined() {
		y = y.Mul(in.Z.To(wide).Silu())
	}
	return y.To(in.X.DType()), final
}

// timeSteps is dt as the recurrence uses it: [B,L,H].
func timeSteps(in torch.SSDInput, wide torch.DType) torch.Tensor {
	dt := in.DT.To(wide)
	if in.DTBias.Defined() {
		dt = dt.Add(in.DTBias.To(wide))
	}
	if in.Softplus {
		dt = dt.Softplus()
	}
	return dt.Clamp(in.DTMin, in.DTMax)
}

// segsum maps a [..., T] to its segment sums [..., T, T]: row t, column s holds a_{s+1}+…+a_t, and
// -∞ above the diagonal. It adds the terms of each segment; the difference of two cumulative sums
// would lose digits and fail for a = -∞.
func segsum(a torch.Tensor) torch.Tensor {
	shape := a.Shape()
	T := shape[len(shape)-1]
	square := torch.Ones([]int{T, T}, torch.Bool, a.Device())
	inside, lower := square.Tril(-1), square.Tril(0)
	terms := a.Unsqueeze(-1).Expand(append(shape, T)...) // [..., t, s]: a_t
	sums := torch.Where(inside, terms, torch.Zeros([]int{1}, a.DType(), a.Device())).Cumsum(-2)
	return torch.Where(lower, sums, torch.Full([]int{1}, math.Inf(-1), a.DType(), a.Device()))
}
