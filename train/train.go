// Package train fine-tunes a causal language model: all of its weights, low-rank additions to them (LoRA), or its head.
//
//	t, err := train.New(m, data, validation, train.Options{Steps: 100, BatchSize: 4, SequenceLength: 512, Rate: 1e-4})
//	if err != nil { … }
//	defer t.Close()
//	if err := t.Run(ctx); err != nil { … }
//	err = t.Export("tuned")
//
// A step is visible in one function, network.gradients: the model runs block by block, with gradients cut in between.
//
// A run with a checkpoint path writes its whole state there every so many steps and when it is stopped. A later run with
// the same options and Resume goes on from the last one; on the CPU with equally many threads its losses are, bit for bit,
// those that the first run would have gone on to.
package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"conquer/lora"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train/internal/units"
	"conquer/train/report"
)

// Recompute says what a forward pass keeps for the backward pass.
type Recompute string

const (
	RecomputeNone  Recompute = "none"  // every intermediate result
	RecomputeBlock Recompute = "block" // each block's input; the block runs again when its gradients are due
	// RecomputeSelective keeps what products, attention and scans give. What comes between, normalizations, SwiGLU and
	// convolutions, is computed again: a third of the memory for a few hundredths of the time.
	RecomputeSelective Recompute = "selective"
)

// Recomputes lists them.
var Recomputes = []Recompute{RecomputeNone, RecomputeSelective, RecomputeBlock}

func (r Recompute) check() error {
	if r != "" && !slices.Contains(Recomputes, r) {
		return fmt.Errorf("unknown recompute %q: choose %s, %s or %s", r, RecomputeNone, RecomputeSelective, RecomputeBlock)
	}
	return nil
}

// Options say how a model is tuned. Those with a JSON name are what a resumed run must have in common with the first.
type Options struct {
	// Steps is how many steps the run has; 0 for as many as Epochs passes over the data take.
	Steps  int `json:"steps,omitempty"`
	Epochs int `json:"-"`

	BatchSize      int  `json:"batch_size"`      // rows of a forward pass
	SequenceLength int  `json:"sequence_length"` // tokens of a row at the most
	Accumulate     int  `json:"accumulate"`      // forward passes of a step; 0 means 1
	Pack           bool `json:"pack"`            // several samples a row, which do not see each other

	Schedule    string  `json:"schedule"` // optim.Constant, optim.Linear or optim.Cosine, which "" means
	Rate        float64 `json:"learning_rate"`
	MinRate     float64 `json:"min_learning_rate"`
	WarmupSteps int     `json:"warmup_steps"`        // -1 for a twentieth of the run
	Optimizer   string  `json:"optimizer,omitempty"` // optim.AdamW, which "" means, or optim.Lion
	Moments     string  `json:"moments,omitempty"`   // what AdamW keeps its averages in: optim.Float32, which "" means, BFloat16 or Int8
	Beta1       float64 `json:"beta1"`               // 0 means 0.9
	Beta2       float64 `json:"beta2"`               // 0 means 0.999, with Lion 0.99
	Decay       float64 `json:"weight_decay"`
	// NoDecay is which weights do not decay: some of Undecayed; nil for norms and biases.
	NoDecay []string `json:"no_decay,omitempty"`
	Clip    float64  `json:"clip"` // the largest norm of a step's gradients; 0 for any

	Objective string  `json:"objective,omitempty"` // SFT, which "" means, or DPO
	Beta      float64 `json:"dpo_beta,omitempty"`  // DPO's: how dear it is to leave the reference; 0 means 0.1
	// Progress, where it is not nil, hears how far the work before the first step is, and can end it with an error.
	Progress func(what string, done, total int) error `json:"-"`

	LabelSmoothing float64 `json:"label_smoothing,omitempty"` // the part of a label that is spread over the vocabulary
	ZLoss          float64 `json:"z_loss,omitempty"`          // the coefficient of the squared log of the softmax's denominator

	LoRA     *lora.Config `json:"lora,omitempty"`
	HeadOnly bool         `json:"head_only"`
	// Stochastic keeps bfloat16 weights without float32 originals, see optim.Options.
	Stochastic bool      `json:"stochastic_rounding,omitempty"`
	Seed       int64     `json:"seed"`
	Recompute  Recompute `json:"-"` // "" means RecomputeNone
	// Compile says how passes are launched; "" is CompileGraph on a GPU that a micro-batch of this size does not keep busy, in
	// one process, and else CompileNone. It changes the speed, and sums by their last bits.
	Compile Compile `json:"-"`

	// ValidateSteps is how many steps lie between two looks at the validation set; 0 for a tenth of the run. The first look
	// is before the first step, the last after the last.
	ValidateSteps int `json:"-"`

	// CheckpointPath is the folder for checkpoints; without one none are written.
	CheckpointPath  string `json:"-"`
	CheckpointSteps int    `json:"-"` // 0: when the run is stopped only
	// CheckpointFormat is FormatHF or FormatNative; "" for FormatNative where several processes write, else FormatHF.
	CheckpointFormat string `json:"-"`
	Keep             int    `json:"-"` // how many of the last ones stay; 0 means 2
	Resume           bool   `json:"-"` // go on from the last checkpoint, if there is one

	// LogPath is the folder for metrics.jsonl and, where TensorBoard is set, event files; without one none are written.
	LogPath     string `json:"-"`
	TensorBoard bool   `json:"-"`

	// World is the processes that take part in the run, nil for this one alone, and Distributed how they share its work: one of
	// Strategies, "" means None. BatchSize is each process's.
	World       *dist.World `json:"-"`
	Distributed string      `json:"-"`
	ShardSize   int         `json:"-"` // hsdp: how many processes divide the weights among them; 0 for those of a machine
	// TensorSize is how many processes divide each layer among them, with TP, ddp and fsdp; 0 for none, but for those of a
	// machine with TP. BatchSize is theirs together.
	TensorSize int `json:"-"`
	// KeepGathered keeps a block's weights whole from its forward to its backward pass, with fsdp and hsdp.
	KeepGathered bool `json:"-"`
	// OffloadOptimizer keeps, with fsdp and hsdp, the optimizer's state, the float32 originals of the weights and the sums of
	// their gradients in the host's memory, where the steps are taken.
	OffloadOptimizer bool   `json:"-"`
	ReduceDType      string `json:"-"` // in what gradients are summed: "float32", which "" means, or "same", the weights' own

	// Tokenizer, when not nil, is written beside the weights.
	Tokenizer *tokenizer.Tokenizer `json:"-"`
	// BaseModel is the name or path of the model that an adapter belongs to.
	BaseModel string `json:"-"`
	// GenerationConfig is the text of the model's generation_config.json, to be written beside the weights; nil for none.
	GenerationConfig []byte `json:"-"`
}

