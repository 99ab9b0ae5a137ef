package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/checkpoint"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

var benchConsistencyCommand = command{
	name: "bench consistency",
	summary: "Compare ways to run a model over a text with float64: whole, in pieces, token by " +
		"token, padded, packed.",
	example: `conquer bench consistency --model_path my-bamba --text_file book.txt --length 2048
# drift over a long text, in two dtypes; random tokens and weights
conquer bench consistency --variant small --length 16384 --decode 512 --dtype float32,bfloat16
# the CPU beside a GPU
conquer bench consistency --model_path my-bamba --text_file book.txt --device cpu,cuda
# the same text in transformers, and one page with both
conquer bench consistency --model_path my-bamba --text_file book.txt --reference_path reference
python tools/peers/consistency.py my-bamba reference results
conquer bench report`,
	setup: setupBenchConsistency,
}

// consistencyFlags are the flags of conquer bench consistency.
type consistencyFlags struct {
	subjectFlags
	results                  benchFlags
	file, reference          string
	length, decoded, padding int
	pieces, batches          []int
	sizes, states            []string
	dtypes, devices          []string
	options                  bench.ConsistencyOptions
}

func setupBenchConsistency(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f consistencyFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if err := f.check(args); err != nil {
			return err
		}
		return f.run(ctx, flags.Changed("layers"))
	}
}

func (f *consistencyFlags) declare(flags *pflag.FlagSet) {
	flags.StringVar(&f.file, "text_file", "",
		"text `file`, or - for standard input (default: random tokens)")
	flags.IntVar(&f.length, "length", 1024, "`tokens` of the text at most")
	group(flags, "Text")
	f.modelFlags.declare(flags)
	flags.Lookup("dtype").Usage = "`dtypes` of the weights, such as float32,bfloat16: each is " +
		"compared with float64 from its own weights (default: as stored)"
	flags.Lookup("device").Usage = "`devices`, such as cpu,cuda (default: a GPU if one can be used)"
	flags.StringVar(&f.architecture, "architecture", "bamba",
		"with --variant, instead of --model_path: bamba, mamba2 or llama")
	flags.StringVar(&f.variant, "variant", "",
		"size of a model with random weights, such as small or 9b")
	flags.IntVar(&f.layers, "layers", 0, "`number` of layers to run, from the first; 0: all")
	flags.Int64Var(&f.seed, "seed", 1, "`seed` of random weights and random tokens")
	group(flags, "Model")
	flags.IntSliceVar(&f.pieces, "pieces", []int{1, 16, 100, 512},
		"`sizes` in tokens of the pieces that the text is read in")
	flags.IntVar(&f.decoded, "decode", 0,
		"read the last `tokens` one by one, after the others in one pass; 0: all but the first")
	flags.IntSliceVar(&f.batches, "batch_size", []int{1, 8},
		"`numbers` of rows, all with the text, that are decoded together")
	flags.IntVar(&f.padding, "padding", 37, "`tokens` of padding and of packed samples before "+
		"the text")
	group(flags, "Ways to read the text")
	declareChunking(flags, &f.chunking, "default", "default-optimized", "windowed:4-optimized",
		"windowed:1-optimized", "independent-optimized")
	flags.StringSliceVar(&f.sizes, "chunk_size", []string{"16", "64", "256"},
		"chunk `sizes` in tokens: powers of two from 16 to 256, or auto")
	flags.StringSliceVar(&f.states, "state_dtype", []string{"float32", "bfloat16"},
		"`dtypes` of cached states: float32, bfloat16")
	group(flags, "State-space layers")
	f.results.declare(flags, bench.Consistency)
	flags.StringVar(&f.reference, "reference_path", "",
		"`folder` to write the float64 reference to, for tools/peers/consistency.py: the tokens "+
			"and the hidden states before the head, as safetensors")
	group(flags, "Output")
}

// check reads the flags into the options.
func (f *consistencyFlags) check(args []string) error {
	if len(args) > 0 {
		return usagef("unexpected %q: the text is given with --text_file", args[0])
	}
	if (f.path == "") == (f.variant == "") {
		return usagef("give --model_path for a model with weights, or --variant for one with " +
			"random weights")
	}
	if f.length < 2 {
		return usagef("--length is %d, expected 2 or more", f.length)
	}
	if f.layers < 0 {
		return usagef("--layers is %d, expected 0 (all) or more", f.layers)
	}
	o := &f.options
	o.Pieces, o.Decoded, o.Before, o.Batches = f.pieces, f.decoded, f.padding, f.batches
	var err error
	if o.Strategies, err = parseStrategies(f.chunking); err != nil {
		return err
	}
	for _, text := range f.sizes {
		size, err := statespace.ParseChunkSize(text)
		if err != nil {
			return usagef("--chunk_size: %w", err)
		}
		o.Chunks = append(o.Chunks, size)
	}
	for _, text := range f.states {
		dtype, err := parseDType(text)
		if err != nil || dtype == nil || *dtype == torch.Float16 {
			return usagef("--state_dtype: unknown dtype %q: choose float32 or bfloat16", text)
		}
		o.States = append(o.States, *dtype)
	}
	f.dtypes, f.devices = strings.Split(f.dtype, ","), strings.Split(f.device, ",")
	for _, name := range f.dtypes {
		if _, err := parseDType(name); err != nil {
			return err
		}
	}
	return checkStdin("text_file", f.file, 1)
}

