package train

import (
	"context"
	"errors"
	"fmt"
	"time"

	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/optim"
	"conquer/train/internal/network"
	"conquer/train/report"
)

// Run takes the remaining steps. If ctx is canceled, it finishes the current step, writes a
// checkpoint and returns ctx's error.
func (t *Trainer) Run(ctx context.Context) error {
	return torch.Run(func() error {
		for _, note := range t.notes {
			t.notice(note)
		}
		t.notes = nil
		t.noteSlowOptions()
		begun := t.step
		for {
			stopped, err := t.stopped(ctx)
			if err != nil {
				return err
			}
			// A resumed run repeats a validation that a stop interrupted, so validation comes
			// first.
			if t.validates() && !stopped {
				err := t.validate(ctx)
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
			if t.savesNow() || t.savesBest() {
				if err := t.Save(); err != nil {
					return err
				}
			}
			if t.step >= t.options.Steps || t.stale() {
				return t.end()
			}
			if t.asks(begun) {
				ask := func() ([]Answer, error) { return t.options.Ask(t.step) }
				if err := t.Ask(ask); err != nil {
					return err
				}
			}
			if err := t.next(); err != nil {
				return err
			}
		}
	})
}

// noteSlowOptions tells listeners about options that slow this run down.
func (t *Trainer) noteSlowOptions() {
	o := t.options
	if t.device.IsCUDA() && !o.compares() && (o.LabelSmoothing != 0 || o.ZLoss != 0) {
		t.notice(
			"this device has no kernels for label smoothing and z-loss: " +
				"libtorch computes the loss, for some rows at a time",
		)
	}
	if stages := t.strategy.stages(); o.Accumulate < stages {
		t.notice(
			fmt.Sprintf(
				"with %d micro-batches per step, the %d pipeline stages wait for each other: "+
					"--accumulate %d with a smaller --batch_size is faster",
				o.Accumulate, stages, 4*stages,
			),
		)
	}
}

// validates reports whether a validation is due.
func (t *Trainer) validates() bool {
	o := t.options
	return t.valid != nil && t.validated < t.step &&
		(t.step%o.ValidateSteps == 0 || t.step == o.Steps)
}

// savesNow reports whether a checkpoint is due. The last step has none unless it is asked for: the
// result replaces it. A skipped step has none: a run that has diverged would replace its good
// checkpoints.
func (t *Trainer) savesNow() bool {
	o := t.options
	return o.CheckpointPath != "" && o.CheckpointSteps > 0 && t.step < o.Steps && t.skipped == 0 &&
		t.step/o.CheckpointSteps > max(t.saved, 0)/o.CheckpointSteps
}

// stopped reports whether the run ends here. All processes agree, although each hears of a signal
// at another step.
func (t *Trainer) stopped(ctx context.Context) (bool, error) {
	t.options.at("between steps %d and %d", t.step, t.step+1)
	return t.options.anyOf(ctx.Err() != nil), nil
}

// stop ends the run before its last step.
func (t *Trainer) stop(ctx context.Context) error {
	err := ctx.Err()
	if err == nil { // another process was canceled
		err = context.Canceled
	}
	how := ""
	if t.options.CheckpointPath != "" {
		if t.skipped == 0 {
			if err := t.Save(); err != nil {
				return err
			}
		}
		if err := t.finishSaving(); err != nil {
			return err
		}
		how = "; the same command with --resume continues from there"
		if t.skipped > 0 {
			how = fmt.Sprintf("; this step was skipped, so no checkpoint was written, and "+
				"--resume continues after step %d", max(t.saved, 0))
		}
	}
	t.notice(fmt.Sprintf("stopped after step %d of %d%s", t.step, t.options.Steps, how))
	return err
}

// end ends the run after its last step.
func (t *Trainer) end() error {
	if err := t.checkEnd(); err != nil {
		return err
	}
	if t.step < t.options.Steps {
		t.notice(fmt.Sprintf("stopped after step %d of %d: the last %d validations brought no "+
			"improvement; %s", t.step, t.options.Steps, t.best.Stale, t.noteBest()))
	}
	if t.options.SaveAtEnd {
		if err := t.Save(); err != nil {
			return err
		}
	}
	if err := t.finishSaving(); err != nil {
		return err
	}
	return t.useBest()
}

// next takes one step: Accumulate forward and backward passes, then the optimizer's.
func (t *Trainer) next() error {
	begin := time.Now()
	step := Step{Step: t.step + 1, Rate: t.schedule.Rate(t.step)}
	list, counts, err := t.nextBatches(&step)
	if err != nil {
		return err
	}
	t.options.at("step %d", step.Step)
	baseline, err := t.baseline(list)
	if err != nil {
		return err
	}
	torch.Scoped(func() { t.update(&step, list, counts, baseline) })
	t.countSkipped(step)
	if t.replayer != nil {
		t.replayer.Clear()
	} else {
		t.optimizer.ClearGradients()
	}
	t.strategy.updated()
	t.step++
	// The device may still be updating the weights: the host prepares the next pass meanwhile.
	step.Seconds = time.Since(begin).Seconds()
	step.Memory, _ = report.Memory(t.device)
	if err := t.tell(func(l Listener) error { return l.Step(step) }); err != nil {
		return err
	}
	return t.checkSkipped()
}

// nextBatches returns the micro-batches of a step and how many labels (or pairs) each has on all
// processes.
func (t *Trainer) nextBatches(step *Step) (list []dataset.Batch, counts []float64, err error) {
	o := t.options
	list, counts = make([]dataset.Batch, o.Accumulate), make([]float64, o.Accumulate)
	for i := range list {
		if list[i], err = t.batches.Next(); err != nil {
			return nil, nil, err
		}
		counts[i] = float64(t.net.Objective.Count(list[i]))
		step.Tokens += list[i].Tokens
	}
	step.Epoch = t.batches.Progress()
	return list, counts, nil
}

// baseline estimates how far the model is from the reference before a step, if the objective needs
// it: over all micro-batches of the step, so that accumulation equals one large batch.
func (t *Trainer) baseline(list []dataset.Batch) (float64, error) {
	if !t.options.kind().Baseline {
		return 0, nil
	}
	var d divergence
	for _, b := range list {
		if err := d.add(t, t.data, b); err != nil {
			return 0, err
		}
	}
	return d.mean(t.options), nil
}

// update computes the gradients of a step and lets the optimizer use them, unless they are not
// finite.
func (t *Trainer) update(
	step *Step, list []dataset.Batch, counts []float64, baseline float64,
) {
	o := t.options
	imitated := 0
	for _, b := range list {
		imitated += t.net.Objective.Imitated(b)
	}
	sums := o.sums(append(counts, float64(step.Tokens), float64(imitated))...)
	for i := range sums { // processes that take the same rows have counted them several times
		sums[i] /= float64(o.sameRows())
	}
	counts, step.Tokens = sums[:len(list)], int(sums[len(list)])
	// Dividing by the items of all passes makes accumulation equal to one large batch.
	divisor := 0.0
	for _, n := range counts {
		divisor += n
	}
	whole := network.Whole{Share: divisor / max(1, sums[len(list)+1]), Baseline: baseline}
	var batches []network.MakeBatch
	for i, b := range list {
		if counts[i] > 0 {
			batches = append(batches, func() network.MicroBatch {
				return t.microBatch(b, t.carries[i], t.reference[t.data], whole)
			})
		}
	}
	scale := 1.0
	var r network.Results
	defer r.Drop()
	if t.replayer != nil {
		scale = 1 / max(1, divisor)
		t.replayer.Step(batches, &r)
	} else {
		t.strategy.step(t.net, batches, divisor, &r)
	}
	t.strategy.finishReduce()
	// Before the host waits for a number.
	ready, gradients := t.optimizer.Prepare(), t.optimizer.Gradients()
	numbers := make([]float64, t.net.Objective.Numbers())
	r.Sum(numbers, scale)
	numbers, step.Norm = t.strategy.combine(numbers, scale*optim.Norm(gradients))
	step.Loss, step.Measures = t.net.Objective.Report(numbers)
	if step.Skipped = !optim.Finite(step.Norm) ||
		!optim.Finite(step.Loss); !step.Skipped &&
		len(batches) > 0 {
		ready.Apply(step.Rate, scale*optim.Factor(step.Norm, o.Clip))
	}
	if step.Skipped {
		t.forget()
	}
}

// evaluate returns the numbers of [network.Network.Evaluate] for a data set, divided by the number
// of its labels or samples.
func (t *Trainer) evaluate(ctx context.Context, data *dataset.Dataset) ([]float64, error) {
	o := t.options
	numbers, count := []float64{0}, 0.0
	if o.compares() {
		numbers = make([]float64, t.net.Objective.Numbers())
	}
	if o.kind().Reference && t.reference[data] == nil {
		return numbers, errors.New(
			"the reference's log-probabilities of this data set are not known")
	}
	var whole network.Whole
	if o.kind().Baseline {
		var d divergence
		if err := t.eachBatch(ctx, data, func(b dataset.Batch) error {
			return d.add(t, data, b)
		}); err != nil {
			return numbers, err
		}
		whole.Baseline = d.mean(o)
	}
	carries, err := t.newCarries(1)
	if err != nil {
		return numbers, err
	}
	defer freeCarries(carries)
	if err := t.eachBatch(ctx, data, func(b dataset.Batch) error {
		torch.Scoped(func() {
			mb := t.microBatch(b, carries[0], t.reference[data], whole)
			t.strategy.infer(t.net, mb, func(hidden torch.Tensor) { // on the process with the head
				for i, v := range t.net.Evaluate(hidden, mb) {
					numbers[i] += v
				}
				count += float64(t.net.Objective.Count(b))
			})
		})
		return nil
	}); err != nil {
		return numbers, err
	}
	sums := o.sums(append(numbers, count)...)
	// The parts of a row have numbers of their own, and each has counted the whole row.
	numbers, count = sums[:len(numbers)], sums[len(numbers)]/float64(o.contextSize())
	for i := range numbers {
		numbers[i] /= max(1, count)
	}
	return numbers, nil
}

// eachBatch calls visit for this process's batches of a data set, in order.
func (t *Trainer) eachBatch(
	ctx context.Context, data *dataset.Dataset, visit func(dataset.Batch) error,
) error {
	o := t.options
	batches, err := dataset.NewBatcher(data, o.layout(dataset.BatchOptions{InOrder: true}))
	if err != nil {
		return err
	}
	for last := false; !last; {
		if ctx.Err() != nil &&
			o.processes() == 1 { // otherwise other processes would wait for this one
			return ctx.Err()
		}
		b, err := batches.Next()
		if err != nil {
			return err
		}
		if last = b.Last; t.net.Objective.Count(b) == 0 && o.processes() == 1 {
			continue
		}
		if err := visit(b); err != nil {
			return err
		}
	}
	return nil
}

// validate measures the validation loss.
func (t *Trainer) validate(ctx context.Context) error {
	begin := time.Now()
	t.options.at("validation after step %d", t.step)
	numbers, err := t.evaluate(ctx, t.valid)
	if err != nil {
		return err
	}
	v := Validation{Step: t.step, Seconds: time.Since(begin).Seconds()}
	v.Loss, v.Measures = t.net.Objective.Report(numbers)
	t.validated, t.validLoss = t.step, v.Loss
	t.judge(v)
	return t.tell(func(l Listener) error { return l.Validation(v) })
}

// tell calls what for each listener, up to the first error.
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
