package network

import (
	"errors"

	"conquer/torch"
	"conquer/torch/optim"
)

// MaxRecordings is the number of shapes that are recorded. Others are launched operation by
// operation.
const MaxRecordings = 16

// Replayer runs micro-batches forward and backward by replaying recorded graphs.
//
// A recording reads its micro-batch from fixed tensors and adds to gradients at fixed addresses.
// Numbers and gradients are sums, as with a divisor of 1, because a step's number of labels would
// be part of the recording. The optimizer, which is not recorded, divides.
type Replayer struct {
	net       *Network
	gradients []torch.Tensor // flat: those of all trained weights of one dtype
	recorded  map[string]*recording
	full      bool // there was no memory for another recording
	notice    func(string)
}

// recording is the recorded pass of one shape.
type recording struct {
	mb      MicroBatch
	numbers torch.Tensor // result of Network.Gradients
	capture *torch.Capture
	runs    int
}

// NewReplayer returns a replayer for net, and gives params gradients at fixed addresses.
func NewReplayer(net *Network, params []optim.Param, notice func(string)) *Replayer {
	r := &Replayer{net: net, recorded: map[string]*recording{}, notice: notice}
	const spacing = 64 // elements; kernels read 16 bytes at a time
	room := func(p optim.Param) int { return (p.Numel() + spacing - 1) / spacing * spacing }
	torch.NoGrad(func() {
		torch.Scoped(func() {
			length, flat := map[torch.DType]int{}, map[torch.DType]torch.Tensor{}
			for _, p := range params {
				length[p.DType()] += room(p)
			}
			for _, p := range params {
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

// Step runs micro-batches one after the other and adds their numbers to sums.
func (r *Replayer) Step(batches []MakeBatch, sums *Results) {
	for _, batch := range batches {
		torch.Scoped(func() { sums.Add(r.run(batch())) })
	}
}

// Clear sets all gradients to zero.
func (r *Replayer) Clear() {
	torch.NoGrad(func() {
		for _, g := range r.gradients {
			torch.Scoped(func() { g.Zero() })
		}
	})
}

// Free frees the recordings and the gradients. A nil Replayer has none.
func (r *Replayer) Free() {
	if r == nil {
		return
	}
	r.forget()
	for i := range r.gradients {
		r.gradients[i].Free()
	}
	r.gradients = nil
}

// forget frees the recordings.
func (r *Replayer) forget() {
	for _, c := range r.recorded {
		c.capture.Free()
		c.numbers.Free()
		for _, t := range c.mb.tensors() {
			t.Free()
		}
	}
	r.recorded = map[string]*recording{}
}

// Shapes returns the number of shapes with a recording.
func (r *Replayer) Shapes() int { return len(r.recorded) }

// Replays reports whether a pass has been recorded.
func (r *Replayer) Replays() bool {
	if r != nil {
		for _, c := range r.recorded {
			if c.capture.Recorded() {
				return true
			}
		}
	}
	return false
}

// run is [Network.Gradients] with a divisor of 1. The result is valid until the next run.
func (r *Replayer) run(mb MicroBatch) torch.Tensor {
	whole := mb.padded()
	c := r.recorded[whole.shape()]
	switch {
	case c != nil:
		c.load(whole)
	case r.full || len(r.recorded) == MaxRecordings:
		return r.net.Gradients(mb, 1, true)
	default:
		c = r.record(whole)
		r.recorded[whole.shape()] = c
	}
	err := torch.Run(func() error { c.capture.Run(); return nil })
	c.runs++
	switch {
	case err == nil:
		return c.numbers
	case c.runs == 2 && errors.Is(err, torch.ErrOutOfMemory): // while recording: nothing ran
		r.notice("there is not enough memory to record steps: operations are launched one by one")
		r.forget()
		r.full = true
		return r.net.Gradients(mb, 1, true)
	}
	var failed *torch.Error
	errors.As(err, &failed) // Run returns no other type
	if c.runs == 2 {
		failed.Message += " (while recording a step: " +
			"compile none launches its operations one by one)"
	}
	panic(failed)
}

// load copies a micro-batch of the same shape into the recording's tensors.
func (c *recording) load(mb MicroBatch) {
	torch.NoGrad(func() {
		from := mb.tensors()
		for i, t := range c.mb.tensors() {
			if t.Defined() {
				t.Copy(*from[i])
			}
		}
	})
}

// record prepares a recording. The first run launches the operations, the second records them.
func (r *Replayer) record(mb MicroBatch) *recording {
	c := &recording{mb: mb}
	device := mb.Seq.IDs.Device()
	torch.NoGrad(func() {
		torch.Scoped(func() {
			for _, t := range c.mb.tensors() {
				if t.Defined() {
					*t = t.Clone().Own()
				}
			}
			c.numbers = torch.Zeros([]int{r.net.Objective.Numbers()}, torch.Float32, device).Own()
		})
	})
	c.capture = torch.NewCapture(device, func() {
		numbers := r.net.Gradients(c.mb, 1, true)
		torch.NoGrad(func() { c.numbers.Copy(numbers) })
	})
	return c
}
