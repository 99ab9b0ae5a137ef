package plan

import (
	"math"

	"conquer/model"
	"conquer/torch"
	"conquer/train"
	"conquer/train/internal/units"
)

// Stages returns the plan of each GPU of a machine as a stage of a pipeline.
func Stages(m model.Model, o Options, machine Machine) ([]Plan, error) {
	o.Quantized = Quantized{} // the stages convert
	n, width := machine.GPUs, m.Head().Shape[1]
	first, err := units.Stages(units.Of(m), m.Head().Shape[0]*width, n)
	if err != nil {
		return nil, err
	}
	plans := make([]Plan, n)
	micro, hidden := o.micro(), o.hidden(float64(width))
	for i := range plans {
		s := measure(m, o, first[i], first[i+1])
		s.inFlight = float64(min(n-i, micro))
		plans[i] = s.plan(train.None, o, machine)
		p := &plans[i]
		p.Strategy = train.PP
		sent := float64(
			min(2*n, micro),
		) * hidden // a stage frees what it sends with a delay, see train's pipeline
		p.Buffers += sent
		p.Peak += sent
		atEnd := i == 0 || i == n-1
		if units.Tied(m) && !o.HeadOnly && o.LoRA == nil && atEnd && o.DType != torch.Float32 {
			// The first and the last stage finally sum the embedding's gradient in float32.
			p.Peak = math.Max(p.Peak, p.Weights+p.Optimizer+p.Gradients+6*s.embedding)
		}
		p.Fits = p.Peak <= machine.Memory*1e9
	}
	return plans, nil
}

// pipelinePlan returns the plan of the fullest stage at the pace of the slowest one. All stages
// work at the same time, except on the first and the last micro-batches of a step.
func pipelinePlan(m model.Model, o Options, machine Machine) Plan {
	if o.OffloadOptimizer {
		return Plan{Strategy: train.PP, Refused: offloadRefused}
	}
	all, err := Stages(m, o, machine)
	if err != nil {
		return Plan{Strategy: train.PP, Refused: err.Error()}
	}
	p, slowest := all[0], 0.0
	for _, stage := range all {
		if stage.Peak > p.Peak {
			p = stage
		}
		slowest = math.Max(slowest, stage.Compute)
	}
	link, micro := machine.Link, float64(o.micro())
	if machine.GPUs > machine.PerHost {
		link = machine.Network
	}
	p.Compute = slowest
	p.Communication = 2 * micro * o.hidden(float64(m.Head().Shape[1])) / (link * 1e9)
	p.Step = math.Max(p.Compute, p.Communication) * (micro + float64(machine.GPUs-1)) / micro
	p.Tokens = micro * o.tokens() / p.Step
	return p
}
