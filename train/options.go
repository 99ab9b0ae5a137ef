package train

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"conquer/lora"
	"conquer/model"
	"conquer/parallel"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/optim"
	"conquer/train/internal/network"
	"conquer/train/internal/units"
)

// Recompute says which results of a forward pass are kept for the backward pass.
type Recompute = network.Recompute

const (
	RecomputeNone  = network.RecomputeNone  // every result
	RecomputeBlock = network.RecomputeBlock // each block's input; the block runs again
	// RecomputeSelective keeps the results of linear layers, attention and scans. Norms, SwiGLU and
	// convolutions run again. It saves a third of the memory and costs a few percent of the time.
	RecomputeSelective = network.RecomputeSelective
)

// Recomputes lists the values of Recompute.
var Recomputes = []Recompute{RecomputeNone, RecomputeSelective, RecomputeBlock}

// Compile says how the operations of a step are launched.
type Compile string

const (
	CompileNone Compile = "none" // one by one
	// CompileGraph records forward and backward passes as CUDA graphs, once per shape, and replays
	// them. On the CPU, the passes run as they are.
	CompileGraph Compile = "graph"
)

// The objectives. docs/training.md has their formulas.
const (
	SFT = "sft" // supervised fine-tuning: raises the likelihood of texts and answers

	// These learn from pairs which answer is better, relative to the model before training.

	DPO   = "dpo"   // direct preference optimization (Rafailov et al., arXiv 2305.18290)
	IPO   = "ipo"   // identity preference optimization (Azar et al., arXiv 2310.12036)
	Hinge = "hinge" // DPO with the hinge loss of SLiC (Zhao et al., arXiv 2305.10425)

	// These learn from pairs, and need no reference.

	SimPO = "simpo" // simple preference optimization (Meng et al., arXiv 2405.14734)
	ORPO  = "orpo"  // odds ratio preference optimization (Hong et al., arXiv 2403.07691)

	// KTO (Ethayarajh et al., arXiv 2402.01306) learns from answers of which each is desirable or
	// not, relative to the model before training.
	KTO = "kto"
)

// Objectives lists the objectives.
var Objectives = func() (names []string) {
	for _, k := range network.Kinds {
		names = append(names, k.Name)
	}
	return names
}()

// The strategies that divide the work of a run over processes. Data-parallel processes take
// different rows of each batch. The result of a step does not depend on the strategy.
const (
	None = "none" // one process
	DDP  = "ddp"  // each process holds all weights; gradients are summed
	FSDP = "fsdp" // each process holds an equal part of weights, gradients and optimizer state
	HSDP = "hsdp" // fsdp within groups of processes (hosts), ddp across the groups
	// TP is tensor parallelism: the TensorSize processes of a group divide each layer (see package
	// parallel) and take the same rows. Several groups sum their gradients as ddp does. FSDP with a
	// TensorSize shards the divided layers further, over the processes that hold the same shard in
	// each group.
	TP = "tp"
	// PP is pipeline parallelism: each process is a stage with some of the blocks, and all take the
	// same rows. A step's micro-batches (Options.Accumulate) follow each other through the stages.
	// Each stage alternates one forward and one backward pass, after as many forward passes as
	// there are stages behind it (Narayanan et al., arXiv 2104.04473).
	PP = "pp"
)

// Strategies lists the strategies.
var Strategies = []string{None, DDP, FSDP, HSDP, TP, PP}

// StrategyName returns pp for mp, which is another name of it, and any other name unchanged.
func StrategyName(name string) string {
	if name == "mp" {
		return PP
	}
	return name
}

// The formats of checkpoints. FormatHF is a Hugging Face folder (or a PEFT folder) that one process
// writes. In FormatNative ([checkpoint.Native]) every process writes what it holds while training
// continues. Any number of processes can resume from it, with any strategy.
const (
	FormatHF     = "hf"
	FormatNative = "native"
)

// NoDecayKinds lists the kinds of weights that can be excluded from weight decay: norms, biases
// (and other vectors, such as a state-space layer's rates), the embedding. "none" excludes nothing.
var NoDecayKinds = []string{"norm", "bias", "embedding", "none"}

