package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/internal/progress"
	"conquer/lora"
	"conquer/model"
	"conquer/quant"
	"conquer/text/tokenizer"
	"conquer/torch"
)

var exportCommand = command{
	name:    "export",
	summary: "Convert a model to a Hugging Face folder, a GGUF file or Meta's layout.",
	example: `# GGUF to a folder for transformers
conquer export --model_path smollm2-135m --output_path smollm2-hf --dtype bfloat16
# files of at most 2 GB
conquer export --model_path my-model --output_path my-model-hf --shard_size 2GB
# a GGUF file for llama.cpp, in 4 to 6 bits
conquer export --model_path my-model --output_path my-model.gguf --dtype q4_k_m
# the same, closest to the model on texts like these
conquer export --model_path my-model --output_path my-model.gguf --dtype q4_k_m \
  --importance_data texts.jsonl
# Meta's layout for two processes
conquer export --model_path my-model --output_path my-model-meta --format meta --shards 2
# merge an adapter
conquer export --model_path smollm2-135m --adapter_path my-adapter --output_path tuned
# remove it again
conquer export --model_path tuned --adapter_path my-adapter --unmerge --output_path untuned`,
	config: true,
	setup:  setupExport,
}

// exportFlags are the flags of conquer export. check fills the lower fields.
type exportFlags struct {
	path, tokenizer, adapter, output string
	formatName, dtypeName, shard     string
	parts                            int
	unmerge, overwrite               bool
	importance                       importanceFlags

	format   checkpoint.Format
	encoding string       // one of quant.Mixes, or empty
	dtype    *torch.DType // nil: as stored
	bytes    int          // maximum size of a file
}

func setupExport(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f exportFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if err := f.check(args); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *exportFlags) declare(flags *pflag.FlagSet) {
	flags.StringVar(&f.path, "model_path", "", modelPathUsage)
	declareVerify(flags)
	flags.StringVar(&f.tokenizer, "tokenizer", "",
		"tokenizer `folder` or file, if it is not the model's own")
	flags.StringVar(&f.adapter, "adapter_path", "",
		"`folder` of a LoRA adapter in PEFT's format to merge into the weights")
	flags.BoolVar(&f.unmerge, "unmerge", false,
		"subtract the adapter from a model that it was merged into; weights are restored up to "+
			"rounding")
	group(flags, "Model")
	flags.StringVar(&f.output, "output_path", "",
		"`folder` to write, or the file with --format gguf")
	flags.StringVar(&f.formatName, "format", "",
		"output `format`: "+formatList()+" (default: gguf for a name that ends in .gguf, else hf)")
	flags.StringVar(&f.dtypeName, "dtype", "",
		"`dtype` of the written weights: float32, bfloat16 or float16; for gguf also "+mixNames()+
			" (default: as stored; quantized weights become float32)")
	flags.StringVar(&f.shard, "shard_size", "5GB",
		"maximum file `size`, such as 500MB or 5GB (format hf)")
	flags.IntVar(&f.parts, "shards", 1,
		"`number` of files, one per process of Meta's code (format meta)")
	flags.BoolVar(&f.overwrite, "overwrite", false,
		"replace an existing file; or "+overwriteUsage)
	group(flags, "Output")
	f.importance.declare(flags)
	group(flags, "Quantization")
}

