// Package train fine-tunes a causal language model: all of its weights, LoRA adapters, or its head.
//
//	o := train.Options{Steps: 100, BatchSize: 4, SequenceLength: 512, Rate: 1e-4}
//	t, err := train.New(m, data, validation, o)
//	if err != nil { … }
//	defer t.Close()
//	if err := t.Run(ctx); err != nil { … }
//	err = t.Export("tuned")
//
// One function shows a micro-batch's way through the model: Gradients in internal/network. The
// model runs block by block, and autograd does not cross the borders of blocks.
//
// A run with a checkpoint path writes its whole state there every few steps and when it is stopped.
// A later run with the same options and Resume continues from the latest checkpoint. On the CPU
// with the same number of threads, its losses are bit for bit those of an uninterrupted run.
package train

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"conquer/lora"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train/internal/network"
	"conquer/train/internal/state"
	"conquer/train/internal/units"
	"conquer/train/report"
)

// Results that a [Listener] receives.
type (
	Step       = report.Step
	Validation = report.Validation
	Measure    = report.Measure
)

// Listener receives the progress of a run. The first error that it returns ends the run.
type Listener interface {
	Step(Step) error
	Validation(Validation) error
	Notice(message string)
}

// Trainer is a training run. It must be used by one goroutine at a time.
type Trainer struct {
	options   Options
	net       *network.Network
	strategy  strategy
	batches   *dataset.Batcher
	data      *dataset.Dataset
	valid     *dataset.Dataset                       // nil without validation
	reference map[*dataset.Dataset]network.Reference // if the objective needs one
	// mismatched has texts of the data sets, if the objective has a baseline.
	mismatched map[*dataset.Dataset]*dataset.Mismatched
	device     torch.Device
	params     []optim.Param
	trained    []fragment          // what params are of the weights
	matrices   map[*nn.Param][]int // Muon: the rows of the matrices in each weight
	optimizer  *optim.Optimizer
	replayer   *network.Replayer // nil if operations are launched one by one
	schedule   optim.Schedule
	listeners  []Listener
	log        *report.Log
	lock       *state.Lock

	step      int      // steps done
	validated int      // last step after which a validation was done, -1 for none
	saved     int      // step of the latest checkpoint, -1 for none
	skipped   int      // consecutive skipped steps
	loss      float64  // of the last step
	validLoss float64  // of the last validation
	writing   *writing // native checkpoint that is being written, or nil
	best      state.Best
	over      bool             // the weights are those of the best validation
	notes     []string         // for Run's listeners
	warmup    bool             // the number of warm-up steps is the default
	ends      []byte           // generation_config.json that ends texts at the data's turn ends
	carries   []*network.Carry // of each micro-batch of a step; nil without CarryState
	split     *model.Split     // of each row over processes, nil if they are whole
	print     state.Fingerprint
	weights   string // hash of the initial weights, if other processes must have the same
}

// New prepares a run that trains m on data. m has weights, or deferred ones ([model.Defer]).
// validation may be nil. The Trainer changes m. With HeadOnly and a tied head, it moves the weights
// to a new model with a separate head; use and free [Trainer.Model] in every case.
func New(m model.Model, data, validation *dataset.Dataset, o Options) (*Trainer, error) {
	var t *Trainer
	err := torch.Run(func() (err error) {
		if o, err = o.fit(m, data, validation); err != nil {
			return err
		}
		if o.Began.IsZero() {
			o.Began = time.Now()
		}
		t = &Trainer{
			options:   o,
			data:      data,
			valid:     validation,
			validated: -1,
			saved:     -1,
		}
		if err = t.prepare(m); err != nil {
			t.Close()
			t = nil
		}
		return err
	})
	return t, err
}

// fitModel completes the options and returns an error if they do not fit the model.
func (o Options) fitModel(m model.Model) (Options, error) {
	if err := o.Check(); err != nil {
		return o, err
	}
	if o = o.complete(); o.SequenceLength > m.MaxLength() {
		return o, fmt.Errorf("--sequence_length %d is beyond the model's %d", o.SequenceLength,
			m.MaxLength())
	}
	if err := o.CheckModel(m); err != nil {
		return o, err
	}
	if own, ok := m.(interface{ ZLoss() float64 }); ok && o.ZLoss == 0 && !o.compares() {
		o.ZLoss = own.ZLoss()
	}
	return o.balancing(m)
}

