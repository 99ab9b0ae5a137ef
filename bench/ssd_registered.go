package bench

import (
	"slices"

	"conquer/model/statespace"
	"conquer/torch"
)

// registered reports whether the strategy is one of statespace.RegisterStrategy. The token-by-token
// reference does not know what it does, so its own code in float64 is the reference.
func registered(c statespace.Chunking) bool {
	return !slices.Contains([]string{statespace.Default, statespace.Independent,
		statespace.Windowed}, c.Strategy)
}

// wideScan is the scan of one head of one sequence in float64, on the CPU.
type wideScan struct{ in torch.SSDInput }

// wide copies the first tokens of one head of one sequence.
func (o SSDOptions) wide(in torch.SSDInput, row, head int) wideScan {
	length, group := min(in.X.Size(1), checked), head/(o.Shape.Heads/o.Shape.Groups)
	cut := func(t torch.Tensor, i int) torch.Tensor {
		t = t.Detach().Narrow(0, row, 1).Narrow(1, 0, length).Narrow(2, i, 1)
		return t.ToDevice(torch.CPU).To(torch.Float64)
	}
	one := func(t torch.Tensor) torch.Tensor {
		return t.Detach().Narrow(0, head, 1).ToDevice(torch.CPU).To(torch.Float64)
	}
	in.X, in.DT = cut(in.X, head), cut(in.DT, head)
	in.B, in.C = cut(in.B, group), cut(in.C, group)
	in.A, in.D, in.DTBias = one(in.A), one(in.D), one(in.DTBias)
	return wideScan{in}
}

// scan returns y [L,P] and, if dy [L,P] is given, the gradients of Σ dy·y in the order of
// scanInputs.
func (w wideScan) scan(c statespace.Chunking, dy torch.Tensor) (y []float64,
	gradients [][]float64) {
	c.ChunkSize, c.Optimized = c.Size(w.in.X.Size(3), w.in.B.Size(3)), false
	if !dy.Defined() {
		out, _ := c.Scan(w.in)
		return torch.Values[float64](out), nil
	}
	leaves := []*torch.Tensor{&w.in.X, &w.in.DT, &w.in.A, &w.in.B, &w.in.C, &w.in.D, &w.in.DTBias}
	for _, leaf := range leaves {
		*leaf = leaf.Clone().RequireGrad(true)
	}
	torch.WithGrad(func() {
		out, _ := c.Scan(w.in)
		dy = dy.Detach().ToDevice(torch.CPU).To(torch.Float64).View(out.Shape()...)
		torch.Backward([]torch.Tensor{out}, []torch.Tensor{dy}, scanInputs(w.in)...)
		y = torch.Values[float64](out.Detach())
	})
	for _, leaf := range leaves {
		gradients = append(gradients, torch.Values[float64](leaf.Grad()))
		leaf.ClearGrad()
	}
	return y, gradients
}
