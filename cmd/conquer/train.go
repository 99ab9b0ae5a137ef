package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/pflag"

	"conquer/generate"
	"conquer/lora"
	"conquer/model"
	"conquer/model/hub"
	"conquer/parallel"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/optim"
	"conquer/train"
	"conquer/train/report"
)

var trainCommand = command{
	name:    "train",
	summary: "Tune a model on instructions, chats or text: all its weights, a LoRA adapter, or its head.",
	example: `# all weights, on instructions; the result is a folder that transformers loads
conquer train --model_path smollm2-135m --data_path examples/lighthouse/train.jsonl --output_path tuned
# a LoRA adapter in PEFT's format, with a look at unseen data and at an answer before and after
conquer train --model_path smollm2-135m --data_path train.jsonl --validation_path heldout.jsonl --output_path adapter \
  --lora_rank 16 --ask "Why is the sky blue?"
# on two GPUs of this machine, or two processes on its cores, each with a part of the weights; docs/training.md has more
conquer train --nproc 2 --distributed fsdp --model_path smollm2-135m --data_path train.jsonl --output_path tuned
# stop it with Ctrl-C or lose the machine's power, and go on
conquer train --model_path smollm2-135m --data_path train.jsonl --output_path tuned --checkpoint_steps 100 --resume
# a small model from nothing, on plain text
conquer train --architecture llama --variant micro --tokenizer tokenizer.json --data_path books --pack --output_path mine
# on a data set of the Hugging Face Hub, or on folders of token shards in Arrow, which may be larger than memory
conquer train --model_path smollm2-135m --data_path hf://datasets/tatsu-lab/alpaca --output_path tuned
conquer train --model_path smollm2-135m --data_path shards --pack --steps 1000 --output_path tuned
# teach it which of two answers is the better one
conquer train --objective dpo --model_path tuned --data_path examples/preferences/train.jsonl --output_path preferring
# one that reads characters, from a folder of sources
conquer train --architecture bamba --variant bytes --tokenizer char_tokenizer --data_path src --pack --sequence_length 1024 \
  --batch_size 4 --steps 500 --learning_rate 6e-3 --beta2 0.98 --output_path mine`,
	setup: setupTrain,
}

const recomputeUsage = "selective: compute normalizations, SwiGLU and convolutions again, which spares a third of the activations for little time; block: keep each block's input alone and compute all else again; none"
const compileTrainUsage = "graph: record forward and backward passes once for each shape and replay them; none: launch their operations one by one (default: graph on a GPU, in one process, where passes are so small that launching takes longer than computing)"

type trainFlags struct {
	modelFlags
	worldFlags
	train.Options
	architecture, variant string
	data, validation      []string
	fraction              float64
	output                string
	report                int
	recompute             string
	lora                  lora.Config
	merge                 bool
	ask                   []string
	lengthGiven           bool // --sequence_length
	profileFlag
}