// Options describe a run. A resumed run must have the same values in the fields that have a JSON
// name.
type Options struct {
	// Steps is the number of steps; 0 means as many as Epochs passes over the data need.
	Steps  int `json:"steps,omitempty"`
	Epochs int `json:"-"`

	BatchSize      int  `json:"batch_size"`      // rows of a micro-batch, per data-parallel process
	SequenceLength int  `json:"sequence_length"` // maximum number of tokens of a row
	Accumulate     int  `json:"accumulate"`      // micro-batches of a step; 0 means 1
	Pack           bool `json:"pack"`            // several samples per row, apart in attention

	// CarryState lets the states of state-space layers go on from each row of a text to the next,
	// without gradients across that border: truncated back-propagation through time. The data must
	// be loaded with MaxLength RowLength.
	CarryState bool `json:"carry_state,omitempty"`
	// Chunking is the strategy of state-space layers, as statespace.ParseChunking reads it; ""
	// means the model's own. ChunkSize is its chunk size in tokens; 0 means the model's own.
	Chunking  string `json:"chunking,omitempty"`
	ChunkSize int    `json:"chunk_size,omitempty"`

	Schedule    string  `json:"schedule"` // of optim.Schedules; "" means optim.Cosine
	Rate        float64 `json:"learning_rate"`
	MinRate     float64 `json:"min_learning_rate"`
	WarmupSteps int     `json:"warmup_steps"` // -1 for a twentieth of the run
	// DecaySteps are the last steps of optim.WSD, in which the rate falls; 0 means a tenth of the
	// run. Cycles is how often it falls with optim.Restarts; 0 means 2.
	DecaySteps int `json:"decay_steps,omitempty"`
	Cycles     int `json:"cycles,omitempty"`

	Optimizer string  `json:"optimizer,omitempty"` // of optim.Methods; "" means optim.AdamW
	Moments   string  `json:"moments,omitempty"`   // AdamW: Float32 (default), BFloat16 or Int8
	Beta1     float64 `json:"beta1"`               // 0 means 0.9
	Beta2     float64 `json:"beta2"`               // 0 means 0.999, or 0.99 for Lion
	Decay     float64 `json:"weight_decay"`
	// NoDecay lists the kinds of weights without weight decay, of NoDecayKinds; nil means norms and
	// biases.
	NoDecay []string `json:"no_decay,omitempty"`
	Clip    float64  `json:"clip"` // maximum norm of a step's gradients; 0 means no limit

	Objective string `json:"objective,omitempty"` // one of Objectives; "" means SFT
	// Beta multiplies the differences of log-probabilities that preferences are learned from: the
	// larger it is, the closer the model stays to the reference. For IPO it is tau, and for ORPO
	// the weight of the odds ratio. 0 means 0.1.
	Beta float64 `json:"beta,omitempty"`
	// Gamma is the margin that SimPO aims at; TRL's default is 0.5.
	Gamma float64 `json:"gamma,omitempty"`
	// SFTWeight adds the mean negative log-likelihood of the preferred answers to a loss of pairs.
	// For ORPO it is 1.
	SFTWeight float64 `json:"sft_weight,omitempty"`
	// DesirableWeight and UndesirableWeight weigh the answers of KTO; 0 means 1.
	DesirableWeight   float64 `json:"desirable_weight,omitempty"`
	UndesirableWeight float64 `json:"undesirable_weight,omitempty"`
	// Progress, if not nil, is called with the progress of the work before the first step. An error
	// from it ends New.
	Progress func(what string, done, total int) error `json:"-"`

	// LabelSmoothing is the fraction of a label that is spread over the vocabulary. For DPO and
	// SimPO it is the probability that the answers of a pair are swapped.
	LabelSmoothing float64 `json:"label_smoothing,omitempty"`
	// ZLoss is the coefficient of the squared log-sum-exp of the logits; 0 means that of the model,
	// which for Bamba is z_loss_coefficient.
	ZLoss float64 `json:"z_loss,omitempty"`
	// RouterLoss is the coefficient of the loss that balances the experts of mixtures; 0 means that
	// of the model's config: router_aux_loss_coef if output_router_logits is true, else none.
	RouterLoss float64 `json:"router_aux_loss,omitempty"`

	// LoRA, if not nil, trains adapters instead of the weights. The zero Config has defaults;
	// [lora.Open] describes an adapter to go on from.
	LoRA     *lora.Config `json:"lora,omitempty"`
	HeadOnly bool         `json:"head_only"` // trains the head's weights only
	// Stochastic keeps bfloat16 weights without float32 master weights, see optim.Options.
	Stochastic bool      `json:"stochastic_rounding,omitempty"`
	Seed       int64     `json:"seed"`
	Recompute  Recompute `json:"-"` // "" means RecomputeNone
	// Compile is CompileGraph or CompileNone. "" means CompileGraph for one process on a GPU that a
	// micro-batch of this size does not keep busy, else CompileNone. It changes the speed, and sums
	// in their last bits.
	Compile Compile `json:"-"`

	// MaxSkipped is the number of steps in a row that may be skipped, because their loss or
	// gradients are not finite, before the run ends with an error; 0 means 20.
	MaxSkipped int `json:"-"`

	// ValidateSteps is the number of steps between validations; 0 means a tenth of the run.
	// Validation also happens before the first and after the last step.
	ValidateSteps int `json:"-"`
	// EarlyStop, if not 0, ends the run after so many validations in a row that did not lower the
	// validation loss by more than MinImprovement.
	EarlyStop      int     `json:"-"`
	MinImprovement float64 `json:"-"`
	// KeepBest keeps the checkpoint with the lowest validation loss besides Keep others, and makes
	// its weights the result.
	KeepBest bool `json:"-"`

	// Ask answers questions every AskSteps steps, see [Trainer.Ask]; 0 means never.
	Ask      func(step int) ([]Answer, error) `json:"-"`
	AskSteps int                              `json:"-"`

	CheckpointPath  string `json:"-"` // folder for checkpoints; "" means no checkpoints
	CheckpointSteps int    `json:"-"` // steps between checkpoints; 0: only when the run stops
	// SaveAtEnd writes a checkpoint after the last step too, from which a run of more steps can
	// continue.
	SaveAtEnd bool `json:"-"`
	// SaveFormat is FormatHF or FormatNative. "" means FormatNative if several processes
	// write, else FormatHF.
	SaveFormat string `json:"-"`
	Keep       int    `json:"-"` // number of checkpoints to keep; 0 means 2
	Resume     bool   `json:"-"` // continue from the latest checkpoint, if there is one
	// Overwrite, without a checkpoint to resume from, replaces the checkpoints of another run.
	Overwrite bool `json:"-"`
	// Began is when the run began, see [Options.Start]; zero means now.
	Began time.Time `json:"-"`

	LogPath     string `json:"-"` // folder for metrics.jsonl and event files; "" means none
	TensorBoard bool   `json:"-"` // write event files

	// World holds the processes of the run, nil for one process without communication. Distributed
	// is the strategy, "" for None.
	World       *dist.World `json:"-"`
	Distributed string      `json:"-"`
	ShardSize   int         `json:"-"` // hsdp: processes that shard weights; 0: those of a host
	// TensorSize is the number of processes that divide each layer, with TP, DDP and FSDP. 0 means
	// none, with TP those of a host. The group shares a BatchSize.
	TensorSize int `json:"-"`
	// ContextSize is the number of consecutive processes that each row is cut over, with ddp and
	// fsdp; 0 means 1. They count as one process to BatchSize.
	ContextSize int `json:"-"`
	// KeepGathered keeps a block's gathered weights from its forward to its backward pass, with
	// fsdp and hsdp.
	KeepGathered bool `json:"-"`
	// OffloadOptimizer, with fsdp and hsdp, keeps moments, float32 master weights and summed
	// gradients in host memory and runs the optimizer there.
	OffloadOptimizer bool `json:"-"`
	// ReduceDType is the dtype of gradient sums: "float32" (the default), or "same" as the weights.
	ReduceDType string `json:"-"`

	// Tokenizer, if not nil, is saved with the weights.
	Tokenizer *tokenizer.Tokenizer `json:"-"`
	// AdapterTokenizer also saves Tokenizer beside an adapter, because it is not the base's.
	AdapterTokenizer bool `json:"-"`
	// BaseModel says which model an adapter belongs to, see [lora.Save].
	BaseModel string `json:"-"`
	// GenerationConfig is the text of generation_config.json to save with the weights; nil means
	// none.
	GenerationConfig []byte `json:"-"`
}

