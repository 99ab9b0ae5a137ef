package train

import (
	"fmt"
	"math"
	"slices"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// MP is the strategy by which each process holds some of the model's layers, one behind the other: a pipeline. All take the same
// rows. A step's micro-batches (Options.Accumulate) go through one after the other, so that every process has something to do:
// each runs one forward and one backward in turn, after as many forwards as there are processes behind it (Narayanan et al.,
// arXiv 2104.04473). A process so holds the activations of no more micro-batches than there are processes.
const MP = "mp"

// pipeline is one process's stage.
type pipeline struct {
	units [][]*nn.Param
	stage int
	first []int // stage s has the blocks from first[s] to below first[s+1]
	all   *dist.Group
	down  *dist.Group // hidden states go to the next stage through one group, their gradients back through another: with
	up    *dist.Group // NCCL, what goes through one keeps its order, and neither direction may wait for the other
	ends  *dist.Group // where the first and the last stage both have the weights of unit 0: these two
	width int
	dtype torch.DType

	passed int          // micro-batches sent or received so far, which their tags number
	sent   []*dist.Work // on their way
}

func newPipeline(m model.Model, o Options) (strategy, error) {
	units, w := unitsOf(m), o.World
	p := &pipeline{units: units, stage: w.Rank, all: w.All, width: m.Head().Shape[1], dtype: model.DType(m)}
	var err error
	if p.first, err = stages(units, m.Head().Shape[0]*p.width, w.Size); err != nil {
		return nil, err
	}
	if o.Stochastic && isTied(m) {
		return nil, fmt.Errorf("with mp, the first and the last process round the embedding, which is the head too, each at random: give no --stochastic_rounding")
	}
	ranks := make([]int, w.Size)
	for i := range ranks {
		ranks[i] = i
	}
	if p.down, err = w.NewGroup("down", ranks); err != nil {
		return nil, err
	}
	if p.up, err = w.NewGroup("up", ranks); err != nil {
		return nil, err
	}
	if isTied(m) && (p.isFirst() || p.isLast()) {
		if p.ends, err = w.NewGroup("ends", []int{0, w.Size - 1}); err != nil {
			return nil, err
		}
	}
	torch.NoGrad(func() {
		for u, unit := range units {
			for _, param := range unit {
				torch.Scoped(func() {
					here := torch.Empty(param.Shape, param.DType(), w.Device())
					switch {
					case err != nil:
					case p.holds(u):
						err = param.Move(here)
					default:
						dist.Resize(here, 0)
						param.SetData(here)
						param.Deferred = nil // others read it
					}
				})
			}
		}
	})
	return p, err
}

// stages divides the blocks over n processes, with about as many weights each. The head counts as the last one's.
func stages(units [][]*nn.Param, head, n int) ([]int, error) {
	count := len(units) - 2
	if count < n {
		return nil, fmt.Errorf("mp: a model of %d layers does not divide over %d processes", count, n)
	}
	weights, total := make([]int, count), head
	for i := range weights {
		for _, p := range units[i+1] {
			weights[i] += elementsOf(p.Shape)
		}
		total += weights[i]
	}
	first, before := []int{0}, 0
	for i, w := range weights {
		s := len(first) // the next stage
		if s < n && i > first[s-1] && ((before+w/2)*n >= total*s || count-i == n-s) {
			first = append(first, i)
		}
		before += w
	}
	return append(first, count), nil
}

func (p *pipeline) isFirst() bool { return p.stage == 0 }
func (p *pipeline) isLast() bool  { return p.stage == p.all.Size-1 }

// holds reports whether this stage has the weights of a unit.
func (p *pipeline) holds(u int) bool {
	return p.owner(u) == p.stage || u == 0 && p.isLast() && p.tied()
}

func (p *pipeline) tied() bool { return len(p.units[len(p.units)-1]) == 0 }

// owner is the stage that writes a unit's weights.
func (p *pipeline) owner(u int) int {
	switch u {
	case 0:
		return 0
	case len(p.units) - 1:
		return p.all.Size - 1
	}
	s := 0
	for p.first[s+1] < u {
		s++
	}
	return s
}

// step takes all micro-batches of a step forward and back.
func (p *pipeline) step(n *network, list []microBatch, divisor float64) (numbers []float64) {
	low, high := p.first[p.stage], p.first[p.stage+1]
	flights, told := make([]*flight, len(list)), make([]*torch.Fetch[float32], len(list))
	defer func() {
		for i, f := range flights {
			told[i].Drop()
			if f != nil {
				f.free()
			}
		}
	}()
	tag := p.passed
	p.passed += len(list)
	ahead := min(p.all.Size-1-p.stage, len(list))
	for i := range len(list) + ahead {
		if i < len(list) {
			f := n.begin(list[i])
			flights[i] = f
			if p.isFirst() {
				f.embed()
			} else {
				f.outputs[low] = p.receive(p.down, p.stage-1, tag+i, list[i])
			}
			f.forward(low, high)
			if p.isLast() {
				f.score(divisor, i == len(list)-1)
				told[i] = torch.StartFetch[float32](f.numbers)
			} else {
				p.send(p.down, f.outputs[high], p.stage+1, tag+i)
				f.inputs[high] = leaf(f.outputs[high], n.lowest < high)
			}
		}
		if back := i - ahead; back >= 0 {
			f := flights[back]
			if n.lowest < high && !p.isLast() {
				gradient := p.receive(p.up, p.stage+1, tag+back, list[back])
				f.inputs[high].SetGrad(gradient)
				gradient.Free()
			}
			f.backward(high, low, back == len(list)-1)
			switch {
			case p.isFirst():
				f.arrive(back == len(list)-1)
			case n.lowest < low:
				torch.Scoped(func() { p.send(p.up, f.inputs[low].Grad(), p.stage-1, tag+back) })
			}
			if p.isLast() {
				pass := told[back].Values()
				numbers = append(numbers, make([]float64, len(pass)-len(numbers))...)
				for k, v := range pass {
					numbers[k] += float64(v)
				}
			}
			f.free()
			flights[back] = nil
		}
		p.settle(2 * p.all.Size)
	}
	p.settle(0)
	return numbers
}

// infer passes a micro-batch on, forward alone. It does not wait for the stages behind.
func (p *pipeline) infer(n *network, mb microBatch, head func(hidden torch.Tensor)) {
	p.passed++
	torch.NoGrad(func() {
		torch.Scoped(func() {
			f := n.begin(mb)
			defer f.free()
			low, high := p.first[p.stage], p.first[p.stage+1]
			if p.isFirst() {
				f.outputs[0] = owned(false, func() torch.Tensor { return n.model.Embed(mb.seq.IDs) })
			} else {
				f.outputs[low] = p.receive(p.down, p.stage-1, p.passed, mb)
			}
			for i := low; i < high; i++ {
				f.inputs[i] = leaf(f.outputs[i], false)
				f.outputs[i+1] = f.block(i, false)
				f.inputs[i].Free()
				f.outputs[i].Free()
			}
			if p.isLast() {
				head(f.outputs[high])
			} else {
				p.send(p.down, f.outputs[high], p.stage+1, p.passed)
			}
		})
	})
	p.settle(p.all.Size)
}

// send begins to pass t on; its memory stays until it is there.
func (p *pipeline) send(group *dist.Group, t torch.Tensor, to, tag int) {
	if t.DType() != p.dtype {
		panic(&torch.Error{Op: "pipeline", Message: fmt.Sprintf("hidden states of %v between layers of %v", t.DType(), p.dtype)})
	}
	torch.Scoped(func() {
		torch.NoGrad(func() { p.sent = append(p.sent, group.Send(t.Detach().Contiguous(), to, tag)) })
	})
}

// settle waits until no more than so many tensors are on their way.
func (p *pipeline) settle(most int) {
	for len(p.sent) > most {
		p.sent[0].Wait()
		p.sent = p.sent[1:]
	}
}

// receive waits for hidden states, or their gradient, of a micro-batch: [B,L,D].
func (p *pipeline) receive(group *dist.Group, from, tag int, mb microBatch) torch.Tensor {
	return owned(false, func() torch.Tensor {
		t := torch.Empty([]int{mb.seq.IDs.Size(0), mb.seq.IDs.Size(1), p.width}, p.dtype, mb.seq.IDs.Device())
		group.Receive(t, from, tag).Wait()
		return t
	})
}

func (p *pipeline) use(int, int)         {}
func (p *pipeline) leave(int, bool)      {}
func (p *pipeline) reduce(int, bool)     {}
func (p *pipeline) updated()             {}
func (p *pipeline) replicas() (int, int) { return 1, 0 }

// finish sums what the first and the last stage have of the gradients of weights that both hold.
func (p *pipeline) finish() {
	for _, param := range p.shared() {
		torch.NoGrad(func() {
			torch.Scoped(func() {
				sum := gradientOf(param).To(torch.Float32).Contiguous()
				p.ends.AllReduce(sum, dist.Sum).Wait()
				param.SetGrad(sum.To(param.DType()))
			})
		})
	}
}

// shared lists the trained weights that another stage holds too.
func (p *pipeline) shared() (list []*nn.Param) {
	if p.ends != nil {
		for _, param := range p.units[0] {
			if param.RequiresGrad() {
				list = append(list, param)
			}
		}
	}
	return list
}

// agree counts once what two stages hold. The last one has the loss.
func (p *pipeline) agree(sums []float64, norm float64) ([]float64, float64) {
	squares := norm * norm
	if p.isLast() {
		torch.Scoped(func() {
			var gradients []torch.Tensor
			for _, param := range p.shared() {
				gradients = append(gradients, param.Grad())
			}
			twice := torch.GlobalNorm(gradients)
			squares = max(0, squares-twice*twice)
		})
	}
	sums = p.all.Sums(append(slices.Clone(sums), squares)...)
	return sums[:len(sums)-1], math.Sqrt(sums[len(sums)-1])
}

func (p *pipeline) pieces() (list []piece) {
	for _, trained := range []bool{true, false} {
		for u, unit := range p.units {
			for _, param := range unit {
				if p.holds(u) && param.RequiresGrad() == trained {
					list = append(list, piece{param: param, tensor: param.Tensor, copied: p.owner(u) != p.stage})
				}
			}
		}
	}
	return list
}

func (p *pipeline) whole(bool) {
	p.each(func(u int, param *nn.Param) {
		t := param.Detach()
		if p.isFirst() {
			dist.Resize(t, t.Numel()*t.DType().Size())
			p.up.Receive(t, p.owner(u), 0).Wait()
		} else if p.owner(u) == p.stage {
			p.up.Send(t.Contiguous(), 0, 0).Wait()
		}
	})
}

func (p *pipeline) part() {
	if p.isFirst() {
		p.each(func(_ int, param *nn.Param) {
			if param.Defined() { // an adapter may be in its layer by now
				dist.Resize(param.Tensor, 0)
			}
		})
	}
}

// each calls f for the weights that rank 0 lacks.
func (p *pipeline) each(f func(u int, param *nn.Param)) {
	torch.NoGrad(func() {
		for u, unit := range p.units {
			for _, param := range unit {
				if p.owner(u) > 0 {
					torch.Scoped(func() { f(u, param) })
				}
			}
		}
	})
}

func (p *pipeline) free() {
	for _, w := range p.sent { // of a step that failed
		w.Forget()
	}
	p.sent = nil
}

// stagePlans are the plans of a machine's GPUs where each has some of the layers.
func stagePlans(m model.Model, o PlanOptions, machine Machine) ([]Plan, error) {
	units, n := unitsOf(m), machine.GPUs
	width := m.Head().Shape[1]
	first, err := stages(units, m.Head().Shape[0]*width, n)
	if err != nil {
		return nil, err
	}
	plans := make([]Plan, n)
	micro := max(1, o.Accumulate)
	hidden := float64(o.BatchSize*o.SequenceLength*width) * float64(o.DType.Size())
	for i := range plans {
		s := measure(m, o, first[i], first[i+1])
		s.flights = float64(min(n-i, micro))
		plans[i] = s.plan(None, o, machine)
		p := &plans[i]
		p.Strategy = MP
		sent := float64(min(2*n, micro)) * hidden // what was sent is let go of late, see pipeline.settle
		p.Buffers += sent
		p.Peak += sent
		if isTied(m) && !o.HeadOnly && o.LoRA == nil && (i == 0 || i == n-1) && o.DType != torch.Float32 {
			// The embedding's gradient is summed with the other end's at last, in float32.
			p.Peak = math.Max(p.Peak, p.Weights+p.Optimizer+p.Gradients+6*s.embedding)
		}
		p.Fits = p.Peak <= machine.Memory*1e9
	}
	return plans, nil
}

// pipelinePlan is the plan of the fullest of the GPUs, at the pace of the slowest: that of micro-batches one behind the other,
// which all stages are busy with but for the first and the last ones of a step.
func pipelinePlan(m model.Model, o PlanOptions, machine Machine) Plan {
	if o.OffloadOptimizer {
		return Plan{Strategy: MP, Refused: offloadAlone}
	}
	all, err := stagePlans(m, o, machine)
	if err != nil {
		return Plan{Strategy: MP, Refused: err.Error()}
	}
	p, slowest := all[0], 0.0
	for _, stage := range all {
		if stage.Peak > p.Peak {
			p = stage
		}
		slowest = math.Max(slowest, stage.Compute)
	}
	link, micro := machine.Link, float64(max(1, o.Accumulate))
	if machine.GPUs > machine.PerHost {
		link = machine.Network
	}
	tokens := float64(o.BatchSize * o.SequenceLength)
	hidden := tokens * float64(m.Head().Shape[1]) * float64(o.DType.Size())
	p.Compute, p.Communication = slowest, 2*micro*hidden/(link*1e9)
	p.Step = math.Max(p.Compute, p.Communication) * (micro + float64(machine.GPUs-1)) / micro
	p.Tokens = micro * tokens / p.Step
	return p
}