// Results that a [Listener] receives.
type (
	Step       = report.Step
	Validation = report.Validation
	Measure    = report.Measure
)

// Listener hears how a run goes. A run ends with the first error that it is given back.
type Listener interface {
	Step(Step) error
	Validation(Validation) error
	Notice(message string)
}

// Trainer is one run of tuning. It serves one goroutine.
type Trainer struct {
	options   Options
	net       network
	batches   *dataset.Batcher
	data      *dataset.Dataset
	valid     *dataset.Dataset
	reference map[*dataset.Dataset]reference // DPO
	device    torch.Device
	params    []optim.Param
	held      []piece // what params are of the weights
	optimizer *optim.Optimizer
	replayer  *replayer // nil where passes are launched operation by operation
	schedule  optim.Schedule
	listeners []Listener
	log       *report.Log
	lock      *folderLock

	step      int      // steps done
	validated int      // the last step after which the validation set was looked at, -1 for none
	saved     int      // the step of the last checkpoint, -1 for none
	skipped   int      // steps skipped in a row
	writing   *writing // a native checkpoint that is being written, or nil
	print     fingerprint
	began     string // with which weights, where other processes must begin with the same
	started   time.Time
}

// New prepares a run that tunes m, a model with weights or the promise of them ([model.Defer]), on data. validation may be
// nil. The Trainer changes m, and for HeadOnly with a head that is tied to the embedding moves its weights into a model in
// which it is not. Model is the one to use and to free in either case.
func New(m model.Model, data, validation *dataset.Dataset, o Options) (*Trainer, error) {
	var t *Trainer
	err := torch.Run(func() (err error) {
		t, err = newTrainer(m, data, validation, o)
		return err
	})
	return t, err
}

