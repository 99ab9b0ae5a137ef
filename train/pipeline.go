package train

import (
	"fmt"
	"math"
	"slices"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/train/internal/units"
)

// PP is the strategy by which each process holds some of the model's layers, one behind the other: a pipeline. All take the same
// rows. A step's micro-batches (Options.Accumulate) go through one after the other, so that every process has something to do:
// each runs one forward and one backward in turn, after as many forwards as there are processes behind it (Narayanan et al.,
// arXiv 2104.04473). A process so holds the activations of no more micro-batches than there are processes.
const PP = "pp"

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
	list, w := units.Of(m), o.World
	p := &pipeline{units: list, stage: w.Rank, all: w.All, width: m.Head().Shape[1], dtype: model.DType(m)}
	var err error
	if p.first, err = units.Stages(list, m.Head().Shape[0]*p.width, w.Size); err != nil {
		return nil, err
	}
	if o.Stochastic && units.Tied(m) {
		return nil, fmt.Errorf("with pp, the first and the last process round the embedding, which is the head too, each at random: give no --stochastic_rounding")
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
	if units.Tied(m) && (p.isFirst() || p.isLast()) {
		if p.ends, err = w.NewGroup("ends", []int{0, w.Size - 1}); err != nil {
			return nil, err
		}
	}
	torch.NoGrad(func() {
		for u, unit := range list {
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
