package train

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/lora"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train/internal/state"
)

// Names inside a checkpoint in FormatHF, whose model is a Hugging Face folder or a PEFT folder.
const (
	optimizerPath = "optimizer"
	generatorName = "generator" // state of the random number generator
)

// Save writes a checkpoint of the current step, unless that exists, and removes all but the last
// Keep. It writes none, and returns an error, if the weights are not finite.
func (t *Trainer) Save() error {
	if t.options.CheckpointPath == "" {
		return fmt.Errorf("cannot save: there is no checkpoint path")
	}
	if t.over {
		return fmt.Errorf("cannot save: the run has ended")
	}
	if t.saved == t.step {
		return nil
	}
	return torch.Run(func() error {
		if err := t.finishSaving(); err != nil {
			return err
		}
		if err := t.checkWeights(); err != nil {
			return err
		}
		identity, err := t.options.identity(t.print)
		if err != nil {
			return err
		}
		s := state.State{
			Step:      t.step,
			Taken:     t.optimizer.Steps(),
			Validated: t.validated,
			Data:      t.batches.State(),
			Began:     t.options.Began,
			Best:      t.best,
			Identity:  identity,
		}
		if t.log != nil {
			if err := t.log.Sync(); err != nil {
				return err
			}
		}
		if t.options.SaveFormat == FormatNative {
			return t.saveNative(s)
		}
		return t.saveHF(s)
	})
}

func (t *Trainer) saveHF(s state.State) error {
	dir := t.folder().Step(t.step)
	// A run that was killed before it committed may have left the folder.
	if err := atomicfile.Discard(dir); err != nil {
		return err
	}
	err := t.write(dir, func(stage string) error {
		err := checkpoint.Save(filepath.Join(stage, optimizerPath), t.optimizerState(),
			checkpoint.Options{})
		if err != nil {
			return err
		}
		if err := s.Write(stage); err != nil {
			return err
		}
		return state.WriteSums(stage)
	})
	if err != nil {
		return err
	}
	if err := t.folder().Commit(t.step); err != nil {
		return err
	}
	t.saved = t.step
	t.notice(fmt.Sprintf("checkpoint %s", dir))
	return nil
}

func (t *Trainer) folder() state.Folder {
	f := state.Folder{Path: t.options.CheckpointPath, Keep: t.options.Keep}
	if t.options.KeepBest {
		f.Best = t.best.Step
	}
	return f
}

func (t *Trainer) optimizerState() *checkpoint.Tensors {
	list := &checkpoint.Tensors{}
	for _, p := range t.optimizer.State() {
		list.Add(p.Name, p.Tensor)
	}
	list.Add(generatorName, torch.RNGState(t.device))
	t.eachCarried(func(name string, state torch.Tensor) { list.Add(name, state) })
	return list
}

// identity is what a resumed run must have in common with this one. Settings that do not change
// what is learned are left out or brought to one form.
func (o Options) identity(print state.Fingerprint) (state.Identity, error) {
	// The number of rows of a step counts, not how they are divided into processes and
	// micro-batches.
	_, parts := o.rowGroup()
	o.BatchSize, o.Accumulate = o.BatchSize*o.Accumulate*parts, 1
	// Defaults are left out, as they were before there was a choice.
	if o.Objective == SFT {
		o.Objective = ""
	}
	if o.Optimizer == optim.AdamW {
		o.Optimizer = ""
	}
	if o.Moments == optim.Float32 {
		o.Moments = ""
	}
	if slices.Equal(o.NoDecay, []string{"norm", "bias"}) {
		o.NoDecay = nil
	}
	if o.Schedule == optim.Constant {
		o.Steps = 0 // the rate does not depend on the end of the run
	}
	if o.LoRA != nil { // the hash of its weights is part of the print
		adapter := *o.LoRA
		adapter.From = ""
		o.LoRA = &adapter
	}
	settings, err := json.Marshal(o)
	return state.Identity{Settings: settings, Print: print}, err
}

// resume continues from the latest checkpoint if the options ask for it and there is one.
func (t *Trainer) resume() error {
	root := t.options.CheckpointPath
	if root == "" {
		return nil
	}
	if t.options.Overwrite && !t.options.Resume {
		if t.options.rank() > 0 {
			return nil
		}
		return t.folder().Clear()
	}
	dir, s, err := t.folder().Latest()
	switch {
	case err != nil:
		return err
	case dir == "":
		return nil
	case !t.options.Resume:
		return fmt.Errorf("%s holds checkpoints of a run: resume it, choose another folder, or "+
			"overwrite it", root)
	}
	if err := state.Verify(dir); err != nil {
		return t.folder().Damaged(dir, err)
	}
	if err := t.compare(s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	restore := t.restoreHF
	if state.Native(dir) {
		restore = t.restoreNative
	} else if !t.strategy.single() {
		return fmt.Errorf(
			"%s was written by one process in the format %s: resume it with one process, "+
				"or start again with --save_format %s",
			dir, FormatHF, FormatNative,
		)
	}
	if err := restore(dir, s); err != nil {
		return t.folder().Damaged(dir, err)
	}
	t.step, t.validated, t.saved = s.Step, s.Validated, s.Step
	if !s.Began.IsZero() {
		t.options.Began = s.Began
	}
	return t.resumeBest(s)
}

// checkSameStep returns an error unless all processes resume from the same step. Each has read the
// folder itself.
func (t *Trainer) checkSameStep() error {
	o := t.options
	if o.processes() == 1 || !o.Resume {
		return nil
	}
	first := 0.0
	if o.rank() == 0 {
		first = float64(t.step)
	}
	o.at("comparing the steps to resume from")
	if first = o.sums(first)[0]; int(first) != t.step {
		return fmt.Errorf("rank %d resumes after step %d, rank 0 after step %.0f: "+
			"%s must be a folder that all hosts share", o.rank(), t.step, first, o.CheckpointPath)
	}
	return nil
}

// restoreHF restores weights, optimizer, data position and generator from the checkpoint dir.
func (t *Trainer) restoreHF(dir string, s state.State) (err error) {
	torch.NoGrad(func() { err = t.restoreWeights(dir) })
	if err != nil {
		return err
	}
	c, err := checkpoint.Open(filepath.Join(dir, optimizerPath))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := t.optimizer.Restore(s.Taken, c.Tensor); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	generator, err := c.Tensor(generatorName)
	if err != nil {
		return err
	}
	torch.SetRNGState(t.device, generator.Clone())
	if err := t.restoreCarried(func(name string, _ int) (torch.Tensor, error) {
		return c.Tensor(name)
	}); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	return t.batches.Restore(s.Data)
}

// restoreWeights copies the trained weights of the checkpoint dir into the model.
func (t *Trainer) restoreWeights(dir string) error {
	if t.options.LoRA != nil {
		return lora.Restore(t.net.Model, dir, *t.options.LoRA)
	}
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	nn.Walk(t.net.Model, func(part nn.Component) {
		if err != nil || !part.Param.RequiresGrad() {
			return
		}
		torch.Scoped(func() {
			var saved torch.Tensor
			to := part.Param.Detach().Narrow(0, part.Start, part.Rows).View(part.Shape()...)
			if saved, err = c.Tensor(part.Name); err != nil {
				return
			}
			if !slices.Equal(saved.Shape(), to.Shape()) {
				err = fmt.Errorf("%s: tensor %q has shape %v, expected %v", dir, part.Name,
					saved.Shape(), to.Shape())
				return
			}
			to.Copy(saved)
		})
	})
	return err
}
