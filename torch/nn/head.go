package nn

import "conquer/torch"

// Head is the projection of hidden states to the vocabulary: logits = Scale · hidden · Weightᵀ.
type Head struct {
	*Param         // the weight [V,D]; tied to the embedding in some models
	Scale  float64 // multiplier of the logits; 0 means 1
}

// Logits maps hidden [..., D] to [..., V], on every process that holds a shard of the head.
func (h Head) Logits(hidden torch.Tensor) torch.Tensor {
	p := h.Param
	logits := torch.Linear(h.scale(hidden), p.Tensor, torch.Tensor{})
	if p.Shard == nil {
		return logits
	}
	own := p.Shard.Own()[0]
	all := torch.Zeros(append(hidden.Shape()[:hidden.Rank()-1], p.Shape[0]), logits.DType(),
		logits.Device())
	all.Narrow(-1, own.First, own.Count).Copy(logits)
	return p.Shard.Group.Collect(all)
}

// Loss is [torch.HeadCrossEntropy] of hidden [N,D]. If the head is divided, hidden comes from
// [Param.Pick].
func (h Head) Loss(hidden, labels torch.Tensor, o torch.Loss) (loss, nll torch.Tensor) {
	p := h.Param
	hidden = h.scale(hidden)
	if p.Shard == nil {
		return torch.HeadCrossEntropy(hidden, p.Tensor, labels, o)
	}
	return p.Shard.Group.HeadCrossEntropy(hidden, p.Tensor, labels, p.Shard.Own()[0].First,
		p.Shape[0], o)
}

// scale multiplies the hidden states instead of the logits, which the fused loss never holds at
// once.
func (h Head) scale(hidden torch.Tensor) torch.Tensor {
	if scaled(h.Scale) {
		return hidden.MulScalar(h.Scale)
	}
	return hidden
}
