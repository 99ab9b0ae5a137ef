package train

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
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
	"conquer/model"
	"conquer/text"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
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
	Data      text.State      `json:"data"`
	Settings  json.RawMessage `json:"settings"`
	Print     fingerprint     `json:"made_from"`
}

// fingerprint tells whether a run resumes with what it began with.
type fingerprint struct {
	Config     model.Config `json:"config"`
	Data       string       `json:"data"`
	Validation string       `json:"validation,omitempty"`
	// Weights is of a part of each of the model's weights as they are now, where they do not change.
	Weights string `json:"weights,omitempty"`
	DType   string `json:"dtype"`
}

func fingerprintOf(m model.Model, data, validation *text.Dataset, o Options) fingerprint {
	f := fingerprint{Config: m.Config(), Data: hashSamples(data), DType: model.DType(m).String()}
	if validation != nil {
		f.Validation = hashSamples(validation)
	}
	if o.LoRA != nil || o.HeadOnly {
		f.Weights = hashWeights(m)
	}
	return f
}

func hashSamples(d *text.Dataset) string {
	h := sha256.New()
	for _, s := range d.Samples {
		binary.Write(h, binary.LittleEndian, int64(len(s.IDs)))
		binary.Write(h, binary.LittleEndian, s.IDs)
		binary.Write(h, binary.LittleEndian, s.Labels)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func hashWeights(m model.Model) string {
	h := sha256.New()
	for _, p := range nn.Params(m) {
		torch.Scoped(func() {
			flat := p.Detach().Reshape(-1)
			n := min(flat.Numel(), 1024)
			for _, part := range []torch.Tensor{flat.Narrow(0, 0, n), flat.Narrow(0, flat.Numel()-n, n)} {
				binary.Write(h, binary.LittleEndian, torch.Values[float32](part))
			}
		})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// settings are the options that a resumed run must share, as JSON.
func (t *Trainer) settings() (json.RawMessage, error) {
	o := t.options
	if o.Schedule == optim.Constant {
		o.Steps = 0 // the rates do not depend on where the run ends
	}
	return json.Marshal(o)
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
		s := state{Step: t.step, Taken: t.adam.Taken(), Validated: t.validated, Data: t.batches.State(), Settings: settings, Print: t.print}
		text, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return err
		}
		if t.log != nil {
			if err := t.log.sync(); err != nil {
				return err
			}
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
			return writeFile(filepath.Join(stage, stateFile), append(text, '\n'))
		})
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(root, latestFile), []byte(name+"\n")); err != nil {
			return err
		}
		t.saved = t.step
		t.notice(fmt.Sprintf("checkpoint %s", dir))
		return t.prune()
	})
}

// write writes what is tuned into the folder dir, together with what also writes.
func (t *Trainer) write(dir string, also func(stage string) error) error {
	o, m := t.options, t.net.model
	if o.LoRA != nil {
		return SaveAdapter(m, dir, o.BaseModel, *o.LoRA, also)
	}
	return t.writeModel(dir, also)
}

func (t *Trainer) writeModel(dir string, also func(stage string) error) error {
	o, m := t.options, t.net.model
	config, err := json.MarshalIndent(m.Config(), "", "  ")
	if err != nil {
		return err
	}
	return checkpoint.Save(dir, model.Weights(m), checkpoint.Options{
		Config: config, GenerationConfig: o.GenerationConfig, Also: func(stage string) error {
			if o.Tokenizer != nil {
				if err := o.Tokenizer.Save(stage); err != nil {
					return err
				}
			}
			if also == nil {
				return nil
			}
			return also(stage)
		},
	})
}

// Export writes the tuned model into the folder dir as a Hugging Face folder, or the adapter as PEFT's.
func (t *Trainer) Export(dir string) error {
	return torch.Run(func() error { return t.write(dir, nil) })
}

// ExportMerged folds the adapters into the model, which ends the run, and writes it as a Hugging Face folder.
func (t *Trainer) ExportMerged(dir string) error {
	t.freeOptimizer()
	if err := MergeAdapter(t.net.model); err != nil {
		return err
	}
	return torch.Run(func() error { return t.writeModel(dir, nil) })
}

