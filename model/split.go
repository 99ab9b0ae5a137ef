package model

import "conquer/torch"

// Split says that each row of a pass is cut over the processes of a group: this one has part Rank
// of Size equal parts, in order. Attention layers see the keys and values of all parts, state-space
// layers begin with the state that the parts before leave. Only blocks that implement [Splitter]
// can run so.
type Split struct {
	// Group joins the rows of all processes, [N,D] to [Size·N,D], with gradients.
	Group interface {
		Gather(x torch.Tensor) torch.Tensor
	}
	Rank, Size int
}

// Splitter is a block whose layers take part in a [Split].
type Splitter interface {
	Block
	// SplitsSequence does nothing: it marks blocks that mix tokens in [Attention] and in
	// state-space layers only.
	SplitsSequence()
}

// Parts returns the x of all parts, [Size, ...]. Every part must use the result in what it returns,
// be it times zero: the gradient is summed over all parts.
func (s *Split) Parts(x torch.Tensor) torch.Tensor {
	shape := x.Shape()
	joined := s.Group.Gather(x.Contiguous().View(shape[0], -1))
	return joined.View(append([]int{s.Size}, shape...)...)
}

// columns joins the keys or values x [B,K,L,P] of the parts up to this one: [B,K,(Rank+1)·L,P].
func (s *Split) columns(x torch.Tensor) torch.Tensor {
	batch, heads, length, dim := x.Size(0), x.Size(1), x.Size(2), x.Size(3)
	all := s.Parts(x).Permute(1, 2, 0, 3, 4).Reshape(batch, heads, s.Size*length, dim)
	return all.Narrow(2, 0, (s.Rank+1)*length)
}