func setupTrain(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f trainFlags
	o := &f.Options
	f.modelFlags.declare(flags)
	flags.StringVar(&f.architecture, "architecture", "", "with --variant, in place of --model_path: begin with fresh weights")
	flags.StringVar(&f.variant, "variant", "", "the size of a fresh model, such as micro")
	flags.StringSliceVar(&f.data, "data_path", nil, "`files`, folders or .tar.gz archives to learn from: instructions, chats, texts or tokens (.json, .jsonl, .parquet, .arrow), plain text, or hf://datasets/org/name[@revision][:glob]; may be repeated")
	flags.StringSliceVar(&f.validation, "validation_path", nil, "`files` or folders that are not learned from, to measure the loss on")
	flags.Float64Var(&f.fraction, "validation_fraction", 0, "in place of --validation_path: the `part` of the data to hold out, or how many samples")
	flags.StringVar(&f.output, "output_path", "", "`folder` for the result, metrics.jsonl and loss.png")

	flags.IntVar(&o.Epochs, "epochs", 0, "passes over the data (default 3, unless --steps is given)")
	flags.IntVar(&o.Steps, "steps", 0, "steps to take")
	flags.IntVar(&o.BatchSize, "batch_size", 8, "samples of one forward pass, or rows with --pack")
	flags.IntVar(&o.Accumulate, "accumulate", 1, "forward passes of one step")
	flags.IntVar(&o.SequenceLength, "sequence_length", 512, "most `tokens` of a sample, or of each answer with its prompt with --objective dpo, or tokens of a row with --pack")
	flags.BoolVar(&o.Pack, "pack", false, "put several samples in a row; they do not see each other")

	flags.Float64Var(&o.Rate, "learning_rate", 0, "peak `rate` (default 1e-4; 5e-4 for LoRA and --head_only; a twentieth of these for dpo, a fifth for lion)")
	flags.StringVar(&o.Schedule, "schedule", "cosine", "how the rate falls after the warm-up: cosine, linear or constant")
	flags.IntVar(&o.WarmupSteps, "warmup_steps", -1, "steps over which the rate rises (default: a twentieth of the run)")
	flags.Lookup("warmup_steps").DefValue = "0" // the help says what -1 stands for
	flags.Float64Var(&o.MinRate, "min_learning_rate", 0, "what the `rate` falls to")
	flags.StringVar(&o.Optimizer, "optimizer", "adamw", "adamw, or lion, which keeps one average a weight in place of two")
	flags.StringVar(&o.Moments, "moments", "float32", "what AdamW keeps its averages in: float32, bfloat16 or int8 (8, 4 and 2 bytes a weight for both; on the CPU)")
	flags.Float64Var(&o.Decay, "weight_decay", 0.01, "how much weights decay, times the learning rate, each step")
	flags.StringSliceVar(&o.NoDecay, "no_decay", nil, "`kinds` of weights that do not decay: norm, bias, embedding, or none (default norm,bias)")
	flags.Float64Var(&o.Beta1, "beta1", 0.9, "the optimizer's decay of the mean gradient")
	flags.Float64Var(&o.Beta2, "beta2", 0, "AdamW's decay of the mean squared gradient (default 0.999), or Lion's of the mean it keeps (0.99)")
	flags.Float64Var(&o.Clip, "clip", 1, "largest `norm` of a step's gradients; 0: any")
	flags.StringVar(&o.Objective, "objective", train.SFT, "what to learn: sft, texts and answers; dpo, to prefer one answer of a pair (records of prompt, chosen and rejected)")
	flags.Float64Var(&o.Beta, "dpo_beta", 0, "with --objective dpo: how dear it is to leave what the model said before (default 0.1)")
	flags.Float64Var(&o.LabelSmoothing, "label_smoothing", 0, "`part` of each label to spread evenly over the vocabulary, such as 0.1")
	flags.Float64Var(&o.ZLoss, "z_loss", 0, "`coefficient`, such as 1e-4, of the squared logarithm of the softmax's denominator, which keeps logits from drifting")
	flags.BoolVar(&o.Stochastic, "stochastic_rounding", false, "keep bfloat16 weights without float32 originals, AdamW's averages in bfloat16 too, and round them at random: 8 bytes a weight in place of 16")
	flags.Int64Var(&o.Seed, "seed", 1, "`number` that order, dropout and fresh weights begin from")
	flags.StringVar((*string)(&o.Compile), "compile", "", compileTrainUsage)
	flags.StringVar(&f.recompute, "recompute", "none", recomputeUsage)

	flags.IntVar(&f.lora.Rank, "lora_rank", 0, "tune a LoRA adapter of this `rank` instead of the weights")
	flags.Float64Var(&f.lora.Alpha, "lora_alpha", 0, "the adapter's scale times its rank (default: twice the rank)")
	flags.Float64Var(&f.lora.Dropout, "lora_dropout", 0, "`part` of an adapter's inputs to drop")
	flags.StringSliceVar(&f.lora.Targets, "lora_targets", []string{lora.AllLinear}, "`layers` to adapt, such as q_proj,v_proj, or all-linear")
	flags.BoolVar(&f.merge, "merge", false, "write the model with the adapter folded in, instead of the adapter")
	flags.BoolVar(&o.HeadOnly, "head_only", false, "tune the projection to the vocabulary alone")

	flags.IntVar(&f.report, "report_steps", 10, "steps between two lines of metrics")
	flags.IntVar(&o.ValidateSteps, "validate_steps", 0, "steps between two looks at the validation set (default: a tenth of the run)")
	flags.IntVar(&o.CheckpointSteps, "checkpoint_steps", 500, "steps between two checkpoints; 0: when the run is stopped only")
	flags.StringVar(&o.CheckpointPath, "checkpoint_path", "", "`folder` for checkpoints (default: checkpoints in the output folder)")
	flags.IntVar(&o.Keep, "keep", 2, "how many of the last checkpoints stay")
	flags.BoolVar(&o.Resume, "resume", false, "go on from the last checkpoint, if there is one")
	flags.StringVar(&o.CheckpointFormat, "checkpoint_format", "", "hf: a folder for transformers, which one process writes; native: every process writes its part while training goes on (default: hf for one process, native for several)")
	flags.BoolVar(&o.TensorBoard, "tensorboard", false, "write event files for TensorBoard, in tensorboard in the output folder")
	f.worldFlags.declare(flags, o)
	f.declareProfile(flags)
	flags.StringArrayVar(&f.ask, "ask", nil, "a `question` to answer before and after; may be repeated")
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q: data is given with --data_path", args[0])
		}
		place, err := dist.FromEnvironment()
		if err != nil {
			return err
		}
		launching := f.processes > 1 && place.Size == 1
		if launching {
			place.Size, place.LocalSize = f.processes, f.processes
		}
		f.lengthGiven = flags.Changed("sequence_length")
		if err := f.check(flags, place); err != nil {
			return err
		}
		if launching {
			return f.launch(ctx, f.restarts)
		}
		return f.run(ctx)
	}
}

