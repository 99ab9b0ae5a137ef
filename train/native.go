package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
)

// The formats of a run's checkpoints. In FormatHF the model is a Hugging Face folder, or PEFT's, that one process writes. In
// FormatNative ([checkpoint.Native]) every process writes what it holds, beside the training that goes on, and any number of
// them can resume, with any strategy.
const (
	FormatHF     = "hf"
	FormatNative = "native"
)

// The names of what a native checkpoint holds besides weights.
const (
	generatorPrefix = "generator:" // of a rank; the optimizer's averages are mean:NAME and square:NAME
)

// stretchOf is where a weight, or part of a fused one, lies under its Hugging Face name.
type stretchOf struct {
	name         string
	shape        []int
	start, count int // elements of the Param
}

// named lists, for each weight, the stretches that have names of their own.
func named(m model.Model) map[*nn.Param][]stretchOf {
	names := map[*nn.Param][]stretchOf{}
	nn.Walk(m, func(p nn.Component) {
		row := 1
		for _, n := range p.Param.Shape[1:] {
			row *= n
		}
		names[p.Param] = append(names[p.Param], stretchOf{p.Name, p.Shape(), p.Start * row, p.Rows * row})
	})
	for _, a := range lora.Adapters(m) {
		nameA, nameB := lora.Names(a)
		for name, p := range map[string]*nn.Param{nameA: a.A, nameB: a.B} {
			names[p] = []stretchOf{{name, p.Shape, 0, p.Shape[0] * p.Shape[1]}}
		}
	}
	return names
}

// place is where in a tensor a process's elements lie: from start on, in a row; or run of them, as many again `every` elements
// after the first, and so on.
type place struct{ start, run, every int }

// each calls f for every named stretch of a piece: elements [from, to) of the piece are those of the name at a place.
func (p piece) each(names map[*nn.Param][]stretchOf, from, to int, f func(n stretchOf, at place, from, to int)) {
	p.places(from, to, func(at place, from, to int) {
		if at.every > 0 { // columns: of a weight with one name
			f(names[p.param][0], at, from, to)
			return
		}
		for _, n := range names[p.param] {
			first, end := max(at.start, n.start), min(at.start+to-from, n.start+n.count)
			if first < end {
				f(n, place{start: first - n.start}, from+first-at.start, from+end-at.start)
			}
		}
	})
}

// written lists the pieces to write: without the frozen weights where there are adapters, which do not change them.
func (t *Trainer) written() []piece {
	if t.options.LoRA == nil {
		return t.net.strategy.pieces()
	}
	return t.held
}

// stretches copies what this rank has to write, and describes every tensor of the checkpoint.
func (t *Trainer) stretches() (list []checkpoint.Fragment, tensors map[string]checkpoint.NativeTensor) {
	names := named(t.net.model)
	tensors = map[string]checkpoint.NativeTensor{}
	for param, stretches := range names {
		if t.options.LoRA != nil && !param.RequiresGrad() {
			continue
		}
		for _, n := range stretches {
			tensors[n.name] = checkpoint.TensorType(param.DType(), n.shape)
			if param.RequiresGrad() {
				averages, dtype := t.optimizer.MomentNames(param.DType())
				for _, a := range averages {
					tensors[a+":"+n.name] = checkpoint.TensorType(dtype, n.shape)
				}
			}
		}
	}
	copies, index := t.net.strategy.replicas()
	add := func(name string, at place, from torch.Tensor, first, end int) {
		torch.Scoped(func() {
			data := from.Detach().Reshape(-1).Narrow(0, first, end-first).ToDevice(torch.CPU).Clone().Own()
			list = append(list, checkpoint.Fragment{Name: name, Start: at.start, Run: at.run, Every: at.every, Data: data})
		})
	}
	torch.NoGrad(func() {
		for i, p := range t.written() {
			n := p.tensor.Numel()
			torch.Scoped(func() {
				original := p.tensor
				var averages []optim.Moment
				if i < len(t.held) {
					averages = t.optimizer.Moments(i)
					if o := t.optimizer.Master(i); o.Defined() {
						original = o
					}
				}
				p.each(names, n*index/copies, n*(index+1)/copies, func(s stretchOf, at place, first, end int) {
					if !p.mine(first) {
						return
					}
					add(s.name, at, original, first, end)
					for _, a := range averages {
						add(a.Name+":"+s.name, at, a.Tensor, first, end)
					}
				})
			})
		}
		torch.Scoped(func() {
			generator := torch.RNGState(t.device)
			add(t.generator(), place{}, generator, 0, generator.Numel())
			for rank := range t.options.processes() {
				tensors[fmt.Sprint(generatorPrefix, rank)] = checkpoint.TensorType(torch.Uint8, generator.Shape())
			}
		})
	})
	return list, tensors
}

func (t *Trainer) generator() string { return fmt.Sprint(generatorPrefix, t.options.rank()) }

// writing is a checkpoint on its way to the disk.
type writing struct {
	dir  string
	done chan error
}

// rankReport is what a rank tells rank 0 when its file is written.
type rankReport struct {
	Part  checkpoint.ProcessFile
	Error string
}