// fit completes the options and returns an error if they do not fit the model or the data.
func (o Options) fit(m model.Model, data, validation *dataset.Dataset) (Options, error) {
	o, err := o.fitModel(m)
	if err != nil {
		return o, err
	}
	if o.AskSteps > 0 && o.Ask == nil {
		return o, fmt.Errorf("--ask_steps %d needs --ask", o.AskSteps)
	}
	if validation == nil && (o.EarlyStop > 0 || o.KeepBest) {
		return o, errors.New("--early_stop and --keep_best need validation data: give " +
			"--validation_path or --validation_fraction")
	}
	for _, set := range []*dataset.Dataset{data, validation} {
		if set == nil {
			continue
		}
		if err := set.CheckVocabulary(m.Head().Shape[0]); err != nil {
			return o, err
		}
		for _, kind := range []struct {
			texts, found int
			name         string
		}{{2, set.Pairs(), "pairs of answers"}, {1, set.Rated(), "rated answers"}} {
			wanted := 0
			if o.kind().Texts == kind.texts {
				wanted = set.Len()
			}
			if kind.found != wanted {
				return o, fmt.Errorf("%d of %d samples are %s, and the objective %s needs %d",
					kind.found, set.Len(), kind.name, o.Objective, wanted)
			}
		}
	}
	return o, cmp.Or(o.checkDistributed(), o.checkContext())
}

// CheckModel returns an error for the first option that does not fit the weights of m. New calls it
// too. A program that calls it before it reads the data reports such an option at once.
func (o Options) CheckModel(m model.Model) error {
	bfloat16 := func(p *nn.Param) bool { return p.DType() == torch.BFloat16 }
	if o.Stochastic && !slices.ContainsFunc(nn.Params(m), bfloat16) {
		return errors.New("--stochastic_rounding is for bfloat16 weights, and the model has " +
			"none: give --dtype bfloat16")
	}
	if err := cmp.Or(o.checkChunking(m), o.checkCarried(m), o.checkSplits(m)); err != nil {
		return err
	}
	if o.LoRA == nil || o.LoRA.From != "" { // an adapter of a file has layers of its own
		return nil
	}
	return o.LoRA.CheckModel(m)
}

