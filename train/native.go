package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/torch"
	"conquer/torch/optim"
	"conquer/train/internal/state"
)

// A native checkpoint holds the generator of each rank under this prefix, and the optimizer's
// moments under mean:NAME and square:NAME.
const generatorPrefix = "generator:"

// writing is a checkpoint that is being written.
type writing struct {
	dir  string
	done chan error
}

// saved lists the fragments to write: without frozen weights if there are adapters, which do not
// change them.
func (t *Trainer) savedFragments() []fragment {
	if t.options.LoRA == nil {
		return t.strategy.fragments()
	}
	return t.trained
}

// nativeTensors describes every tensor of a native checkpoint.
func (t *Trainer) nativeTensors() map[string]checkpoint.NativeTensor {
	tensors := map[string]checkpoint.NativeTensor{}
	for param, components := range componentsOf(t.net.Model) {
		if t.options.LoRA != nil && !param.RequiresGrad() {
			continue
		}
		for _, c := range components {
			tensors[c.name] = checkpoint.TensorType(param.DType(), c.shape)
			if param.RequiresGrad() {
				moments, dtype := t.optimizer.MomentNames(param.DType(),
					t.matrices[param])
				for _, m := range moments {
					tensors[m+":"+c.name] = checkpoint.TensorType(dtype, c.shape)
				}
			}
		}
	}
	torch.Scoped(func() {
		shape := torch.RNGState(t.device).Shape()
		for rank := range t.options.processes() {
			tensors[fmt.Sprint(generatorPrefix, rank)] = checkpoint.TensorType(torch.Uint8, shape)
		}
		t.carriedTypes(tensors)
	})
	return tensors
}

// nativeData copies what this process has to write to host memory. The caller frees it.
func (t *Trainer) nativeData() (list []checkpoint.Fragment) {
	components := componentsOf(t.net.Model)
	copies, index := t.strategy.replicas()
	add := func(name string, at span, from torch.Tensor, first, end int) {
		torch.Scoped(func() {
			data := from.Detach().
				Reshape(-1).
				Narrow(0, first, end-first).
				ToDevice(torch.CPU).
				Clone().
				Own()
			list = append(list, checkpoint.Fragment{
				Name: name, Start: at.start, Run: at.run, Every: at.every, Data: data,
			})
		})
	}
	torch.NoGrad(func() {
		for i, f := range t.savedFragments() {
			n := f.tensor.Numel()
			torch.Scoped(func() {
				values := f.tensor
				var moments []optim.Moment
				if i < len(t.trained) {
					moments = t.optimizer.Moments(i)
					if master := t.optimizer.Master(i); master.Defined() {
						values = master
					}
				}
				// Replicas write an equal part each.
				f.components(components[f.param], n*index/copies, n*(index+1)/copies,
					func(c component, at span, first, end int) {
						if !f.writes(first) {
							return
						}
						add(c.name, at, values, first, end)
						for _, m := range moments {
							add(m.Name+":"+c.name, at, m.Tensor, first, end)
						}
					})
			})
		}
		torch.Scoped(func() {
			generator := torch.RNGState(t.device)
			add(t.generator(), span{}, generator, 0, generator.Numel())
			t.eachCarried(func(name string, state torch.Tensor) {
				add(name, span{}, state, 0, state.Numel())
			})
		})
	})
	return list
}

// generator is the name of this rank's generator in a native checkpoint.
func (t *Trainer) generator() string { return fmt.Sprint(generatorPrefix, t.options.rank()) }

// saveNative starts to write a checkpoint of the current step. Training waits only until the data
// is copied: each rank writes its file on a goroutine, and rank 0 commits the checkpoint when all
// ranks have reported.
func (t *Trainer) saveNative(s state.State) error {
	o, dir := t.options, t.folder().Step(t.step)
	stage := checkpoint.Partial(dir)
	var err error
	if o.rank() == 0 {
		// A run that was killed before it committed may have left either folder.
		err = errors.Join(atomicfile.RemoveAll(stage), atomicfile.Discard(dir))
		if err == nil {
			err = atomicfile.MkdirAll(stage)
		}
	}
	o.at("checkpoint after step %d", t.step)
	if o.anyOf(err != nil) && err == nil {
		return fmt.Errorf("rank 0 could not make %s", stage)
	}
	if err != nil {
		return err
	}
	list, tensors := t.nativeData(), t.nativeTensors()
	w := &writing{dir: dir, done: make(chan error, 1)}
	t.writing, t.saved = w, t.step
	go func() {
		part, err := checkpoint.WriteFragments(stage, o.rank(), o.processes(), list)
		for i := range list {
			list[i].Data.Free()
		}
		if o.processes() > 1 {
			err = o.reportPart(s.Step, part, err)
		}
		if err == nil && o.rank() == 0 {
			err = t.commitNative(dir, part, tensors, s)
		}
		if err != nil && o.rank() == 0 { // the disk may be full
			atomicfile.RemoveAll(stage)
		}
		w.done <- err
	}()
	return nil
}

// partReport is what a rank tells rank 0 when its file is written.
type partReport struct {
	Part  checkpoint.ProcessFile
	Error string
}

func reportKey(step, rank int) string { return fmt.Sprintf("checkpoint/%d/%d", step, rank) }

// reportPart tells rank 0 that this rank wrote its part, or failed with err. It returns the first
// error.
func (o Options) reportPart(step int, part checkpoint.ProcessFile, err error) error {
	mine := partReport{Part: part}
	if err != nil {
		mine.Error = err.Error()
	}
	message, _ := json.Marshal(mine)
	if failed := o.World.Store().Set(reportKey(step, o.rank()), message); err == nil {
		err = failed
	}
	return err
}

