package main

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/optim"
	"conquer/train"
)

var benchInferenceCommand = command{
	name:    "bench inference",
	summary: "Time generation: launched one by one and recorded, with and without a cache.",
	example: `conquer bench inference --model_path smollm2-135m --seq_len 512 \
  --max_new_tokens 64 --batch_size 1
# random weights of a named size, on a GPU
conquer bench inference --architecture llama --variant 7b --dtype bfloat16 --seq_len 1024 \
  --max_new_tokens 256 --batch_size 1 --json
# a long prompt in pieces
conquer bench inference --architecture bamba --variant 9b --dtype bfloat16 --seq_len 1000000 \
  --max_new_tokens 16 --batch_size 1 --prefill_pieces 4096 --skip_nokvcache_runs --json
# divided over two GPUs
conquer bench inference --nproc 2 --architecture llama --variant 13b --dtype bfloat16 \
  --skip_nokvcache_runs`,
	setup: setupBenchInference,
}

var benchTrainCommand = command{
	name:    "bench train",
	summary: "Time training steps on random tokens.",
	example: `conquer bench train --model_path smollm2-135m --batch_size 2 \
  --sequence_length 256 --steps 5
conquer bench train --architecture llama --variant 3.2-1b --dtype bfloat16 --batch_size 4 \
  --sequence_length 2048 --json`,
	setup: setupBenchTrain,
}

// speedFlags select the model of a benchmark: a checkpoint, or an architecture with random weights.
type speedFlags struct {
	modelFlags
	seed int64
	json bool
	profileFlag
}

func (f *speedFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	flags.StringVar(&f.architecture, "architecture", "",
		"without --model_path: the architecture of a model with random weights; with it: the "+
			"architecture that the checkpoint must have")
	flags.StringVar(&f.variant, "variant", "", "`size` of the model, such as 7b")
	f.declareSourceFormat(flags)
	flags.Int64Var(&f.seed, "seed", 1, "`seed` of random weights and tokens")
	group(flags, "Model")
	flags.BoolVar(&f.json, "json", false, "print a JSON object for each row")
	f.declareProfile(flags)
	group(flags, "Output")
}

// model opens or makes the model. A model with random weights gets a context of at least positions
// tokens. The returned function closes the checkpoint.
func (f *speedFlags) model(ctx context.Context, positions int) (model.Model, func(), error) {
	if f.path == "" && (f.architecture == "" || f.variant == "") {
		return nil, nil, usagef("give --model_path, or --architecture and --variant for random " +
			"weights")
	}
	if err := f.checkProfile(); err != nil {
		return nil, nil, err
	}
	if f.path != "" {
		o, err := f.open(ctx)
		if err != nil {
			return nil, nil, err
		}
		return o.model, o.closeFiles, nil
	}
	dtype := torch.Float32
	if f.device != "cpu" {
		dtype = torch.BFloat16
	}
	m, err := f.newModel(f.architecture, f.variant, dtype, f.seed, nil, positions)
	return m, func() {}, err
}

// weights says where the weights of the model are from.
func (f *speedFlags) weights() string {
	if f.path == "" {
		return bench.RandomWeights(f.seed)
	}
	return f.path
}

// inferenceFlags are the flags of conquer bench inference.
type inferenceFlags struct {
	speedFlags
	processFlags
	bench.InferenceOptions
	noEager, noCompiled, noCacheRuns, noUncachedRuns bool
}

func setupBenchInference(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f inferenceFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if err := f.check(args); err != nil {
			return err
		}
		return f.start(ctx)
	}
}

func (f *inferenceFlags) declare(flags *pflag.FlagSet) {
	f.speedFlags.declare(flags)
	f.declareStates(flags)
	group(flags, "Model")
	f.declareProcesses(flags)
	group(flags, "Several processes")
	flags.IntVar(&f.Batch, "batch_size", 2, "prompts per batch")
	flags.IntVar(&f.Length, "seq_len", 512, "`tokens` of a prompt")
	flags.IntVar(&f.NewTokens, "max_new_tokens", 256, "new `tokens` per prompt")
	flags.IntVar(&f.PrefillPiece, "prefill_pieces", 0,
		"read prompts in passes of this many `tokens`, so that the memory of a pass does not grow "+
			"with the prompt; needs --skip_nokvcache_runs (default: in one pass)")
	flags.IntVar(&f.Repeats, "repeat", 3, "timed calls, after one warm-up call")
	flags.BoolVar(&f.noEager, "skip_eager_runs", false,
		"skip runs launched operation by operation")
	flags.BoolVar(&f.noCompiled, "skip_compile_runs", false,
		"skip runs recorded as CUDA graphs (GPU only)")
	flags.BoolVar(&f.noCacheRuns, "skip_kvcache_runs", false, "skip runs with a cache")
	flags.BoolVar(&f.noUncachedRuns, "skip_nokvcache_runs", false,
		"skip runs without a cache, which recompute all tokens at each step")
	group(flags, "Runs")
}

