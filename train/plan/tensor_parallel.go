package plan

import (
	"conquer/model"
	"conquer/parallel"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/train"
)

// tensorParallelPlans returns the plans of GPUs that divide each layer in groups of TensorSize:
// alone or with ddp across the groups, and with fsdp across the groups. It returns none if the
// machine has no such groups. Memory and compute are counted from the shards that [parallel.Divide]
// makes.
func tensorParallelPlans(m model.Model, o Options, machine Machine) (plans []Plan) {
	size := o.TensorSize
	if size == 0 {
		size = min(machine.GPUs, machine.PerHost)
	}
	if size < 2 || machine.GPUs%size != 0 || machine.PerHost%size != 0 {
		return nil
	}
	division, err := parallel.Divide(m, &dist.Group{Size: size}, torch.CPU)
	if err != nil {
		return []Plan{{Strategy: train.TP, Refused: err.Error()}}
	}
	defer division.Forget()
	if err := o.run().CheckDivision(division); err != nil {
		return []Plan{{Strategy: train.TP, Refused: err.Error()}}
	}
	s := measure(m, o, 0, len(m.Blocks()))
	seconds := allReduces(m, o, s) * 2 * float64(size-1) / float64(size) *
		o.hidden(float64(m.Head().Shape[1])) / (machine.Link * 1e9)
	groups := machine
	groups.GPUs, groups.PerHost = machine.GPUs/size, machine.PerHost/size
	across := []string{train.DDP, train.FSDP}
	if groups.GPUs == 1 {
		across = []string{train.None}
	}
	for _, strategy := range across {
		p := s.plan(strategy, o, groups)
		if p.Strategy = train.TP; strategy == train.FSDP {
			p.Strategy = train.FSDP + "+" + train.TP
		}
		if p.Refused == "" {
			p.Communication += seconds
			p.Step += seconds // without overlap
			p.Tokens = float64(o.micro()) * o.tokens() * float64(groups.GPUs) / p.Step
		}
		plans = append(plans, p)
	}
	return plans
}

// allReduces counts the sums of hidden states over a group in a step: one per layer that is divided
// by columns, in the forward pass and, where gradients flow, in the backward pass; one for the
// embedding and one for the head.
func allReduces(m model.Model, o Options, s sizes) float64 {
	forward, backward := 0.0, 0.0
	for i, block := range m.Blocks() {
		nn.Linears(block, func(_ []string, l *nn.Linear) {
			if l.Weight.Shard.Dim == 1 {
				forward++
				if i >= s.blocks-s.active {
					backward++
				}
			}
		})
	}
	count := forward + 1
	if s.active > 0 {
		count += backward + 1
	}
	if o.Recompute == train.RecomputeBlock {
		count += backward
	}
	return float64(o.micro()) * count
}