// check reports flags that contradict each other, or that the processes of the run have no place for, and fills in defaults that
// depend on others.
func (f *trainFlags) check(flags *pflag.FlagSet, place dist.Place) error {
	f.Distributed = train.StrategyName(f.Distributed)
	switch {
	case !slices.Contains(train.Objectives, f.Objective):
		return usagef("--objective: unknown objective %q: choose one of %s", f.Objective, strings.Join(train.Objectives, ", "))
	case (f.path == "") == (f.architecture == "" && f.variant == ""):
		return usagef("give --model_path to tune a model, or --architecture and --variant to begin with fresh weights")
	case f.path == "" && (f.architecture == "" || f.variant == ""):
		return usagef("--architecture and --variant belong together")
	case f.path == "" && f.tokenizer == "":
		return usagef("a model with fresh weights needs --tokenizer")
	case len(f.data) == 0:
		return usagef("--data_path is missing: give a file such as examples/lighthouse/train.jsonl")
	case f.output == "":
		return usagef("--output_path is missing: give a folder for the result")
	case len(f.validation) > 0 && f.fraction != 0:
		return usagef("give --validation_path or --validation_fraction, not both")
	case f.Steps < 0 || f.Epochs < 0:
		return usagef("--steps %d, --epochs %d: neither can be negative", f.Steps, f.Epochs)
	case f.Steps != 0 && f.Epochs != 0:
		return usagef("give --steps or --epochs, not both")
	case f.merge && f.lora.Rank == 0:
		return usagef("--merge goes with --lora_rank")
	case f.lora.Rank == 0 && (flags.Changed("lora_alpha") || flags.Changed("lora_dropout") || flags.Changed("lora_targets")):
		return usagef("--lora_alpha, --lora_dropout and --lora_targets go with --lora_rank")
	case flags.Changed("warmup_steps") && f.WarmupSteps < 0:
		return usagef("--warmup_steps is %d, expected 0 or more", f.WarmupSteps)
	case flags.Changed("validate_steps") && len(f.validation) == 0 && f.fraction == 0:
		return usagef("--validate_steps goes with --validation_path or --validation_fraction")
	case f.fraction > 1 && f.fraction != math.Trunc(f.fraction):
		return usagef("--validation_fraction is %g, expected a part below 1 or a number of samples", f.fraction)
	case f.restarts < 0:
		return usagef("--max_restarts is %d, expected 0 or more", f.restarts)
	case f.restarts > 0 && f.processes == 1:
		return usagef("--max_restarts goes with --nproc")
	case f.Keep < 1:
		return usagef("--keep is %d, expected 1 or more", f.Keep)
	case f.Distributed != "" && !slices.Contains(train.Strategies, f.Distributed):
		return usagef("--distributed: unknown strategy %q: choose one of %s", f.Distributed, strings.Join(train.Strategies, ", "))
	case f.report < 1:
		return usagef("--report_steps is %d, expected 1 or more", f.report)
	case f.dtype == "float16" || f.dtype == "fp16" || f.dtype == "half":
		return usagef("--dtype float16: its range is too small for gradients, use bfloat16 or float32")
	}
	for _, name := range []string{"learning_rate", "beta1", "beta2", "dpo_beta"} {
		if flag := flags.Lookup(name); flag.Changed && flag.Value.String() == "0" {
			return usagef("--%s is 0, expected a number above it", name)
		}
	}
	if err := f.checkProcesses(); err != nil {
		return err
	}
	if err := f.checkPaths(place.Rank); err != nil {
		return err
	}
	if f.processes > 1 && f.Compile == train.CompileGraph {
		return usagef("--compile %s records steps for one process: leave it out with several", train.CompileGraph)
	}
	if f.Steps == 0 && f.Epochs == 0 {
		f.Epochs = 3
	}
	if f.lora.Rank != 0 {
		f.LoRA = &f.lora
		if f.lora.Alpha == 0 {
			f.lora.Alpha = 2 * float64(f.lora.Rank)
		}
	}
	if f.Rate == 0 {
		f.Rate = 1e-4
		if f.LoRA != nil || f.HeadOnly {
			f.Rate = 5e-4
		}
		if f.Objective == train.DPO {
			f.Rate /= 20
		}
		if f.Optimizer == optim.Lion {
			f.Rate /= 5
		}
	}
	f.Recompute = train.Recompute(f.recompute)
	if f.CheckpointPath == "" {
		f.CheckpointPath = filepath.Join(f.output, "checkpoints")
	}
	f.LogPath, f.BaseModel = f.output, f.path
	if f.Distributed == "" && place.Size > 1 {
		f.Distributed = train.DDP
	}
	switch {
	case flags.Changed("hsdp_size") && f.Distributed != train.HSDP:
		return usagef("--hsdp_size goes with --distributed hsdp")
	case f.KeepGathered && f.Distributed != train.FSDP && f.Distributed != train.HSDP:
		return usagef("--keep_gathered goes with --distributed fsdp or hsdp")
	}
	if err := f.Options.Check(); err != nil {
		return usageError{err}
	}
	if err := f.Options.CheckPlace(place); err != nil {
		return usageError{err}
	}
	return nil
}

