package nn

import (
	"fmt"

	"conquer/torch"
)

// InputProjection is a block's norm and first GEMM.
type InputProjection struct {
	Norm   *RMSNorm
	Linear *Linear
}

// Forward maps x [..., D], which may be of a wider dtype than the weights, to [..., N].
func (p InputProjection) Forward(x torch.Tensor) torch.Tensor {
	return p.Linear.ForwardNormed(p.Norm, x.To(p.Norm.Weight.DType()))
}

// FeedForward is a block's feed-forward layer.
type FeedForward interface {
	// Forward maps x, normalized by norm, to the layer's output: all [..., D].
	Forward(norm *RMSNorm, x torch.Tensor) torch.Tensor
	// ForwardAdd is x + Forward(norm, x), in fewer operations where a kernel fuses the sum.
	ForwardAdd(norm *RMSNorm, x torch.Tensor) torch.Tensor
}

// BlockTail is what follows a block's mixer (attention or a scan):
//
//	h = x + Scale · output(mixed)
//	y = h + Scale · mlp(norm(h))
type BlockTail struct {
	Norm    *RMSNorm // of the mixer's result; nil for none
	Output  *Linear
	MLPNorm *RMSNorm
	MLP     FeedForward
	Scale   float64 // multiplier of both residual branches; 0 means 1
}

// Forward maps a block's input x [..., D] and its mixer's result to the block's output y [..., D].
// Without gradients and adapters, one operation computes y and also next's projection of y, if next
// is not nil. projected is that projection, else no tensor. unfusedReason says why the GPU's fused
// kernels, which take a few rows, did not run, "" if they did.
func (t BlockTail) Forward(x, mixed torch.Tensor, next *InputProjection) (y, projected torch.Tensor,
	unfusedReason string) {
	if unfusedReason = t.unfusedReason(x, mixed, next); unfusedReason != "" {
		h := t.Add(x, mixed)
		if scaled(t.Scale) {
			return h.Add(t.MLP.Forward(t.MLPNorm, h).MulScalar(t.Scale)), torch.Tensor{},
				unfusedReason
		}
		return t.MLP.ForwardAdd(t.MLPNorm, h), torch.Tensor{}, unfusedReason
	}
	mlp := t.MLP.(*SwiGLU)
	in := torch.Tail{
		Output: t.Output.Weight.Tensor, OutputBias: t.Output.bias(),
		MLPNorm: t.MLPNorm.Weight.Tensor, MLPEps: t.MLPNorm.Eps,
		GateUp: mlp.GateUp.Weight.Tensor, GateUpBias: mlp.GateUp.bias(),
		Down: mlp.Down.Weight.Tensor, DownBias: mlp.Down.bias(),
	}
	if t.Norm != nil {
		in.Norm, in.Eps = t.Norm.Weight.Tensor, t.Norm.Eps
	}
	if next != nil {
		in.NextNorm, in.NextEps = next.Norm.Weight.Tensor, next.Norm.Eps
		in.Next, in.NextBias = next.Linear.Weight.Tensor, next.Linear.bias()
	}
	return torch.BlockTail(x, mixed, in)
}

// Add is h = x + Scale · output(mixed), the first half of Forward.
func (t BlockTail) Add(x, mixed torch.Tensor) torch.Tensor {
	switch {
	case scaled(t.Scale):
		if t.Norm != nil {
			mixed = t.Norm.Forward(mixed)
		}
		return x.Add(t.Output.Forward(mixed).MulScalar(t.Scale))
	case t.Norm == nil:
		return t.Output.ForwardAdd(mixed, x)
	case !t.Output.plain():
		return t.Output.ForwardAdd(t.Norm.Forward(mixed), x)
	}
	return torch.NormLinearAdd(mixed, t.Norm.Weight.Tensor, t.Norm.Eps, t.Output.Weight.Tensor,
		t.Output.bias(), x)
}

// unfusedReason says why Forward runs as several operations, "" if it runs as one.
func (t BlockTail) unfusedReason(x, mixed torch.Tensor, next *InputProjection) string {
	if torch.GradEnabled() {
		return "gradients are recorded"
	}
	if x.DType() != mixed.DType() {
		return fmt.Sprintf("it takes tensors of one dtype, not %v and %v", x.DType(), mixed.DType())
	}
	if scaled(t.Scale) {
		return "it has no residual multiplier"
	}
	mlp, ok := t.MLP.(*SwiGLU)
	if !ok {
		return "it takes a SwiGLU feed-forward layer only"
	}
	layers := []*Linear{t.Output, mlp.GateUp, mlp.Down}
	if next != nil {
		layers = append(layers, next.Linear)
	}
	for _, l := range layers {
		switch {
		case l.Weight.Shard != nil:
			return "the weights are divided over processes"
		case l.Observe != nil:
			return "its inputs are observed"
		case !l.plain():
			return "an adapter is not merged into the weights"
		}
	}
	return ""
}

// scaled reports whether a multiplier changes anything.
func scaled(scale float64) bool { return scale != 0 && scale != 1 }

// plain reports whether the layer is its weight and bias alone, all of them in this process.
func (l *Linear) plain() bool {
	return !l.hasAdapters() && l.Weight.Shard == nil && l.Observe == nil
}
