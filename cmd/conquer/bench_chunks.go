package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

var benchChunksCommand = command{
	name:    "bench chunks",
	summary: "Time a model over prompts of growing length under each chunking strategy.",
	example: `# four layers with random weights, without a cache; random tokens without a tokenizer
conquer bench chunks --variant small --prompts examples/prompts/prompts.json
# your own model; separate the cost of launches from the cost of the scan
conquer bench chunks --model_path my-bamba --prompts prompts.json \
  --chunking default,independent --compile eager,kernels,graph,both`,
	setup: setupBenchChunks,
}

// subjectFlags select a state-space model, prompts and strategies.
type subjectFlags struct {
	modelFlags
	architecture, variant, prompts, size string
	chunking                             []string
	layers                               int
	useCache                             bool
	seed                                 int64
}

func (f *subjectFlags) declare(flags *pflag.FlagSet, layers int, useCache bool,
	chunking ...string) {
	flags.StringVar(&f.prompts, "prompts", "",
		"JSON `file`, or - for standard input: a list of objects with prompt, answer, token_len "+
			"and num_chunks")
	group(flags, "Prompts")
	f.modelFlags.declare(flags)
	flags.StringVar(&f.architecture, "architecture", "bamba",
		"with --variant, instead of --model_path: bamba or mamba2")
	flags.StringVar(&f.variant, "variant", "",
		"size of a model with random weights, such as small or 9b")
	flags.IntVar(&f.layers, "layers", layers, "`number` of layers to run, from the first; 0: all")
	group(flags, "Model")
	declareChunking(flags, &f.chunking, chunking...)
	flags.StringVar(&f.size, "chunk_size", "",
		"chunk `size` in tokens: a power of two from 16 to 256, or auto (default: the model's)")
	group(flags, "Chunking")
	flags.Int64Var(&f.seed, "seed", 1, "`seed` of random weights and random prompts")
	flags.BoolVar(&f.useCache, "use_cache", useCache,
		"cache states; without it, all tokens are recomputed for each new token")
	group(flags, "Runs")
}

// open opens the model and reads the prompts. The caller frees the model.
func (f *subjectFlags) open(ctx context.Context, layersGiven bool) (s bench.Subject, err error) {
	if f.prompts == "" {
		return s, usagef("--prompts is missing: give a JSON file such as " +
			"examples/prompts/prompts.json")
	}
	if (f.path == "") == (f.variant == "") {
		return s, usagef("give --model_path for a model with weights, or --variant for one with " +
			"random weights")
	}
	if f.layers < 0 {
		return s, usagef("--layers is %d, expected 0 (all) or more", f.layers)
	}
	if s.Strategies, err = parseStrategies(f.chunking); err != nil {
		return s, err
	}
	if f.size != "" {
		size, err := statespace.ParseChunkSize(f.size)
		if err != nil {
			return s, usagef("--chunk_size: %w", err)
		}
		for i := range s.Strategies {
			s.Strategies[i].ChunkSize = size
		}
	}
	if s.Prompts, err = bench.ReadPrompts(f.prompts); err != nil {
		return s, fmt.Errorf("--prompts: %w", err)
	}
	s.UseCache, s.Seed = f.useCache, f.seed
	o, err := f.openLayers(ctx, layersGiven)
	if err != nil {
		return s, err
	}
	m, ok := o.model.(statespace.Chunked)
	if !ok {
		model.Free(o.model)
		return s, fmt.Errorf("%s is a %s model, which has no chunks: use a model with "+
			"state-space layers, such as bamba or mamba2",
			o.path, o.model.Architecture())
	}
	s.Model, s.Tokenizer = m, o.tokenizer
	return s, nil
}

// weights says where the weights of the model are from.
func (f *subjectFlags) weights() string {
	if f.path == "" {
		return bench.RandomWeights(f.seed)
	}
	return f.path
}

