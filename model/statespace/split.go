package statespace

import (
	"conquer/model"
	"conquer/torch"
)

// tailOf returns the last inputs [B,W-1,C] of the part before, of this part's inputs xBC [B,L,C];
// zeros for the first part.
func tailOf(split *model.Split, xBC torch.Tensor, taps int) torch.Tensor {
	length := xBC.Size(1)
	tails := split.Parts(xBC.Narrow(1, length-(taps-1), taps-1))
	if split.Rank == 0 {
		return tails.Select(0, 0).MulScalar(0) // its gradient needs all parts
	}
	return tails.Select(0, split.Rank-1)
}

// scanSplit scans this part of each sequence: from nothing, which gives the state that its own
// tokens leave. One all-gather brings the states and decays of all parts. The state that the parts
// before leave is then added to the tokens: y_t += e^{a_1+…+a_t}·C_t·h. in has no initial state.
func (c Chunking) scanSplit(split *model.Split, in torch.SSDInput) torch.Tensor {
	y, own := c.Scan(in)
	batch, length, heads, headDim := in.X.Size(0), in.X.Size(1), in.X.Size(2), in.X.Size(3)
	groups, states := in.B.Size(2), in.B.Size(3)
	a := timeSteps(in, torch.Float32).Mul(in.A).Cumsum(1) // [B,L,H]: a_1+…+a_t
	whole := a.Select(1, length-1)
	parts := split.Parts(torch.Cat(2, own.Reshape(batch, heads, headDim*states),
		whole.Unsqueeze(2)))
	start := own.ZerosLike()
	for j := range split.Size {
		part := parts.Select(0, j)
		state := part.Narrow(2, 0, headDim*states).View(batch, heads, headDim, states)
		if j >= split.Rank {
			start = start.Add(state.MulScalar(0)) // its gradient needs all parts
			continue
		}
		decay := part.Narrow(2, headDim*states, 1).Exp().Unsqueeze(3)
		start = start.Mul(decay).Add(state)
	}
	C := in.C.To(torch.Float32).Transpose(1, 2) // [B,G,L,N]
	start = start.Reshape(batch, groups, heads/groups*headDim, states)
	more := C.Matmul(start.Transpose(2, 3)) // [B,G,L,H/G·P]
	more = more.Transpose(1, 2).Reshape(batch, length, heads, headDim)
	return y.Add(more.Mul(a.Exp().Unsqueeze(3)).To(y.DType()))
}