// checkPaths finds what is missing, or cannot be written, before a model and data are read, which can take long.
func (f *trainFlags) checkPaths(rank int) error {
	for flag, paths := range map[string][]string{"data_path": f.data, "validation_path": f.validation} {
		for _, path := range paths {
			if strings.HasPrefix(path, hub.DataScheme) {
				continue
			}
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("--%s: %w", flag, err)
			}
		}
	}
	if rank == 0 && sameFile(f.path, f.output) {
		return fmt.Errorf("--output_path: %s is the model that is read from --model_path: choose another folder", f.output)
	}
	for flag, path := range map[string]string{"output_path": f.output, "checkpoint_path": f.CheckpointPath} {
		if rank > 0 || path == "" { // other machines may have no such folder
			continue
		}
		if err := checkFolder(path); err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	return f.checkProfile()
}

// checkFolder reports why files cannot be written in a folder, which need not be there yet.
func checkFolder(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path != filepath.Dir(path):
		return checkFolder(filepath.Dir(path))
	case errors.Is(err, syscall.ENOTDIR):
		return checkFolder(filepath.Dir(path)) // where one on the way is a file
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is a file, expected a folder", path)
	}
	if err := syscall.Access(path, 2); err != nil { // W_OK
		return fmt.Errorf("files cannot be written in %s: %w", path, err)
	}
	return nil
}