// check reads the flags and refuses an output that exists or that is also an input.
func (f *exportFlags) check(args []string) error {
	if f.formatName == "" {
		f.formatName = "hf"
		if strings.HasSuffix(strings.ToLower(f.output), ".gguf") {
			f.formatName = "gguf"
		}
	}
	var known bool
	f.format, known = findFormat(f.formatName)
	switch {
	case len(args) > 0:
		return usagef("unexpected %q: name the output with --output_path", args[0])
	case f.output == "":
		return usagef("--output_path is missing: name the folder or file to write")
	case f.unmerge && f.adapter == "":
		return usagef("--unmerge needs --adapter_path")
	case !known:
		return usagef("--format: unknown format %q: use one of %s", f.formatName, formatNames())
	case f.parts < 1 || f.parts > 100:
		return usagef("--shards is %d, expected 1 to 100", f.parts)
	case f.parts > 1 && f.format.Name != "meta":
		return usagef("--shards needs --format meta")
	}
	err := f.checkDType()
	if err != nil {
		return err
	}
	if err := f.importance.check(f.encoding, f.overwrite); err != nil {
		return err
	}
	if f.bytes, err = parseSize(f.shard); err != nil {
		return usagef("--shard_size: %w", err)
	}
	if err := checkOutput(f.output, f.format.File, f.overwrite); err != nil {
		return err
	}
	for flag, read := range map[string]string{"model_path": f.path, "adapter_path": f.adapter} {
		if sameFile(read, f.output) {
			return fmt.Errorf("--output_path: %s is also --%s: choose another name", f.output, flag)
		}
	}
	return nil
}

// checkDType reads --dtype. Quantized weights are made from float32.
func (f *exportFlags) checkDType() (err error) {
	mix, quantized := quant.MixByName(f.dtypeName)
	name := f.dtypeName
	if f.format.File && quantized {
		f.encoding, name = mix.Name, "float32"
	}
	f.dtype, err = parseDType(name)
	switch {
	case err != nil && f.format.File:
		return usagef("%w, %s", err, mixNames())
	case err != nil && quantized:
		return usagef("--dtype %s is for --format gguf", name)
	}
	return err
}

// mixNames lists the values of --dtype that quantize.
func mixNames() string {
	var names []string
	for _, m := range quant.Mixes {
		names = append(names, strings.ToLower(m.Name))
	}
	return strings.Join(names, ", ")
}

func (f *exportFlags) run(ctx context.Context) error {
	where, adapter, c, err := openModel(ctx, f.path, f.adapter)
	if err != nil {
		return err
	}
	defer c.Close()
	f.adapter = adapter
	o := &opened{path: where}
	tok, err := openTokenizer(ctx, f.tokenizer, where, adapter, c)
	if err := o.setTokenizer(tok, f.tokenizer, err); err != nil {
		return err
	}
	m, err := model.Check(c)
	if err != nil {
		return err
	}
	from, config := weights(c), c.ConfigJSON()
	if f.adapter != "" {
		adapted, err := lora.Fold(c, f.adapter, f.unmerge)
		if err != nil {
			return fmt.Errorf("--adapter_path: %w", err)
		}
		defer adapted.Close()
		from, config = adapted, adapted.ConfigJSON()
		if m, err = adapted.Declare(); err != nil {
			return err
		}
	}
	importance, err := f.importance.find(ctx, m, from, config, o)
	if err != nil {
		return err
	}
	source := newCountedSource(ctx, from, f.dtype, f.parts, filepath.Base(f.output))
	source.packs = f.encoding != ""
	options := checkpoint.Options{
		DType:            f.dtype,
		ShardBytes:       f.bytes,
		Parts:            f.parts,
		Config:           config,
		GenerationConfig: c.GenerationConfigJSON(),
	}
	if adapter != "" && !f.unmerge {
		generation, err := adapterGeneration(adapter)
		if err != nil {
			return err
		}
		if generation != nil {
			options.GenerationConfig = generation
		}
	}
	switch {
	case f.format.File:
		options.Encoding, options.Packed = f.encoding, source.packed
		options.Importance = importance
		if options.Metadata, err = ggufTokenizer(o, m.Head().Shape[0]); err != nil {
			return err
		}
	case o.tokenizer != nil:
		options.Also = o.tokenizer.Save
	case o.unusable != nil:
		note("conquer export: the files of the tokenizer are copied as they are: "+
			"%v\n", o.unusable)
		options.Also = func(dir string) error { return tokenizer.Copy(modelFolder(where), dir) }
	}
	err = f.format.Save(f.output, source, options)
	source.bar.Close()
	if err != nil {
		return err
	}
	kind, _ := m.Config()["model_type"].(string)
	if a, ok := model.ArchitectureOf(kind); ok && a.Unread[f.format.Name] != "" {
		note("conquer export: %s\n", a.Unread[f.format.Name])
	}
	if isTerminal(os.Stderr) {
		note("wrote %s, %s; run it with conquer generate --model_path %s\n",
			f.output, f.format.Summary, f.output)
	}
	return nil
}

