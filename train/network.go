package train

import (
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
)

// microBatch is a batch as tensors, cut to what its rows use.
type microBatch struct {
	seq model.Sequence
	// Of the B·L positions, those that predict a counted label, and these labels (int64 [N]). The head works on them alone.
	rows, labels torch.Tensor
	targets      int // N
	pairing          // of a batch of pairs
}

// newMicroBatch makes the tensors of b on device. Labels are as Hugging Face has them, at the token they are: the position
// before predicts them. Where processes divide the tokens, their number is a multiple of parts.
func newMicroBatch(b dataset.Batch, device torch.Device, parts int) microBatch {
	used, packed := 0, false
	for i, segment := range b.Segments {
		if segment > 0 {
			used = max(used, i%b.Length+1)
		}
		packed = packed || segment > 1
	}
	used = max(used, 1)
	if device.IsCUDA() { // few lengths: attention plans for each anew, and memory is kept by size
		used = min((used+63)/64*64, b.Length)
	}
	for b.Rows*used%parts != 0 {
		used++
	}
	cut := func(values []int32) torch.Tensor {
		list := make([]int64, b.Rows*used)
		for r := range b.Rows {
			for i, v := range values[r*b.Length : r*b.Length+min(used, b.Length)] {
				list[r*used+i] = int64(v)
			}
		}
		return torch.From(list, b.Rows, used).ToDevice(device)
	}
	var rows, labels []int64
	for r := range b.Rows {
		for i := 1; i < min(used, b.Length); i++ {
			if label := b.Labels[r*b.Length+i]; label != dataset.IgnoreLabel {
				rows, labels = append(rows, int64(r*used+i-1)), append(labels, int64(label))
			}
		}
	}
	mb := microBatch{seq: model.Sequence{IDs: cut(b.IDs)}, targets: len(rows)}
	if len(rows) == 0 { // other processes' rows have labels: this one goes through the pass with them
		rows, labels = []int64{0}, []int64{int64(dataset.IgnoreLabel)}
	}
	mb.rows, mb.labels = torch.From(rows, len(rows)).ToDevice(device), torch.From(labels, len(labels)).ToDevice(device)
	if packed {
		// A row with one sample needs neither: padding comes last, where no token looks.
		mb.seq.Positions, mb.seq.Limit, mb.seq.Segments = cut(b.Positions), used, cut(b.Segments)
	}
	return mb
}

// targets counts the labels of b that bear loss.
func targets(b dataset.Batch) int {
	n := 0
	for i, label := range b.Labels {
		if i%b.Length > 0 && label != dataset.IgnoreLabel {
			n++
		}
	}
	return n
}

// network is a model divided where gradients are cut: the embedding, the blocks, the head.
type network struct {
	model  model.Model
	blocks []model.Block
	// lowest is the first part with weights to train: -1 the embedding, i block i, len(blocks) the head. What lies below
	// runs without gradients.
	lowest    int
	recompute Recompute
	strategy  strategy
	head      int  // the unit of the head's weights
	dropout   bool // whether a forward pass draws random numbers
	// What the loss is besides the labels' negative log-likelihood, see Options.
	smoothing, zLoss float64
	beta             float64 // DPO's; 0 where the objective is another
}

// after is the unit that is used after block i in a forward pass.
func (n *network) after(i int) int {
	if i == len(n.blocks)-1 {
		return n.head
	}
	return i + 2
}

// gradients runs one micro-batch forward and back, adds to the gradient of every trained weight, and returns the numbers of
// network.loss, float32 [K]. last says that no other micro-batch of the step follows.
func (n *network) gradients(mb microBatch, divisor float64, last bool) torch.Tensor {
	f, count := n.begin(mb), len(n.blocks)
	defer f.free() // an operation may panic half way
	f.embed()
	f.forward(0, count)
	f.score(divisor, last)
	f.backward(count, 0, last)
	f.arrive(last)
	return f.numbers.Detach()
}

