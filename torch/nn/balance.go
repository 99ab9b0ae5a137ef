package nn

import "conquer/torch"

// Balance records how the mixtures of a model share out the tokens of a pass, for the loss that
// balances them (Fedus et al., arXiv 2101.03961).
type Balance struct {
	On bool // passes record their shares
	// Counted is 1 for each token that counts and 0 for padding, float32 [N]; no tensor means that
	// all tokens count.
	Counted torch.Tensor

	shares []Share
}

// Share is what one mixture did with the tokens of a pass. The tensors belong to the caller of
// [Balance.Take].
type Share struct {
	Tokens        torch.Tensor // float32 [E]: how many tokens each expert got
	Probabilities torch.Tensor // float32 [E], with a graph: softmax of the router, over all tokens
	TopK          int          // experts of a token
	Copies        int          // processes that compute the same share
}

// Take returns the shares that were recorded since the last call.
func (b *Balance) Take() []Share {
	shares := b.shares
	b.shares = nil
	return shares
}

// add records the share of a mixture from its router's logits [N,E] and the choice of experts
// [N,k].
func (b *Balance) add(m *MoE, logits, experts torch.Tensor) {
	s := Share{TopK: m.Routing.TopK, Copies: 1}
	if shard := m.Experts.In.Weight.Shard; shard != nil {
		s.Copies = shard.Group.Size
	}
	probabilities := logits.To(torch.Float32).Softmax(-1)
	chosen := probabilities.Detach().ZerosLike().To(torch.Bool).Mark(experts).To(torch.Float32)
	if b.Counted.Defined() {
		counted := b.Counted.View(-1, 1)
		probabilities, chosen = probabilities.Mul(counted), chosen.Mul(counted)
	}
	s.Tokens = chosen.SumDim(0, false).Own()
	s.Probabilities = probabilities.SumDim(0, false).Own()
	b.shares = append(b.shares, s)
}

// Free frees a share's tensors.
func (s *Share) Free() {
	s.Tokens.Free()
	s.Probabilities.Free()
}
