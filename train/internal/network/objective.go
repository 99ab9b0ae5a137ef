package network

import (
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/report"
)

// Objective is what a run minimizes: a kind of loss and its coefficients.
type Objective struct {
	Kind
	// Smoothing is the fraction of a label that is spread over the vocabulary. For pairs it is the
	// probability that the answers of a pair are swapped.
	Smoothing float64
	ZLoss     float64 // coefficient of the squared log-sum-exp of the logits
	// RouterLoss is the coefficient of the loss that balances the experts of mixtures.
	RouterLoss float64
	Beta       float64 // of the kinds that compare answers
	Gamma      float64 // SimPO's target margin
	// Imitation is the weight of the mean negative log-likelihood of the preferred answers.
	Imitation float64
	// Desirable and Undesirable are the weights of rated answers.
	Desirable, Undesirable float64
}

// Whole has numbers of a whole step that each of its micro-batches needs.
type Whole struct {
	// Share is the number of samples divided by the number of labels of the imitation term. The
	// gradients depend on it.
	Share    float64
	Baseline float64 // if the kind has one
}

// Count is the number of items of a batch that the loss is the mean over: labels, or samples whose
// answers are compared.
func (o Objective) Count(b dataset.Batch) int {
	if o.Texts > 0 {
		return b.Samples
	}
	return Targets(b)
}

// loss returns the tensor that the backward pass starts from, for the normed hidden states of the
// labels, [N,D], and the numbers that a step reports, float32 [K]. Both are sums over the
// micro-batch divided by divisor.
func (o Objective) loss(
	head nn.Head, hidden torch.Tensor, mb MicroBatch, divisor float64,
) (loss, numbers torch.Tensor) {
	if o.Texts > 0 {
		return o.comparison(head, hidden, mb, divisor)
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
// labels, or those of a comparison.
func (o Objective) evaluate(head nn.Head, hidden torch.Tensor, mb MicroBatch) []float64 {
	numbers, nll := head.Loss(hidden, mb.Labels, torch.Loss{Divisor: 1})
	if o.Texts > 0 {
		numbers, _ = o.compare(mb, mb.Likelihoods(nll), 1)
	}
	return torch.Values[float64](numbers)
}

// Numbers is how many numbers a pass has.
func (o Objective) Numbers() int {
	switch {
	case o.Texts > 0 && (o.Imitation > 0 || o.Baseline):
		return comparisonNumbers + 2
	case o.Texts > 0:
		return comparisonNumbers
	}
	n := 1
	if o.Smoothing != 0 || o.ZLoss != 0 {
		n++
	}
	if o.RouterLoss > 0 {
		n++
	}
	return n
}

// Report turns the numbers of a step or a validation, summed and divided by the number of items,
// into the loss and the measures to report. The loss of the likelihood objective is the plain one,
// so that runs with label smoothing or z-loss can be compared with runs without.
func (o Objective) Report(numbers []float64) (loss float64, list []report.Measure) {
	if o.Texts > 0 {
		return o.reportComparison(numbers)
	}
	if len(numbers) < o.Numbers() || len(numbers) == 1 { // of a validation
		return numbers[0], nil
	}
	objective := numbers[0]
	if o.Smoothing != 0 || o.ZLoss != 0 {
		objective = numbers[1]
	}
	if o.RouterLoss > 0 {
		router := numbers[len(numbers)-1]
		objective += o.RouterLoss * router
		list = append(list, report.Measure{Name: "router_loss", Value: router})
	}
	return numbers[0], append(list, report.Measure{Name: "objective", Value: objective})
}
