package train

import (
	"fmt"
	"math"

	"conquer/torch"
	"conquer/torch/optim"
)

// DivergedError is the error of a run that stopped because its loss, its gradients or its weights
// are not finite. The same run would end so again.
type DivergedError struct{ problem string }

func (e DivergedError) Error() string { return e.problem }

// countSkipped counts the last steps in a row that were skipped. All processes have the same loss
// and norm, so all of them count the same.
func (t *Trainer) countSkipped(s Step) {
	t.loss = s.Loss
	if t.skipped++; !s.Skipped {
		t.skipped = 0
	}
}

// checkSkipped returns an error if too many steps in a row were skipped.
func (t *Trainer) checkSkipped() error {
	if t.skipped < t.options.MaxSkipped {
		return nil
	}
	return t.diverged()
}

// checkEnd returns an error if a run that has taken its last step ended without finite weights or a
// finite loss, or skipped its last steps. A single step may be skipped because of its gradients.
func (t *Trainer) checkEnd() error {
	if t.skipped > 1 || t.skipped == 1 && (!optim.Finite(t.loss) || t.step <= 2) {
		return t.diverged()
	}
	if err := t.checkWeights(); err != nil {
		return err
	}
	if t.validated == t.step && !optim.Finite(t.validLoss) {
		return t.advise("the validation loss after the last step is %v", t.validLoss)
	}
	return nil
}

// diverged describes a run whose last steps were skipped.
func (t *Trainer) diverged() error {
	what := "gradients that are not finite"
	if !optim.Finite(t.loss) {
		what = fmt.Sprintf("a loss of %v", t.loss)
	}
	if t.optimizer.Steps() == 0 {
		return DivergedError{t.skippedSteps(what) + ", and none was taken before: the data or " +
			"the model's weights are at fault, not the learning rate: test the model with " +
			"conquer generate, and try --dtype float32"}
	}
	return t.advise("%s", t.skippedSteps(what))
}

// skippedSteps names the last steps, which were skipped because of what.
func (t *Trainer) skippedSteps(what string) string {
	if t.skipped == 1 {
		return fmt.Sprintf("step %d was skipped because of %s", t.step, what)
	}
	return fmt.Sprintf("steps %d to %d were skipped because of %s", t.step-t.skipped+1, t.step,
		what)
}

// checkWeights returns an error on all processes if a trained weight of one of them is not finite.
// All processes of a run call it.
func (t *Trainer) checkWeights() error {
	bad := ""
	torch.NoGrad(func() {
		for i, f := range t.trained {
			if bad == "" && !finite(f.tensor) {
				bad = t.params[i].Name
			}
		}
	})
	t.options.at("checking the weights after step %d", t.step)
	switch anywhere := t.options.anyOf(bad != ""); {
	case bad != "":
		return t.advise("after step %d, weights of %.200s are not finite", t.step, bad)
	case anywhere:
		return t.advise("after step %d, weights of another process are not finite", t.step)
	}
	return nil
}

// finiteBlock is the number of elements that finite looks at together.
const finiteBlock = 1 << 22

// finite reports whether all elements of a tensor are finite: 0 times any other value is NaN.
func finite(all torch.Tensor) bool {
	ok := true
	torch.Scoped(func() {
		flat := all.Detach().Reshape(-1)
		for start := 0; start < flat.Numel() && ok; start += finiteBlock {
			torch.Scoped(func() {
				part := flat.Narrow(0, start, min(finiteBlock, flat.Numel()-start))
				ok = !math.IsNaN(torch.Item[float64](part.MulScalar(0).Sum()))
			})
		}
	})
	return ok
}

// advise returns an error that says why a run is of no use after its last step, and what to do.
func (t *Trainer) advise(format string, args ...any) error {
	kept := "nothing was written"
	if t.saved > 0 {
		if err := t.finishSaving(); err != nil {
			return err
		}
		kept = "the last checkpoint, " + t.folder().Step(t.saved) + ", is from before and was kept"
	}
	remedy := fmt.Sprintf("a --learning_rate below %g", t.options.Rate)
	if t.options.Clip == 0 {
		remedy += " or with --clip 1"
	}
	if t.options.WarmupSteps == 0 {
		remedy += " or with --warmup_steps"
	}
	return DivergedError{fmt.Sprintf("the run has diverged: %s; %s: start again with %s",
		fmt.Sprintf(format, args...), kept, remedy)}
}
