package train

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"conquer/checkpoint"
	"conquer/torch"
	"conquer/torch/optim"
	"conquer/train/internal/state"
)

// judge compares a validation with those before it. One before the first step counts for nothing:
// there is nothing to keep.
func (t *Trainer) judge(v Validation) {
	if v.Step == 0 {
		return
	}
	b := &t.best
	first := b.Step == 0
	if b.Stale++; optim.Finite(v.Loss) && (first || v.Loss < b.Mark-t.options.MinImprovement) {
		b.Mark, b.Stale = v.Loss, 0
	}
	if optim.Finite(v.Loss) && (first || v.Loss < b.Loss) {
		b.Step, b.Loss = v.Step, v.Loss
	}
}

// stale reports whether the run ends because of validations without improvement.
func (t *Trainer) stale() bool {
	return t.options.EarlyStop > 0 && t.best.Stale >= t.options.EarlyStop
}

// savesBest reports whether the last validation is the best one and has no checkpoint yet.
func (t *Trainer) savesBest() bool {
	return t.options.KeepBest && t.best.Step > 0 && t.best.Step == t.step
}

// noteBest says which validation was the best one.
func (t *Trainer) noteBest() string {
	if t.best.Step == 0 {
		return "no validation loss was finite"
	}
	return fmt.Sprintf("the lowest validation loss was %.4f, after step %d", t.best.Loss,
		t.best.Step)
}

// useBest gives the model the weights of the best validation. It ends the run: the optimizer's
// state is no longer that of the weights.
func (t *Trainer) useBest() error {
	if !t.options.KeepBest || t.best.Step == 0 {
		return nil
	}
	t.notice(fmt.Sprintf("the result has the weights after step %d, whose validation loss of "+
		"%.4f was the lowest", t.best.Step, t.best.Loss))
	if t.best.Step == t.step {
		return nil
	}
	t.over = true
	dir := t.folder().Step(t.best.Step)
	if err := t.restoreBest(dir); err != nil {
		return fmt.Errorf("the best weights cannot be read: %w; with --resume and without "+
			"--keep_best, the run ends with its last weights", err)
	}
	t.strategy.updated()
	return nil
}

func (t *Trainer) restoreBest(dir string) (err error) {
	if err := state.Verify(dir); err != nil {
		return err
	}
	if !state.Native(dir) {
		torch.NoGrad(func() { err = t.restoreWeights(dir) })
		return err
	}
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	torch.NoGrad(func() { err = t.restoreFragments(c) })
	return err
}

// resumeBest takes over what the validations before a checkpoint have shown, if they are comparable
// with those to come and their best weights are still there.
func (t *Trainer) resumeBest(then state.State) error {
	t.best = then.Best
	if t.best.Step == 0 {
		return nil
	}
	if then.Print.Validation != t.print.Validation {
		t.best, t.validated = state.Best{}, -1
		t.remember("the validation data differs from that before: earlier validation losses no " +
			"longer count for --keep_best and --early_stop")
		return nil
	}
	if !t.options.KeepBest {
		return nil
	}
	dir := t.folder().Step(t.best.Step)
	switch _, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		t.remember(fmt.Sprintf("the weights after step %d, whose validation loss of %.4f was the "+
			"lowest, were not kept: the best of the validations from now on is kept", t.best.Step,
			t.best.Loss))
		t.best = state.Best{}
		return nil
	default:
		return err
	}
}