// saveNative begins to write a checkpoint of the current step. Only copying holds the training up: each rank writes its file
// on a goroutine of its own, and rank 0 makes a checkpoint of them once it has heard from all.
func (t *Trainer) saveNative(text []byte) error {
	o, step := t.options, t.step
	dir := filepath.Join(o.CheckpointPath, fmt.Sprintf("%s%08d", stepPrefix, step))
	stage := checkpoint.Partial(dir)
	var err error
	if o.rank() == 0 {
		// Left by a run that was killed before it was done, or before it could move the pointer here.
		if err = errors.Join(os.RemoveAll(stage), os.RemoveAll(dir)); err == nil {
			err = os.MkdirAll(stage, 0o777)
		}
	}
	if o.processes() > 1 {
		t.at("checkpoint after step %d", step)
		failed := 0.0
		if err != nil {
			failed = 1
		}
		if o.World.All.Sums(failed)[0] > 0 && err == nil {
			return fmt.Errorf("rank 0 could not make %s", stage)
		}
	}
	if err != nil {
		return err
	}
	list, tensors := t.stretches()
	w := &writing{dir: dir, done: make(chan error, 1)}
	t.writing, t.saved = w, step
	go func() {
		part, err := checkpoint.WriteFragments(stage, o.rank(), o.processes(), list)
		for i := range list {
			list[i].Data.Free()
		}
		if o.processes() > 1 {
			mine := rankReport{Part: part}
			if err != nil {
				mine.Error = err.Error()
			}
			message, _ := json.Marshal(mine)
			if failed := o.World.Store().Set(reportKey(step, o.rank()), message); err == nil {
				err = failed
			}
		}
		if err == nil && o.rank() == 0 {
			err = t.commit(dir, step, part, tensors, text)
		}
		if err != nil && o.rank() == 0 { // whose disk may be full of it
			os.RemoveAll(stage)
		}
		w.done <- err
	}()
	return nil
}

func reportKey(step, rank int) string { return fmt.Sprintf("checkpoint/%d/%d", step, rank) }

// commit waits for the other ranks' files and makes them a checkpoint.
func (t *Trainer) commit(dir string, step int, mine checkpoint.ProcessFile, tensors map[string]checkpoint.NativeTensor, text []byte) error {
	o, stage := t.options, checkpoint.Partial(dir)
	parts := []checkpoint.ProcessFile{mine}
	for rank := 1; rank < o.processes(); rank++ {
		message, err := o.World.Store().Get(reportKey(step, rank), o.World.Timeout())
		if err != nil {
			return fmt.Errorf("%s: rank %d did not write its part: %w", dir, rank, err)
		}
		var r rankReport
		if err := json.Unmarshal(message, &r); err != nil {
			return err
		}
		if r.Error != "" {
			return fmt.Errorf("rank %d: %s", rank, r.Error)
		}
		parts = append(parts, r.Part)
	}
	config, err := json.MarshalIndent(t.net.model.Config(), "", "  ")
	if err != nil {
		return err
	}
	if o.LoRA == nil {
		if o.Tokenizer != nil {
			if err := o.Tokenizer.Save(stage); err != nil {
				return err
			}
		}
		if err := atomicfile.WriteBytes(filepath.Join(stage, "config.json"), config); err != nil {
			return err
		}
		if o.GenerationConfig != nil {
			if err := atomicfile.WriteBytes(filepath.Join(stage, "generation_config.json"), o.GenerationConfig); err != nil {
				return err
			}
		}
	}
	if err := atomicfile.WriteBytes(filepath.Join(stage, stateFile), text); err != nil {
		return err
	}
	if err := checkpoint.WriteNativeIndex(stage, parts, tensors); err != nil {
		return err
	}
	if err := checkpoint.Commit(dir); err != nil {
		return err
	}
	if err := atomicfile.WriteBytes(filepath.Join(o.CheckpointPath, latestFile), []byte(filepath.Base(dir)+"\n")); err != nil {
		return err
	}
	return t.prune(step)
}

// settle waits until the checkpoint that is being written, if any, is complete.
func (t *Trainer) settle() error {
	w := t.writing
	if w == nil {
		return nil
	}
	t.at("waiting for a checkpoint to be written")
	t.writing = nil
	if err := <-w.done; err != nil {
		return err
	}
	t.notice(fmt.Sprintf("checkpoint %s", w.dir))
	return nil
}

// restoreNative takes this rank's part of the state from the checkpoint dir, whoever wrote it.
func (t *Trainer) restoreNative(dir string, s state) error {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	names := named(t.net.model)
	take := func(name string, at place, to torch.Tensor, first, end int) {
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
	torch.NoGrad(func() {
		for i, p := range t.held {
			torch.Scoped(func() {
				original, averages := t.optimizer.Master(i), t.optimizer.Moments(i)
				weight := original
				if !original.Defined() {
					weight = p.tensor
				}
				p.each(names, 0, p.tensor.Numel(), func(s stretchOf, at place, first, end int) {
					take(s.name, at, weight, first, end)
					for _, a := range averages {
						take(a.Name+":"+s.name, at, a.Tensor, first, end)
					}
				})
				t.optimizer.SetMoments(i, averages)
				if original.Defined() {
					p.tensor.Detach().Copy(original)
				}
			})
		}
	})
	if err != nil {
		return err
	}
	t.optimizer.SetSteps(s.Taken)
	t.net.strategy.updated()
	// The generators are those of as many ranks as wrote them; any other number draws anew, from here on.
	if !c.HasRange(fmt.Sprint(generatorPrefix, t.options.processes())) && c.HasRange(fmt.Sprint(generatorPrefix, t.options.processes()-1)) {
		generator, err := c.Range(t.generator(), 0, torch.RNGState(t.device).Numel())
		if err != nil {
			return err
		}
		torch.SetRNGState(t.device, generator)
	} else {
		rows, _ := t.options.rowGroup()
		torch.ManualSeed(t.options.Seed ^ int64(s.Step)<<20 ^ int64(rows)*math.MaxInt32)
	}
	return t.batches.Restore(s.Data)
}
