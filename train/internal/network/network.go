// Package network runs a model block by block, forward and backward: the micro-batches, the
// objectives, the passes, and the replay of recorded passes.
package network

import (
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/internal/units"
)

// Recompute says which results of a forward pass are kept for the backward pass.
type Recompute string

const (
	RecomputeNone  Recompute = "none"  // every result
	RecomputeBlock Recompute = "block" // each block's input; the block runs again
	// RecomputeSelective keeps the results of linear layers, attention and scans. Norms, SwiGLU and
	// convolutions run again. It saves a third of the memory and costs a few percent of the time.
	RecomputeSelective Recompute = "selective"
)

// Strategy provides parameters before they are used, and takes gradients when they are complete.
// The network calls it unit by unit (see package units), in the same order on every process.
type Strategy interface {
	// Gather makes the parameters of unit u complete and starts to gather unit next, -1 for none.
	Gather(u, next int)
	// Release frees the gathered parameters of unit u. again says that the backward half of the
	// same pass needs them again.
	Release(u int, again bool)
	// Reduce starts to sum the gradients of unit u over the processes. last says that no other
	// micro-batch of the step follows.
	Reduce(u int, last bool)
}

// Network is a model cut into the embedding, the blocks and the head. Autograd does not cross the
// cuts.
type Network struct {
	Model  model.Model
	Blocks []model.Block
	// Lowest is the first part with trained weights: -1 for the embedding, i for block i,
	// len(Blocks) for the head. Earlier parts run without gradients.
	Lowest    int
	Recompute Recompute
	Strategy  Strategy
	Objective Objective
	Dropout   bool        // a forward pass draws random numbers
	head      int         // unit of the head's weights
	balance   *nn.Balance // nil without a balancing loss
	partial   []partial
}

// partial is a parameter some of whose rows are trained.
type partial struct {
	param *nn.Param
	rows  []int64
}

// TrainRows restricts the training of p to some of its rows: the gradients of the others are zero.
func (n *Network) TrainRows(p *nn.Param, rows []int) {
	list := make([]int64, len(rows))
	for i, row := range rows {
		list[i] = int64(row)
	}
	n.partial = append(n.partial, partial{p, list})
}

// dropRows makes the gradients of rows that are not trained zero.
func (n *Network) dropRows() {
	torch.NoGrad(func() {
		for _, p := range n.partial {
			torch.Scoped(func() {
				g := p.param.Grad()
				if !g.Defined() {
					return
				}
				rows := torch.From(p.rows, len(p.rows)).ToDevice(g.Device())
				p.param.SetGrad(g.ZerosLike().IndexAdd(0, rows, g.IndexSelect(0, rows)))
			})
		}
	})
}

// New cuts m. All parameters are trained, until Lowest is changed.
func New(m model.Model, o Objective, r Recompute, s Strategy) *Network {
	n := &Network{
		Model:     m,
		Blocks:    m.Blocks(),
		Lowest:    -1,
		Recompute: r,
		Strategy:  s,
		Objective: o,
		head:      units.Head(m),
	}
	if o.RouterLoss > 0 {
		n.balance = balances(m)
	}
	return n
}

// Results collects the numbers of a step's micro-batches while they move from the device to the
// host.
type Results struct{ fetches []*torch.Fetch[float32] }

// Add starts to fetch the numbers of a micro-batch.
func (r *Results) Add(numbers torch.Tensor) {
	r.fetches = append(r.fetches, torch.StartFetch[float32](numbers))
}

// Sum adds the numbers of all micro-batches, times scale, to sums.
func (r *Results) Sum(sums []float64, scale float64) {
	for _, f := range r.fetches {
		for i, v := range f.Values() {
			sums[i] += float64(v) * scale
		}
	}
}

// Drop frees the numbers that were not read.
func (r *Results) Drop() {
	for _, f := range r.fetches {
		f.Drop()
	}
}

// Step runs the micro-batches of a step one after the other and adds their numbers to r.
func (n *Network) Step(batches []MakeBatch, divisor float64, r *Results) {
	for i, batch := range batches {
		torch.Scoped(func() { r.Add(n.Gradients(batch(), divisor, i == len(batches)-1)) })
	}
}

// Gradients runs a micro-batch forward and backward, adds to the gradients of the trained weights,
// and returns the numbers of [Objective.loss], float32 [K]. last says that no other micro-batch of
// the step follows.
func (n *Network) Gradients(mb MicroBatch, divisor float64, last bool) torch.Tensor {
	f, count := n.Begin(mb), len(n.Blocks)
	defer f.Free() // also if an operation panics
	f.Embed()
	f.Forward(0, count)
	f.Score(divisor, last)
	f.Backward(count, 0, last)
	f.BackwardEmbedding(last)
	return f.Numbers.Detach()
}

// next is the unit that is used after block i in a forward pass.
func (n *Network) next(i int) int {
	if i == len(n.Blocks)-1 {
		return n.head
	}
	return i + 2
}

// recomputed reports whether block i runs again in the backward pass.
func (n *Network) recomputed(i int) bool { return n.Recompute == RecomputeBlock && n.Lowest <= i }