// complete returns o with defaults filled in.
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
	if o.compares() {
		otherwise(&o.Beta, 0.1)
	}
	switch o.Objective {
	case ORPO:
		otherwise(&o.SFTWeight, 1)
	case KTO:
		otherwise(&o.DesirableWeight, 1)
		otherwise(&o.UndesirableWeight, 1)
	}
	if o.LoRA != nil {
		adapter := o.LoRA.Complete()
		o.LoRA = &adapter
	}
	otherwise(&o.Keep, 2)
	otherwise(&o.MaxSkipped, 20)
	o.Distributed = StrategyName(o.Distributed)
	otherwise(&o.Distributed, None)
	if o.World != nil {
		otherwise(&o.ShardSize, o.World.LocalSize)
		if o.Distributed == TP {
			otherwise(&o.TensorSize, o.World.LocalSize)
		}
	}
	if o.processes() > 1 || o.OffloadOptimizer {
		otherwise(&o.SaveFormat, FormatNative)
	}
	otherwise(&o.SaveFormat, FormatHF)
	return o
}

func otherwise[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// The most steps or epochs of a run.
const (
	maxSteps  = math.MaxInt32
	maxEpochs = 1 << 20
)

// Check returns an error for the first option that is invalid for every model and data set. New
// calls it too.
func (o Options) Check() error {
	o = o.complete()
	switch {
	case o.Steps < 0 || o.Epochs < 0 || (o.Steps == 0) == (o.Epochs == 0):
		return fmt.Errorf("--steps is %d and --epochs is %d: give one of the two", o.Steps,
			o.Epochs)
	case o.BatchSize < 1 || o.BatchSize > dataset.MaxRows:
		return fmt.Errorf("--batch_size is %d, expected 1 to %d", o.BatchSize, dataset.MaxRows)
	case o.Accumulate < 1 || o.Accumulate > dataset.MaxPasses:
		return fmt.Errorf("--accumulate is %d, expected 1 to %d", o.Accumulate, dataset.MaxPasses)
	case o.Steps > maxSteps:
		return fmt.Errorf("--steps is %d, expected at most %d", o.Steps, maxSteps)
	case o.Epochs > maxEpochs:
		return fmt.Errorf("--epochs is %d, expected at most %d", o.Epochs, maxEpochs)
	case o.SequenceLength < 2:
		return fmt.Errorf("--sequence_length is %d, expected 2 or more", o.SequenceLength)
	case o.LoRA != nil && o.HeadOnly:
		return errors.New("--head_only trains the head, an adapter the blocks: choose one; " +
			"--lora_rank with --lora_save lm_head trains both")
	case o.ValidateSteps < 0:
		return fmt.Errorf("--validate_steps is %d, expected 0 or more", o.ValidateSteps)
	case o.CheckpointSteps < 0:
		return fmt.Errorf("--checkpoint_steps is %d, expected 0 or more; 0: only when the run is "+
			"stopped", o.CheckpointSteps)
	case o.Keep < 1:
		return fmt.Errorf("--keep is %d, expected 1 or more", o.Keep)
	case o.MaxSkipped < 0:
		return fmt.Errorf("--max_skipped_steps is %d, expected 1 or more", o.MaxSkipped)
	case o.CheckpointPath == "" && (o.Resume || o.KeepBest || o.SaveAtEnd):
		return errors.New("cannot resume, keep the best or save at the end: there is no " +
			"checkpoint path")
	case o.AskSteps < 0:
		return fmt.Errorf("--ask_steps is %d, expected 0 or more", o.AskSteps)
	case o.EarlyStop < 0 || !(o.MinImprovement >= 0) || o.EarlyStop == 0 && o.MinImprovement != 0:
		return fmt.Errorf("--early_stop is %d and --min_improvement is %g: neither can be "+
			"negative, and --min_improvement needs --early_stop", o.EarlyStop, o.MinImprovement)
	case !slices.Contains(Recomputes, o.Recompute):
		return fmt.Errorf("--recompute: unknown value %q: choose %s, %s or %s",
			o.Recompute, RecomputeNone, RecomputeSelective, RecomputeBlock)
	}
	if o.LoRA != nil {
		if err := o.LoRA.Check(); err != nil {
			return err
		}
	}
	if _, _, err := o.chunking(); err != nil {
		return err
	}
	for _, check := range []func() error{o.checkCompile, o.checkObjective, o.checkOptimizer,
		o.checkCarry} {
		if err := check(); err != nil {
			return err
		}
	}
	return o.schedule().Check()
}

// schedule is the learning rate of the run's steps.
func (o Options) schedule() optim.Schedule {
	return optim.Schedule{
		Kind: o.Schedule, Peak: o.Rate, Min: o.MinRate, Warmup: max(0, o.WarmupSteps),
		Steps: o.Steps, Decay: o.DecaySteps, Cycles: o.Cycles,
	}
}

// checkCompile returns an error if the passes cannot be recorded.
func (o Options) checkCompile() error {
	switch {
	case o.Compile != "" && o.Compile != CompileNone && o.Compile != CompileGraph:
		return fmt.Errorf("--compile: unknown value %q: choose %s or %s", o.Compile, CompileNone,
			CompileGraph)
	case o.Compile != CompileGraph:
	case o.processes() > 1 || o.Distributed != None:
		return fmt.Errorf(
			"--compile %s works in one process only: with %s and --distributed %s, "+
				"leave it out",
			CompileGraph, dataset.Count(o.processes(), "process"), o.Distributed,
		)
	case o.LoRA != nil && len(o.LoRA.Tokens) > 0:
		return fmt.Errorf("--compile %s cannot be combined with --lora_tokens: leave it out",
			CompileGraph)
	case o.redrawsDropout():
		return fmt.Errorf("--compile %s cannot record dropout with --recompute %s: choose "+
			"--recompute %s or %s, or leave --lora_dropout out", CompileGraph, o.Recompute,
			RecomputeSelective, RecomputeNone)
	}
	return nil
}

// redrawsDropout reports whether blocks that run again must draw the same dropout masks again.
func (o Options) redrawsDropout() bool {
	return o.Recompute == RecomputeBlock && o.LoRA != nil && o.LoRA.Dropout > 0
}

func (o Options) checkObjective() error {
	if !slices.Contains(Objectives, o.Objective) {
		return fmt.Errorf("unknown objective %q: choose one of %s", o.Objective,
			strings.Join(Objectives, ", "))
	}
	pairs := o.kind().Texts == 2
	switch {
	case o.Beta != 0 && !o.compares():
		return fmt.Errorf("--beta %g is for objectives that compare answers, such as %s: leave "+
			"it out, or give --objective; AdamW's rates are --beta1 and --beta2", o.Beta, DPO)
	case o.compares() && !(o.Beta > 0 && !math.IsInf(o.Beta, 0)):
		return fmt.Errorf("--beta %g: it must be positive; 0.1 is usual", o.Beta)
	case o.Gamma != 0 && o.Objective != SimPO:
		return fmt.Errorf("--gamma %g is for the objective %s only: leave it out", o.Gamma, SimPO)
	case !(o.Gamma >= 0) || math.IsInf(o.Gamma, 0):
		return fmt.Errorf("--gamma %g: it cannot be negative; 0.5 is usual", o.Gamma)
	case o.SFTWeight != 0 && !pairs:
		return fmt.Errorf("--sft_weight %g is for objectives that learn from pairs, such as %s: "+
			"leave it out", o.SFTWeight, DPO)
	case !(o.SFTWeight >= 0) || math.IsInf(o.SFTWeight, 0):
		return fmt.Errorf("--sft_weight %g: it cannot be negative", o.SFTWeight)
	case o.Objective == ORPO && o.SFTWeight != 1:
		return fmt.Errorf("--sft_weight %g: in the objective %s it is 1: leave it out; --beta is "+
			"the weight of the other term", o.SFTWeight, ORPO)
	case o.Objective != KTO && (o.DesirableWeight != 0 || o.UndesirableWeight != 0):
		return fmt.Errorf("--desirable_weight and --undesirable_weight are for the objective %s "+
			"only: leave them out", KTO)
	case !(o.DesirableWeight >= 0 && o.UndesirableWeight >= 0) ||
		math.IsInf(o.DesirableWeight+o.UndesirableWeight, 0):
		return fmt.Errorf("--desirable_weight %g and --undesirable_weight %g: they must be "+
			"positive; 1 is usual", o.DesirableWeight, o.UndesirableWeight)
	case o.LabelSmoothing != 0 && !o.kind().Smooths:
		return fmt.Errorf("--label_smoothing cannot be combined with %s: it is for the objectives "+
			"%s, %s and %s", o.Objective, SFT, DPO, SimPO)
	case !(o.LabelSmoothing >= 0 && o.LabelSmoothing < 1):
		return fmt.Errorf("--label_smoothing is %g, expected at least 0 and below 1",
			o.LabelSmoothing)
	case pairs && o.LabelSmoothing >= 0.5:
		return fmt.Errorf("--label_smoothing %g: it is the probability that the answers of a pair "+
			"are swapped, which must be below 0.5", o.LabelSmoothing)
	case o.ZLoss != 0 && o.compares():
		return fmt.Errorf("--z_loss cannot be combined with %s: it is for the objective %s",
			o.Objective, SFT)
	case !(o.ZLoss >= 0 && o.ZLoss < 1):
		return fmt.Errorf(
			"--z_loss is %g, expected at least 0 and below 1; 1e-4 is usual", o.ZLoss)
	case o.RouterLoss != 0 && o.compares():
		return fmt.Errorf("--router_aux_loss cannot be combined with %s: it is for the objective "+
			"%s", o.Objective, SFT)
	case !(o.RouterLoss >= 0 && o.RouterLoss <= 100):
		return fmt.Errorf("--router_aux_loss is %g, expected 0 to 100; 1e-3 is usual",
			o.RouterLoss)
	case o.RouterLoss != 0 && o.Distributed == PP:
		return fmt.Errorf("--router_aux_loss cannot be combined with --distributed %s: it depends "+
			"on the layers of all stages", PP)
	}
	return nil
}

func (o Options) checkOptimizer() error {
	switch {
	case !slices.Contains(optim.Methods, o.Optimizer):
		return fmt.Errorf("--optimizer: unknown optimizer %q: choose one of %s", o.Optimizer,
			strings.Join(optim.Methods, ", "))
	case !slices.Contains(optim.MomentTypes, o.Moments):
		return fmt.Errorf("--moments: unknown dtype %q: choose one of %s", o.Moments,
			strings.Join(optim.MomentTypes, ", "))
	case !(o.Beta1 >= 0 && o.Beta1 < 1) || !(o.Beta2 >= 0 && o.Beta2 < 1):
		return fmt.Errorf("--beta1 is %g and --beta2 is %g: expected at least 0 and below 1",
			o.Beta1, o.Beta2)
	case !(o.Decay >= 0) || math.IsInf(o.Decay, 0):
		return fmt.Errorf("--weight_decay is %g, expected 0 or more", o.Decay)
	case !(o.Clip >= 0):
		return fmt.Errorf("--clip is %g, expected 0 or more; 0: no clipping", o.Clip)
	case o.Moments != optim.Float32 && o.Optimizer != optim.AdamW:
		return fmt.Errorf("--moments %s is for %s only: leave it out with --optimizer %s",
			o.Moments, optim.AdamW, o.Optimizer)
	case o.Stochastic && o.Optimizer != optim.AdamW:
		return fmt.Errorf("--stochastic_rounding is for %s only: leave it out with --optimizer %s",
			optim.AdamW, o.Optimizer)
	case o.Optimizer == optim.Muon && (o.TensorSize > 0 ||
		slices.Contains([]string{FSDP, HSDP, TP}, o.Distributed)):
		return fmt.Errorf("--optimizer %s needs whole matrices, which --distributed %s divides: "+
			"choose none, ddp or pp without --tp_size", optim.Muon, o.Distributed)
	case o.Optimizer == optim.Muon && o.HeadOnly:
		return fmt.Errorf("--optimizer %s is for the matrices of the blocks: with --head_only "+
			"choose %s or %s", optim.Muon, optim.AdamW, optim.Lion)
	case o.Stochastic && o.LoRA != nil:
		return errors.New("--stochastic_rounding is for bfloat16 weights, and adapters are " +
			"float32: leave it out")
	case o.Stochastic && o.OffloadOptimizer:
		return errors.New("--offload_optimizer keeps float32 master weights in host memory: " +
			"leave --stochastic_rounding out")
	}
	for _, kind := range o.NoDecay {
		if !slices.Contains(NoDecayKinds, kind) {
			return fmt.Errorf("--no_decay: unknown kind %q: choose from %s", kind,
				strings.Join(NoDecayKinds, ", "))
		}
	}
	return nil
}

// CheckPlace returns an error for the first option that does not fit the number of processes in
// place. New calls it too.
func (o Options) CheckPlace(place dist.Place) error {
	if place.Size > 1 || o.Distributed != "" && o.Distributed != None {
		o.World = &dist.World{Place: place}
	}
	o = o.complete()
	return cmp.Or(o.checkDistributed(), o.checkContext())
}

func (o Options) checkDistributed() error {
	sharded := o.Distributed == FSDP || o.Distributed == HSDP
	switch {
	case !slices.Contains(Strategies, o.Distributed):
		return fmt.Errorf("--distributed: unknown strategy %q: choose one of %s", o.Distributed,
			strings.Join(Strategies, ", "))
	case o.Distributed != None && o.World == nil:
		return fmt.Errorf(
			"strategy %s needs the processes of a run, and this process is not part of one",
			o.Distributed)
	case o.Distributed == None && o.World != nil && o.World.Size > 1:
		return fmt.Errorf("%d processes with --distributed none would each train their own "+
			"model: choose ddp, fsdp, hsdp, tp or pp", o.World.Size)
	case o.Distributed == HSDP && (o.ShardSize < 1 || o.World.Size%o.ShardSize != 0):
		return fmt.Errorf("--hsdp_size %d does not divide the %d processes",
			o.ShardSize, o.World.Size)
	case o.TensorSize < 0 || o.World != nil && o.World.Size%o.tensorSize() != 0:
		return fmt.Errorf("--tp_size %d does not divide the %d processes",
			o.TensorSize, o.World.Size)
	case o.TensorSize > 0 && !slices.Contains([]string{TP, DDP, FSDP}, o.Distributed):
		return fmt.Errorf("--tp_size needs --distributed tp, ddp or fsdp, not %s", o.Distributed)
	case o.OffloadOptimizer && !sharded:
		return fmt.Errorf(
			"--offload_optimizer needs --distributed fsdp or hsdp, not %s",
			o.Distributed)
	case o.ReduceDType != "" && o.ReduceDType != "float32" && o.ReduceDType != "same":
		return fmt.Errorf(
			"--reduce_dtype: unknown value %q: choose float32, or same for the weights' dtype",
			o.ReduceDType)
	case o.ReduceDType == "same" && o.Distributed != DDP && !sharded:
		return fmt.Errorf(
			"--reduce_dtype same needs --distributed ddp, fsdp or hsdp, not %s",
			o.Distributed)
	}
	return o.checkFormat()
}

func (o Options) checkFormat() error {
	formats := []string{"", FormatHF, FormatNative}
	switch {
	case !slices.Contains(formats, o.SaveFormat):
		return fmt.Errorf("--save_format: unknown format %q: choose %s or %s", o.SaveFormat,
			FormatHF, FormatNative)
	case o.SaveFormat == FormatHF && o.OffloadOptimizer:
		return fmt.Errorf(
			"--save_format %s cannot be combined with --offload_optimizer: choose %s",
			FormatHF, FormatNative)
	case o.SaveFormat == FormatHF && o.World != nil && o.World.Size > 1:
		return fmt.Errorf(
			"--save_format %s is written by one process: with %d processes choose %s",
			FormatHF, o.World.Size, FormatNative)
	}
	return nil
}

// CheckDivision returns an error if copies of a parameter on several processes would diverge under
// the division d: 8-bit moments and stochastic rounding depend on an element's position and
// neighbors, which differ between the processes.
func (o Options) CheckDivision(d *parallel.Division) error {
	if o.LoRA != nil && len(o.LoRA.Save)+len(o.LoRA.Tokens) > 0 {
		return errors.New("--lora_save and --lora_tokens do not work with tensor " +
			"parallelism: use --distributed ddp, fsdp, hsdp or pp without --tp_size")
	}
	if o.LoRA != nil && (o.LoRA.DoRA || o.LoRA.Init == lora.InitPiSSA) {
		return errors.New("DoRA and PiSSA need whole weights, which tensor parallelism divides: " +
			"use --distributed ddp, fsdp, hsdp or pp without --tp_size")
	}
	if d.Mixed() && (o.Moments == optim.Int8 || o.Stochastic && !d.Even()) {
		return errors.New(
			"8-bit moments and stochastic rounding do not work for state-space layers " +
				"whose B and C are copied to every process: keep moments in float32 or bfloat16",
		)
	}
	return nil
}

// rank is this process's rank in the run.
func (o Options) rank() int {
	if o.World == nil {
		return 0
	}
	return o.World.Rank
}

// processes is the number of processes of the run.
func (o Options) processes() int {
	if o.World == nil {
		return 1
	}
	return o.World.Size
}

// sums adds each value over the processes of the run. All processes call it.
func (o Options) sums(values ...float64) []float64 {
	if o.processes() == 1 {
		return values
	}
	return o.World.All.Sums(values...)
}

// anyOf reports whether a condition holds on any process of the run. All processes call it.
func (o Options) anyOf(condition bool) bool {
	vote := 0.0
	if condition {
		vote = 1
	}
	return o.sums(vote)[0] > 0
}

// at records what this process is doing, for the error messages of other processes that wait for
// it.
func (o Options) at(format string, args ...any) {
	if o.World != nil {
		o.World.At(format, args...)
	}
}

// tensorSize is the number of processes that divide each layer.
func (o Options) tensorSize() int { return max(1, o.TensorSize) }

// sameRows is the number of processes that take the same rows.
func (o Options) sameRows() int {
	if o.Distributed == PP {
		return o.processes()
	}
	return o.tensorSize() * o.contextSize()
}

// rowGroup says which rows of a step this process takes: part index of count.
func (o Options) rowGroup() (index, count int) {
	return o.rank() / o.sameRows(), o.processes() / o.sameRows()
}

// movesWeights reports whether the strategy moves parameters into memory of its own.
func (o Options) movesWeights() bool {
	several := o.processes() > 1
	return o.TensorSize > 0 || o.OffloadOptimizer ||
		several && (o.Distributed == PP || o.Distributed == FSDP) ||
		o.Distributed == HSDP && o.ShardSize > 1
}

// keepsBase reports whether a run needs the weights it started with: they stay frozen, or the
// objective compares with them.
func (o Options) keepsBase() bool { return o.LoRA != nil || o.HeadOnly || o.kind().Reference }

// mismatchedLength is the length at which mismatched texts are cut, or 0 if there are none.
func (o Options) mismatchedLength() int {
	if o.kind().Baseline {
		return o.SequenceLength
	}
	return 0
}

// kind returns the kind of objective.
func (o Options) kind() network.Kind { return network.KindOf(o.Objective) }

// compares reports whether the objective compares answers, rather than learn their labels.
func (o Options) compares() bool { return o.kind().Texts > 0 }

// Layout is the layout that the objective requires of the data's records.
func (o Options) Layout() dataset.Layout {
	return []dataset.Layout{dataset.AnyLayout, dataset.Rated, dataset.Preference}[o.kind().Texts]
}

// objective returns what the run minimizes.
func (o Options) objective() network.Objective {
	return network.Objective{
		Kind: o.kind(), Smoothing: o.LabelSmoothing, ZLoss: o.ZLoss, RouterLoss: o.RouterLoss,
		Beta: o.Beta, Gamma: o.Gamma,
		Imitation: o.SFTWeight, Desirable: o.DesirableWeight, Undesirable: o.UndesirableWeight,
	}
}

// layout completes the layout of batches: b says how one use of a data set differs from the others.
// A pair is one row.
func (o Options) layout(b dataset.BatchOptions) dataset.BatchOptions {
	b.Rows, b.Length, b.Streams = o.BatchSize, o.RowLength(), o.CarryState
	b.Rank, b.World = o.rowGroup()
	if texts := o.kind().Texts; texts > 0 {
		b.Length, b.Pack = texts*o.SequenceLength, o.Pack
	}
	return b
}

// decays reports whether weight decay applies to a weight with this name (fused weights have
// several, joined by +) and shape.
func (o Options) decays(name string, shape []int) bool {
	if o.LoRA != nil && len(o.LoRA.Tokens) > 0 && !strings.Contains(name, ".lora_") {
		return false // the rows of other tokens stay as they are
	}
	kind, layer := "", strings.TrimSuffix(name, ".weight")
	switch {
	case strings.Contains(name, "embed_tokens.") || strings.Contains(name, "embeddings."):
		kind = "embedding"
	case len(shape) == 1 && strings.Contains(layer[strings.LastIndexByte(layer, '.')+1:], "norm"):
		kind = "norm"
	case len(shape) == 1:
		kind = "bias"
	}
	return !slices.Contains(o.NoDecay, kind)
}

// dependsOnLength reports whether the host must know the positions of a pass for m's rotary
// embedding.
func dependsOnLength(m model.Model) bool {
	s, ok := m.(interface{ DependsOnLength() bool })
	return ok && s.DependsOnLength()
}

// launchBound is the largest product of a block's weights and a micro-batch's tokens for which
// steps are recorded by default. It estimates where launching takes as long as computing on an
// H100: 0.3 ms per block, forward and backward, for 6 operations per weight and token at 6e14
// operations per second. Somewhat larger passes still gain from a recording.
const launchBound = 3e10

// records reports whether a run on device records its passes. By default these are the passes of a
// single process on a GPU that are launch-bound: others gain little, and would hold all gradients
// during the forward pass.
func (o Options) records(m model.Model, device torch.Device) bool {
	single := o.processes() == 1 && o.Distributed == None
	switch {
	case o.Compile == CompileGraph:
		return true
	case o.CarryState || o.LoRA != nil && len(o.LoRA.Tokens) > 0:
		return false
	case dependsOnLength(m):
		return false
	case model.Active(m) < model.Parameters(m): // the sizes of the experts' batches differ
		return false
	case o.Compile == CompileNone || !device.IsCUDA() || !single || o.redrawsDropout():
		return false
	}
	largest, tokens := 0, o.BatchSize*o.SequenceLength*max(1, o.kind().Texts)
	for _, block := range m.Blocks() {
		n := 0
		for _, p := range units.Block(block) {
			n += units.Elements(p.Local())
		}
		largest = max(largest, n)
	}
	return float64(largest)*float64(tokens) <= launchBound
}