func newTrainer(m model.Model, data, validation *dataset.Dataset, o Options) (_ *Trainer, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if o = o.complete(); o.SequenceLength > m.MaxLength() {
		return nil, fmt.Errorf("sequence length %d is beyond the model's %d", o.SequenceLength, m.MaxLength())
	}
	for _, set := range []*dataset.Dataset{data, validation} {
		if set != nil {
			if err := set.CheckVocabulary(m.Head().Shape[0]); err != nil {
				return nil, err
			}
			if pairs := set.Pairs(); o.Objective == DPO && pairs < set.Len() || o.Objective != DPO && pairs > 0 {
				return nil, fmt.Errorf("%d of %d samples are pairs of answers, which are for the objective %s alone", pairs, set.Len(), DPO)
			}
		}
	}
	pad := int32(0)
	if o.Tokenizer != nil {
		if id, ok := o.Tokenizer.Pad(); ok {
			pad = id
		}
	}
	if err := o.checkDistributed(); err != nil {
		return nil, err
	}
	batches, err := dataset.NewBatcher(data, o.layout(dataset.BatchOptions{Pack: o.Pack, Pad: pad, Seed: uint64(o.Seed), Passes: o.Accumulate}))
	if err != nil {
		return nil, err
	}
	if o.Steps == 0 {
		total := 0
		for epoch := range o.Epochs {
			total += batches.Batches(epoch)
		}
		o.Steps = total / o.Accumulate
	}
	if o.WarmupSteps < 0 {
		o.WarmupSteps = o.Steps / 20
	}
	if o.ValidateSteps == 0 {
		o.ValidateSteps = max(1, o.Steps/10)
	}
	if o.Stochastic && !slices.ContainsFunc(nn.Params(m), func(p *nn.Param) bool { return p.DType() == torch.BFloat16 }) {
		return nil, errors.New("stochastic rounding is for bfloat16 weights, and the model has none: give --dtype bfloat16")
	}
	t := &Trainer{options: o, batches: batches, data: data, valid: validation, validated: -1, saved: -1, started: time.Now()}
	t.schedule = optim.Schedule{Kind: o.Schedule, Peak: o.Rate, Min: o.MinRate, Warmup: o.WarmupSteps, Steps: o.Steps}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if o.rank() == 0 {
		if t.lock, err = lockFolder(o.CheckpointPath); err != nil {
			return nil, err
		}
	}
	torch.ManualSeed(o.Seed)
	if err := t.prepare(m, data, validation); err != nil {
		return nil, err
	}
	if err := t.alike(); err != nil {
		return nil, err
	}
	if err := t.refer(data, validation); err != nil {
		return nil, err
	}
	if err := t.resume(); err != nil {
		return nil, err
	}
	if err := t.abreast(); err != nil {
		return nil, err
	}
	if o.LogPath != "" && o.rank() == 0 {
		if t.log, err = report.OpenLog(o.LogPath, o.TensorBoard, t.step); err != nil {
			return nil, err
		}
		t.listeners = append(t.listeners, t.log)
	}
	return t, nil
}

// complete is o with its defaults filled in.
func (o Options) complete() Options {
	otherwise(&o.Accumulate, 1)
	otherwise(&o.Schedule, optim.Cosine)
	otherwise(&o.Beta1, 0.9)
	otherwise(&o.Optimizer, optim.AdamW)
	otherwise(&o.Moments, optim.Float32)
	if o.Optimizer == optim.Lion {
		otherwise(&o.Beta2, 0.99)
	}
	otherwise(&o.Beta2, 0.999)
	if o.NoDecay == nil {
		o.NoDecay = []string{"norm", "bias"}
	}
	otherwise(&o.Recompute, RecomputeNone)
	otherwise(&o.Objective, SFT)
	if o.Objective == DPO {
		otherwise(&o.Beta, 0.1)
	}
	otherwise(&o.Keep, 2)
	o.Distributed = StrategyName(o.Distributed)
	otherwise(&o.Distributed, None)
	if o.World != nil {
		otherwise(&o.ShardSize, o.World.LocalSize)
		if o.Distributed == TP {
			otherwise(&o.TensorSize, o.World.LocalSize)
		}
	}
	if o.processes() > 1 || o.OffloadOptimizer {
		otherwise(&o.CheckpointFormat, FormatNative)
	}
	otherwise(&o.CheckpointFormat, FormatHF)
	return o
}

// rank is this process's among those of the run.
func (o Options) rank() int {
	if o.World == nil {
		return 0
	}
	return o.World.Rank
}

// processes is how many take part in the run.
func (o Options) processes() int {
	if o.World == nil {
		return 1
	}
	return o.World.Size
}