// rows returns the normed hidden states, of [B,L,D], that predict a micro-batch's labels: [N,D].
func (n *Network) rows(hidden torch.Tensor, mb MicroBatch) torch.Tensor {
	return n.Model.Norm(n.Model.Head().Pick(hidden, mb.Rows).Unsqueeze(0)).Squeeze(0)
}

// Pass is a micro-batch in flight through the network, forward and backward.
//
// The input of each block is a leaf that shares its values with the output of the block below. When
// the block has run backward, the leaf's gradient is what the block below starts from. So with
// recomputation only one block's graph exists at a time, and the strategy can act before a block is
// used and after its gradients are complete. Its units are the embedding (0), block i (i+1) and the
// head.
type Pass struct {
	n      *Network
	Batch  MicroBatch
	shared *model.Pass
	// Outputs[0] is the result of the embedding, Outputs[i] that of block i-1. Inputs[i] is the
	// leaf that block i, or the head, takes.
	Inputs, Outputs []torch.Tensor
	generators      []torch.Tensor   // of random numbers, before blocks that run again
	dropped         []*torch.Dropped // per block, what selective recomputation restores
	Numbers         torch.Tensor     // of objective.loss
	// With a balancing loss: the shares of each block's mixtures, and the gradient of their sums of
	// probabilities.
	shares [][]nn.Share
	slope  torch.Tensor
}

// Begin starts a pass. What its blocks share belongs to the innermost scope.
func (n *Network) Begin(mb MicroBatch) *Pass {
	count := len(n.Blocks)
	f := &Pass{
		n:          n,
		Batch:      mb,
		Inputs:     make([]torch.Tensor, count+1),
		Outputs:    make([]torch.Tensor, count+1),
		generators: make([]torch.Tensor, count),
		dropped:    make([]*torch.Dropped, count),
		shares:     make([][]nn.Share, count),
	}
	torch.NoGrad(func() { f.shared = n.Model.Begin(mb.Seq) })
	return f
}

// Free frees what the pass still holds.
func (f *Pass) Free() {
	f.Numbers.Free()
	f.slope.Free()
	for i := range f.shares {
		f.dropShares(i)
	}
	for i := range f.Inputs {
		f.Inputs[i].Free()
		f.Outputs[i].Free()
	}
	for i := range f.generators {
		f.generators[i].Free()
		f.dropped[i].Free()
	}
}

// Embed computes Outputs[0].
func (f *Pass) Embed() {
	n := f.n
	n.Strategy.Gather(0, 1)
	f.Outputs[0] = Owned(n.Lowest < 0,
		func() torch.Tensor { return n.Model.Embed(f.Batch.Seq.IDs) })
	n.Strategy.Release(0, n.head == 0)
}

// Block runs block i on Inputs[i], with gradients if grad is set.
func (f *Pass) Block(i int, grad bool) (out torch.Tensor) {
	torch.Span(func() {
		f.record(i, func() {
			out = Owned(grad,
				func() torch.Tensor {
					return f.n.Blocks[i].Forward(f.Inputs[i], f.shared, f.Batch.Carry.layer(i))
				})
		})
	}, "block %d forward", i)
	return out
}

// Forward computes Outputs[to] from Outputs[from].
func (f *Pass) Forward(from, to int) {
	n := f.n
	for i := from; i < to; i++ {
		n.Strategy.Gather(i+1, n.next(i))
		f.Inputs[i] = Leaf(f.Outputs[i], n.Lowest < i)
		if n.recomputed(i) && n.Dropout {
			f.generators[i] = Owned(false,
				func() torch.Tensor { return torch.RNGState(f.Batch.Seq.IDs.Device()) })
		}
		if n.Recompute == RecomputeSelective && n.Lowest <= i {
			f.Outputs[i+1], f.dropped[i] = torch.DropCheap(
				func() torch.Tensor { return f.Block(i, true) })
		} else {
			f.Outputs[i+1] = f.Block(i, n.Lowest <= i)
		}
		if n.recomputed(
			i) { // drop the graph; the block ran with gradients so that it runs the same way again
			f.Outputs[i+1] = detached(f.Outputs[i+1])
			for j := range f.shares[i] {
				f.shares[i][j].Probabilities = detached(f.shares[i][j].Probabilities)
			}
		}
		if backward := n.Lowest <= i; !backward ||
			i < len(n.Blocks)-1 { // the last block runs backward at once
			n.Strategy.Release(i+1, backward)
		}
	}
}

// Score runs the head forward and backward on the rows that predict a label.
func (f *Pass) Score(divisor float64, last bool) {
	n, count := f.n, len(f.n.Blocks)
	n.Strategy.Gather(n.head, -1)
	f.Inputs[count] = Leaf(f.Outputs[count], n.Lowest < count)
	torch.WithGrad(func() {
		torch.Scoped(func() {
			rows := n.rows(f.Inputs[count], f.Batch)
			loss, numbers := n.Objective.loss(n.Model.Head(), rows, f.Batch, divisor)
			f.Numbers = numbers.Own()
			loss.Backward()
		})
	})
	if n.balance != nil {
		f.balanceLoss(divisor)
	}
	n.dropRows()
	n.Strategy.Release(n.head, false)
	if n.head > 0 { // otherwise the embedding adds to these gradients
		n.Strategy.Reduce(n.head, last)
	}
}