// flight is a micro-batch on its way through the network, forward and back.
//
// The way is cut between the blocks. The input of each is a leaf that shares its values with the output of the one below;
// once the block's own backward pass is done, the leaf's gradient is what the block below starts from. So one block's graph
// is all that exists during its backward pass when blocks are recomputed, and whatever must happen before a block is used or
// after its gradients are complete has its place here: that is where the strategy comes in. Its units are the embedding (0),
// block i (i+1), and the head.
type flight struct {
	n    *network
	mb   microBatch
	pass *model.Pass
	// outputs[i] is what the embedding (0) or block i-1 gives, inputs[i] the leaf that block i, or the head, takes.
	inputs, outputs []torch.Tensor
	generator       []torch.Tensor   // its state before each block that will run again
	dropped         []*torch.Dropped // of each block, what is computed again
	numbers         torch.Tensor     // of network.loss
}

// begin takes a micro-batch up. What its blocks share belongs to the innermost scope.
func (n *network) begin(mb microBatch) *flight {
	count := len(n.blocks)
	f := &flight{n: n, mb: mb, inputs: make([]torch.Tensor, count+1), outputs: make([]torch.Tensor, count+1), generator: make([]torch.Tensor, count), dropped: make([]*torch.Dropped, count)}
	torch.NoGrad(func() { f.pass = n.model.Begin(mb.seq) })
	return f
}

func (f *flight) free() {
	f.numbers.Free()
	for i := range f.inputs {
		f.inputs[i].Free()
		f.outputs[i].Free()
	}
	for i := range f.generator {
		f.generator[i].Free()
		f.dropped[i].Free()
	}
}

// embed makes outputs[0].
func (f *flight) embed() {
	n := f.n
	n.strategy.use(0, 1)
	f.outputs[0] = owned(n.lowest < 0, func() torch.Tensor { return n.model.Embed(f.mb.seq.IDs) })
	n.strategy.leave(0, n.head == 0)
}

func (f *flight) block(i int, grad bool) (out torch.Tensor) {
	torch.Span(func() {
		out = owned(grad, func() torch.Tensor { return f.n.blocks[i].Forward(f.inputs[i], f.pass, nil) })
	}, "block %d forward", i)
	return out
}

// recomputed reports whether block i runs again in the backward pass.
func (n *network) recomputed(i int) bool { return n.recompute == RecomputeBlock && n.lowest <= i }

// forward goes from outputs[from] to outputs[to].
func (f *flight) forward(from, to int) {
	n := f.n
	for i := from; i < to; i++ {
		n.strategy.use(i+1, n.after(i))
		f.inputs[i] = leaf(f.outputs[i], n.lowest < i)
		if n.recomputed(i) && n.dropout {
			f.generator[i] = owned(false, func() torch.Tensor { return torch.RNGState(f.mb.seq.IDs.Device()) })
		}
		if n.recompute == RecomputeSelective && n.lowest <= i {
			f.outputs[i+1], f.dropped[i] = torch.DropCheap(func() torch.Tensor { return f.block(i, true) })
		} else {
			f.outputs[i+1] = f.block(i, n.lowest <= i)
		}
		if n.recomputed(i) { // drop what was recorded, now that the block has run just as it will when it runs again
			f.outputs[i+1] = detached(f.outputs[i+1])
		}
		if backward := n.lowest <= i; !backward || i < len(n.blocks)-1 { // the last block goes backward at once
			n.strategy.leave(i+1, backward)
		}
	}
}

// score is the head, on the rows that predict something, forward and back.
func (f *flight) score(divisor float64, last bool) {
	n, count := f.n, len(f.n.blocks)
	n.strategy.use(n.head, -1)
	f.inputs[count] = leaf(f.outputs[count], n.lowest < count)
	torch.WithGrad(func() {
		torch.Scoped(func() {
			loss, numbers := n.loss(f.inputs[count], f.mb, divisor)
			f.numbers = numbers.Own()
			loss.Backward()
		})
	})
	n.strategy.leave(n.head, false)
	if n.head > 0 { // else the embedding's gradients are to come
		n.strategy.reduce(n.head, last)
	}
}

