package train

import (
	"errors"
	"fmt"

	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/optim"
	"conquer/train/internal/units"
)

// Compile says how the forward and backward passes of a step are launched.
type Compile string

const (
	CompileNone Compile = "none" // every operation by itself
	// CompileGraph records the passes of a micro-batch once for each shape, and replays them. On the CPU they simply run.
	CompileGraph Compile = "graph"
)

// launchBound is up to how many multiplications by the weights of one block, the tokens of a micro-batch times them, steps are
// recorded unasked. An estimate of where launching takes as long as computing on an H100, which takes 0.3 ms for a block then,
// forward and back: 6 operations a multiplication at 6e14 a second. Passes somewhat larger still gain by a recording.
const launchBound = 3e10

// mostRecordings is how many shapes are recorded. More are launched operation by operation.
const mostRecordings = 16

// checkCompile reports passes that cannot be recorded.
func (o Options) checkCompile() error {
	switch {
	case o.Compile != "" && o.Compile != CompileNone && o.Compile != CompileGraph:
		return fmt.Errorf("unknown way to compile %q: use %s or %s", o.Compile, CompileNone, CompileGraph)
	case o.Compile != CompileGraph:
	case o.processes() > 1 || o.Distributed != None:
		return fmt.Errorf("steps are recorded in a process by itself: with %d, or --distributed %s, use compile %s", o.processes(), o.Distributed, CompileNone)
	case o.drawsTwice():
		return fmt.Errorf("passes that draw the same random numbers twice cannot be recorded: with LoRA's dropout and compile %s, recompute %s or nothing", CompileGraph, RecomputeSelective)
	}
	return nil
}

// drawsTwice reports whether blocks that run again must drop what they dropped before.
func (o Options) drawsTwice() bool {
	return o.Recompute == RecomputeBlock && o.LoRA != nil && o.LoRA.Dropout > 0
}

// replayer runs micro-batches forward and back, those of a shape that it has seen by a recording.
//
// What differs from one to the next lies in tensors: the recording of a shape reads its micro-batch where the first one lay,
// and all add to gradients that stay where they are. Numbers and gradients are sums, as with a divisor of 1, for the number of
// labels of a step would be in the recording; the optimizer, which is not in it, divides.
type replayer struct {
	net       *network
	gradients []torch.Tensor // flat: those of all trained weights of a dtype
	numbers   int            // that network.gradients gives
	recorded  map[string]*recording
	full      bool // there was no memory for another
	notice    func(string)
}

// recording is a micro-batch of a shape.
type recording struct {
	mb      microBatch
	numbers torch.Tensor // what network.gradients gave
	capture *torch.Capture
	runs    int
}

// newReplayer gives a run that is to be recorded its replayer, and the trained weights gradients that stay where they are.
// Unless it is asked for, that is a run on a GPU whose largest micro-batch does not keep it busy: others gain little time, and
// would hold all gradients during the forward pass.
func newReplayer(t *Trainer) *replayer {
	o := t.options
	switch {
	case o.Compile == CompileGraph:
	case o.Compile == CompileNone || !t.device.IsCUDA() || o.processes() > 1 || o.Distributed != None || o.drawsTwice():
		return nil
	default:
		largest, tokens := 0.0, o.BatchSize*o.SequenceLength
		if o.Objective == DPO {
			tokens *= 2
		}
		for _, block := range units.Of(t.net.model)[1 : len(t.net.blocks)+1] {
			n := 0.0
			for _, p := range block {
				n += float64(units.Elements(p.Local()))
			}
			largest = max(largest, n)
		}
		if largest*float64(tokens) > launchBound {
			return nil
		}
	}
	r := &replayer{net: &t.net, numbers: 1 + len(o.measured()), recorded: map[string]*recording{}, notice: t.notice}
	const spacing = 64 // elements between which gradients begin: kernels read 16 bytes at a time
	room := func(p optim.Param) int { return (p.Numel() + spacing - 1) / spacing * spacing }
	torch.NoGrad(func() {
		torch.Scoped(func() {
			length, flat := map[torch.DType]int{}, map[torch.DType]torch.Tensor{}
			for _, p := range t.params {
				length[p.DType()] += room(p)
			}
			for _, p := range t.params {
				dtype := p.DType()
				if !flat[dtype].Defined() {
					flat[dtype] = torch.Zeros([]int{length[dtype]}, dtype, p.Device()).Own()
					r.gradients = append(r.gradients, flat[dtype])
				}
				length[dtype] -= room(p)
				p.SetGrad(flat[dtype].Narrow(0, length[dtype], p.Numel()).View(p.Shape()...))
			}
		})
	})
	return r
}

