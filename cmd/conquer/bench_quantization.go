package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/model"
	"conquer/quant"
)

var benchQuantizationCommand = command{
	name: "bench quantization",
	summary: "Quantize a model in several ways and measure size, perplexity, divergence from the " +
		"original and speed.",
	example: `conquer bench quantization --model_path smollm2-135m --text_file book.txt
# two mixes, with an importance matrix from other texts
conquer bench quantization --model_path my-model --text_file test.txt --kinds q4_k_m,iq4_xs \
  --importance_data train.jsonl
conquer bench report`,
	setup: setupBenchQuantization,
}

// quantizationFlags are the flags of conquer bench quantization.
type quantizationFlags struct {
	modelFlags
	results                                  benchFlags
	importance                               importanceFlags
	file                                     string
	kinds                                    []string
	tokens, window, prompt, decoded, repeats int
	mixes                                    []quant.Mix
}

func setupBenchQuantization(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f quantizationFlags
	f.modelFlags.declare(flags)
	flags.Lookup("dtype").Usage = "`dtype` of the original, which the others are compared with: " +
		"float32, bfloat16 or float16 (default: float32)"
	group(flags, "Model")
	flags.StringVar(&f.file, "text_file", "", "text `file` to predict, or - for standard input")
	flags.IntVar(&f.tokens, "tokens", 4096, "`number` of tokens of the text that are read")
	flags.IntVar(&f.window, "window", 512, "`tokens` that the model reads at once")
	group(flags, "Text")
	flags.StringSliceVar(&f.kinds, "kinds", []string{"q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s",
		"iq4_xs", "q4_0", "q3_k_m", "q2_k"},
		"`kinds` as for --dtype of conquer export: "+mixNames())
	f.importance.declare(flags)
	group(flags, "Quantization")
	flags.IntVar(&f.prompt, "seq_len", 128, "`tokens` of the prompt that is timed")
	flags.IntVar(&f.decoded, "max_new_tokens", 32, "`number` of tokens after it that are timed")
	flags.IntVar(&f.repeats, "repeat", 3, "`number` of timed runs; the median counts")
	group(flags, "Speed")
	f.results.declare(flags, bench.Quantization)
	return func(ctx context.Context, args []string) error {
		if err := f.check(args); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *quantizationFlags) check(args []string) error {
	for _, name := range f.kinds {
		mix, ok := quant.MixByName(name)
		if !ok {
			return usagef("--kinds: unknown kind %q: use some of %s", name, mixNames())
		}
		f.mixes = append(f.mixes, mix)
	}
	switch {
	case len(args) > 0:
		return usagef("unexpected %q: the text is given with --text_file", args[0])
	case f.file == "":
		return usagef("--text_file is missing: name a text to predict")
	case len(f.mixes) == 0:
		return usagef("--kinds is empty")
	case f.window < 2 || f.tokens < f.window:
		return usagef("--window %d, --tokens %d: expected at least 2 tokens in a window and at "+
			"least a window", f.window, f.tokens)
	case f.repeats < 1 || f.prompt < 1 || f.decoded < 2:
		return usagef("--repeat %d, --seq_len %d, --max_new_tokens %d: expected at least 1, 1 "+
			"and 2", f.repeats, f.prompt, f.decoded)
	}
	f.modelFlags.dtype = cmp.Or(f.modelFlags.dtype, "float32")
	return cmp.Or(f.importance.check(f.mixes[0].Name, true), checkStdin("text_file", f.file, 1))
}

func (f *quantizationFlags) run(ctx context.Context) error {
	text, err := readInput(ctx, f.file)
	if err != nil {
		return fmt.Errorf("--text_file: %w", err)
	}
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	windows, err := f.windows(o, string(text))
	if err != nil {
		return err
	}
	results, err := f.results.begin(bench.Quantization, model.Device(o.model), false)
	if err != nil {
		return err
	}
	results.Weights = f.path
	work, err := os.MkdirTemp("", "conquer-quantization-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	rows, err := collect("quantizing and measuring", func(add func(bench.QuantizationRow,
		int)) error {
		original, err := bench.NewDivergence(ctx, o.model, windows)
		if err != nil {
			return err
		}
		defer original.Free()
		row := bench.QuantizationRow{Kind: "original"}
		for _, name := range o.checkpoint.Names() {
			row.Bytes += int64(tensorBytes(o.checkpoint, name, nil))
		}
		if err := f.measure(ctx, original, o.model, &row); err != nil {
			return err
		}
		add(row, len(f.mixes)+1)
		for _, mix := range f.mixes {
			row, err := f.quantized(ctx, original, mix, work)
			if err != nil {
				return fmt.Errorf("%s: %w", strings.ToLower(mix.Name), err)
			}
			add(row, len(f.mixes)+1)
		}
		return nil
	})
	results.Rows = rows
	return f.results.finish(results, len(rows), err,
		func(w io.Writer) { printQuantization(w, rows) })
}