// Check reports the first option that makes no sense whatever the model and the data are; New checks as well.
func (o Options) Check() error {
	o = o.complete()
	switch {
	case o.Steps < 0 || o.Epochs < 0 || (o.Steps == 0) == (o.Epochs == 0):
		return fmt.Errorf("%d steps and %d epochs: give one of the two", o.Steps, o.Epochs)
	case o.BatchSize < 1 || o.Accumulate < 1:
		return fmt.Errorf("batch size %d, accumulated %d times: both must be at least 1", o.BatchSize, o.Accumulate)
	case o.SequenceLength < 2:
		return fmt.Errorf("sequence length %d: it must be at least 2", o.SequenceLength)
	case !(o.Beta1 >= 0 && o.Beta1 < 1) || !(o.Beta2 >= 0 && o.Beta2 < 1):
		return fmt.Errorf("betas %g and %g: they must be at least 0 and below 1", o.Beta1, o.Beta2)
	case !(o.Decay >= 0) || !(o.Clip >= 0) || math.IsInf(o.Decay, 0):
		return fmt.Errorf("weight decay %g and clipping at %g: neither can be negative", o.Decay, o.Clip)
	case o.LoRA != nil && o.HeadOnly:
		return fmt.Errorf("LoRA tunes the blocks and head_only the head: choose one")
	case o.ValidateSteps < 0 || o.CheckpointSteps < 0 || o.Keep < 1:
		return fmt.Errorf("steps between validations and checkpoints cannot be negative, and at least 1 checkpoint is kept")
	case o.Resume && o.CheckpointPath == "":
		return fmt.Errorf("nothing to resume from: there is no checkpoint path")
	}
	if err := o.Recompute.check(); err != nil {
		return err
	}
	if err := o.checkCompile(); err != nil {
		return err
	}
	if o.LoRA != nil {
		if err := o.LoRA.Check(); err != nil {
			return err
		}
	}
	if err := o.checkObjective(); err != nil {
		return err
	}
	if err := o.checkOptimizer(); err != nil {
		return err
	}
	return optim.Schedule{Kind: o.Schedule, Peak: o.Rate, Min: o.MinRate, Warmup: max(0, o.WarmupSteps)}.Check()
}

