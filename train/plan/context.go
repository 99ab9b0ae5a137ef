package plan

import (
	"fmt"

	"conquer/model"
	"conquer/torch/nn"
	"conquer/train"
)

// contextPlans predicts ddp and fsdp with rows that are cut over o.ContextSize GPUs of a host. Each
// attention layer gathers the keys and values of a whole row; its mask is one byte for each of its
// tokens and each token of the row.
func (s sizes) contextPlans(m model.Model, o Options, machine Machine) (plans []Plan, err error) {
	size := o.ContextSize
	if machine.GPUs%size != 0 || machine.PerHost%size != 0 {
		return nil, fmt.Errorf("rows cut over %d GPUs: this does not divide %d GPUs, or hosts of "+
			"%d", size, machine.GPUs, machine.PerHost)
	}
	rows := float64(o.BatchSize * o.SequenceLength)
	masked := false
	for _, block := range m.Blocks() {
		if _, ok := block.(model.Splitter); !ok {
			return []Plan{{Strategy: train.FSDP, Refused: "the blocks of " + m.Architecture() +
				" cannot be cut along the sequence"}}, nil
		}
		nn.Layers(block, func(_ string, layer any) {
			if a, ok := layer.(*model.Attention); ok {
				_, keyHeads, headDim := a.Sizes()
				s.joined += 2 * rows * float64(keyHeads*headDim) * float64(o.DType.Size())
				masked = true
			}
		})
	}
	if masked {
		s.mask = float64(o.SequenceLength) * float64(o.SequenceLength) / float64(size)
	}
	for _, strategy := range []string{train.DDP, train.FSDP} {
		plans = append(plans, s.plan(strategy, o, machine))
	}
	return plans, nil
}