func (t *Trainer) optimizerState() *tensorList {
	list := &tensorList{}
	for _, p := range t.adam.State() {
		list.add(p.Name, p.Tensor)
	}
	list.add(generatorName, torch.RNGState(t.device))
	return list
}

// prune removes all checkpoints but the last Keep, and what killed runs left unfinished.
func (t *Trainer) prune() error {
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
	current := fmt.Sprintf("%s%08d", stepPrefix, t.step)
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
		if t.options.Resume {
			return fmt.Errorf("nothing to resume from: there is no checkpoint path")
		}
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
	if err := t.restore(dir, s); err != nil {
		return err
	}
	t.step, t.validated, t.saved = s.Step, s.Validated, s.Step
	return nil
}

// compare names what differs between the run that wrote s and this one.
func (t *Trainer) compare(s state) error {
	now, err := t.settings()
	if err != nil {
		return err
	}
	differences := differ(s.Settings, now)
	then, _ := json.Marshal(s.Print.Config)
	current, _ := json.Marshal(t.print.Config)
	for _, d := range differ(then, current) {
		differences = append(differences, "the model's "+d)
	}
	for what, values := range map[string][2]string{
		"data": {s.Print.Data, t.print.Data}, "validation data": {s.Print.Validation, t.print.Validation},
		"base model's weights": {s.Print.Weights, t.print.Weights},
	} {
		if values[0] != values[1] {
			differences = append(differences, "other "+what)
		}
	}
	if s.Print.DType != t.print.DType {
		differences = append(differences, fmt.Sprintf("dtype %s (now %s)", s.Print.DType, t.print.DType))
	}
	if len(differences) > 0 {
		slices.Sort(differences)
		return fmt.Errorf("this run differs from the one to resume, which had %s", strings.Join(differences, ", "))
	}
	return nil
}

// differ lists the keys in which two JSON objects differ, with both values.
func differ(then, now json.RawMessage) []string {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(then, &a) != nil || json.Unmarshal(now, &b) != nil {
		return []string{"unreadable settings"}
	}
	show := func(v json.RawMessage) string {
		if v == nil {
			return "none"
		}
		return string(v)
	}
	var list []string
	for key := range a {
		if b[key] == nil {
			b[key] = nil
		}
	}
	for key, value := range b {
		if compact(a[key]) != compact(value) {
			list = append(list, fmt.Sprintf("%s %s (now %s)", key, show(a[key]), show(value)))
		}
	}
	return list
}

// compact is JSON with its keys sorted and its spaces gone.
func compact(v json.RawMessage) string {
	var any any
	if json.Unmarshal(v, &any) != nil {
		return string(v)
	}
	text, _ := json.Marshal(any)
	return string(text)
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
	if err := t.adam.Restore(s.Taken, c.Tensor); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	generator, err := c.Tensor(generatorName)
	if err != nil {
		return err
	}
	torch.SetRNGState(t.device, generator.Clone())
	return t.batches.Restore(s.Data)
}

// restoreWeights copies the trained weights of a checkpoint into the model's.
func (t *Trainer) restoreWeights(dir string) error {
	m, path, names := t.net.model, dir, map[string]torch.Tensor{}
	if t.options.LoRA != nil {
		path = filepath.Join(dir, adapterWeights)
		for _, a := range adapters(m) {
			names[adapterPrefix+a.Name+suffixA], names[adapterPrefix+a.Name+suffixB] = a.A.Tensor, a.B.Tensor
		}
	} else {
		nn.Walk(m, func(p nn.Piece) {
			if p.Param.RequiresGrad() {
				names[p.Name] = p.Param.Detach().Narrow(0, p.Start, p.Rows)
			}
		})
	}
	c, err := checkpoint.Open(path)
	if err != nil {
		return err
	}
	defer c.Close()
	for name, to := range names {
		var failed error
		torch.Scoped(func() {
			saved, err := c.Tensor(name)
			switch {
			case err != nil:
				failed = err
			case !slices.Equal(saved.Shape(), to.Shape()):
				failed = fmt.Errorf("%s: tensor %q has shape %v, expected %v", path, name, saved.Shape(), to.Shape())
			default:
				to.Detach().Copy(saved)
			}
		})
		if failed != nil {
			return failed
		}
	}
	return nil
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
