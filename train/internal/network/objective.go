package network

import (
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/report"
)

// Objective is what a run minimizes: the likelihood loss, or DPO's if Beta is not 0.
type Objective struct {
	Smoothing float64 // fraction of a label that is spread over the vocabulary
	ZLoss     float64 // coefficient of the squared log-sum-exp of the logits
	Beta      float64 // of DPO
}

// measures names the numbers of a pass after the first, which is the loss.
func (o Objective) measures() []string {
	if o.Beta > 0 {
		return []string{"reward_chosen", "reward_rejected", "reward_margin", "accuracy"}
	}
	if o.Smoothing != 0 || o.ZLoss != 0 {
		return []string{"objective"}
	}
	return nil
}

// Numbers is how many numbers a pass has.
func (o Objective) Numbers() int { return 1 + len(o.measures()) }

// Named gives the numbers of a pass after the first their names.
func (o Objective) Named(numbers []float64) (list []report.Measure) {
	for i, name := range o.measures() {
		list = append(list, report.Measure{Name: name, Value: numbers[i+1]})
	}
	return list
}

// Count is the number of items of a batch that the loss is the mean over: labels, or pairs.
func (o Objective) Count(b dataset.Batch) int {
	if o.Beta > 0 {
		return b.Samples
	}
	return Targets(b)
}

// loss returns the tensor that the backward pass starts from, for the normed hidden states of the
// labels, [N,D], and the numbers that a step reports, float32 [K]. Both are sums over the
// micro-batch divided by divisor. The first number is the plain negative log-likelihood, so that
// runs with label smoothing or z-loss can be compared with runs without.
func (o Objective) loss(
	head nn.Head, hidden torch.Tensor, mb MicroBatch, divisor float64,
) (loss, numbers torch.Tensor) {
	if o.Beta > 0 {
		return o.preference(head, hidden, mb, divisor)
	}
	loss, nll := head.Loss(hidden, mb.Labels, torch.Loss{
		Divisor: divisor, LabelSmoothing: o.Smoothing, ZLoss: o.ZLoss,
	})
	if o.Smoothing == 0 && o.ZLoss == 0 {
		return loss, loss.Detach().View(1)
	}
	return loss, torch.Stack(0, nll.Sum().MulScalar(1/divisor), loss.Detach())
}

// evaluate returns the sums of a micro-batch's numbers: the plain negative log-likelihood of its
// labels, or DPO's numbers.
func (o Objective) evaluate(head nn.Head, hidden torch.Tensor, mb MicroBatch) []float64 {
	numbers, nll := head.Loss(hidden, mb.Labels, torch.Loss{Divisor: 1})
	if o.Beta > 0 {
		numbers, _ = o.compare(nll, mb, 1)
	}
	return torch.Values[float64](numbers)
}

// preference is DPO's loss, in a form with the same gradient, and the numbers of compare. With the
// log-probabilities p of the answers under the model and r under the reference,
//
//	margin = beta·((p_chosen - r_chosen) - (p_rejected - r_rejected))
//	loss = -log sigmoid(margin)
//
// so d loss / d p_chosen = -beta·sigmoid(-margin), and d loss / d p_rejected is its negative. The
// likelihoods of the labels are computed once without gradients, and a second time with each label
// weighted by its pair's derivative.
func (o Objective) preference(
	head nn.Head, hidden torch.Tensor, mb MicroBatch, divisor float64,
) (loss, numbers torch.Tensor) {
	var weights torch.Tensor
	torch.NoGrad(func() {
		_, nll := head.Loss(hidden, mb.Labels, torch.Loss{})
		numbers, weights = o.compare(nll, mb, divisor)
	})
	loss, _ = head.Loss(hidden, mb.Labels, torch.Loss{Divisor: 1, Weights: weights})
	return loss, numbers
}

// compare returns DPO's numbers for the labels' negative log-likelihoods, [N], and the weights of
// the labels, [N].
func (o Objective) compare(
	nll torch.Tensor, mb MicroBatch, divisor float64,
) (numbers, weights torch.Tensor) {
	pairs := max(1, mb.Pairs)
	reward := mb.Likelihoods(nll).Sub(mb.Reference).MulScalar(o.Beta)
	chosen, rejected := reward.Narrow(0, 0, pairs), reward.Narrow(0, pairs, pairs)
	margin := chosen.Sub(rejected)
	loss := margin.Neg().Softplus()
	right := margin.ZerosLike().Less(margin).To(torch.Float32)
	numbers = torch.Stack(0, loss.Sum(), chosen.Sum(), rejected.Sum(), margin.Sum(), right.Sum()).
		MulScalar(1 / divisor)
	if mb.Pairs == 0 {
		numbers = numbers.ZerosLike()
	}
	push := margin.Softplus().Neg().Exp().MulScalar(o.Beta / divisor) // beta·sigmoid(-margin)
	return numbers, torch.Cat(0, push, push.Neg()).IndexSelect(0, mb.Owner)
}
