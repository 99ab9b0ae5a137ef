package train

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"conquer/text/dataset"
	"conquer/torch"
)

// measured names the numbers of a pass behind the first, which is the loss.
func (o Options) measured() []string {
	if o.Objective == DPO {
		return []string{"reward_chosen", "reward_rejected", "reward_margin", "accuracy"}
	}
	if o.LabelSmoothing != 0 || o.ZLoss != 0 {
		return []string{"objective"}
	}
	return nil
}

// checkObjective reports an objective that makes no sense.
func (o Options) checkObjective() error {
	switch {
	case !slices.Contains(Objectives, o.Objective):
		return fmt.Errorf("unknown objective %q: choose one of %s", o.Objective, strings.Join(Objectives, ", "))
	case o.Objective != DPO && o.Beta != 0:
		return fmt.Errorf("beta %g goes with the objective %s", o.Beta, DPO)
	case o.Objective == DPO && !(o.Beta > 0 && !math.IsInf(o.Beta, 0)):
		return fmt.Errorf("DPO with beta %g: it must be positive; 0.1 is usual", o.Beta)
	case o.Objective == DPO && (o.LabelSmoothing != 0 || o.ZLoss != 0):
		return fmt.Errorf("label smoothing and z-loss are terms of the likelihood's loss: they do not go with %s", DPO)
	case !(o.LabelSmoothing >= 0 && o.LabelSmoothing < 1):
		return fmt.Errorf("label smoothing %g: it must be at least 0 and below 1", o.LabelSmoothing)
	case !(o.ZLoss >= 0 && o.ZLoss < 1):
		return fmt.Errorf("z-loss %g: its coefficient must be at least 0 and below 1; 1e-4 is usual", o.ZLoss)
	}
	return nil
}

// named gives the numbers of a pass behind the first their names.
func (o Options) named(numbers []float64) (list []Measure) {
	for i, name := range o.measured() {
		list = append(list, Measure{Name: name, Value: numbers[i+1]})
	}
	return list
}

// count is how much of a batch a step's loss is the mean over: its labels, or its pairs.
func (o Options) count(b dataset.Batch) int {
	if o.Objective == DPO {
		return b.Samples
	}
	return targets(b)
}

// layout is how batches are laid out, for every use of a data set but in what b says. A pair lies in one row.
func (o Options) layout(b dataset.BatchOptions) dataset.BatchOptions {
	b.Rows, b.Length = o.BatchSize, o.SequenceLength
	b.Rank, b.World = o.rowGroup()
	if o.Objective == DPO {
		b.Length, b.Pack = 2*o.SequenceLength, o.Pack
	}
	return b
}

// rows are the hidden states, of [B,L,D], that predict a micro-batch's labels, ready for the head: [N,D].
func (n *network) rows(hidden torch.Tensor, mb microBatch) torch.Tensor {
	return n.model.Norm(n.model.Head().Pick(hidden, mb.rows).Unsqueeze(0)).Squeeze(0)
}

// loss is what a backward pass begins from, for hidden states [B,L,D], and the numbers that a step reports (float32): the sum
// over the micro-batch's labels divided by divisor, first of the plain negative log-likelihood, so that runs with label
// smoothing or z-loss can be compared with those without.
func (n *network) loss(hidden torch.Tensor, mb microBatch, divisor float64) (loss, numbers torch.Tensor) {
	if n.beta > 0 {
		return n.preference(n.rows(hidden, mb), mb, divisor)
	}
	o := torch.Loss{Divisor: divisor, LabelSmoothing: n.smoothing, ZLoss: n.zLoss}
	loss, nll := n.model.Head().Loss(n.rows(hidden, mb), mb.labels, o)
	if n.smoothing == 0 && n.zLoss == 0 {
		return loss, loss.Detach().View(1)
	}
	return loss, torch.Stack(0, nll.Sum().MulScalar(1/divisor), loss.Detach())
}

// evaluate returns a micro-batch's numbers, summed: the plain negative log-likelihood of its labels, or those of pairs.
func (n *network) evaluate(mb microBatch) (sums []float64) {
	n.infer(mb, func(hidden torch.Tensor) {
		numbers, nll := n.model.Head().Loss(n.rows(hidden, mb), mb.labels, torch.Loss{Divisor: 1})
		if n.beta > 0 {
			numbers, _ = n.compare(nll, mb, 1)
		}
		sums = torch.Values[float64](numbers)
	})
	return sums
}
