package train

import (
	"encoding/json"
	"fmt"

	"conquer/torch/optim"
	"conquer/train/internal/state"
)

// mayDiffer ends the error about a run that cannot be resumed.
const mayDiffer = "; only the number of steps or epochs, the validation data, and flags that do " +
	"not change what is learned, may differ"

// compare returns an error unless this run can continue from the state of a checkpoint. A run may
// have more steps than before, or fewer, and other validation data.
func (t *Trainer) compare(then state.State) error {
	o := &t.options
	var was struct {
		Steps       int `json:"steps"`
		WarmupSteps int `json:"warmup_steps"`
	}
	if err := json.Unmarshal(then.Settings, &was); err != nil {
		return fmt.Errorf("settings that cannot be read: %w", err)
	}
	if t.warmup { // the default depends on the number of steps
		o.WarmupSteps = was.WarmupSteps
	}
	same := *o
	same.Steps = was.Steps
	print := t.print
	print.Validation = then.Print.Validation
	now, err := same.identity(print)
	if err != nil {
		return err
	}
	if err := state.Compare(then.Identity, now); err != nil {
		return fmt.Errorf("%w%s", err, mayDiffer)
	}
	if o.Steps < then.Step {
		return fmt.Errorf("the checkpoint is after step %d, and the run would end after step %d: "+
			"give more steps or epochs", then.Step, o.Steps)
	}
	if o.Schedule != optim.Constant && o.Steps != was.Steps {
		t.remember(fmt.Sprintf("the run has %d steps now, and had %d: from step %d on, the "+
			"learning rate is that of a run of %[1]d steps", o.Steps, was.Steps, then.Step+1))
	}
	t.schedule = o.schedule()
	return nil
}

// remember keeps a notice for the listeners of [Trainer.Run].
func (t *Trainer) remember(notice string) { t.notes = append(t.notes, notice) }