// noVocabulary marks a GGUF file without a tokenizer.
const noVocabulary = "no_vocab"

// ggufTokenizer returns o's tokenizer as GGUF metadata for a model with the given rows.
func ggufTokenizer(o *opened, rows int) (map[string]any, error) {
	if o.tokenizer == nil {
		note("conquer export: the file will accept only token ids: %v\n",
			o.noTokenizer("give one with --tokenizer"))
		return map[string]any{"tokenizer.ggml.model": noVocabulary}, nil
	}
	return o.tokenizer.GGUF(rows)
}

func findFormat(name string) (checkpoint.Format, bool) {
	for _, f := range checkpoint.Formats {
		if f.Name == name {
			return f, true
		}
	}
	return checkpoint.Format{}, false
}

func formatNames() string {
	var names []string
	for _, f := range checkpoint.Formats {
		names = append(names, f.Name)
	}
	return strings.Join(names, ", ")
}

// formatList describes the formats.
func formatList() string {
	var list []string
	for _, f := range checkpoint.Formats {
		list = append(list, f.Name+" ("+f.Summary+")")
	}
	return strings.Join(list, ", ")
}

// parseSize reads a size such as 5GB, with the units of transformers' max_shard_size.
func parseSize(s string) (int, error) {
	units := []struct {
		suffix string
		factor float64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB",
		1e9}, {"TB", 1e12}, {"B", 1}}
	text, factor := strings.TrimSpace(s), 1.0
	for _, u := range units {
		if n := len(text) - len(u.suffix); n > 0 && strings.EqualFold(text[n:], u.suffix) {
			text, factor = strings.TrimSpace(text[:n]), u.factor
			break
		}
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n*factor >= 1) || n*factor > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is not a size, expected something like 500MB or 5GB", s)
	}
	return int(n * factor), nil
}

// countedSource is a source that reports progress and stops when ctx is cancelled.
type countedSource struct {
	weights
	ctx  context.Context
	bar  *progress.Bar
	last string // name of the last tensor read
	// packs says that the bar counts what is quantized, which takes longer than reading.
	packs bool
}

// weights is a source to export: a checkpoint, with or without an adapter.
type weights interface {
	checkpoint.Source
	TensorAs(name string, dtype torch.DType) (torch.Tensor, error)
	Release(name string)
}

func newCountedSource(ctx context.Context, source weights, dtype *torch.DType, passes int,
	name string) *countedSource {
	total := 0
	for _, name := range source.Names() {
		total += tensorBytes(source, name, dtype)
	}
	return &countedSource{
		weights: source,
		ctx:     ctx,
		bar: progress.New(os.Stderr, "writing "+name, progress.Bytes, 0,
			int64(total*passes)),
	}
}

// packed reports that numbers were quantized.
func (s *countedSource) packed(numbers int) error {
	s.bar.Add(int64(numbers) * 4)
	return s.ctx.Err()
}

// tensorBytes is the size of a tensor when it is written as dtype.
func tensorBytes(c checkpoint.Source, name string, dtype *torch.DType) int {
	info, _ := c.Info(name)
	bytes := info.DType.Size()
	if dtype != nil && info.DType.Floating() {
		bytes = dtype.Size()
	}
	for _, size := range info.Shape {
		bytes *= size
	}
	return bytes
}

// TensorAs reads a tensor and advances the progress bar. It releases the pages of the previous
// tensor, which is not read again for the same file.
func (s *countedSource) TensorAs(name string, dtype torch.DType) (t torch.Tensor, err error) {
	if err = s.ctx.Err(); err != nil {
		return t, err
	}
	if s.last != "" && s.last != name {
		s.Release(s.last)
	}
	s.last = name
	if t, err = s.weights.TensorAs(name, dtype); err == nil && !(s.packs && t.Rank() > 1) {
		s.bar.Add(int64(t.Bytes()))
	}
	return t, err
}
