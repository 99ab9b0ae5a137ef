package train

import (
	"fmt"

	"conquer/torch"
)

// Measure is a number that an objective tells besides the loss.
type Measure struct {
	Name  string
	Value float64
}

// measured names the numbers of a pass behind the first, which is the loss.
func (o Options) measured() []string {
	if o.LabelSmoothing != 0 || o.ZLoss != 0 {
		return []string{"objective"}
	}
	return nil
}

// checkObjective reports an objective that makes no sense.
func (o Options) checkObjective() error {
	switch {
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
		list = append(list, Measure{name, numbers[i+1]})
	}
	return list
}

// rows are the hidden states, of [B,L,D], that predict a micro-batch's labels, ready for the head: [N,D].
func (n *network) rows(hidden torch.Tensor, mb microBatch) torch.Tensor {
	picked := hidden.View(-1, hidden.Size(-1)).IndexSelect(0, mb.rows).Unsqueeze(0)
	return n.model.Norm(n.model.Head().Spread(picked)).Squeeze(0)
}

// loss is what a backward pass begins from, for hidden states [B,L,D], and the numbers that a step reports (float32): the sum
// over the micro-batch's labels divided by divisor, first of the plain negative log-likelihood, so that runs with label
// smoothing or z-loss can be compared with those without.
func (n *network) loss(hidden torch.Tensor, mb microBatch, divisor float64) (loss, numbers torch.Tensor) {
	o := torch.Loss{Divisor: divisor, LabelSmoothing: n.smoothing, ZLoss: n.zLoss}
	loss, nll := n.model.Head().Loss(n.rows(hidden, mb), mb.labels, o)
	if n.smoothing == 0 && n.zLoss == 0 {
		return loss, loss.Detach().View(1)
	}
	return loss, torch.Stack(0, nll.Sum().MulScalar(1/divisor), loss.Detach())
}
