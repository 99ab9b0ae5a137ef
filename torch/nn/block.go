package nn

import (
	"fmt"

	"conquer/torch"
)

// First is the product that a block begins with: of its normalized input.
type InputProjection struct {
	Norm   *RMSNorm
	Linear *Linear
}

// Forward maps x [..., D], which may be of a wider dtype than the weights, to [..., N].
func (f InputProjection) Forward(x torch.Tensor) torch.Tensor {
	return f.Linear.ForwardNormed(f.Norm, x.To(f.Norm.Weight.DType()))
}

// Tail is what follows a block's mixer: the mixer's last product, and a feed-forward layer after a normalization, each
// added to what it is given.
type BlockTail struct {
	Norm    *RMSNorm // of the mixer's result; nil where there is none
	Output  *Linear
	MLPNorm *RMSNorm
	MLP     *SwiGLU
}

// Forward maps a block's input x [..., D] and its mixer's result to the block's output y [..., D]. Over a single token, without
// gradients or adapters, it also makes what next, if any, makes of y: then all is one operation. Otherwise first is no tensor.
// Where that was not the GPU's one kernel, unfusedReason says why.
func (t BlockTail) Forward(x, mixed torch.Tensor, next *InputProjection) (y, first torch.Tensor, unfusedReason string) {
	if unfusedReason = t.unfusedReason(x, mixed, next); unfusedReason != "" {
		return t.MLP.ForwardAdd(t.MLPNorm, t.Add(x, mixed)), torch.Tensor{}, unfusedReason
	}
	in := torch.Tail{
		Output: t.Output.Weight.Tensor, OutputBias: t.Output.bias(),
		MLPNorm: t.MLPNorm.Weight.Tensor, MLPEps: t.MLPNorm.Eps,
		GateUp: t.MLP.GateUp.Weight.Tensor, GateUpBias: t.MLP.GateUp.bias(),
		Down: t.MLP.Down.Weight.Tensor, DownBias: t.MLP.Down.bias(),
	}
	if t.Norm != nil {
		in.Norm, in.Eps = t.Norm.Weight.Tensor, t.Norm.Eps
	}
	if next != nil {
		in.NextNorm, in.NextEps, in.Next, in.NextBias = next.Norm.Weight.Tensor, next.Norm.Eps, next.Linear.Weight.Tensor, next.Linear.bias()
	}
	return torch.BlockTail(x, mixed, in)
}

// Add is x plus the mixer's last product.
func (t BlockTail) Add(x, mixed torch.Tensor) torch.Tensor {
	switch {
	case t.Norm == nil:
		return t.Output.ForwardAdd(mixed, x)
	case !t.Output.plain():
		return t.Output.ForwardAdd(t.Norm.Forward(mixed), x)
	}
	return torch.NormLinearAdd(mixed, t.Norm.Weight.Tensor, t.Norm.Eps, t.Output.Weight.Tensor, t.Output.bias(), x)
}

// unfusedReason is why Forward is several operations; "" where it is one.
func (t BlockTail) unfusedReason(x, mixed torch.Tensor, next *InputProjection) string {
	if torch.GradEnabled() {
		return "gradients are recorded"
	}
	if rows := x.Numel() / x.Size(-1); rows != 1 {
		return fmt.Sprintf("it takes one row, not %d", rows)
	}
	if x.DType() != mixed.DType() {
		return fmt.Sprintf("it takes tensors of one dtype, not %v and %v", x.DType(), mixed.DType())
	}
	products := []*Linear{t.Output, t.MLP.GateUp, t.MLP.Down}
	if next != nil {
		products = append(products, next.Linear)
	}
	for _, l := range products {
		switch {
		case l.Weight.Shard != nil:
			return "processes have divided the weights"
		case !l.plain():
			return "an adapter is not folded into the weights"
		}
	}
	return ""
}

// plain reports whether the layer is its weight and bias alone, and all of them are here.
func (l *Linear) plain() bool { return len(l.LoRA) == 0 && l.Weight.Shard == nil }