// otherParts waits for the reports of the other ranks.
func (o Options) otherParts(dir string, step int) (parts []checkpoint.ProcessFile, err error) {
	for rank := 1; rank < o.processes(); rank++ {
		message, err := o.World.Store().Get(reportKey(step, rank), o.World.Timeout())
		if err != nil {
			return nil, fmt.Errorf("%s: rank %d did not write its part: %w", dir, rank, err)
		}
		var r partReport
		if err := json.Unmarshal(message, &r); err != nil {
			return nil, err
		}
		if r.Error != "" {
			return nil, fmt.Errorf("rank %d: %s", rank, r.Error)
		}
		parts = append(parts, r.Part)
	}
	return parts, nil
}

// commitNative waits for the other ranks' files and makes them a checkpoint.
func (t *Trainer) commitNative(
	dir string, mine checkpoint.ProcessFile, tensors map[string]checkpoint.NativeTensor,
	s state.State,
) error {
	others, err := t.options.otherParts(dir, s.Step)
	if err != nil {
		return err
	}
	stage := checkpoint.Partial(dir)
	if t.options.LoRA == nil {
		if err := t.writeModelFiles(stage); err != nil {
			return err
		}
	}
	if err := s.Write(stage); err != nil {
		return err
	}
	parts := append([]checkpoint.ProcessFile{mine}, others...)
	if err := checkpoint.WriteNativeIndex(stage, parts, tensors); err != nil {
		return err
	}
	if err := state.WriteSums(stage); err != nil {
		return err
	}
	if err := checkpoint.Commit(dir); err != nil {
		return err
	}
	return t.folder().Commit(s.Step)
}

// writeModelFiles writes what a model's folder holds besides weights.
func (t *Trainer) writeModelFiles(dir string) error {
	o := t.options
	config, err := json.MarshalIndent(t.net.Model.Config(), "", "  ")
	if err != nil {
		return err
	}
	if o.Tokenizer != nil {
		if err := o.Tokenizer.Save(dir); err != nil {
			return err
		}
	}
	if err := atomicfile.WriteBytes(filepath.Join(dir, "config.json"), config); err != nil {
		return err
	}
	generation := t.generation()
	if generation == nil {
		return nil
	}
	return atomicfile.WriteBytes(filepath.Join(dir, generationFile), generation)
}

// finishSaving waits until the checkpoint that is being written, if any, is complete.
func (t *Trainer) finishSaving() error {
	w := t.writing
	if w == nil {
		return nil
	}
	t.options.at("waiting for a checkpoint to be written")
	t.writing = nil
	if err := <-w.done; err != nil {
		return err
	}
	t.notice(fmt.Sprintf("checkpoint %s", w.dir))
	return nil
}

// restoreNative restores this process's part of the state from the checkpoint dir, whichever
// processes wrote it.
func (t *Trainer) restoreNative(dir string, s state.State) error {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	torch.NoGrad(func() { err = t.restoreFragments(c) })
	if err != nil {
		return err
	}
	t.optimizer.SetSteps(s.Taken)
	t.strategy.updated()
	if err := t.restoreGenerator(c, s.Step); err != nil {
		return err
	}
	if err := t.restoreCarried(func(name string, n int) (torch.Tensor, error) {
		return c.Range(name, 0, n)
	}); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return t.batches.Restore(s.Data)
}

// restoreFragments reads weights and moments of the trained fragments.
func (t *Trainer) restoreFragments(c *checkpoint.Checkpoint) (err error) {
	components := componentsOf(t.net.Model)
	read := func(name string, at span, to torch.Tensor, first, end int) {
		if err != nil {
			return
		}
		torch.Scoped(func() {
			var from torch.Tensor
			if from, err = at.read(c, name, end-first); err == nil {
				to.Detach().View(-1).Narrow(0, first, end-first).Copy(from)
			}
		})
	}
	for i, f := range t.trained {
		torch.Scoped(func() {
			master, moments := t.optimizer.Master(i), t.optimizer.Moments(i)
			weight := master
			if !master.Defined() {
				weight = f.tensor
			}
			f.components(
				components[f.param],
				0,
				f.tensor.Numel(),
				func(c component, at span, first, end int) {
					read(c.name, at, weight, first, end)
					for _, m := range moments {
						read(m.Name+":"+c.name, at, m.Tensor, first, end)
					}
				},
			)
			t.optimizer.SetMoments(i, moments)
			if master.Defined() {
				f.tensor.Detach().Copy(master)
			}
		})
	}
	return err
}

// restoreGenerator restores this rank's generator if as many ranks wrote the checkpoint as resume.
// Otherwise it seeds a new one.
func (t *Trainer) restoreGenerator(c *checkpoint.Checkpoint, step int) error {
	n := t.options.processes()
	has := func(rank int) bool { return c.HasRange(fmt.Sprint(generatorPrefix, rank)) }
	if has(n) || !has(n-1) {
		rows, _ := t.options.rowGroup()
		torch.ManualSeed(t.options.Seed ^ int64(step)<<20 ^ int64(rows)*math.MaxInt32)
		return nil
	}
	generator, err := c.Range(t.generator(), 0, torch.RNGState(t.device).Numel())
	if err != nil {
		return err
	}
	torch.SetRNGState(t.device, generator)
	return nil
}