// openLayers opens the first layers of --model_path, or makes those of --variant with random
// weights.
func (f *subjectFlags) openLayers(ctx context.Context, layersGiven bool) (o *opened, err error) {
	dtype, err := parseDType(f.dtype)
	if err != nil {
		return nil, err
	}
	device, err := parseDevice(f.device)
	if err != nil {
		return nil, err
	}
	if err := setThreads(f.threads); err != nil {
		return nil, err
	}
	o, config, err := f.openConfig(ctx)
	if err != nil {
		return nil, err
	}
	defer o.closeFiles()
	if err := f.cut(config, layersGiven); err != nil {
		return nil, err
	}
	if o.model, err = model.New(config); err != nil {
		return nil, fmt.Errorf("%s: %w", o.path, err)
	}
	if err := o.setTokenizer(o.tokenizer, f.tokenizer, checkVocabulary(o)); err != nil {
		return nil, err
	}
	if dtype == nil {
		stored := torch.Float32
		if o.checkpoint != nil {
			stored = storedDType(o.checkpoint, device)
			f.converts = "this benchmark measures floating-point weights"
			f.keepsBlocks(o.checkpoint, stored, device)
		} else if device.IsCUDA() {
			stored = torch.BFloat16
		}
		dtype = &stored
	}
	if err := f.fill(o, *dtype, device); err != nil {
		model.Free(o.model)
		return nil, err
	}
	return o, nil
}

// openConfig opens the checkpoint of --model_path and its tokenizer, or reads the config of
// --variant and the tokenizer of --tokenizer. If there is no error, the caller closes the
// checkpoint.
func (f *subjectFlags) openConfig(ctx context.Context) (*opened, model.Config, error) {
	o := &opened{path: f.variant}
	if f.path == "" {
		config, err := model.Variant(f.architecture, f.variant)
		if err != nil {
			return nil, nil, usageError{err}
		}
		if f.tokenizer != "" {
			o.tokenizer, err = openNamedTokenizer(ctx, f.tokenizer)
		}
		return o, config, err
	}
	var err error
	if o.path, f.adapter, o.checkpoint, err = openModel(ctx, f.path, ""); err != nil {
		return nil, nil, err
	}
	config := model.Config(o.checkpoint.Config()).Clone()
	if o.adapted, err = f.foldAdapter(o); o.adapted != nil {
		var m model.Model
		if m, err = o.declare(); err == nil {
			config = m.Config().Clone()
		}
	}
	if err != nil {
		// returned below
	} else if len(config) == 0 {
		err = fmt.Errorf("%s: no config.json beside the weights", o.path)
	} else {
		t, failed := openTokenizer(ctx, f.tokenizer, o.path, f.adapter, o.checkpoint)
		err = o.setTokenizer(t, f.tokenizer, failed)
	}
	if err != nil {
		o.closeFiles()
	}
	return o, config, err
}

// fill reads the model's weights, or makes random ones.
func (f *subjectFlags) fill(o *opened, dtype torch.DType, device torch.Device) error {
	return torch.Run(func() error {
		if o.checkpoint != nil {
			weights := o.source()
			if f.layers > 0 { // the layers beyond them are left out: see model.Unused
				weights = struct{ model.TensorSource }{weights}
			}
			return model.Load(o.model, weights, dtype, device)
		}
		note("the weights of %s %s are random (no --model_path), seed %d\n",
			f.architecture, f.variant, f.seed)
		torch.ManualSeed(f.seed)
		model.Initialize(o.model, dtype, device)
		return nil
	})
}

// cut reduces the config to its first --layers layers. A model with fewer layers keeps them all,
// unless --layers was given.
func (f *subjectFlags) cut(config model.Config, given bool) error {
	all, ok := config["num_hidden_layers"].(float64)
	if !ok || f.layers == 0 || float64(f.layers) == all {
		return nil
	}
	if float64(f.layers) > all {
		if given {
			return usagef("--layers is %d, but the model has %.0f", f.layers, all)
		}
		return nil
	}
	config["num_hidden_layers"] = float64(f.layers)
	if attention, ok := config["attn_layer_indices"].([]any); ok {
		config["attn_layer_indices"] = slices.DeleteFunc(slices.Clone(attention), func(v any) bool {
			i, ok := v.(float64)
			return ok && i >= float64(f.layers)
		})
	}
	return nil
}