func (f *consistencyFlags) run(ctx context.Context, layersGiven bool) error {
	text := ""
	if f.file != "" {
		data, err := readInput(ctx, f.file)
		if err != nil {
			return fmt.Errorf("--text_file: %w", err)
		}
		text = string(data)
	}
	var results *bench.Results
	var rows []bench.ConsistencyRow
	var err error
	for _, f.device = range f.devices {
		for _, f.dtype = range f.dtypes {
			if err == nil {
				err = f.one(ctx, text, layersGiven, &results, &rows)
			}
		}
	}
	if results == nil {
		return err
	}
	results.Rows = rows
	return f.results.finish(results, len(rows), err,
		func(w io.Writer) { printConsistency(w, rows) })
}

// one compares the ways on one device in one dtype.
func (f *consistencyFlags) one(ctx context.Context, text string, layersGiven bool,
	results **bench.Results, rows *[]bench.ConsistencyRow) error {
	o, err := f.openLayers(ctx, layersGiven)
	if err != nil {
		return err
	}
	defer model.Free(o.model)
	options := f.options
	options.Model = o.model
	if options.IDs, err = f.tokens(o, text); err != nil {
		return err
	}
	if *results == nil {
		if *results, err = f.results.begin(bench.Consistency, model.Device(o.model),
			false); err != nil {
			return err
		}
		(*results).Weights = f.weights()
		if f.file == "" {
			(*results).Inputs = bench.RandomInputs("tokens", f.seed)
		}
	}
	if f.reference != "" {
		options.Reference = func(hidden torch.Tensor) error {
			path := f.reference
			if len(f.devices)*len(f.dtypes) > 1 {
				path += "-" + strings.ReplaceAll(model.Device(o.model).String(), ":", "") + "-" +
					model.DType(o.model).String()
			}
			tensors := &checkpoint.Tensors{}
			tensors.Add("hidden", hidden)
			tensors.Add("ids", torch.From(options.IDs, len(options.IDs)).To(torch.Int64))
			return checkpoint.Save(path, tensors, checkpoint.Options{})
		}
	}
	if err := options.Check(); err != nil {
		return usageError{err}
	}
	what := fmt.Sprintf("comparing %s on %s", model.DType(o.model), model.Device(o.model))
	found, err := collect(what, func(add func(bench.ConsistencyRow, int)) error {
		return bench.RunConsistency(ctx, options, add)
	})
	*rows = append(*rows, found...)
	return err
}

// tokens returns the tokens of the text, or random ones.
func (f *consistencyFlags) tokens(o *opened, text string) (ids []int32, err error) {
	if f.file == "" {
		random := rand.New(rand.NewPCG(uint64(f.seed), 0))
		for range f.length {
			ids = append(ids, random.Int32N(int32(o.model.Head().Shape[0])))
		}
		return ids, nil
	}
	if o.tokenizer == nil {
		return nil, o.noTokenizer("give one with --tokenizer")
	}
	ids = o.tokenizer.Encode(text, true)
	return ids[:min(len(ids), f.length)], nil
}

func printConsistency(w io.Writer, rows []bench.ConsistencyRow) {
	fmt.Fprintln(w, "way\tpiece\trows\tstrategy\tchunk\tdevice\tdtype\tstate\tmean KL\t"+
		"largest KL\tat\tlargest logit difference\tat\tgreedy tokens that differ\t"+
		"first at\tits lead\t")
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprint(n)
	}
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t", r.Way, number(r.Piece),
			number(r.Batch), r.Strategy, number(r.ChunkSize), r.Device, r.DType, r.State)
		if r.Failed != "" {
			fmt.Fprintf(w, "%s\t\n", r.Failed)
			continue
		}
		first, lead := "–", ""
		if r.FirstDiffering >= 0 {
			first, lead = fmt.Sprint(r.FirstDiffering), fmt.Sprintf("%.2g", r.Margin)
		}
		fmt.Fprintf(w, "%.1e\t%.1e\t%d\t%.1e\t%d\t%d of %d\t%s\t%s\t\n", r.KLMean, r.KLMax,
			r.KLMaxAt, r.LogitMax, r.LogitMaxAt, r.Differing, r.Length, first, lead)
	}
}
