package train

import (
	"encoding/json"
	"fmt"

	"conquer/model"
	"conquer/torch/optim"
	"conquer/train/internal/state"
)

// mayDiffer ends the error about a run that cannot be resumed.
const mayDiffer = "; only the number of steps or epochs, the validation data, and flags that do " +
	"not change what is learned, may differ"

// CheckResume returns an error if the run that o describes cannot continue from its latest
// checkpoint because its settings differ. New compares the data and the model, too. A program that
// calls CheckResume before it reads the data reports a difference at once.
func (o Options) CheckResume(m model.Model) error {
	if !o.Resume || o.CheckpointPath == "" {
		return nil
	}
	dir, then, err := state.Folder{Path: o.CheckpointPath}.Latest()
	if err != nil || dir == "" {
		return err
	}
	if o, err = o.fitModel(m); err != nil {
		return err
	}
	was, err := planned(then)
	if err != nil {
		return err
	}
	o.Steps = was.Steps
	if o.WarmupSteps < 0 {
		o.WarmupSteps = was.WarmupSteps
	}
	now, err := o.identity(then.Print)
	if err == nil {
		err = state.Compare(then.Identity, now)
	}
	if err != nil {
		return fmt.Errorf("%s: %w%s", dir, err, mayDiffer)
	}
	return nil
}

// steps are the settings that depend on the number of steps.
type steps struct {
	Steps       int `json:"steps"`
	WarmupSteps int `json:"warmup_steps"`
}

// planned returns the steps that the run of a checkpoint had.
func planned(then state.State) (was steps, err error) {
	if err = json.Unmarshal(then.Settings, &was); err != nil {
		err = fmt.Errorf("settings that cannot be read: %w", err)
	}
	return was, err
}

// compare returns an error unless this run can continue from the state of a checkpoint. A run may
// have more steps than before, or fewer, and other validation data.
func (t *Trainer) compare(then state.State) error {
	o := &t.options
	was, err := planned(then)
	if err != nil {
		return err
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