func (f *trainFlags) run(ctx context.Context) error {
	world, err := f.join()
	if err != nil {
		return err
	}
	defer world.Leave()
	o, err := f.openModel(ctx)
	if err != nil {
		return err
	}
	defer func() {
		model.Free(o.model)
		if o.checkpoint != nil {
			o.checkpoint.Close()
		}
	}()
	if most := o.model.MaxLength(); f.SequenceLength > most {
		if f.lengthGiven && (world == nil || world.Rank == 0) {
			fmt.Fprintf(os.Stderr, "conquer train: the model's context of %d is what samples are cut to, not --sequence_length %d\n", most, f.SequenceLength)
		}
		f.SequenceLength = most
	}
	data, validation, err := f.load(ctx, o.tokenizer)
	if err != nil {
		return err
	}
	defer data.Close()
	if validation != nil {
		defer validation.Close()
	}
	f.Tokenizer = o.tokenizer
	bar := passingBar(progressbar.OptionShowCount())
	f.Progress = func(what string, done, total int) error {
		if world == nil || world.Rank == 0 {
			bar(what, int64(done), int64(total))
		}
		return ctx.Err()
	}
	t, err := train.New(o.model, data, validation, f.Options)
	if err != nil {
		return err
	}
	defer t.Close()
	o.model = t.Model()
	fmt.Printf("tuning %s of %s weights for %s\n", thousands(t.Trained()), thousands(model.Parameters(o.model)), dataset.Count(t.Steps(), "step"))
	if f.Resume {
		if t.Done() > 0 {
			fmt.Printf("resuming after step %d\n", t.Done())
		} else {
			fmt.Println("there is no checkpoint yet: beginning with step 1")
		}
	}
	if err := f.answer(ctx, t, o, "before"); err != nil {
		return err
	}
	if world == nil || world.Rank == 0 {
		console := report.NewConsole(os.Stderr, f.report, t.Done(), t.Steps())
		defer console.Close()
		t.Listen(console)
	}
	if world != nil && world.Rank > 0 {
		f.profile = ""
	}
	tellLauncher(begunMark)
	if err := f.profiled(func() error { return t.Run(ctx) }); err != nil {
		return err
	}
	if err := f.answer(ctx, t, o, "after"); err != nil {
		return err
	}
	return f.finish(t)
}

// openModel opens the model to tune, or makes one with fresh weights.
func (f *trainFlags) openModel(ctx context.Context) (*opened, error) {
	if f.path != "" {
		o, err := f.open(ctx)
		if err != nil {
			return nil, err
		}
		switch {
		case o.tokenizer == nil:
			err = fmt.Errorf("%s has no tokenizer: give one with --tokenizer", o.path)
		case model.DType(o.model) == torch.Float16:
			err = fmt.Errorf("%s is stored as float16, whose range is too small for gradients: give --dtype bfloat16 or float32", o.path)
		}
		if err != nil {
			o.Close()
			return nil, err
		}
		f.GenerationConfig = o.checkpoint.GenerationConfigJSON()
		return o, nil
	}
	return f.freshModel()
}

// freshModel makes a model of --architecture and --variant with fresh weights.
func (f *trainFlags) freshModel() (*opened, error) {
	tok, err := tokenizer.Open(f.tokenizer)
	if err != nil {
		return nil, err
	}
	m, err := f.fresh(f.architecture, f.variant, torch.Float32, f.Seed, tok.VocabSize(), 0)
	if err != nil {
		return nil, err
	}
	return &opened{path: f.variant, model: m, tokenizer: tok}, nil
}

// fresh makes a variant of an architecture with fresh weights, on the flags' device; its vocabulary must have room for so
// many tokens, and its context for so many positions.
func (f *modelFlags) fresh(architecture, variant string, dtype torch.DType, seed int64, tokens, positions int) (model.Model, error) {
	config, err := model.Variant(architecture, variant)
	if err != nil {
		return nil, usageError{err}
	}
	if most, ok := config["max_position_embeddings"].(float64); ok && most < float64(positions) {
		config["max_position_embeddings"] = float64(positions)
	}
	if given, err := parseDType(f.dtype); err != nil {
		return nil, err
	} else if given != nil {
		dtype = *given
	}
	device, err := parseDevice(f.device)
	if err != nil {
		return nil, err
	}
	if err := setThreads(f.threads); err != nil {
		return nil, err
	}
	if f.onHost {
		device = torch.CPU
	}
	m, err := model.New(config)
	if err != nil {
		return nil, err
	}
	if rows := m.Head().Shape[0]; rows < tokens {
		return nil, fmt.Errorf("vocabulary mismatch: the tokenizer has %d tokens, but %s has rows for %d", tokens, variant, rows)
	}
	if f.world != nil {
		if _, err := parallel.Divide(m, f.world.All, device); err != nil {
			return nil, err
		}
	}
	err = torch.Run(func() error {
		torch.ManualSeed(seed)
		model.Initialize(m, dtype, device)
		return nil
	})
	if err != nil {
		model.Free(m)
		return nil, err
	}
	return m, nil
}

