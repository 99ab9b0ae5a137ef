package nn

import "conquer/torch"

// LoRA is a low-rank adapter of one component of a linear layer: scale · (dropout(x) Aᵀ) Bᵀ (Hu et
// al., arXiv 2106.09685). With M it is DoRA (Liu et al., arXiv 2402.09353): the rows of the sum of
// the weight and the adapter have the lengths M.
type LoRA struct {
	Name    string // the component's name without .weight, e.g. model.layers.0.self_attn.q_proj
	A       *Param // [r, D]
	B       *Param // [N, r]
	M       *Param // [N], or nil
	Scale   float64
	Dropout float64 // applied while gradients are recorded
	// A0 and B0, if defined, are first values of A and B whose scaled product was subtracted from
	// the layer's weight (PiSSA, Meng et al., arXiv 2404.02948).
	A0, B0 torch.Tensor
}

// MixedRows are the adapters of the components of a layer for some rows of a batch.
type MixedRows struct {
	First, Count int
	LoRA         []*LoRA
}

// Params lists the adapter's parameters.
func (a *LoRA) Params() []*Param {
	if a.M == nil {
		return []*Param{a.A, a.B}
	}
	return []*Param{a.A, a.B, a.M}
}

// Free frees the adapter's tensors.
func (a *LoRA) Free() {
	for _, p := range a.Params() {
		p.Tensor.Free()
	}
	a.A0.Free()
	a.B0.Free()
}

// Forward maps x [..., D] to the low-rank output [..., N].
func (a *LoRA) Forward(x torch.Tensor) torch.Tensor { return a.low(a.drop(x)) }

// drop applies dropout.
func (a *LoRA) drop(x torch.Tensor) torch.Tensor {
	if a.Dropout > 0 && torch.GradEnabled() {
		return x.Dropout(a.Dropout)
	}
	return x
}

// low is Forward without dropout.
func (a *LoRA) low(x torch.Tensor) torch.Tensor {
	low := torch.Linear(x.To(a.A.DType()), a.A.Tensor, torch.Tensor{})
	return torch.Linear(low.MulScalar(a.Scale), a.B.Tensor, torch.Tensor{}).To(x.DType())
}

// rescale is the output of DoRA for x, given that of the layer, y [..., N], with its weight and
// bias. As in PEFT, the lengths of the rows are constants for the gradient, and the layer's share
// of what the adapter adds has the adapter's dropout.
func (a *LoRA) rescale(x, y, weight, bias torch.Tensor) torch.Tensor {
	var length torch.Tensor
	torch.NoGrad(func() {
		length = torch.Scoped1(func() torch.Tensor { return lengths(a.sum(weight)) })
	})
	gain := a.M.Div(length).To(y.DType())
	if a.Dropout > 0 && torch.GradEnabled() {
		x = a.drop(x)
		y = y.Add(torch.Linear(x, weight, torch.Tensor{}).Mul(gain.AddScalar(-1)))
		return y.Add(a.low(x).Mul(gain))
	}
	if !bias.Defined() {
		return y.Add(a.low(x)).Mul(gain)
	}
	return y.Sub(bias).Add(a.low(x)).Mul(gain).Add(bias)
}

// Delta is the scaled product of the adapter's matrices, in float32: [N, D].
func (a *LoRA) Delta() torch.Tensor {
	return a.B.To(torch.Float32).MulScalar(a.Scale).Matmul(a.A.To(torch.Float32))
}

// sum is the weight plus Delta, in float32.
func (a *LoRA) sum(weight torch.Tensor) torch.Tensor { return a.Delta().AddTo(weight) }

// Merge returns the weight that does what the layer's weight [N, D] and the adapter do, in float32.
func (a *LoRA) Merge(weight torch.Tensor) torch.Tensor {
	sum := a.sum(weight)
	if a.M == nil {
		return sum
	}
	return sum.Mul(a.M.To(torch.Float32).Div(lengths(sum)).Unsqueeze(1))
}

// Reset makes M the lengths of the rows of the weight with the adapter.
func (a *LoRA) Reset(weight torch.Tensor) { a.M.Tensor = lengths(a.sum(weight)).Own() }

// lengths returns the Euclidean norms of a matrix's rows.
func lengths(matrix torch.Tensor) torch.Tensor {
	return matrix.Mul(matrix).SumDim(1, false).PowScalar(0.5)
}
