package network

import (
	"math"
	"slices"

	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/report"
)

// Kind is a kind of objective.
type Kind struct {
	Name string
	// Texts is the number of texts of a sample whose log-probabilities are compared: 2 for pairs of
	// answers, 1 for rated answers, 0 for the likelihood of labels.
	Texts int
	// Reference says that a log-probability is relative to that under the model before training.
	Reference bool
	// Baseline says that rewards are compared with the divergence from the reference, which is
	// estimated from mismatched texts.
	Baseline bool
	// Mean says that a log-probability is the mean over the labels of a text, not the sum.
	Mean bool
	// Smooths says that the loss allows for labels or preferences that are wrong.
	Smooths bool
	// Prompts says that the imitation term has the prompt's tokens too.
	Prompts bool
	// loss is the loss of each sample, [n], for the log-probabilities of its texts, [Texts·n],
	// relative to the reference and averaged as the kind says.
	loss func(o Objective, p torch.Tensor, mb MicroBatch) torch.Tensor
}

// Kinds lists the kinds. In the formulas, c and r are the log-probabilities of the chosen and the
// rejected answer, relative to the reference if the kind has one.
var Kinds = []Kind{
	{Name: "sft", Smooths: true},
	{Name: "dpo", Texts: 2, Reference: true, Smooths: true, loss: func(
		o Objective, p torch.Tensor, mb MicroBatch) torch.Tensor {
		// -log sigmoid(beta·(c - r))
		return o.logistic(mb.margin(p).MulScalar(o.Beta))
	}},
	{Name: "ipo", Texts: 2, Reference: true, loss: func(
		o Objective, p torch.Tensor, mb MicroBatch) torch.Tensor {
		// (c/tokens - r/tokens - 1/(2·beta))²
		return mb.margin(p.Div(mb.Lengths)).AddScalar(-1 / (2 * o.Beta)).PowScalar(2)
	}},
	{Name: "hinge", Texts: 2, Reference: true, loss: func(
		o Objective, p torch.Tensor, mb MicroBatch) torch.Tensor {
		// max(0, 1 - beta·(c - r))
		return mb.margin(p).MulScalar(-o.Beta).AddScalar(1).Clamp(0, math.Inf(1))
	}},
	{Name: "simpo", Texts: 2, Mean: true, Smooths: true, loss: func(
		o Objective, p torch.Tensor, mb MicroBatch) torch.Tensor {
		// -log sigmoid(beta·(c - r) - gamma)
		return o.logistic(mb.margin(p).MulScalar(o.Beta).AddScalar(-o.Gamma))
	}},
	{Name: "orpo", Texts: 2, Mean: true, Prompts: true, loss: func(
		o Objective, p torch.Tensor, mb MicroBatch) torch.Tensor {
		// -beta·log sigmoid(log odds(c) - log odds(r)), with odds(x) = exp(x) / (1 - exp(x)). An
		// answer whose probability rounds to 1 keeps finite odds.
		rest := p.Clamp(math.Inf(-1), -1e-7).Exp().Neg().AddScalar(1).Log()
		return mb.margin(p.Sub(rest)).Neg().Softplus().MulScalar(o.Beta)
	}},
	{Name: "kto", Texts: 1, Reference: true, Baseline: true, loss: func(
		o Objective, p torch.Tensor, mb MicroBatch) torch.Tensor {
		// weight·(1 - sigmoid(±beta·(p - baseline))), with + for a desirable answer
		weight := mb.Better.MulScalar(o.Desirable - o.Undesirable).AddScalar(o.Undesirable)
		margin := mb.margin(p.Sub(mb.Baseline)).MulScalar(o.Beta)
		return margin.Softplus().Neg().Exp().Mul(weight)
	}},
}

// KindOf returns the kind with a name, or the zero Kind if there is none.
func KindOf(name string) (k Kind) {
	if i := slices.IndexFunc(Kinds, func(k Kind) bool { return k.Name == name }); i >= 0 {
		k = Kinds[i]
	}
	return k
}

// logistic is -log sigmoid(margin). With smoothing it expects the opposite preference with that
// probability.
func (o Objective) logistic(margin torch.Tensor) torch.Tensor {
	loss := margin.Neg().Softplus()
	if o.Smoothing == 0 {
		return loss
	}
	return loss.MulScalar(1 - o.Smoothing).Add(margin.Softplus().MulScalar(o.Smoothing))
}