// load reads and encodes the data sets.
func (f *trainFlags) load(ctx context.Context, tok *tokenizer.Tokenizer) (data, validation *dataset.Dataset, err error) {
	if data, err = f.loadAll(ctx, f.data, "data", tok); err != nil {
		return nil, nil, err
	}
	if len(f.validation) > 0 {
		validation, err = f.loadAll(ctx, f.validation, "validation", tok)
	} else if f.fraction != 0 {
		if !(f.fraction > 0) {
			return nil, nil, usagef("--validation_fraction is %g, expected more than 0", f.fraction)
		}
		data, validation, err = data.Split(f.fraction, uint64(f.Seed))
	}
	return data, validation, err
}

func (f *trainFlags) loadAll(ctx context.Context, paths []string, what string, tok *tokenizer.Tokenizer) (*dataset.Dataset, error) {
	all := &dataset.Dataset{}
	var files []string
	for _, path := range paths {
		if !strings.HasPrefix(path, hub.DataScheme) {
			files = append(files, path)
			continue
		}
		fetched, err := hub.FetchData(ctx, path, downloadBar(path))
		if err != nil {
			return nil, err
		}
		files = append(files, fetched...)
	}
	for _, path := range files {
		bar := passingBar(progressbar.OptionShowBytes(true))
		o := dataset.Options{MaxLength: f.SequenceLength, Progress: func(done, total int64) error {
			if f.World == nil || f.World.Rank == 0 {
				bar("reading "+path, done, total)
			}
			return ctx.Err()
		}}
		if f.Objective == train.DPO {
			o.Layout = dataset.Preference
		}
		d, err := dataset.Load(path, tok, o)
		if err != nil {
			return nil, err
		}
		all.Append(d)
		fmt.Printf("%s %s: %s\n", what, path, d.Report)
	}
	return all, nil
}

// answer lets the model answer the questions of --ask.
func (f *trainFlags) answer(ctx context.Context, t *train.Trainer, o *opened, when string) error {
	if len(f.ask) == 0 {
		return nil
	}
	return t.Whole(func() error { return f.answerAll(ctx, o, when) })
}

func (f *trainFlags) answerAll(ctx context.Context, o *opened, when string) error {
	for _, question := range f.ask {
		prompt, special, err := dataset.InstructionPrompt(o.tokenizer, question, "")
		if err != nil {
			return err
		}
		ids := o.tokenizer.Encode(prompt, special)
		results, _, err := generate.Generate(ctx, o.model, o.tokenizer, [][]int32{ids}, generate.Options{MaxNewTokens: 80}, nil)
		if err != nil {
			return err
		}
		fmt.Printf("\n%s tuning: %s\n  %s\n", when, question, strings.ReplaceAll(strings.TrimSpace(results[0].Text), "\n", "\n  "))
	}
	fmt.Println()
	return nil
}

// finish writes the result and says where it is and what to do with it.
func (f *trainFlags) finish(t *train.Trainer) error {
	export := t.Export
	if f.merge {
		export = t.ExportMerged
	}
	if err := export(f.output); err != nil || f.World != nil && f.World.Rank > 0 {
		return err
	}
	picture := filepath.Join(f.output, "loss.png")
	if err := report.PlotLoss(filepath.Join(f.output, report.MetricsFile), picture); err != nil {
		return err
	}
	fmt.Printf("peak memory %.2f GB\nwrote %s (losses in %s)\ntry:\n", float64(t.PeakMemory())/1e9, f.output, picture)
	question := "Why is the sky blue?"
	if len(f.ask) > 0 {
		question = f.ask[0]
	}
	if f.LoRA != nil && !f.merge {
		fmt.Printf("  conquer generate --model_path %s --adapter_path %s --chat --prompt %q\n", f.path, f.output, question)
		return nil
	}
	if f.path == "" && len(f.ask) == 0 { // a model that learned from nothing but this data continues texts
		fmt.Printf("  conquer generate --model_path %s --temperature 0.7 --prompt %q\n", f.output, "The ")
		return nil
	}
	fmt.Printf("  conquer generate --model_path %s --chat --prompt %q\n", f.output, question)
	return nil
}

// thousands writes a count for people: 134.5M.
func thousands(n int) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2fB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1fM", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1fk", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}