// check reads the flags into the options.
func (f *inferenceFlags) check(args []string) error {
	recordedOnly := f.noEager && (f.noCompiled || f.noCacheRuns || f.processes > 1)
	switch {
	case len(args) > 0:
		return usagef("unexpected %q", args[0])
	case recordedOnly || f.noCacheRuns && f.noUncachedRuns:
		return usagef("nothing left to measure: recorded steps need a cache and a single process")
	case f.PrefillPiece < 0 || f.PrefillPiece > 0 && !f.noUncachedRuns:
		return usagef("--prefill_pieces is %d: expected 1 token or more, and "+
			"--skip_nokvcache_runs, because runs without a cache read all tokens at once",
			f.PrefillPiece)
	case f.Batch < 1 || f.Length < 1 || f.NewTokens < 2 || f.Repeats < 1:
		return usagef("--batch_size, --seq_len and --repeat must be at least 1, " +
			"--max_new_tokens at least 2")
	}
	f.Eager, f.Compiled = !f.noEager, !f.noCompiled
	f.Cache, f.NoCache = !f.noCacheRuns, !f.noUncachedRuns
	f.Seed, f.Weights = uint64(f.seed), f.weights()
	return f.checkProcesses()
}

// start measures in this process, or starts the processes of --nproc.
func (f *inferenceFlags) start(ctx context.Context) error {
	place, err := dist.FromEnvironment()
	switch {
	case err != nil:
		return err
	case place.Size == 1 && f.processes > 1:
		if f.Compiled {
			note("(steps of several processes are not recorded: skipping the compiled runs)\n")
		}
		return f.launch(ctx, 0)
	case place.Size > 1:
		if f.world, err = f.join(place, &f.modelFlags); err != nil {
			return err
		}
		defer f.world.Leave()
		if f.Group = f.world.All; place.Rank > 0 {
			f.profile = ""
		}
	}
	return f.run(ctx)
}

func (f *inferenceFlags) run(ctx context.Context) error {
	m, done, err := f.model(ctx, f.Length+f.NewTokens)
	if err != nil {
		return err
	}
	defer done()
	defer model.Free(m)
	device := model.Device(m)
	if f.Compiled && f.Group == nil && !device.IsCUDA() {
		note("(steps are not recorded on the CPU: skipping the compiled runs)\n")
	}
	if err := f.Check(device); err != nil {
		return usageError{err}
	}
	if room := m.MaxLength() - f.Length; room < f.NewTokens {
		return usagef("--seq_len %d and --max_new_tokens %d do not fit the model's context of %d",
			f.Length, f.NewTokens, m.MaxLength())
	}
	var unwritten error
	f.Done = func(r bench.InferenceRow) {
		if f.json {
			unwritten = cmp.Or(unwritten, printJSON(stdout, r))
			return
		}
		printInference(stdout, r)
	}
	return f.profiled(func() error {
		_, err := bench.Inference(ctx, m, f.InferenceOptions)
		return cmp.Or(err, unwritten)
	})
}

func printInference(w io.Writer, r bench.InferenceRow) {
	how := map[string]string{"none": "eager", "graph": "compiled"}[r.Compile]
	fmt.Fprintf(w, "%s, use_cache=%t, batch %d, %d + %d tokens, %s on %s, weights: %s\n",
		how, r.UseCache, r.Batch, r.Length, r.NewTokens, r.DType, r.Device, r.Weights)
	fmt.Fprintf(w, "  first token  %10.2f ms\n", r.FirstTokenMS)
	if r.SingleMS > 0 {
		fmt.Fprintf(w, "  single token %10.3f ms\n", r.SingleMS)
	}
	fmt.Fprintf(w, "  end to end   %10.2f ms, %.3f ms per token, %.1f tok/s\n", r.TotalMS,
		r.PerTokenMS, r.TokensPerS)
	if r.PeakBytes > 0 {
		fmt.Fprintf(w, "  peak memory  %10s\n", formatBytes(r.PeakBytes))
	}
	switch {
	case r.Fused:
		fmt.Fprintln(w, "  layers       fused: one operation between two mixers")
	case r.UnfusedReason != "":
		fmt.Fprintf(w, "  layers       not fused: %s\n", r.UnfusedReason)
	}
}

