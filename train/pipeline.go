package train

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/train/internal/network"
	"conquer/train/internal/units"
)

// pipeline is one stage of the strategy [PP].
type pipeline struct {
	units [][]*nn.Param
	stage int
	first []int // stage s has the blocks from first[s] up to, and without, first[s+1]
	all   *dist.Group
	// Hidden states go to the next stage through down, their gradients back through up. Separate
	// groups, because NCCL keeps the order within a group, and neither direction may wait for the
	// other.
	down, up *dist.Group
	ends     *dist.Group // the first and the last stage, if both hold the embedding; else nil
	width    int
	dtype    torch.DType

	passed int          // micro-batches sent or received so far: the tag of the next one
	sent   []*dist.Work // in transfer
}

func newPipeline(m model.Model, o Options) (strategy, error) {
	list, w := units.Of(m), o.World
	p := &pipeline{
		units: list, stage: w.Rank, all: w.All, width: m.Head().Shape[1], dtype: model.DType(m),
	}
	var err error
	if p.first, err = units.Stages(list, m.Head().Shape[0]*p.width, w.Size); err != nil {
		return nil, err
	}
	if o.Stochastic && units.Tied(m) {
		return nil, errors.New(
			"with pp, the first and the last process would round the embedding, which is also " +
				"the head, with different random numbers: omit --stochastic_rounding",
		)
	}
	if err = p.joinGroups(w, units.Tied(m)); err != nil {
		return nil, err
	}
	torch.NoGrad(func() { err = p.place(w.Device()) })
	return p, err
}

func (p *pipeline) joinGroups(w *dist.World, tied bool) (err error) {
	ranks := make([]int, w.Size)
	for i := range ranks {
		ranks[i] = i
	}
	if p.down, err = w.NewGroup("down", ranks); err != nil {
		return err
	}
	if p.up, err = w.NewGroup("up", ranks); err != nil {
		return err
	}
	if tied && (p.isFirst() || p.isLast()) {
		p.ends, err = w.NewGroup("ends", []int{0, w.Size - 1})
	}
	return err
}

// place moves this stage's parameters to the device and leaves all others without memory.
func (p *pipeline) place(device torch.Device) (err error) {
	for u, unit := range p.units {
		for _, param := range unit {
			torch.Scoped(func() {
				here := torch.Empty(param.Shape, param.DType(), device)
				switch {
				case err != nil:
				case p.holds(u):
					err = param.Move(here)
				default:
					dist.Resize(here, 0)
					param.SetData(here)
					param.Deferred = nil // other stages read it
				}
			})
		}
	}
	return err
}

func (p *pipeline) isFirst() bool { return p.stage == 0 }
func (p *pipeline) isLast() bool  { return p.stage == p.all.Size-1 }

// holds reports whether this stage holds the parameters of a unit.
func (p *pipeline) holds(u int) bool {
	return p.owner(u) == p.stage || u == 0 && p.isLast() && p.tied()
}

func (p *pipeline) tied() bool { return len(p.units[len(p.units)-1]) == 0 }

// owner is the stage that writes the parameters of a unit.
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

// step runs the one-forward-one-backward schedule.
func (p *pipeline) step(
	n *network.Network, batches []network.MakeBatch, divisor float64, r *network.Results,
) {
	passes := make([]*network.Pass, len(batches)) // in flight
	defer func() {
		for _, f := range passes {
			if f != nil {
				f.Free()
			}
		}
	}()
	first := p.passed // tag of the first micro-batch
	p.passed += len(batches)
	ahead := min(p.all.Size-1-p.stage, len(batches))
	for i := range len(batches) + ahead {
		if i < len(batches) {
			passes[i] = n.Begin(batches[i]())
			p.forward(n, passes[i], first+i, divisor, i == len(batches)-1, r)
		}
		if back := i - ahead; back >= 0 {
			p.backward(n, passes[back], first+back, back == len(batches)-1)
			passes[back].Free()
			passes[back] = nil
		}
		p.finishSends(2 * p.all.Size)
	}
	p.finishSends(0)
}

// forward runs this stage's blocks on a micro-batch and, on the last stage, the head forward and
// backward.
func (p *pipeline) forward(
	n *network.Network, f *network.Pass, tag int, divisor float64, last bool, r *network.Results,
) {
	low, high := p.first[p.stage], p.first[p.stage+1]
	if p.isFirst() {
		f.Embed()
	} else {
		f.Outputs[low] = p.receive(p.down, p.stage-1, tag, f.Batch)
	}
	f.Forward(low, high)
	if p.isLast() {
		f.Score(divisor, last)
		r.Add(f.Numbers)
	} else {
		p.send(p.down, f.Outputs[high], p.stage+1, tag)
		f.Inputs[high] = network.Leaf(f.Outputs[high], n.Lowest < high)
	}
}