// comparison is the loss of a comparison, in a form with the same gradient, and its numbers. The
// log-probabilities of the texts are computed once without gradients. From them follow the losses
// and their derivatives by each log-probability. The second time each label is weighted by the
// derivative of its text, so the logits of all labels never exist at once.
func (o Objective) comparison(
	head nn.Head, hidden torch.Tensor, mb MicroBatch, divisor float64,
) (loss, numbers torch.Tensor) {
	var weights torch.Tensor
	torch.NoGrad(func() {
		_, nll := head.Loss(hidden, mb.Labels, torch.Loss{})
		var slopes torch.Tensor
		numbers, slopes = o.compare(mb, mb.Likelihoods(nll), divisor)
		weights = slopes.Neg().IndexSelect(0, mb.Owner).To(torch.Float32)
	})
	loss, _ = head.Loss(hidden, mb.Labels, torch.Loss{Divisor: 1, Weights: weights})
	return loss, numbers
}

// The numbers of a comparison: the sums of its losses and of correct comparisons, the sums of the
// rewards of chosen and of rejected answers, and the numbers of these. With an imitation term, the
// negative log-likelihood and the number of its labels follow; with a baseline, the baseline times
// the samples, and their number.
const comparisonNumbers = 6

// compare returns the numbers of a micro-batch, float32 [Numbers], for the log-probabilities of
// [Compared.Likelihoods], and the derivatives of the loss by them, float64.
func (o Objective) compare(
	mb MicroBatch, likelihoods torch.Tensor, divisor float64,
) (numbers, slopes torch.Tensor) {
	n := max(1, mb.Samples)
	leaf := likelihoods.Detach().RequireGrad(true)
	var p, loss torch.Tensor
	var extra []torch.Tensor
	torch.WithGrad(func() {
		p = leaf.Narrow(0, 0, o.Texts*n)
		chosen := p.Narrow(0, 0, n)
		if o.Reference {
			p = p.Sub(mb.Reference)
		}
		if o.Mean {
			p = p.Div(mb.Lengths)
		}
		loss = o.Kind.loss(o, p, mb).Sum()
		total := loss
		if o.Imitation > 0 {
			nll := chosen.Sum().Add(leaf.Select(0, o.Texts*n)).Neg()
			total = total.Add(nll.Mul(mb.Share).MulScalar(o.Imitation))
			extra = append(extra, nll.Detach(), mb.Imitated)
		}
		total.MulScalar(1 / divisor).Backward()
	})
	p = p.Detach()
	margin := mb.margin(p)
	if o.Baseline {
		margin = mb.margin(p.Sub(mb.Baseline))
		count := margin.ZerosLike().AddScalar(1).Sum()
		extra = append(extra, mb.Baseline.Mul(count), count)
	}
	right := margin.ZerosLike().Less(margin).To(torch.Float64)
	rewards, worse := p.MulScalar(o.Beta), mb.Better.Neg().AddScalar(1)
	numbers = torch.Stack(0, append([]torch.Tensor{
		loss.Detach(), right.Sum(), rewards.Mul(mb.Better).Sum(), rewards.Mul(worse).Sum(),
		mb.Better.Sum(), worse.Sum(),
	}, extra...)...)
	numbers = numbers.MulScalar(1 / divisor).To(torch.Float32)
	if mb.Samples == 0 {
		numbers = numbers.ZerosLike()
	}
	return numbers, leaf.Grad()
}

// reportComparison is Report for the numbers of a comparison. A measure of which a step has no
// answer is left out.
func (o Objective) reportComparison(numbers []float64) (loss float64, list []report.Measure) {
	add := func(name string, value float64, known bool) {
		if known {
			list = append(list, report.Measure{Name: name, Value: value})
		}
	}
	mean := func(i, count int) float64 { return numbers[i] / max(numbers[count], 1e-300) }
	loss = numbers[0]
	better, worse := numbers[4] > 0, numbers[5] > 0
	add("reward_chosen", mean(2, 4), better)
	add("reward_rejected", mean(3, 5), worse)
	add("reward_margin", mean(2, 4)-mean(3, 5), better && worse)
	add("accuracy", numbers[1], true)
	switch {
	case o.Imitation > 0:
		nll := mean(comparisonNumbers, comparisonNumbers+1)
		loss += o.Imitation * nll
		add("nll_chosen", nll, true)
	case o.Baseline:
		add("kl", mean(comparisonNumbers, comparisonNumbers+1), true)
	}
	return loss, list
}
