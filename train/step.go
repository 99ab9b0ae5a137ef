package train

import (
	"conquer/model"
	"conquer/text"
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
func newMicroBatch(b text.Batch, device torch.Device, parts int) microBatch {
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
			if label := b.Labels[r*b.Length+i]; label != text.IgnoreLabel {
				rows, labels = append(rows, int64(r*used+i-1)), append(labels, int64(label))
			}
		}
	}
	mb := microBatch{seq: model.Sequence{IDs: cut(b.IDs)}, targets: len(rows)}
	if len(rows) == 0 { // other processes' rows have labels: this one goes through the pass with them
		rows, labels = []int64{0}, []int64{int64(text.IgnoreLabel)}
	}
	mb.rows, mb.labels = torch.From(rows, len(rows)).ToDevice(device), torch.From(labels, len(labels)).ToDevice(device)
	if packed {
		// A row with one sample needs neither: padding comes last, where no token looks.
		mb.seq.Positions, mb.seq.Limit, mb.seq.Segments = cut(b.Positions), used, cut(b.Segments)
	}
	return mb
}

// targets counts the labels of b that bear loss.
func targets(b text.Batch) int {
	n := 0
	for i, label := range b.Labels {
		if i%b.Length > 0 && label != text.IgnoreLabel {
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
// network.loss. last says that no other micro-batch of the step follows.
//
// The pass is cut between the blocks. The input of each is a leaf that shares its values with the output of the one below;
// once the block's own backward pass is done, the leaf's gradient is what the block below starts from. So one block's graph
// is all that exists during its backward pass when blocks are recomputed, and whatever must happen before a block is used or
// after its gradients are complete has its place in this function: that is where the strategy comes in. Its units are the
// embedding (0), block i (i+1), and the head.
func (n *network) gradients(mb microBatch, divisor float64, last bool) []float64 {
	count, device := len(n.blocks), mb.seq.IDs.Device()
	s, head := n.strategy, n.head
	inputs, outputs := make([]torch.Tensor, count+1), make([]torch.Tensor, count+1)
	generator := make([]torch.Tensor, count+1)
	var seed torch.Tensor
	var told *torch.Fetch[float32]
	defer func() { // an operation may panic half way
		told.Drop()
		seed.Free()
		for i := range inputs {
			inputs[i].Free()
			outputs[i].Free()
			generator[i].Free()
		}
	}()
	var pass *model.Pass
	torch.NoGrad(func() { pass = n.model.Begin(mb.seq) })
	forward := func(i int, grad bool) (out torch.Tensor) {
		torch.Span(func() {
			out = owned(grad, func() torch.Tensor { return n.blocks[i].Forward(inputs[i], pass, nil) })
		}, "block %d forward", i)
		return out
	}

	// Forward. outputs[i] is what the embedding (0) or block i-1 gives, inputs[i] the leaf that block i, or the head, takes.
	s.use(0, 1)
	outputs[0] = owned(n.lowest < 0, func() torch.Tensor { return n.model.Embed(mb.seq.IDs) })
	s.leave(0, head == 0)
	for i := range n.blocks {
		s.use(i+1, n.after(i))
		inputs[i] = leaf(outputs[i], n.lowest < i)
		again := n.recompute == RecomputeBlock && n.lowest <= i
		if again && n.dropout {
			generator[i] = owned(false, func() torch.Tensor { return torch.RNGState(device) })
		}
		outputs[i+1] = forward(i, n.lowest <= i)
		if again { // drop what was recorded, now that the block has run just as it will when it runs again
			outputs[i+1] = detached(outputs[i+1])
		}
		if backward := n.lowest <= i; !backward || i < count-1 { // the last block goes backward at once
			s.leave(i+1, backward)
		}
	}

	// The head, on the rows that predict something.
	s.use(head, -1)
	inputs[count] = leaf(outputs[count], n.lowest < count)
	torch.WithGrad(func() {
		torch.Scoped(func() {
			loss, numbers := n.loss(inputs[count], mb, divisor)
			told = torch.StartFetch[float32](numbers)
			loss.Backward()
		})
	})
	s.leave(head, false)
	if head > 0 { // else the embedding's gradients are to come
		s.reduce(head, last)
	}

	// Backward.
	if n.recompute == RecomputeBlock && n.dropout {
		generator[count] = owned(false, func() torch.Tensor { return torch.RNGState(device) })
	}
	for i := count - 1; i >= n.lowest && i >= 0; i-- {
		next := i // the unit of the block below
		if i == 0 || i == n.lowest {
			next = -1
		}
		s.use(i+1, next)
		seed.Free()
		seed = inputs[i+1].Grad().Own()
		inputs[i+1].Free()
		if n.recompute == RecomputeBlock {
			outputs[i+1].Free()
			if generator[i].Defined() {
				torch.SetRNGState(device, generator[i])
			}
			outputs[i+1] = forward(i, true)
		}
		torch.Span(func() { torch.Backward([]torch.Tensor{outputs[i+1]}, []torch.Tensor{seed}) }, "block %d backward", i)
		outputs[i+1].Free()
		s.leave(i+1, false)
		s.reduce(i+1, last)
	}
	if n.lowest < 0 {
		torch.Backward([]torch.Tensor{outputs[0]}, []torch.Tensor{inputs[0].Grad()})
	}
	s.reduce(0, last)
	if generator[count].Defined() {
		torch.SetRNGState(device, generator[count])
	}
	var list []float64
	for _, v := range told.Values() { // waited for now that everything else is on its way
		list = append(list, float64(v))
	}
	return list
}

// infer runs a micro-batch forward without gradients, and calls head with the last hidden states [B,L,D] while the head's
// weights are there.
func (n *network) infer(mb microBatch, head func(hidden torch.Tensor)) {
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
