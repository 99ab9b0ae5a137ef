package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"conquer/lora"
	"conquer/model/statespace"
	"conquer/torch/dist"
	"conquer/torch/optim"
	"conquer/train"
	"conquer/train/report"
)

// trainFlags are the flags of the train command.
type trainFlags struct {
	modelFlags
	worldFlags
	train.Options
	data, validation []string
	fraction         float64
	lastAnswer       bool
	records          recordFlags
	chatInputs
	output      string
	report      int
	recompute   string
	chunkSize   string
	lora        loraFlags
	add         addFlags
	merge       bool
	ask         []string
	console     *report.Console // of the run, on rank 0
	lengthGiven bool            // --sequence_length was given
	printConfig bool
	profileFlag
	mlflowFlags
}

const recomputeUsage = "selective: recompute normalizations, SwiGLU and convolutions, which " +
	"saves a third of the activations at little cost; block: keep only each block's input; none"

const compileTrainUsage = "graph: record forward and backward passes as CUDA graphs and replay " +
	"them; none: launch operations one by one (default: graph in one process on a GPU if passes " +
	"are too small to hide their launches)"

// declare declares the flags, one group of the help after the other.
func (f *trainFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	flags.StringVar(&f.architecture, "architecture", "",
		"without --model_path: the architecture of a new model with random weights; with it: the "+
			"architecture that the checkpoint must have")
	flags.StringVar(&f.variant, "variant", "",
		"without --model_path: the `size` of the new model, such as micro; with it: the size "+
			"that the checkpoint must have")
	f.declareSourceFormat(flags)
	f.add.declare(flags)
	group(flags, "Model")
	f.declareData(flags)
	group(flags, "Data")
	f.declareSteps(flags)
	group(flags, "Steps")
	f.declareOptimizer(flags)
	group(flags, "Optimizer")
	f.declareLoss(flags)
	group(flags, "Loss")
	f.declareLoRA(flags)
	group(flags, "LoRA and frozen weights")
	f.declareOutput(flags)
	group(flags, "Output")
	f.declareCheckpoints(flags)
	group(flags, "Checkpoints")
	f.worldFlags.declare(flags, &f.Options)
	group(flags, "Several processes")
	f.declareSpeed(flags)
	group(flags, "Speed and memory")
	flags.BoolVar(&f.printConfig, "print_config", false,
		"print the values of all flags as a YAML file for --config, and do not train")
}

func (f *trainFlags) declareData(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.data, "data_path", nil,
		"training data: `files`, folders or .tar.gz archives of instructions, chats, prompts with "+
			"completions, texts or tokens (.json, .jsonl, .csv, .tsv, .parquet, .arrow, also .gz "+
			"and .zst) or plain text; of a folder with splits, its training files; or "+
			"hf://datasets/org/name[@revision][:glob]; may be repeated")
	flags.StringSliceVar(&f.validation, "validation_path", nil,
		"validation data: `files` to measure the loss on, or folders; of a folder with splits, "+
			"its validation files, or else its test files")
	flags.Float64Var(&f.fraction, "validation_fraction", 0,
		"instead of --validation_path: the `share` of the records to hold out, or their number")
	f.records.declare(flags)
	f.chatInputs.declare(flags)
	flags.BoolVar(&f.lastAnswer, "last_answer_only", false,
		"learn only the assistant's last turn of each chat")
	flags.IntVar(&f.SequenceLength, "sequence_length", 512,
		"maximum `tokens` of a sample; if answers are compared, of each with its prompt; with "+
			"--pack of a row")
	flags.BoolVar(&f.Pack, "pack", false,
		"put several samples into each row; attention and state do not cross samples")
	flags.BoolVar(&f.CarryState, "carry_state", false,
		"let the states of state-space layers go on from each row of a text to the next, without "+
			"gradients across the border; texts are kept in order")
	flags.StringVar(&f.Chunking, "chunking", "",
		"chunking `strategy` of state-space layers: "+strategyNames()+"; add -optimized for the "+
			"kernels (default: default-optimized)")
	flags.StringVar(&f.chunkSize, "chunk_size", "",
		"with --chunking: chunk `size` in tokens, a power of two from 16 to 256, or auto "+
			"(default: the model's)")
}