// benchTrainFlags are the flags of conquer bench train.
type benchTrainFlags struct {
	speedFlags
	options   train.Options
	adapter   lora.Config
	recompute string
}

func setupBenchTrain(flags *pflag.FlagSet) func(context.Context, []string) error {
	f := benchTrainFlags{options: train.Options{Rate: 1e-5, Schedule: "constant", Decay: 0.01}}
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if err := f.check(args); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *benchTrainFlags) declare(flags *pflag.FlagSet) {
	o := &f.options
	f.speedFlags.declare(flags)
	flags.IntVar(&o.BatchSize, "batch_size", 4, "rows per forward pass")
	flags.IntVar(&o.SequenceLength, "sequence_length", 2048, "tokens per row")
	flags.IntVar(&o.Accumulate, "accumulate", 1, "forward passes per optimizer step")
	flags.IntVar(&o.Steps, "steps", 6, "timed steps, after two warm-up steps")
	flags.StringVar(&f.recompute, "recompute", "none", recomputeUsage)
	flags.StringVar((*string)(&o.Compile), "compile", "", compileTrainUsage)
	flags.StringVar(&o.Optimizer, "optimizer", optim.AdamW, "adamw, lion or muon")
	flags.StringVar(&o.Moments, "moments", optim.Float32,
		"dtype of AdamW's moments: float32, bfloat16 or int8")
	flags.BoolVar(&o.Stochastic, "stochastic_rounding", false, "as in conquer train")
	flags.IntVar(&f.adapter.Rank, "lora_rank", 0,
		"train a LoRA adapter of this `rank` on all linear layers")
	group(flags, "Steps")
}

// check reads the flags into the options.
func (f *benchTrainFlags) check(args []string) error {
	o := &f.options
	if len(args) > 0 {
		return usagef("unexpected %q", args[0])
	}
	o.Recompute, o.Seed, o.Clip = train.Recompute(f.recompute), f.seed, 1
	if f.adapter.Rank > 0 {
		o.LoRA = &f.adapter
	}
	if o.Steps < 1 || f.adapter.Rank < 0 {
		return usagef("--steps %d, --lora_rank %d: expected at least 1 step and no negative rank",
			o.Steps, f.adapter.Rank)
	}
	if err := o.Check(); err != nil {
		return usageError{err}
	}
	return nil
}

func (f *benchTrainFlags) run(ctx context.Context) error {
	if f.adapter.Rank == 0 {
		f.converts = convertsTraining
	}
	m, done, err := f.model(ctx, f.options.SequenceLength)
	if err != nil {
		return err
	}
	defer done()
	defer func() { model.Free(m) }()
	return f.profiled(func() error {
		var row bench.TrainRow
		if row, m, err = bench.Train(ctx, m, f.options); err != nil {
			return err
		}
		row.Weights = f.weights()
		if f.json {
			return printJSON(stdout, row)
		}
		printTrain(row)
		return nil
	})
}

func printTrain(row bench.TrainRow) {
	how := ""
	if row.Accumulate > 1 {
		how = fmt.Sprintf(", %d passes a step", row.Accumulate)
	}
	if row.Recorded {
		how += ", recorded"
	}
	fmt.Fprintf(stdout, "%s of %s weights, batch %d × %d tokens, %s on %s%s\n",
		thousands(row.Trained), thousands(row.Parameters), row.Batch, row.Length, row.DType,
		row.Device, how)
	fmt.Fprintf(stdout, "  weights      %s\n", row.Weights)
	spread := ""
	if row.Steps > 1 {
		spread = fmt.Sprintf("%.2f to %.2f; ", row.LowMS, row.HighMS)
	}
	fmt.Fprintf(stdout, "  step         %10.2f ms (%sthe first %.0f)\n", row.StepMS, spread,
		row.FirstStepMS)
	fmt.Fprintf(stdout, "  speed        %10.1f tok/s, %.1f TFLOP/s\n", row.TokensPerS,
		row.TFlopPerS)
	fmt.Fprintf(stdout, "  peak memory  %10s\n", formatBytes(row.PeakBytes))
}