// windows encodes the text.
func (f *quantizationFlags) windows(o *opened, text string) (windows [][]int32, err error) {
	if o.tokenizer == nil {
		return nil, o.noTokenizer("give one with --tokenizer")
	}
	ids := o.tokenizer.Encode(text, true)
	size := min(f.window, o.model.MaxLength())
	for ids = ids[:min(len(ids), f.tokens)]; len(ids) > 1; ids = ids[min(size, len(ids)):] {
		windows = append(windows, ids[:min(size, len(ids))])
	}
	if windows == nil {
		return nil, fmt.Errorf("--text_file: the text has fewer than 2 tokens")
	}
	return windows, nil
}

// quantized writes, opens and measures the model in one mix.
func (f *quantizationFlags) quantized(ctx context.Context, original *bench.Divergence,
	mix quant.Mix, work string) (row bench.QuantizationRow, err error) {
	path := filepath.Join(work, "model.gguf")
	if len(f.importance.data) > 0 && f.importance.file == "" { // collected once for all kinds
		f.importance.file = filepath.Join(work, "imatrix.gguf")
	}
	e := exportFlags{path: f.path, tokenizer: f.tokenizer, adapter: f.adapter, output: path,
		dtypeName: mix.Name, shard: "5GB", parts: 1, overwrite: true, importance: f.importance}
	began := time.Now()
	if err := e.check(nil); err != nil {
		return row, err
	}
	if err := e.run(ctx); err != nil {
		return row, err
	}
	row = bench.QuantizationRow{Kind: mix.Name, QuantizeS: time.Since(began).Seconds(),
		Importance: len(f.importance.data) > 0 || f.importance.file != ""}
	f.importance.data = nil // the file has it now
	info, err := os.Stat(path)
	if err != nil {
		return row, err
	}
	row.Bytes = info.Size()
	quantized := f.modelFlags
	quantized.path, quantized.tokenizer, quantized.adapter, quantized.dtype = path, "", "", ""
	o, err := quantized.open(ctx)
	if err != nil {
		return row, err
	}
	defer o.Close()
	return row, f.measure(ctx, original, o.model, &row)
}

// measure sets the figures of a model.
func (f *quantizationFlags) measure(ctx context.Context, original *bench.Divergence, m model.Model,
	row *bench.QuantizationRow) error {
	row.Device = model.Device(m).String()
	row.BitsPerWeight = 8 * float64(row.Bytes) / float64(model.Parameters(m))
	if err := original.Measure(ctx, m, row); err != nil {
		return err
	}
	times, err := bench.Inference(ctx, m, bench.InferenceOptions{Batch: 1, Length: f.prompt,
		NewTokens: f.decoded, Repeats: f.repeats, Eager: true, Cache: true, Seed: 1})
	if err != nil {
		return err
	}
	row.PromptPerS = 1e3 * float64(f.prompt) / times[0].FirstTokenMS
	row.TokenMS = times[0].SingleMS
	return nil
}

func printQuantization(w io.Writer, rows []bench.QuantizationRow) {
	fmt.Fprintln(w, "kind\tMB\tbits per weight\tperplexity\tKL to the original\t±\tsame top\t"+
		"prompt tok/s\tms a token\tquantized in\t")
	for _, r := range rows {
		name, took := strings.ToLower(r.Kind), "–"
		if r.Importance {
			name += ", importance"
		}
		if r.QuantizeS > 0 {
			took = fmt.Sprintf("%.1f s", r.QuantizeS)
		}
		fmt.Fprintf(w, "%s\t%.1f\t%.2f\t%.4f\t%.5f\t%.5f\t%.2f %%\t%.0f\t%s\t%s\t\n", name,
			float64(r.Bytes)/1e6, r.BitsPerWeight, r.Perplexity, r.KL, r.KLError, 100*r.SameTop,
			r.PromptPerS, formatMS(r.TokenMS), took)
	}
}