func (f *trainFlags) declareSteps(flags *pflag.FlagSet) {
	flags.IntVar(&f.Epochs, "epochs", 0, "passes over the data (default 3 without --steps)")
	flags.IntVar(&f.Steps, "steps", 0, "number of optimizer steps")
	flags.IntVar(&f.BatchSize, "batch_size", 8, "samples per forward pass; rows with --pack")
	flags.IntVar(&f.Accumulate, "accumulate", 1, "forward passes per optimizer step")
	flags.IntVar(&f.MaxSkipped, "max_skipped_steps", 20,
		"steps in a row that may be skipped because the loss or the gradients are not finite, "+
			"before the run ends with an error")
	flags.IntVar(&f.ValidateSteps, "validate_steps", 0,
		"steps between validations (default: 10 % of the run)")
	flags.IntVar(&f.EarlyStop, "early_stop", 0,
		"end the run after this `number` of validations in a row without a lower loss")
	flags.Float64Var(&f.MinImprovement, "min_improvement", 0,
		"with --early_stop: a loss must be lower by more than this `difference`, in nats")
	flags.Int64Var(&f.Seed, "seed", 1, "`seed` of data order, dropout and random weights")
}

func (f *trainFlags) declareOptimizer(flags *pflag.FlagSet) {
	flags.Float64Var(&f.Rate, "learning_rate", 0,
		"peak learning `rate` (default 1e-4; 5e-4 with LoRA or --head_only; divided by 20 "+
			"if answers are compared, by 5 for lion)")
	flags.StringVar(&f.Schedule, "schedule", "cosine",
		"learning-rate `schedule` after the warm-up: cosine, linear, constant, wsd (constant, "+
			"then a fall over the last --decay_steps), or restarts (cosine, --cycles times)")
	flags.IntVar(&f.DecaySteps, "decay_steps", 0,
		"with --schedule wsd: the steps of the fall (default: 10 % of the run)")
	flags.IntVar(&f.Cycles, "cycles", 0, "with --schedule restarts: how often the rate falls "+
		"(default 2)")
	flags.IntVar(&f.WarmupSteps, "warmup_steps", -1, "warm-up steps (default: 5 % of the run)")
	flags.Lookup("warmup_steps").DefValue = "0" // the usage text describes the default
	flags.Float64Var(&f.MinRate, "min_learning_rate", 0, "final learning `rate`")
	flags.StringVar(&f.Optimizer, "optimizer", "adamw",
		"adamw; lion, which keeps one moment per weight instead of two; or muon, which "+
			"orthogonalizes the updates of matrices and keeps one moment for them, two for other "+
			"weights")
	flags.StringVar(&f.Moments, "moments", "float32",
		"dtype of AdamW's moments: float32, bfloat16 or int8 (8, 4 or 2 bytes per weight)")
	flags.Float64Var(&f.Decay, "weight_decay", 0.01,
		"weight decay per step, multiplied by the learning rate")
	flags.StringSliceVar(&f.NoDecay, "no_decay", nil,
		"`kinds` of weights that do not decay: norm, bias, embedding, or none (default norm,bias)")
	flags.Float64Var(&f.Beta1, "beta1", 0.9, "decay rate of the first moment")
	flags.Float64Var(&f.Beta2, "beta2", 0,
		"decay rate of AdamW's second moment (default 0.999) or of Lion's moment (default 0.99)")
	flags.Float64Var(&f.Clip, "clip", 1, "clip gradients to this `norm`; 0: no clipping")
	flags.BoolVar(&f.Stochastic, "stochastic_rounding", false,
		"round bfloat16 weights stochastically instead of keeping float32 master weights; moments "+
			"in bfloat16 (8 bytes per weight instead of 16), or with --moments int8 in 8 bits (6)")
}

func (f *trainFlags) declareLoss(flags *pflag.FlagSet) {
	flags.StringVar(&f.Objective, "objective", train.SFT,
		"sft: learn texts and answers; dpo, ipo, hinge, simpo, orpo: learn to prefer one answer "+
			"of a pair (records of prompt, chosen and rejected), the first three relative to the "+
			"model before training; kto: learn from answers with a label (records of prompt, "+
			"completion and label, which is true or false)")
	flags.Float64Var(&f.Beta, "beta", 0,
		"how strongly the model is held to the one before training; ipo: tau; simpo: scale of "+
			"the rewards; orpo: weight of the odds ratio (default 0.1)")
	flags.Float64Var(&f.Gamma, "gamma", 0, "`margin` that simpo aims at (default 0.5)")
	flags.Float64Var(&f.SFTWeight, "sft_weight", 0,
		"`weight` of the preferred answers' mean negative log-likelihood in a loss of pairs "+
			"(orpo: 1)")
	flags.Float64Var(&f.DesirableWeight, "desirable_weight", 0,
		"kto: `weight` of the answers whose label is true (default 1)")
	flags.Float64Var(&f.UndesirableWeight, "undesirable_weight", 0,
		"kto: `weight` of the answers whose label is false (default 1)")
	flags.Float64Var(&f.LabelSmoothing, "label_smoothing", 0,
		"`share` of each label to spread evenly over the vocabulary, such as 0.1; dpo and simpo: "+
			"probability that the answers of a pair are swapped")
	flags.Float64Var(&f.ZLoss, "z_loss", 0,
		"`coefficient` of the squared log of the softmax denominator, such as 1e-4; keeps logits "+
			"from drifting (default: the model's, which for Bamba is z_loss_coefficient)")
	flags.Float64Var(&f.RouterLoss, "router_aux_loss", 0,
		"`coefficient` of the loss that balances a mixture's experts, such as 1e-3 (default: "+
			"router_aux_loss_coef if config.json has output_router_logits, else none)")
}