// prepare builds everything that a run needs, in the order in which one part needs another.
func (t *Trainer) prepare(m model.Model) (err error) {
	if err = t.openBatches(); err != nil {
		return err
	}
	if err = t.findEnds(m); err != nil {
		return err
	}
	o := t.options
	if o.rank() == 0 {
		if t.lock, err = state.NewLock(o.LogPath, o.CheckpointPath); err != nil {
			return err
		}
	}
	torch.ManualSeed(o.Seed)
	for _, part := range []func() error{
		func() error { return t.prepareNetwork(m) },
		t.splitRows,
		t.prepareOptimizer,
		func() (err error) { t.carries, err = t.newCarries(o.Accumulate); return err },
		t.checkSameRun,
		t.findReferences,
		t.resume,
		t.checkSameStep,
		t.openLog,
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// openBatches opens the data, and completes the options that depend on its length.
func (t *Trainer) openBatches() (err error) {
	o := &t.options
	pad := int32(0)
	if o.Tokenizer != nil {
		if id, ok := o.Tokenizer.Pad(); ok {
			pad = id
		}
	}
	t.batches, err = dataset.NewBatcher(t.data, o.layout(dataset.BatchOptions{
		Pack: o.Pack, Pad: pad, Seed: uint64(o.Seed), Passes: o.Accumulate,
	}))
	if err != nil {
		return err
	}
	if o.Steps == 0 {
		total := 0
		for epoch := range o.Epochs {
			total += t.batches.Batches(epoch)
		}
		o.Steps = total / o.Accumulate
	}
	if t.warmup = o.WarmupSteps < 0; t.warmup {
		o.WarmupSteps = o.Steps / 20
	}
	if o.WarmupSteps > o.Steps {
		t.remember(fmt.Sprintf("the warm-up has %d steps, and the run %d: the learning rate ends "+
			"at %.3g and does not reach %.3g", o.WarmupSteps, o.Steps,
			o.schedule().Rate(o.Steps-1), o.Rate))
	}
	if o.ValidateSteps == 0 {
		o.ValidateSteps = max(1, o.Steps/10)
	}
	t.schedule = o.schedule()
	return nil
}

// prepareNetwork cuts the model into units and chooses the trained parameters.
func (t *Trainer) prepareNetwork(m model.Model) (err error) {
	o := t.options
	if o.HeadOnly {
		if m, err = untie(m); err != nil {
			return err
		}
	}
	if err = o.setChunking(m); err != nil {
		return err
	}
	t.device = model.Device(m)
	if o.TensorSize > 0 || o.Distributed == PP {
		t.device = o.World.Device() // the strategy moves the shards there
	}
	t.net = network.New(m, o.objective(), o.Recompute, nil)
	t.print = state.NewFingerprint(m, t.data, t.valid)
	if o.keepsBase() || o.processes() > 1 {
		if t.weights, err = state.HashWeights(m); err != nil {
			return err
		}
	}
	if o.LoRA != nil && o.LoRA.From != "" {
		first, err := lora.Hash(o.LoRA.From)
		if err != nil {
			return err
		}
		t.weights += first
	}
	if o.keepsBase() {
		t.print.Weights = t.weights
	}
	return nil
}

// prepareOptimizer marks the trained parameters, lets the strategy place all parameters, and makes
// the optimizer.
func (t *Trainer) prepareOptimizer() (err error) {
	o, m := t.options, t.net.Model
	names, err := t.markTrained()
	if err != nil {
		return err
	}
	if o.processes() > 1 { // dropout masks of different rows must be independent
		rows, _ := o.rowGroup()
		torch.ManualSeed(o.Seed + 1_000_003*int64(rows))
	}
	if t.strategy, err = newStrategy(m, o); err != nil {
		return err
	}
	t.net.Strategy = t.strategy
	for _, p := range nn.Params(m) {
		if p.Deferred != nil { // the strategy did not move it
			torch.Scoped(func() { err = p.Move(torch.Empty(p.Local(), p.DType(), p.Device())) })
		}
		if err != nil {
			return err
		}
	}
	t.trained, t.params = optimized(t.strategy.fragments(), names, o)
	if o.Optimizer == optim.Muon {
		t.matrices = matricesOf(m)
		for i, f := range t.trained {
			t.params[i].Rows = t.matrices[f.param]
		}
	}
	t.optimizer = optim.New(t.params, optim.Options{
		Method: o.Optimizer, Moments: o.Moments, Beta1: o.Beta1, Beta2: o.Beta2, Decay: o.Decay,
		Stochastic: o.Stochastic, Seed: int(o.Seed),
	})
	if o.records(m, t.device) {
		t.replayer = network.NewReplayer(t.net, t.params, t.notice)
	}
	return nil
}

// markTrained enables gradients of the trained parameters and names them.
func (t *Trainer) markTrained() (names map[*nn.Param]string, err error) {
	o, m := t.options, t.net.Model
	all := map[*nn.Param][]string{}
	nn.Walk(m, func(c nn.Component) { all[c.Param] = append(all[c.Param], c.Name) })
	for _, p := range nn.Params(m) {
		p.RequireGrad(false)
	}
	names = map[*nn.Param]string{}
	mark := func(name string, p *nn.Param) {
		if !o.movesWeights() && p.Deferred == nil {
			ownMemory(p)
		}
		p.RequireGrad(true)
		names[p] = name
	}
	switch {
	case o.LoRA != nil:
		if err := lora.Attach(m, *o.LoRA); err != nil {
			return nil, err
		}
		t.net.Lowest, t.net.Dropout = lowestAdapted(t.net.Blocks), o.LoRA.Dropout > 0
		for _, a := range lora.Adapters(m) {
			for _, part := range lora.Tensors(a) {
				mark(strings.TrimSuffix(part.Name, ".weight"), part.Param)
			}
		}
		for _, w := range o.LoRA.Weights(m) {
			mark(strings.Join(all[w.Param], "+"), w.Param)
			if w.Param != m.Head().Param || units.Tied(m) {
				t.net.Lowest = -1
			}
			if len(o.LoRA.Tokens) > 0 {
				t.net.TrainRows(w.Param, o.LoRA.Tokens)
			}
		}
	case o.HeadOnly:
		t.net.Lowest = len(t.net.Blocks)
		mark("lm_head", m.Head().Param)
	default:
		for _, p := range nn.Params(m) {
			mark(strings.Join(all[p], "+"), p)
		}
	}
	return names, nil
}

// ownMemory copies a parameter out of a mapped file, whose alignment changes the last bits of
// GEMMs.
func ownMemory(p *nn.Param) {
	torch.NoGrad(func() {
		torch.Scoped(func() {
			own := p.Detach().Clone().Own()
			p.Tensor.Free()
			p.Tensor = own
		})
	})
}

// lowestAdapted is the first block with an adapter.
func lowestAdapted(blocks []model.Block) int {
	for i, block := range blocks {
		adapted := false
		nn.Linears(block, func(_ []string, l *nn.Linear) { adapted = adapted || len(l.LoRA) > 0 })
		if adapted {
			return i
		}
	}
	return len(blocks)
}

// newStrategy returns the strategy that the options name, for a model whose trained parameters are
// marked.
func newStrategy(m model.Model, o Options) (strategy, error) {
	list := units.Of(m)
	wide := o.ReduceDType != "same"
	if o.TensorSize > 0 {
		return newTensorParallel(m, o, wide)
	}
	switch o.Distributed {
	case DDP:
		return &ddp{local: local{units: list}, group: o.World.All, wide: wide}, nil
	case FSDP:
		return newSharded(list, o.World.All, nil, o, wide)
	case HSDP:
		mesh, err := o.World.NewMesh(o.ShardSize)
		if err != nil {
			return nil, err
		}
		return newSharded(list, mesh.Row, mesh.Column, o, wide)
	case PP:
		if o.processes() > 1 {
			return newPipeline(m, o)
		}
	}
	return &local{units: list}, nil
}

// checkSameRun returns an error unless all processes have the same settings, data and weights.
func (t *Trainer) checkSameRun() error {
	world := t.options.World
	if t.options.processes() == 1 {
		return nil
	}
	mine, err := t.options.identity(t.print)
	if err != nil {
		return err
	}
	mine.Print.Weights = t.weights
	if world.Rank == 0 {
		text, err := json.Marshal(mine)
		if err != nil {
			return err
		}
		return world.Store().Set("run", text)
	}
	world.At("waiting for rank 0 to be ready")
	text, err := world.Store().Get("run", world.Timeout())
	if err != nil {
		return fmt.Errorf("rank 0 was not ready within %v: %w", world.Timeout(), err)
	}
	var first state.Identity
	if err := json.Unmarshal(text, &first); err != nil {
		return err
	}
	if err := state.Compare(first, mine); err != nil {
		return fmt.Errorf("rank %d is not part of rank 0's run: %w", world.Rank, err)
	}
	return nil
}

func (t *Trainer) openLog() (err error) {
	o := t.options
	if o.LogPath == "" || o.rank() > 0 {
		return nil
	}
	if t.log, err = report.OpenLog(o.LogPath, o.TensorBoard, t.step); err == nil {
		t.listeners = append(t.listeners, t.log)
	}
	return err
}

// untie gives a model whose head shares the embedding's weights a separate head, so that training
// the head leaves the embedding unchanged. The result takes over m's weights.
func untie(m model.Model) (model.Model, error) {
	if !units.Tied(m) {
		return m, nil
	}
	byName := map[string]*nn.Param{}
	nn.Walk(m, func(c nn.Component) { byName[c.Name] = c.Param })
	config := m.Config().Clone()
	config["tie_word_embeddings"] = false
	untied, err := model.New(config)
	if err != nil {
		return nil, err
	}
	nn.Walk(untied, func(c nn.Component) {
		if from := byName[c.Name]; from != nil {
			c.Param.Tensor, c.Param.Deferred = from.Tensor, from.Deferred
			return
		}
		head := m.Head()
		if head.Deferred != nil {
			c.Param.Defer(head.DType(), head.Device(), head.Deferred)
			return
		}
		torch.Scoped(func() { c.Param.Tensor = head.Detach().Clone().Own() })
	})
	for _, p := range nn.Params(m) {
		p.Tensor = torch.Tensor{}
	}
	model.Free(m)
	return untied, nil
}

// Listen adds a listener.
func (t *Trainer) Listen(l Listener) { t.listeners = append(t.listeners, l) }

// Model returns the model in training.
func (t *Trainer) Model() model.Model { return t.net.Model }

// Steps returns the number of steps of the run.
func (t *Trainer) Steps() int { return t.options.Steps }

// Done returns the number of steps done, including those of the runs that this one resumed.
func (t *Trainer) Done() int { return t.step }

// Recorded reports whether passes are replayed, see [Compile].
func (t *Trainer) Recorded() bool { return t.replayer.Replays() }

// Trained returns the number of trained weights.
func (t *Trainer) Trained() int {
	n := 0
	for _, unit := range units.Of(t.net.Model) {
		for _, p := range unit {
			if p.RequiresGrad() {
				n += units.Elements(p.Shape)
			}
		}
	}
	if o := t.options.LoRA; o != nil && len(o.Tokens) > 0 {
		for _, w := range o.Weights(t.net.Model) {
			n -= units.Elements(w.Shape()) - len(o.Tokens)*w.Shape()[1]
		}
	}
	return n
}

// PeakMemory returns the most memory in use so far on the model's device, in bytes.
func (t *Trainer) PeakMemory() int64 {
	_, peak := report.Memory(t.device)
	return peak
}

// Close frees what the run needed, except the model, which must still exist.
func (t *Trainer) Close() {
	if t.writing != nil &&
		t.options.processes() == 1 { // the run failed; with others, one may never report
		<-t.writing.done
		t.writing = nil
	}
	t.freeOptimizer()
	freeCarries(t.carries)
	if t.strategy != nil {
		t.strategy.free()
	}
	if t.log != nil {
		t.log.Close()
	}
	t.lock.Release()
}

func (t *Trainer) freeOptimizer() {
	if t.optimizer != nil {
		t.optimizer.ClearGradients()
		t.optimizer.Free()
	}
	t.replayer.Free()
	t.optimizer, t.params, t.trained, t.replayer = nil, nil, nil, nil
}