// clear makes all gradients zero.
func (r *replayer) clear() {
	torch.NoGrad(func() {
		for _, g := range r.gradients {
			torch.Scoped(func() { g.Zero() })
		}
	})
}

func (r *replayer) free() {
	if r == nil {
		return
	}
	r.forget()
	for i := range r.gradients {
		r.gradients[i].Free()
	}
	r.gradients = nil
}

func (r *replayer) forget() {
	for _, c := range r.recorded {
		c.capture.Free()
		c.numbers.Free()
		for _, t := range c.mb.tensors() {
			t.Free()
		}
	}
	r.recorded = map[string]*recording{}
}

// replays reports whether a pass is in a recording by now.
func (r *replayer) replays() bool {
	if r != nil {
		for _, c := range r.recorded {
			if c.capture.Recorded() {
				return true
			}
		}
	}
	return false
}

// run is network.gradients with a divisor of 1. Its result stays until the next run.
func (r *replayer) run(mb microBatch) torch.Tensor {
	whole := mb.padded()
	c := r.recorded[whole.shape()]
	switch {
	case c != nil:
		torch.NoGrad(func() {
			from := whole.tensors()
			for i, t := range c.mb.tensors() {
				if t.Defined() {
					t.Copy(*from[i])
				}
			}
		})
	case r.full || len(r.recorded) == mostRecordings:
		return r.net.gradients(mb, 1, true)
	default:
		c = r.begin(whole)
		r.recorded[whole.shape()] = c
	}
	err := torch.Run(func() error { c.capture.Run(); return nil })
	c.runs++
	switch {
	case err == nil:
		return c.numbers
	case c.runs == 2 && errors.Is(err, torch.ErrOutOfMemory): // nothing of it ran
		r.notice("there is no memory to record steps: operations are launched one by one")
		r.forget()
		r.full = true
		return r.net.gradients(mb, 1, true)
	}
	var failed *torch.Error
	errors.As(err, &failed) // Run gives no other
	if c.runs == 2 {
		failed.Message += fmt.Sprintf(" (while a step was recorded: compile %s launches its operations one by one)", CompileNone)
	}
	panic(failed)
}

func (r *replayer) begin(mb microBatch) *recording {
	c := &recording{mb: mb}
	torch.NoGrad(func() {
		torch.Scoped(func() {
			for _, t := range c.mb.tensors() {
				if t.Defined() {
					*t = t.Clone().Own()
				}
			}
			c.numbers = torch.Zeros([]int{r.numbers}, torch.Float32, mb.seq.IDs.Device()).Own()
		})
	})
	c.capture = torch.NewCapture(mb.seq.IDs.Device(), func() {
		numbers := r.net.gradients(c.mb, 1, true)
		torch.NoGrad(func() { c.numbers.Copy(numbers) })
	})
	return c
}

// tensors are all that a micro-batch consists of; some may be no tensor.
func (mb *microBatch) tensors() []*torch.Tensor {
	return []*torch.Tensor{&mb.seq.IDs, &mb.seq.Positions, &mb.seq.Segments, &mb.rows, &mb.labels, &mb.owner, &mb.reference}
}

// shape is the same for micro-batches whose passes launch the same work.
func (mb microBatch) shape() string {
	list := []any{mb.pairs, mb.seq.Limit}
	for _, t := range mb.tensors() {
		if t.Defined() {
			list = append(list, t.Shape())
		} else {
			list = append(list, nil)
		}
	}
	return fmt.Sprint(list...)
}

// padded is mb with positions that predict nothing, so that as many go to the head as half of the tokens are, or as all: a
// number of labels for each micro-batch would be a shape for each.
func (mb microBatch) padded() microBatch {
	unit := max(1, mb.seq.IDs.Numel()/2)
	n := (unit - mb.labels.Numel()%unit) % unit
	if n == 0 {
		return mb
	}
	device := mb.seq.IDs.Device()
	torch.NoGrad(func() {
		mb.rows = torch.Cat(0, mb.rows, torch.Arange(0, n, torch.Int64, device)) // of different positions: their gradients are added
		mb.labels = torch.Cat(0, mb.labels, torch.Full([]int{n}, float64(dataset.IgnoreLabel), torch.Int64, device))
		if mb.owner.Defined() {
			mb.owner = torch.Cat(0, mb.owner, torch.Zeros([]int{n}, torch.Int64, device))
		}
	})
	return mb
}
