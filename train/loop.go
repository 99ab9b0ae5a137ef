package train

import (
	"context"
	"fmt"
	"time"

	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/optim"
)

// mostSkipped is how many steps in a row may have gradients that are no finite numbers.
const mostSkipped = 10

// Run takes the steps that are left. When ctx is cancelled it finishes the step that it is in, writes a checkpoint and
// returns ctx's error.
func (t *Trainer) Run(ctx context.Context) error {
	return torch.Run(func() error {
		if o := t.options; t.device.IsCUDA() && (o.LabelSmoothing != 0 || o.ZLoss != 0) {
			t.notice("label smoothing and z-loss are not in this device's kernels: the loss is computed by libtorch, a chunk of rows at a time")
		}
		if p, ok := t.net.strategy.(*pipeline); ok && t.options.Accumulate < p.all.Size {
			t.notice(fmt.Sprintf("%d micro-batches a step keep %d processes of a pipeline waiting for each other: --accumulate %d, with a smaller --batch_size, is faster",
				t.options.Accumulate, p.all.Size, 4*p.all.Size))
		}
		for {
			stopped, err := t.stopped(ctx)
			if err != nil {
				return err
			}
			// A look that a stop cut short is taken by the run that resumes, so it comes before anything else.
			if t.valid != nil && t.validated < t.step && t.looksAt(t.step) && !stopped {
				err := t.look(ctx)
				switch {
				case ctx.Err() != nil && t.options.processes() == 1:
					stopped = true
				case err != nil:
					return err
				}
			}
			if stopped {
				return t.stop(ctx)
			}
			if t.savesAt(t.step) {
				if err := t.Save(); err != nil {
					return err
				}
			}
			if t.step >= t.options.Steps {
				return t.settle()
			}
			if err := t.next(); err != nil {
				return err
			}
		}
	})
}

// ended is why a run was stopped, where another process may have been the one to hear of it.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return context.Canceled
}

// looksAt reports whether the validation set is looked at after a step.
func (t *Trainer) looksAt(step int) bool {
	return step%t.options.ValidateSteps == 0 || step == t.options.Steps
}

// savesAt reports whether a checkpoint is written after a step. After the last there is the result itself.
func (t *Trainer) savesAt(step int) bool {
	o := t.options
	return o.CheckpointPath != "" && o.CheckpointSteps > 0 && step%o.CheckpointSteps == 0 && step > 0 && step < o.Steps
}

// stopped reports whether the run is to end here. The processes of a run agree on it: they hear of a signal at different steps.
func (t *Trainer) stopped(ctx context.Context) (bool, error) {
	stop := ctx.Err() != nil
	if t.options.processes() == 1 {
		return stop, nil
	}
	votes := 0.0
	if stop {
		votes = 1
	}
	t.at("between steps %d and %d", t.step, t.step+1)
	return t.options.World.All.Sums(votes)[0] > 0, nil
}

// at says where the run is, for the errors of other processes.
func (t *Trainer) at(format string, args ...any) {
	if t.options.World != nil {
		t.options.World.At(format, args...)
	}
}

func (t *Trainer) stop(ctx context.Context) error {
	if t.options.CheckpointPath == "" {
		t.notice(fmt.Sprintf("stopped after step %d of %d", t.step, t.options.Steps))
		return ended(ctx)
	}
	if err := t.Save(); err != nil {
		return err
	}
	if err := t.settle(); err != nil {
		return err
	}
	t.notice(fmt.Sprintf("stopped after step %d of %d; the same command with --resume goes on from there", t.step, t.options.Steps))
	return ended(ctx)
}

