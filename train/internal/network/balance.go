package network

import (
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// balances makes the mixtures of m record how they share out tokens.
func balances(m model.Model) *nn.Balance {
	b := &nn.Balance{}
	nn.Layers(m, func(_ string, layer any) {
		if mixture, ok := layer.(*nn.MoE); ok {
			mixture.Balance = b
		}
	})
	return b
}

// record runs block i with f and keeps its shares, if there is a balancing loss.
func (f *Pass) record(i int, run func()) {
	b := f.n.balance
	if b == nil {
		run()
		return
	}
	b.On, b.Counted = true, f.Batch.Counted
	defer func() {
		b.On, b.Counted = false, torch.Tensor{}
		for _, s := range b.Take() { // those of a block that failed
			s.Free()
		}
	}()
	run()
	f.dropShares(i)
	f.shares[i] = b.Take()
}

// dropShares frees the shares of block i.
func (f *Pass) dropShares(i int) {
	for j := range f.shares[i] {
		f.shares[i][j].Free()
	}
	f.shares[i] = nil
}

// balance computes the loss that balances the experts of all mixtures, as transformers does: the
// number of experts times the sum over experts of their share of the tokens times their mean
// probability, both over the tokens of all layers. It adds the number to f.Numbers, and sets the
// gradient of the sums of probabilities. The micro-batch weighs as much as its labels.
func (f *Pass) balanceLoss(divisor float64) {
	torch.NoGrad(func() {
		torch.Scoped(func() {
			var tokens, probabilities torch.Tensor
			topK, copies := 1, 1
			for _, list := range f.shares {
				for _, s := range list {
					topK, copies = s.TopK, s.Copies
					if !tokens.Defined() {
						tokens, probabilities = s.Tokens, s.Probabilities.Detach()
						continue
					}
					tokens, probabilities = tokens.Add(s.Tokens), probabilities.Add(s.Probabilities)
				}
			}
			rows := tokens.Sum().MulScalar(1/float64(topK)).Clamp(1, 1<<62)
			weight := float64(f.Batch.Targets) / divisor
			slope := tokens.Div(rows.Mul(rows)).MulScalar(float64(tokens.Size(0)))
			loss := slope.Mul(probabilities).Sum().MulScalar(weight)
			f.slope = slope.MulScalar(f.n.Objective.RouterLoss * weight / float64(copies)).Own()
			numbers := torch.Cat(0, f.Numbers, loss.To(f.Numbers.DType()).View(1)).Own()
			f.Numbers.Free()
			f.Numbers = numbers
		})
	})
}