// Backward runs the blocks from-1 down to `to` backward, as far as something below them is trained.
// It starts from the gradient of Inputs[from] and ends with that of Inputs[to].
func (f *Pass) Backward(from, to int, last bool) {
	n, device := f.n, f.Batch.Seq.IDs.Device()
	var gradient, generator torch.Tensor
	defer func() { gradient.Free(); generator.Free() }()
	if n.Recompute == RecomputeBlock && n.Dropout {
		generator = Owned(false, func() torch.Tensor { return torch.RNGState(device) })
	}
	for i := from - 1; i >= max(n.Lowest, to); i-- {
		next := i // the unit of the block below
		if i == 0 || i == n.Lowest {
			next = -1
		}
		n.Strategy.Gather(i+1, next)
		gradient.Free()
		gradient = f.Inputs[i+1].Grad().Own()
		f.Inputs[i+1].Free()
		if n.Recompute == RecomputeBlock {
			f.Outputs[i+1].Free()
			if f.generators[i].Defined() {
				torch.SetRNGState(device, f.generators[i])
			}
			f.Outputs[i+1] = f.Block(i, true)
		}
		torch.Span(func() {
			f.dropped[i].Restore()
			outputs, gradients := []torch.Tensor{f.Outputs[i+1]}, []torch.Tensor{gradient}
			for _, s := range f.shares[i] {
				if s.Probabilities.RequiresGrad() {
					outputs = append(outputs, s.Probabilities)
					gradients = append(gradients, f.slope)
				}
			}
			torch.Backward(outputs, gradients)
			f.dropShares(i)
		}, "block %d backward", i)
		f.Outputs[i+1].Free()
		n.Strategy.Release(i+1, false)
		n.Strategy.Reduce(i+1, last)
	}
	if generator.Defined() {
		torch.SetRNGState(device, generator)
	}
}

// BackwardEmbedding ends the backward pass at the embedding.
func (f *Pass) BackwardEmbedding(last bool) {
	if f.n.Lowest < 0 {
		torch.Scoped(func() {
			torch.Backward([]torch.Tensor{f.Outputs[0]}, []torch.Tensor{f.Inputs[0].Grad()})
		})
	}
	f.n.dropRows()
	f.n.Strategy.Reduce(0, last)
}

// Infer runs a micro-batch forward without gradients and calls head with the last hidden states
// [B,L,D], while the head's weights are gathered.
func (n *Network) Infer(mb MicroBatch, head func(hidden torch.Tensor)) {
	torch.NoGrad(func() {
		torch.Scoped(func() {
			shared := n.Model.Begin(mb.Seq)
			n.Strategy.Gather(0, 1)
			x := Owned(false, func() torch.Tensor { return n.Model.Embed(mb.Seq.IDs) })
			n.Strategy.Release(0, n.head == 0)
			defer func() { x.Free() }()
			for i, block := range n.Blocks {
				n.Strategy.Gather(i+1, n.next(i))
				next := Owned(false, func() torch.Tensor {
					return block.Forward(x, shared, mb.Carry.layer(i))
				})
				x.Free()
				x = next
				n.Strategy.Release(i+1, false)
			}
			n.Strategy.Gather(n.head, -1)
			head(x)
			n.Strategy.Release(n.head, false)
		})
	})
}

// Evaluate returns the sums of a micro-batch's numbers for its last hidden states, [B,L,D]: the
// plain negative log-likelihood of its labels, or those of a comparison.
func (n *Network) Evaluate(hidden torch.Tensor, mb MicroBatch) []float64 {
	return n.Objective.evaluate(n.Model.Head(), n.rows(hidden, mb), mb)
}

// Likelihoods returns the log-probabilities of a micro-batch's texts, for its last hidden states,
// [B,L,D]: those of the first text of each sample, then those of the second.
func (n *Network) Likelihoods(hidden torch.Tensor, mb MicroBatch) []float64 {
	_, nll := n.Model.Head().Loss(n.rows(hidden, mb), mb.Labels, torch.Loss{})
	return torch.Values[float64](mb.Likelihoods(nll))[:mb.Samples*n.Objective.Texts]
}

// Leaf returns x's values as a leaf of autograd, with a gradient of its own if grad is set.
func Leaf(x torch.Tensor, grad bool) torch.Tensor {
	return Owned(false, func() torch.Tensor { return x.Detach().RequireGrad(grad) })
}

// detached replaces x by its values without a graph.
func detached(x torch.Tensor) torch.Tensor {
	values := Leaf(x, false)
	x.Free()
	return values
}

// Owned returns f's result, recorded by autograd if grad is set. The caller frees it. Everything
// else that f creates is freed, except what a backward pass needs.
func Owned(grad bool, f func() torch.Tensor) (result torch.Tensor) {
	mode := torch.NoGrad
	if grad {
		mode = torch.WithGrad
	}
	mode(func() { torch.Scoped(func() { result = f().Own() }) })
	return result
}