func (f *trainFlags) declareLoRA(flags *pflag.FlagSet) {
	f.lora.declareSizes(flags)
	f.lora.declareScales(flags)
	flags.StringVar(&f.adapter, "adapter_path", "",
		"`folder` of a LoRA adapter in PEFT's format to train further, with its own layers, ranks "+
			"and scales; --model_path may name it instead, which opens its base")
	flags.BoolVar(&f.merge, "merge", false,
		"write the model with the adapter merged, instead of the adapter")
	flags.BoolVar(&f.HeadOnly, "head_only", false, "train only the output head")
}

func (f *trainFlags) declareOutput(flags *pflag.FlagSet) {
	flags.StringVar(&f.output, "output_path", "",
		"`folder` for the result, metrics.jsonl and loss.png")
	flags.BoolVar(&f.Overwrite, "overwrite", false, overwriteUsage+"; checkpoints and metrics of "+
		"an earlier run in the folder are replaced at once")
	flags.IntVar(&f.report, "report_steps", 10, "steps between lines of metrics")
	flags.BoolVar(&f.TensorBoard, "tensorboard", false,
		"write TensorBoard event files to the folder tensorboard in the output folder")
	f.mlflowFlags.declare(flags)
	flags.StringArrayVar(&f.ask, "ask", nil,
		"a `question` to answer before and after training; may be repeated")
	flags.IntVar(&f.AskSteps, "ask_steps", 0,
		"answer the questions of --ask after every so many `steps` too")
}

func (f *trainFlags) declareCheckpoints(flags *pflag.FlagSet) {
	flags.IntVar(&f.CheckpointSteps, "checkpoint_steps", 500,
		"steps between checkpoints; 0: only when the run is stopped")
	flags.StringVar(&f.CheckpointPath, "checkpoint_path", "",
		"`folder` for checkpoints (default: checkpoints in the output folder)")
	flags.IntVar(&f.Keep, "keep", 2, "number of checkpoints to keep")
	flags.BoolVar(&f.KeepBest, "keep_best", false,
		"keep a checkpoint of the lowest validation loss too, and make its weights the result")
	flags.BoolVar(&f.SaveAtEnd, "save_at_end", false,
		"write a checkpoint after the last step too, so that --resume can add steps or epochs")
	flags.BoolVar(&f.Resume, "resume", false,
		"continue from the last checkpoint if one exists; steps, epochs and the validation data "+
			"may differ")
	flags.StringVar(&f.SaveFormat, "save_format", "",
		"format of checkpoints; hf: a folder for transformers, written by one process; native: "+
			"every process writes its shard while training continues (default: hf for one "+
			"process, native for several)")
}

func (f *trainFlags) declareSpeed(flags *pflag.FlagSet) {
	flags.StringVar((*string)(&f.Compile), "compile", "", compileTrainUsage)
	flags.StringVar(&f.recompute, "recompute", "none", recomputeUsage)
	f.declareProfile(flags)
}