// backward runs this stage's blocks backward on a micro-batch.
func (p *pipeline) backward(n *network.Network, f *network.Pass, tag int, last bool) {
	low, high := p.first[p.stage], p.first[p.stage+1]
	if n.Lowest < high && !p.isLast() {
		gradient := p.receive(p.up, p.stage+1, tag, f.Batch)
		f.Inputs[high].SetGrad(gradient)
		gradient.Free()
	}
	f.Backward(high, low, last)
	switch {
	case p.isFirst():
		f.BackwardEmbedding(last)
	case n.Lowest < low:
		torch.Scoped(func() { p.send(p.up, f.Inputs[low].Grad(), p.stage-1, tag) })
	}
}

// infer passes a micro-batch forward. It does not wait for the stages behind this one.
func (p *pipeline) infer(
	n *network.Network,
	mb network.MicroBatch,
	head func(hidden torch.Tensor),
) {
	p.passed++
	torch.NoGrad(func() {
		torch.Scoped(func() {
			f := n.Begin(mb)
			defer f.Free()
			low, high := p.first[p.stage], p.first[p.stage+1]
			if p.isFirst() {
				f.Outputs[0] = network.Owned(false,
					func() torch.Tensor { return n.Model.Embed(mb.Seq.IDs) })
			} else {
				f.Outputs[low] = p.receive(p.down, p.stage-1, p.passed, mb)
			}
			for i := low; i < high; i++ {
				f.Inputs[i] = network.Leaf(f.Outputs[i], false)
				f.Outputs[i+1] = f.Block(i, false)
				f.Inputs[i].Free()
				f.Outputs[i].Free()
			}
			if p.isLast() {
				head(f.Outputs[high])
			} else {
				p.send(p.down, f.Outputs[high], p.stage+1, p.passed)
			}
		})
	})
	p.finishSends(p.all.Size)
}

// send starts to send t. Its memory is kept until it has arrived.
func (p *pipeline) send(group *dist.Group, t torch.Tensor, to, tag int) {
	if t.DType() != p.dtype {
		panic(&torch.Error{
			Op: "pipeline",
			Message: fmt.Sprintf("hidden states are %v, but the stages exchange %v", t.DType(),
				p.dtype),
		})
	}
	torch.Scoped(func() {
		torch.NoGrad(
			func() { p.sent = append(p.sent, group.Send(t.Detach().Contiguous(), to, tag)) })
	})
}

// finishSends waits until at most `most` tensors are in transfer.
func (p *pipeline) finishSends(most int) {
	for len(p.sent) > most {
		p.sent[0].Wait()
		p.sent = p.sent[1:]
	}
}

// receive waits for the hidden states of a micro-batch, or their gradient: [B,L,D].
func (p *pipeline) receive(group *dist.Group, from, tag int, mb network.MicroBatch) torch.Tensor {
	return network.Owned(false, func() torch.Tensor {
		ids := mb.Seq.IDs
		t := torch.Empty([]int{ids.Size(0), ids.Size(1), p.width}, p.dtype, ids.Device())
		group.Receive(t, from, tag).Wait()
		return t
	})
}

func (p *pipeline) Gather(int, int)      {}
func (p *pipeline) Release(int, bool)    {}
func (p *pipeline) Reduce(int, bool)     {}
func (p *pipeline) updated()             {}
func (p *pipeline) replicas() (int, int) { return 1, 0 }
func (p *pipeline) stages() int          { return p.all.Size }
func (p *pipeline) single() bool         { return false }

// finishReduce sums the gradients of parameters that both the first and the last stage hold.
func (p *pipeline) finishReduce() {
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

// shared lists the trained parameters that another stage holds too.
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

// combine counts parameters that two stages hold once. The last stage has the loss.
func (p *pipeline) combine(sums []float64, norm float64) ([]float64, float64) {
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

func (p *pipeline) fragments() (list []fragment) {
	for _, trained := range []bool{true, false} {
		for u, unit := range p.units {
			for _, param := range unit {
				if p.holds(u) && param.RequiresGrad() == trained {
					copied := p.owner(u) != p.stage
					list = append(list,
						fragment{param: param, tensor: param.Tensor, copied: copied})
				}
			}
		}
	}
	return list
}

// gatherAll sends all parameters to the first stage.
func (p *pipeline) gatherAll(bool) {
	p.eachElsewhere(func(u int, param *nn.Param) {
		t := param.Detach()
		if p.isFirst() {
			dist.Resize(t, t.Numel()*t.DType().Size())
			p.up.Receive(t, p.owner(u), 0).Wait()
		} else if p.owner(u) == p.stage {
			p.up.Send(t.Contiguous(), 0, 0).Wait()
		}
	})
}

func (p *pipeline) releaseAll() {
	if p.isFirst() {
		p.eachElsewhere(func(_ int, param *nn.Param) {
			if param.Defined() { // an adapter may have been merged
				dist.Resize(param.Tensor, 0)
			}
		})
	}
}

// eachElsewhere calls visit for the parameters that the first stage does not own.
func (p *pipeline) eachElsewhere(visit func(u int, param *nn.Param)) {
	torch.NoGrad(func() {
		for u, unit := range p.units {
			for _, param := range unit {
				if p.owner(u) > 0 {
					torch.Scoped(func() { visit(u, param) })
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