// next takes one step: Accumulate forward and backward passes, then the optimizer's.
func (t *Trainer) next() (err error) {
	begin := time.Now()
	step := Step{Step: t.step + 1, Rate: t.schedule.Rate(t.step)}
	// The divisor is the number of labels (or pairs) of all passes, so that accumulation gives what one large batch would.
	list, labels := make([]dataset.Batch, t.options.Accumulate), make([]float64, t.options.Accumulate)
	for i := range list {
		if list[i], err = t.batches.Next(); err != nil {
			return err
		}
		labels[i] = float64(t.options.count(list[i]))
		step.Tokens += list[i].Tokens
	}
	step.Epoch = t.batches.Progress()
	t.at("step %d", step.Step)
	numbers := make([]float64, 1+len(t.options.measured()))
	torch.Scoped(func() {
		var told []*torch.Fetch[float32] // the passes' numbers, on their way
		defer func() {
			for _, f := range told {
				f.Drop()
			}
		}()
		if world := t.options.World; world != nil {
			sums := world.All.Sums(append(labels, float64(step.Tokens))...)
			for i := range sums { // once for all processes that take the same rows
				sums[i] /= float64(t.options.sameRows())
			}
			labels, step.Tokens = sums[:len(list)], int(sums[len(list)])
		}
		divisor, last := 0.0, -1
		for i, n := range labels {
			if divisor += n; n > 0 {
				last = i
			}
		}
		scale := 1.0
		if t.replayer != nil {
			divisor, scale = 1, 1/max(1, divisor)
		}
		stage, pipelined := t.net.strategy.(*pipeline)
		var together []microBatch
		for i, b := range list {
			switch {
			case labels[i] == 0:
			case pipelined:
				together = append(together, t.microBatch(b, t.reference[t.data]))
			default:
				torch.Scoped(func() {
					mb, gradients := t.microBatch(b, t.reference[t.data]), t.replayer.run
					if t.replayer == nil {
						gradients = func(mb microBatch) torch.Tensor { return t.net.gradients(mb, divisor, i == last) }
					}
					told = append(told, torch.StartFetch[float32](gradients(mb)))
				})
			}
		}
		if pipelined {
			copy(numbers, stage.step(&t.net, together, divisor))
		}
		t.net.strategy.finish()
		ready, gradients := t.optimizer.Prepare(), t.optimizer.Gradients() // before anything is waited for
		for _, f := range told {
			for i, v := range f.Values() {
				numbers[i] += float64(v) * scale
			}
		}
		numbers, step.Norm = t.net.strategy.agree(numbers, scale*optim.Norm(gradients))
		step.Loss, step.Measures = numbers[0], t.options.named(numbers)
		if step.Skipped = !optim.Finite(step.Norm) || !optim.Finite(step.Loss); !step.Skipped && last >= 0 {
			ready.Apply(step.Rate, scale*optim.Factor(step.Norm, t.options.Clip))
		}
	})
	if !step.Skipped {
		t.skipped = 0
	} else if t.skipped++; t.skipped >= mostSkipped {
		return fmt.Errorf("step %d: loss %v and gradient norm %v, no finite numbers for %d steps in a row: lower the learning rate, or use bfloat16 rather than float16",
			step.Step, step.Loss, step.Norm, t.skipped)
	}
	if t.replayer != nil {
		t.replayer.clear()
	} else {
		t.optimizer.ClearGradients()
	}
	t.net.strategy.updated()
	t.step++
	// The weights' step is not waited for: the host prepares the next pass meanwhile, and waits for that one's norm.
	step.Seconds = time.Since(begin).Seconds()
	step.Memory, _ = memory(t.device)
	return t.tell(func(l Listener) error { return l.Step(step) })
}

// evaluate gives the numbers of network.evaluate for a data set, divided by the number of its labels or pairs.
func (t *Trainer) evaluate(ctx context.Context, data *dataset.Dataset) ([]float64, error) {
	numbers, count := []float64{0}, 0.0
	if t.options.Objective == DPO {
		numbers = make([]float64, 1+len(t.options.measured()))
		if t.reference[data] == nil {
			return numbers, fmt.Errorf("what the reference says of this data set is not known")
		}
	}
	batches, err := dataset.NewBatcher(data, t.options.layout(dataset.BatchOptions{InOrder: true}))
	if err != nil {
		return numbers, err
	}
	for {
		if ctx.Err() != nil && t.options.processes() == 1 { // others would wait for this process
			return numbers, ctx.Err()
		}
		b, err := batches.Next()
		if err != nil {
			return numbers, err
		}
		if n := t.options.count(b); n > 0 || t.options.processes() > 1 {
			torch.Scoped(func() {
				sums := t.net.evaluate(t.microBatch(b, t.reference[data]))
				for i, v := range sums {
					numbers[i] += v
				}
				if sums != nil { // else another process has the head
					count += float64(n)
				}
			})
		}
		if b.Last {
			break
		}
	}
	if world := t.options.World; world != nil {
		sums := world.All.Sums(append(numbers, count)...)
		numbers, count = sums[:len(numbers)], sums[len(numbers)]
	}
	for i := range numbers {
		numbers[i] /= max(1, count)
	}
	return numbers, nil
}

// look measures the validation loss.
func (t *Trainer) look(ctx context.Context) error {
	begin := time.Now()
	t.at("validation after step %d", t.step)
	numbers, err := t.evaluate(ctx, t.valid)
	if err != nil {
		return err
	}
	t.validated = t.step
	v := Validation{Step: t.step, Loss: numbers[0], Seconds: time.Since(begin).Seconds()}
	if t.options.Objective == DPO {
		v.Measures = t.options.named(numbers)
	}
	return t.tell(func(l Listener) error { return l.Validation(v) })
}

func (t *Trainer) tell(what func(Listener) error) error {
	for _, l := range t.listeners {
		if err := what(l); err != nil {
			return err
		}
	}
	return nil
}

func (t *Trainer) notice(message string) {
	for _, l := range t.listeners {
		l.Notice(message)
	}
}