// check reports flags that contradict each other or the number of processes. It sets the defaults
// that depend on other flags.
func (f *trainFlags) check(flags *pflag.FlagSet, place dist.Place) error {
	f.Distributed = train.StrategyName(f.Distributed)
	for _, check := range []func(*pflag.FlagSet) error{f.checkInputs, f.checkSteps, f.checkRun} {
		if err := check(flags); err != nil {
			return err
		}
	}
	if err := f.checkProcesses(); err != nil {
		return err
	}
	if err := f.checkPaths(place.Rank); err != nil {
		return err
	}
	if f.restarts != 0 && f.processes == 1 {
		return usagef("--max_restarts is for the processes of --nproc: leave it out")
	}
	if f.processes > 1 && f.Compile == train.CompileGraph {
		return usagef("--compile %s works in one process only: leave it out with several",
			train.CompileGraph)
	}
	if err := f.readLoRA(flags); err != nil {
		return err
	}
	if f.chunkSize != "" {
		var err error
		if f.ChunkSize, err = statespace.ParseChunkSize(f.chunkSize); err != nil {
			return usagef("--chunk_size: %w", err)
		}
	}
	f.setDefaults(flags, place)
	if place.Rank == 0 { // another machine may not have the folders
		if err := f.checkResult(); err != nil {
			return err
		}
	}
	switch {
	case flags.Changed("hsdp_size") && f.Distributed != train.HSDP:
		return usagef("--hsdp_size needs --distributed hsdp")
	case f.KeepGathered && f.Distributed != train.FSDP && f.Distributed != train.HSDP:
		return usagef("--keep_gathered needs --distributed fsdp or hsdp")
	}
	if err := f.Options.Check(); err != nil {
		return usageError{err}
	}
	if err := f.Options.CheckPlace(place); err != nil {
		return usageError{err}
	}
	return f.mlflowFlags.check(flags)
}

// checkInputs checks the flags that name the objective, the model, the data and the result.
func (f *trainFlags) checkInputs(*pflag.FlagSet) error {
	switch {
	case !slices.Contains(train.Objectives, f.Objective):
		return usagef("--objective: unknown objective %q: choose one of %s", f.Objective,
			strings.Join(train.Objectives, ", "))
	case f.path == "" && f.architecture == "" && f.variant == "":
		return usagef("give --model_path to tune a model, or --architecture and --variant to " +
			"start from random weights")
	case f.path == "" && (f.architecture == "" || f.variant == ""):
		return usagef("give both --architecture and --variant")
	case f.path == "" && f.tokenizer == "":
		return usagef("a model with random weights needs --tokenizer")
	case len(f.data) == 0:
		return usagef("--data_path is missing: give a file such as " +
			"examples/lighthouse/train.jsonl, or hf://datasets/tatsu-lab/alpaca, the data that " +
			"foundation-model-stack takes by default")
	case f.output == "":
		return usagef("--output_path is missing: give a folder for the result")
	case len(f.validation) > 0 && f.fraction != 0:
		return usagef("give --validation_path or --validation_fraction, not both")
	}
	if err := f.checkExpected(f.path); err != nil {
		return err
	}
	return f.records.check(len(f.data))
}

// absent lists flags that are printed as not given, unless they are: they must not be given beside
// the others, or follow from them.
func (f *trainFlags) absent() []string {
	if f.lora.Rank == 0 {
		return []string{"checkpoint_path", "lora_targets", "lora_init", "lora_rslora", "lora_dora"}
	}
	return []string{"checkpoint_path"}
}

// checkSteps checks the flags that count steps and samples.
func (f *trainFlags) checkSteps(flags *pflag.FlagSet) error {
	if len(f.validation) == 0 && f.fraction == 0 {
		for name, given := range map[string]bool{"validate_steps": flags.Changed("validate_steps"),
			"early_stop": flags.Changed("early_stop"), "keep_best": f.KeepBest} {
			if given {
				return usagef("--%s needs --validation_path or --validation_fraction", name)
			}
		}
	}
	switch {
	case f.Steps < 0:
		return usagef("--steps is %d, expected 1 or more", f.Steps)
	case f.Epochs < 0:
		return usagef("--epochs is %d, expected 1 or more", f.Epochs)
	case f.Steps != 0 && f.Epochs != 0:
		return usagef("give --steps or --epochs, not both")
	case flags.Changed("add_tokens") && len(f.add.added) == 0:
		return usagef("--add_tokens is empty: expected tokens, or a file with one in each line")
	case len(f.add.added) > 0 && (f.adapter != "" || lora.IsAdapter(f.path)):
		return usagef("--add_tokens cannot be given for an adapter that is trained further: " +
			"merge it with conquer export first")
	case f.merge && f.lora.Rank == 0 && f.adapter == "" && !lora.IsAdapter(f.path):
		return usagef("--merge needs --lora_rank or --adapter_path")
	case flags.Changed("warmup_steps") && f.WarmupSteps < 0:
		return usagef("--warmup_steps is %d, expected 0 or more", f.WarmupSteps)
	case f.EarlyStop < 0 || flags.Changed("early_stop") && f.EarlyStop == 0:
		return usagef("--early_stop is %d, expected 1 or more", f.EarlyStop)
	case flags.Changed("min_improvement") && f.EarlyStop == 0:
		return usagef("--min_improvement needs --early_stop")
	case flags.Changed("validation_fraction") && !(f.fraction > 0) || math.IsInf(f.fraction, 0) ||
		f.fraction > 1 && f.fraction != math.Trunc(f.fraction):
		return usagef("--validation_fraction is %g, expected a share of the records above 0 and "+
			"below 1, or a number of records", f.fraction)
	}
	return nil
}

