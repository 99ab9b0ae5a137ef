package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/lora"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
)

// A checkpoint is a folder step-00000100 that appears in one step: the model as a Hugging Face folder (or the adapter as
// PEFT's), the optimizer's state and the generator's in optimizer/, and the rest in state.json. The file latest names the
// one to resume from, and moves once that one is complete.
const (
	stateFile     = "state.json"
	optimizerPath = "optimizer"
	latestFile    = "latest"
	stepPrefix    = "step-"
	generatorName = "generator"
)

// state is state.json.
type state struct {
	Step      int             `json:"step"`
	Taken     int             `json:"optimizer_steps"`
	Validated int             `json:"validated"`
	Data      dataset.State   `json:"data"`
	Settings  json.RawMessage `json:"settings"`
	Print     fingerprint     `json:"made_from"`
}

// Save writes a checkpoint of the current step, unless the last one is of it, and then removes all but the last Keep.
func (t *Trainer) Save() error {
	if t.options.CheckpointPath == "" {
		return fmt.Errorf("there is no checkpoint path to write to")
	}
	if t.saved == t.step {
		return nil
	}
	return torch.Run(func() error {
		settings, err := t.settings()
		if err != nil {
			return err
		}
		if err := t.settle(); err != nil {
			return err
		}
		s := state{Step: t.step, Taken: t.optimizer.Steps(), Validated: t.validated, Data: t.batches.State(), Settings: settings, Print: t.print}
		text, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return err
		}
		if t.log != nil {
			if err := t.log.Sync(); err != nil {
				return err
			}
		}
		if t.options.CheckpointFormat == FormatNative {
			return t.saveNative(append(text, '\n'))
		}
		root := t.options.CheckpointPath
		name := fmt.Sprintf("%s%08d", stepPrefix, t.step)
		dir := filepath.Join(root, name)
		// Left by a run that was killed before it could move the pointer here.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		err = t.write(dir, func(stage string) error {
			if err := checkpoint.Save(filepath.Join(stage, optimizerPath), t.optimizerState(), checkpoint.Options{}); err != nil {
				return err
			}
			return atomicfile.WriteBytes(filepath.Join(stage, stateFile), append(text, '\n'))
		})
		if err != nil {
			return err
		}
		if err := atomicfile.WriteBytes(filepath.Join(root, latestFile), []byte(name+"\n")); err != nil {
			return err
		}
		t.saved = t.step
		t.notice(fmt.Sprintf("checkpoint %s", dir))
		return t.prune(t.step)
	})
}

func (t *Trainer) optimizerState() *checkpoint.Tensors {
	list := &checkpoint.Tensors{}
	for _, p := range t.optimizer.State() {
		list.Add(p.Name, p.Tensor)
	}
	list.Add(generatorName, torch.RNGState(t.device))
	return list
}

// prune removes all checkpoints but the last Keep, and what killed runs left unfinished.
func (t *Trainer) prune(step int) error {
	root := t.options.CheckpointPath
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	var complete []string
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), stepPrefix) {
			continue
		}
		if strings.HasSuffix(e.Name(), ".partial") {
			if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
				return err
			}
			continue
		}
		complete = append(complete, e.Name())
	}
	// A folder of a later step is one that the pointer never reached.
	current := fmt.Sprintf("%s%08d", stepPrefix, step)
	slices.Sort(complete)
	at := slices.Index(complete, current)
	for i, name := range complete {
		if i > at-t.options.Keep && i <= at {
			continue
		}
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

// resume goes back to the last checkpoint if the options ask for that and there is one.
func (t *Trainer) resume() error {
	root := t.options.CheckpointPath
	if root == "" {
		return nil
	}
	pointer, err := os.ReadFile(filepath.Join(root, latestFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !t.options.Resume:
		return fmt.Errorf("%s holds a run's checkpoints: resume it, or choose another folder, or remove this one", root)
	}
	name := strings.TrimSpace(string(pointer))
	if !filepath.IsLocal(name) || !strings.HasPrefix(name, stepPrefix) {
		return fmt.Errorf("%s holds %.80q, expected the name of a checkpoint", filepath.Join(root, latestFile), name)
	}
	dir := filepath.Join(root, name)
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return fmt.Errorf("the last checkpoint cannot be read: %w", err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	if err := t.compare(s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	restore := t.restore
	if _, err := os.Stat(filepath.Join(dir, checkpoint.NativeFile)); err == nil {
		restore = t.restoreNative
	} else if _, alone := t.net.strategy.(*local); !alone {
		return fmt.Errorf("%s was written by one process in the format %s: resume it with one process, or begin anew with --checkpoint_format %s",
			dir, FormatHF, FormatNative)
	}
	if err := restore(dir, s); err != nil {
		return err
	}
	t.step, t.validated, t.saved = s.Step, s.Validated, s.Step
	return nil
}

// abreast makes sure that all processes go on from the same step: each has looked for checkpoints itself.
func (t *Trainer) abreast() error {
	world := t.options.World
	if world == nil || world.Size == 1 || !t.options.Resume {
		return nil
	}
	first := 0.0
	if world.Rank == 0 {
		first = float64(t.step)
	}
	t.at("comparing the steps to go on after")
	if first = world.All.Sums(first)[0]; int(first) != t.step {
		return fmt.Errorf("rank %d goes on after step %d, rank 0 after step %.0f: %s must be a folder that all machines share",
			world.Rank, t.step, first, t.options.CheckpointPath)
	}
	return nil
}

// restore takes weights, optimizer, data position and generator from the checkpoint dir.
func (t *Trainer) restore(dir string, s state) (err error) {
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
	return t.batches.Restore(s.Data)
}

// restoreWeights copies the trained weights of the checkpoint dir into the model.
func (t *Trainer) restoreWeights(dir string) error {
	if t.options.LoRA != nil {
		return lora.Restore(t.net.model, dir)
	}
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	nn.Walk(t.net.model, func(p nn.Component) {
		if err != nil || !p.Param.RequiresGrad() {
			return
		}
		torch.Scoped(func() {
			var saved torch.Tensor
			to := p.Param.Detach().Narrow(0, p.Start, p.Rows)
			if saved, err = c.Tensor(p.Name); err != nil {
				return
			}
			if !slices.Equal(saved.Shape(), to.Shape()) {
				err = fmt.Errorf("%s: tensor %q has shape %v, expected %v", dir, p.Name, saved.Shape(), to.Shape())
				return
			}
			to.Copy(saved)
		})
	})
	return err
}

// folderLock keeps a second run out of a folder of checkpoints.
type folderLock struct{ dir *os.File }

func lockFolder(path string) (*folderLock, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.MkdirAll(path, 0o777); err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		dir.Close()
		return nil, fmt.Errorf("another run is writing its checkpoints to %s", path)
	}
	return &folderLock{dir}, nil
}

func (l *folderLock) release() {
	if l != nil {
		os.Remove(l.dir.Name()) // which does nothing to a folder that holds something
		l.dir.Close()
	}
}