// chunksFlags are the flags of conquer bench chunks.
type chunksFlags struct {
	subjectFlags
	results benchFlags
	options bench.ChunksOptions
}

func setupBenchChunks(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f chunksFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q", args[0])
		}
		if err := f.options.Check(); err != nil {
			return usageError{err}
		}
		return f.run(ctx, flags.Changed("layers"))
	}
}

func (f *chunksFlags) declare(flags *pflag.FlagSet) {
	f.subjectFlags.declare(flags, 4, false, "default", "default-optimized", "independent",
		"independent-optimized")
	flags.StringSliceVar(&f.options.Compile, "compile", nil,
		"`ways` to run each strategy: eager (plain libtorch), kernels, graph (eager in a CUDA "+
			"graph), both (kernels in a CUDA graph) (default: as --chunking says)")
	flags.IntVar(&f.options.MaxNewTokens, "max_new_tokens", 4,
		"`number` of new tokens per prompt")
	flags.IntVar(&f.options.Repeats, "repeats", 3, "timed runs per row, after a warm-up")
	group(flags, "Runs")
	f.results.declare(flags, bench.Chunks)
}

func (f *chunksFlags) run(ctx context.Context, layersGiven bool) (err error) {
	o := &f.options
	if o.Subject, err = f.open(ctx, layersGiven); err != nil {
		return err
	}
	defer model.Free(o.Model)
	if o.Tokenizer == nil {
		note("no --tokenizer: prompts are token_len random tokens\n")
	}
	results, err := f.results.begin(bench.Chunks, model.Device(o.Model), true)
	if err != nil {
		return err
	}
	results.Weights = f.weights()
	if o.Tokenizer == nil {
		results.Inputs = bench.RandomInputs("tokens", f.seed)
	}
	rows, err := collect("timing", func(add func(bench.ChunksRow, int)) error {
		return bench.RunChunks(ctx, *o, add)
	})
	results.Rows = rows
	printFailedRows(os.Stderr, rows)
	return f.results.finish(results, len(rows), err, func(w io.Writer) { printChunks(w, rows) })
}

// printFailedRows prints each reason for a failure once.
func printFailedRows(w io.Writer, rows []bench.ChunksRow) {
	printed := map[string]bool{}
	for _, r := range rows {
		if r.Failed != "" && !printed[r.Compile+r.Failed] {
			printed[r.Compile+r.Failed] = true
			fmt.Fprintf(w, "prompt %d, %s, %s: %s\n", r.ID, r.Strategy, r.Compile, r.Failed)
		}
	}
}

func printChunks(w io.Writer, rows []bench.ChunksRow) {
	fmt.Fprintln(w, "id\ttokens\tstrategy\tcompile\ttotal ms\tquartiles\tfirst ms\tbetween "+
		"ms\ttok/s\tpeak\tGB/s\tGFLOP/s\tCPU\tGPU\tcostliest\t")
	for _, r := range rows {
		if r.Failed != "" {
			fmt.Fprintf(w, "%d\t%d\t%s\t%s\t—\t\n", r.ID, r.PromptTokens, r.Strategy, r.Compile)
			continue
		}
		gpu := "—"
		if r.GPUUtilization != nil {
			gpu = fmt.Sprintf("%.0f %%", 100**r.GPUUtilization)
		}
		var costly []string
		for _, o := range r.TopOperations[:min(2, len(r.TopOperations))] {
			costly = append(costly, fmt.Sprintf("%s %.0f %%", o.Name, 100*o.Share))
		}
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%.1f\t%s\t%.2f\t%.1f\t%.0f "+
			"%%\t%s\t%s\t\n", r.ID, r.PromptTokens, r.Strategy, r.Compile, formatMS(r.TotalMS),
			formatQuartiles(r.Times()), formatMS(r.FirstTokenMS),
			formatMS(r.BetweenTokensMS), r.TokensPerS, formatBytes(r.PeakBytes), r.GBPerS,
			r.GFlopPerS, 100*r.CPUUtilization, gpu, strings.Join(costly, ", "))
	}
}