// checkRun checks the flags of the processes, the reports and the optimizer.
func (f *trainFlags) checkRun(flags *pflag.FlagSet) error {
	switch {
	case f.restarts < 0:
		return usagef("--max_restarts is %d, expected 0 or more", f.restarts)
	case f.restarts > 0 && f.processes == 1:
		return usagef("--max_restarts needs --nproc")
	case f.Objective == train.ORPO && flags.Changed("sft_weight") && f.SFTWeight == 0:
		return usagef("--sft_weight is 0, expected 1 for --objective %s, whose --beta weighs the "+
			"other term", train.ORPO)
	case f.MaxSkipped < 1:
		return usagef("--max_skipped_steps is %d, expected 1 or more", f.MaxSkipped)
	case f.Keep < 1:
		return usagef("--keep is %d, expected 1 or more", f.Keep)
	case f.Distributed != "" && !slices.Contains(train.Strategies, f.Distributed):
		return usagef("--distributed: unknown strategy %q: choose one of %s", f.Distributed,
			strings.Join(train.Strategies, ", "))
	case f.AskSteps < 0 || flags.Changed("ask_steps") && f.AskSteps == 0:
		return usagef("--ask_steps is %d, expected 1 or more", f.AskSteps)
	case f.AskSteps > 0 && len(f.ask) == 0:
		return usagef("--ask_steps needs --ask")
	case f.report < 1:
		return usagef("--report_steps is %d, expected 1 or more", f.report)
	case f.dtype == "float16" || f.dtype == "fp16" || f.dtype == "half":
		return usagef("--dtype float16 has too small a range for gradients: use bfloat16 or " +
			"float32")
	}
	// In the options 0 stands for the default, so only the flags show that a 0 was given.
	for _, zero := range []struct {
		want  string
		names []string
	}{
		{"a number above 0", []string{"learning_rate", "beta1", "beta2", "beta", "lora_alpha",
			"desirable_weight", "undesirable_weight"}},
		{"1 or more", []string{"steps", "epochs", "accumulate", "lora_rank"}},
	} {
		for _, name := range zero.names {
			if flag := flags.Lookup(name); flag.Changed && flag.Value.String() == "0" {
				return usagef("--%s is 0, expected %s", name, zero.want)
			}
		}
	}
	return nil
}

// setDefaults sets the defaults that depend on other flags.
func (f *trainFlags) setDefaults(flags *pflag.FlagSet, place dist.Place) {
	if f.Steps == 0 && f.Epochs == 0 {
		f.Epochs = 3
	}
	if f.Rate == 0 {
		f.Rate = f.defaultRate()
	}
	if f.Objective == train.SimPO && !flags.Changed("gamma") {
		f.Gamma = 0.5
	}
	f.Recompute = train.Recompute(f.recompute)
	if f.CheckpointPath == "" {
		f.CheckpointPath = filepath.Join(f.output, "checkpoints")
	}
	f.LogPath = f.output
	if f.BaseModel == "" {
		f.BaseModel = baseName(f.path)
	}
	if f.Distributed == "" && place.Size > 1 {
		f.Distributed = train.DDP
	}
}

// defaultRate is the default of --learning_rate.
func (f *trainFlags) defaultRate() float64 {
	rate := 1e-4
	if f.LoRA != nil || f.HeadOnly {
		rate = 5e-4
	}
	if f.Objective != train.SFT {
		rate /= 20
	}
	if f.Optimizer == optim.Lion {
		rate /= 5
	}
	return rate
}

// checkPaths reports missing files and unwritable folders before the model and data are read.
func (f *trainFlags) checkPaths(rank int) error {
	if err := checkData("data_path", f.data); err != nil {
		return err
	}
	if err := checkData("validation_path", f.validation); err != nil {
		return err
	}
	if rank == 0 && f.adapter != "" && sameFile(f.adapter, f.output) {
		return fmt.Errorf("--output_path: %s is also --adapter_path: choose another folder",
			f.output)
	}
	if rank == 0 && sameFile(f.path, f.output) {
		return fmt.Errorf("--output_path: %s is also --model_path: choose another folder", f.output)
	}
	for flag, path := range map[string]string{"output_path": f.output,
		"checkpoint_path": f.CheckpointPath} {
		if rank > 0 || path == "" { // another machine may not have this folder
			continue
		}
		if err := checkFolder(path); err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	return f.checkProfile()
}