func otherwise[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// prepare decides which weights are trained and where the backward pass ends.
func (t *Trainer) prepare(m model.Model, data, validation *dataset.Dataset) (err error) {
	o := t.options
	if o.HeadOnly {
		if m, err = untie(m); err != nil {
			return err
		}
	}
	t.device = model.Device(m)
	if o.TensorSize > 0 || o.Distributed == PP {
		t.device = o.World.Device() // where the parts go
	}
	t.net = network{model: m, blocks: m.Blocks(), lowest: -1, recompute: o.Recompute, head: units.Head(m), smoothing: o.LabelSmoothing, zLoss: o.ZLoss, beta: o.Beta}
	t.print = fingerprintOf(m, data, validation)
	if o.keepsWeights() || o.processes() > 1 {
		if t.began, err = hashWeights(m); err != nil {
			return err
		}
	}
	if o.keepsWeights() {
		t.print.Weights = t.began
	}
	names := map[*nn.Param][]string{}
	nn.Walk(m, func(p nn.Component) { names[p.Param] = append(names[p.Param], p.Name) })
	for _, p := range nn.Params(m) {
		p.RequireGrad(false)
	}
	trained := map[*nn.Param]string{}
	train := func(name string, p *nn.Param) {
		// Memory of its own: a view of a mapped file is not aligned, which changes the last bits of products.
		// Sharded and divided ones are about to get it.
		if !o.sharded() && p.Deferred == nil {
			torch.NoGrad(func() {
				torch.Scoped(func() {
					own := p.Detach().Clone().Own()
					p.Tensor.Free()
					p.Tensor = own
				})
			})
		}
		p.RequireGrad(true)
		trained[p] = name
	}
	switch {
	case o.LoRA != nil:
		if err := lora.Attach(m, *o.LoRA); err != nil {
			return err
		}
		t.net.lowest, t.net.dropout = lowestAdapted(t.net.blocks), o.LoRA.Dropout > 0
		for _, a := range lora.Adapters(m) {
			train(a.Name+".lora_A", a.A)
			train(a.Name+".lora_B", a.B)
		}
	case o.HeadOnly:
		t.net.lowest = len(t.net.blocks)
		train("lm_head", m.Head().Param)
	default:
		for _, p := range nn.Params(m) {
			train(strings.Join(names[p], "+"), p)
		}
	}
	if o.processes() > 1 { // what is dropped from a row must not depend on what is dropped from another
		rows, _ := o.rowGroup()
		torch.ManualSeed(o.Seed + 1_000_003*int64(rows))
	}
	if t.net.strategy, err = newStrategy(m, o); err != nil {
		return err
	}
	for _, p := range nn.Params(m) {
		if p.Deferred != nil { // the strategy has left it where it is to be
			torch.Scoped(func() { err = p.Move(torch.Empty(p.Local(), p.DType(), p.Device())) })
		}
		if err != nil {
			return err
		}
	}
	t.params, t.held = parameters(t.net.strategy, trained, o)
	if t.device.IsCUDA() && o.Moments != optim.Float32 {
		return fmt.Errorf("moments in %s are for the CPU so far; on a GPU stochastic rounding keeps bfloat16 weights' moments in bfloat16, without float32 originals", o.Moments)
	}
	t.optimizer = optim.New(t.params, optim.Options{Method: o.Optimizer, Moments: o.Moments, Beta1: o.Beta1, Beta2: o.Beta2, Decay: o.Decay,
		Stochastic: o.Stochastic, Seed: int(o.Seed)})
	t.replayer = newReplayer(t)
	return nil
}

// alike makes sure that all processes are about to do the same.
func (t *Trainer) alike() error {
	world := t.options.World
	if world == nil || world.Size == 1 {
		return nil
	}
	settings, err := t.settings()
	if err != nil {
		return err
	}
	resumable := t.print
	defer func() { t.print = resumable }()
	t.print.Weights = t.began
	mine, err := json.Marshal(state{Settings: settings, Print: t.print})
	if err != nil {
		return err
	}
	if world.Rank == 0 {
		return world.Store().Set("run", mine)
	}
	world.At("waiting for rank 0 to be ready")
	text, err := world.Store().Get("run", world.Timeout())
	if err != nil {
		return fmt.Errorf("rank 0 did not get ready within %v: %w", world.Timeout(), err)
	}
	var first state
	if err := json.Unmarshal(text, &first); err != nil {
		return err
	}
	if err := t.compare(first); err != nil {
		return fmt.Errorf("rank %d is not of rank 0's run: %w", world.Rank, err)
	}
	return nil
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

// untie gives a model whose head shares the embedding's weights a head of its own: tuning the head alone must leave the
// embedding as it is. The result takes m's weights over.
func untie(m model.Model) (model.Model, error) {
	byName := map[string]*nn.Param{}
	tied := false
	nn.Walk(m, func(p nn.Component) {
		byName[p.Name] = p.Param
		tied = tied || p.Param == m.Head().Param && p.Name != "lm_head.weight"
	})
	if !tied {
		return m, nil
	}
	config := m.Config().Clone()
	config["tie_word_embeddings"] = false
	apart, err := model.New(config)
	if err != nil {
		return nil, err
	}
	nn.Walk(apart, func(p nn.Component) {
		if from := byName[p.Name]; from != nil {
			p.Param.Tensor, p.Param.Deferred = from.Tensor, from.Deferred
			return
		}
		head := m.Head()
		if head.Deferred != nil {
			p.Param.Defer(head.DType(), head.Device(), head.Deferred)
			return
		}
		torch.Scoped(func() { p.Param.Tensor = head.Detach().Clone().Own() })
	})
	for _, p := range nn.Params(m) {
		p.Tensor = torch.Tensor{}
	}
	model.Free(m)
	return apart, nil
}

// Listen makes l hear how the run goes.
func (t *Trainer) Listen(l Listener) { t.listeners = append(t.listeners, l) }

// Model is the model being tuned.
func (t *Trainer) Model() model.Model { return t.net.model }

// Steps is how many steps the run has in all; Done is how many of them are done.
func (t *Trainer) Steps() int { return t.options.Steps }

// Done is how many steps are done, those of the runs that this one resumed included.
func (t *Trainer) Done() int { return t.step }

// Recorded reports whether passes are replayed by now, see Compile.
func (t *Trainer) Recorded() bool { return t.replayer.replays() }

// Trained counts the weights that are tuned.
func (t *Trainer) Trained() int {
	n := 0
	for _, unit := range units.Of(t.net.model) {
		for _, p := range unit {
			if p.RequiresGrad() {
				n += units.Elements(p.Shape)
			}
		}
	}
	return n
}

// Close frees what the run needed, not the model, which must still be there.
func (t *Trainer) Close() {
	if t.writing != nil && t.options.processes() == 1 { // of a run that failed; another rank may be gone
		<-t.writing.done
		t.writing = nil
	}
	t.freeOptimizer()
	if t.net.strategy != nil {
		t.net.strategy.free()
	}
	if t.log != nil {
		t.log.Close()
	}
	t.lock.release()
}

func (t *Trainer) freeOptimizer() {
	if t.optimizer != nil {
		t.optimizer.ClearGradients()
		t.optimizer.Free()
	}
	t.replayer.free()
	t.optimizer, t.params, t.held, t.replayer = nil, nil, nil, nil
}