// backward goes from the gradient of inputs[from] down to that of inputs[to], as far as there is something to train below.
func (f *flight) backward(from, to int, last bool) {
	n, device := f.n, f.mb.seq.IDs.Device()
	var seed, generator torch.Tensor
	defer func() { seed.Free(); generator.Free() }()
	if n.recompute == RecomputeBlock && n.dropout {
		generator = owned(false, func() torch.Tensor { return torch.RNGState(device) })
	}
	for i := from - 1; i >= max(n.lowest, to); i-- {
		next := i // the unit of the block below
		if i == 0 || i == n.lowest {
			next = -1
		}
		n.strategy.use(i+1, next)
		seed.Free()
		seed = f.inputs[i+1].Grad().Own()
		f.inputs[i+1].Free()
		if n.recompute == RecomputeBlock {
			f.outputs[i+1].Free()
			if f.generator[i].Defined() {
				torch.SetRNGState(device, f.generator[i])
			}
			f.outputs[i+1] = f.block(i, true)
		}
		torch.Span(func() {
			f.dropped[i].Restore()
			torch.Backward([]torch.Tensor{f.outputs[i+1]}, []torch.Tensor{seed})
		}, "block %d backward", i)
		f.outputs[i+1].Free()
		n.strategy.leave(i+1, false)
		n.strategy.reduce(i+1, last)
	}
	if generator.Defined() {
		torch.SetRNGState(device, generator)
	}
}

// arrive ends the way back, at the embedding.
func (f *flight) arrive(last bool) {
	if f.n.lowest < 0 {
		torch.Scoped(func() { torch.Backward([]torch.Tensor{f.outputs[0]}, []torch.Tensor{f.inputs[0].Grad()}) })
	}
	f.n.strategy.reduce(0, last)
}

// infer runs a micro-batch forward without gradients, and calls head with the last hidden states [B,L,D] while the head's
// weights are there: with pp, on the last process alone.
func (n *network) infer(mb microBatch, head func(hidden torch.Tensor)) {
	if p, ok := n.strategy.(*pipeline); ok {
		p.infer(n, mb, head)
		return
	}
	torch.NoGrad(func() {
		torch.Scoped(func() {
			pass := n.model.Begin(mb.seq)
			n.strategy.use(0, 1)
			x := owned(false, func() torch.Tensor { return n.model.Embed(mb.seq.IDs) })
			n.strategy.leave(0, n.head == 0)
			defer func() { x.Free() }()
			for i, block := range n.blocks {
				n.strategy.use(i+1, n.after(i))
				next := owned(false, func() torch.Tensor { return block.Forward(x, pass, nil) })
				x.Free()
				x = next
				n.strategy.leave(i+1, false)
			}
			n.strategy.use(n.head, -1)
			head(x)
			n.strategy.leave(n.head, false)
		})
	})
}

// leaf is x's values as a tensor that a backward pass ends at, with a gradient of its own if grad.
func leaf(x torch.Tensor, grad bool) torch.Tensor {
	return owned(false, func() torch.Tensor { return x.Detach().RequireGrad(grad) })
}

// detached is x without what a backward pass through it would need, in x's place.
func detached(x torch.Tensor) torch.Tensor {
	values := leaf(x, false)
	x.Free()
	return values
}

// owned is f's result, computed with or without recording gradients, that lives until it is freed; all else that f made is
// freed, but for what a backward pass needs.
func owned(grad bool, f func() torch.Tensor) (result torch.Tensor) {
	mode := torch.NoGrad
	if grad {
		mode = torch.WithGrad
	}
	mode(func() { torch.Scoped(func() { result = f().Own() }) })
	return result
}
