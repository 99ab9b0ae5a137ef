package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/internal/progress"
	"conquer/lora"
	"conquer/model"
	"conquer/model/hub"
	"conquer/parallel"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/dist"
)

// modelFlags are the flags of commands that run a model.
type modelFlags struct {
	path, tokenizer, dtype, device, adapter string
	stateDType                              string // of --state_dtype
	cacheDType                              string // of --cache_dtype
	threads                                 int
	expected
	// the adapter is trained further, so it is not merged
	further bool
	// changes the tokenizer before the model is made, or nil
	extend func(o *opened) error
	// reading the weights is deferred until a rank takes its shard
	divided bool
	sharded bool // only weights that are not quantized are deferred: of fsdp and hsdp
	onHost  bool // make random weights on the host
	// why the command cannot compute on quantized weights as they are, or ""
	converts string
	// the processes that share the model, or nil
	world *dist.World
	// checks a model before its weights are read or made, or nil
	fits func(m model.Model, dtype torch.DType, device torch.Device) error
}

const modelPathUsage = "a Hugging Face or Meta `folder`, a .gguf file, org/name[@revision] on " +
	"the Hugging Face Hub, or smollm2-135m; named models are downloaded once"

// declareVerify adds the flag of commands that take a model's name.
func declareVerify(flags *pflag.FlagSet) {
	flags.BoolVar(&hub.Verify, "verify", false,
		"compare the hash of every byte of files from the Hugging Face Hub before they are used, "+
			"also of those fetched earlier")
}

const deviceUsage = "`device`: cpu, cuda or cuda:N (default: a GPU if one can be used)"

const threadsUsage = "`number` of CPU threads (default: one per core)"

func (f *modelFlags) declare(flags *pflag.FlagSet) {
	flags.StringVar(&f.path, "model_path", "", modelPathUsage)
	declareVerify(flags)
	flags.StringVar(&f.tokenizer, "tokenizer", "",
		"tokenizer `folder`, file or name if it is not the model's own, or char_tokenizer")
	flags.StringVar(&f.dtype, "dtype", "",
		"`dtype` to convert the weights to: float32, bfloat16 or float16 (default: as stored; "+
			"quantized weights stay as they are, with activations in bfloat16 on a GPU)")
	flags.StringVar(&f.device, "device", "", deviceUsage)
	flags.IntVar(&f.threads, "threads", 0, threadsUsage)
}

// declareAdapter adds the flag of commands that run a model without training it.
func (f *modelFlags) declareAdapter(flags *pflag.FlagSet) {
	flags.StringVar(&f.adapter, "adapter_path", "",
		"`folder` of a LoRA adapter in PEFT's format, to merge into the model")
	f.declareStates(flags)
}

// opened is an open model with its tokenizer.
type opened struct {
	path       string // path of the model's files
	checkpoint *checkpoint.Checkpoint
	adapted    *lora.Folded // the checkpoint with an adapter, or nil
	rows       int          // the least number of rows of the embedding
	larger     model.BlockSource
	blocks     bool // quantized weights stay in their blocks
	model      model.Model
	tokenizer  *tokenizer.Tokenizer // nil if the model has none that can be used
	unusable   error                // why the model's own tokenizer cannot be used
}

// noTokenizer returns the error of a command that needs a tokenizer.
func (o *opened) noTokenizer(advice string) error {
	if o.unusable != nil {
		return o.unusable
	}
	return fmt.Errorf("%s has no tokenizer: %s", o.path, advice)
}

// setTokenizer takes the result of openTokenizer for the path of --tokenizer. Only commands that
// need text fail if the model's own tokenizer cannot be read.
func (o *opened) setTokenizer(t *tokenizer.Tokenizer, path string, err error) error {
	o.tokenizer = t
	if err != nil && path == "" {
		o.tokenizer, o.unusable, err = nil, err, nil
	}
	return err
}

func (o *opened) Close() {
	if o.model != nil {
		model.Free(o.model)
	}
	o.closeFiles()
}

// closeFiles closes the files that the model was read from.
func (o *opened) closeFiles() {
	if o.adapted != nil {
		o.adapted.Close()
	}
	if o.checkpoint != nil {
		o.checkpoint.Close()
	}
}

// weights returns the files of the model's weights, with what an adapter and new tokens change.
func (o *opened) weights() model.BlockSource {
	if o.larger != nil {
		return o.larger
	}
	if o.adapted != nil {
		return o.adapted
	}
	return o.checkpoint
}

// source returns what the model's weights are read from.
func (o *opened) source() model.TensorSource {
	if o.blocks {
		return model.InBlocks(o.weights())
	}
	return o.weights()
}

// declare makes the model without weights.
func (o *opened) declare() (m model.Model, err error) {
	if o.adapted != nil {
		m, err = o.adapted.Declare()
	} else {
		m, err = model.Declare(o.checkpoint)
	}
	if err == nil && m.Head().Shape[0] < o.rows {
		m, o.larger, err = model.Grow(m, o.weights(), o.rows)
	}
	return m, err
}

// open opens the model that the flags name.
func (f *modelFlags) open(ctx context.Context) (*opened, error) {
	if err := setThreads(f.threads); err != nil {
		return nil, err
	}
	dtype, err := parseDType(f.dtype)
	if err != nil {
		return nil, err
	}
	device, err := parseDevice(f.device)
	if err != nil {
		return nil, err
	}
	if err := f.checkExpected(f.path); err != nil {
		return nil, err
	}
	o := &opened{}
	if o.path, f.adapter, o.checkpoint, err = f.openFiles(ctx); err != nil {
		return nil, err
	}
	// Reading a vocabulary takes as long as reading a small model, so both run at once.
	tokenizerDone := make(chan error, 1)
	go func() {
		t, err := openTokenizer(ctx, f.tokenizer, o.path, f.adapter, o.checkpoint)
		tokenizerDone <- o.setTokenizer(t, f.tokenizer, err)
	}()
	if f.extend != nil {
		if err = <-tokenizerDone; err == nil {
			err = f.extend(o)
		}
		if err != nil {
			o.Close()
			return nil, err
		}
		tokenizerDone <- nil
	}
	if dtype == nil {
		stored := storedDType(o.checkpoint, device)
		dtype, o.blocks = &stored, f.keepsBlocks(o.checkpoint, stored, device)
	}
	if o.adapted, err = f.foldAdapter(o); err == nil {
		err = torch.Run(func() error {
			o.model, err = f.load(o, *dtype, device)
			return err
		})
	}
	if failed := <-tokenizerDone; err == nil {
		err = failed
	}
	if err == nil {
		err = o.setTokenizer(o.tokenizer, f.tokenizer, checkVocabulary(o))
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	if _, unused := model.Unused(o.model, o.checkpoint); len(unused) > 0 && (f.world == nil ||
		f.world.All.Rank == 0) {
		note("conquer: %s does not use %s of its files: %.200q\n", o.path,
			dataset.Count(len(unused), "tensor"), some(unused))
	}
	return o, nil
}

// openFiles opens the files of the model, which must be what the flags expect.
func (f *modelFlags) openFiles(ctx context.Context) (path, adapter string,
	c *checkpoint.Checkpoint, err error) {
	name := f.path
	if f.format == checkpoint.Meta {
		if name, err = locate(ctx, name); err != nil {
			return "", "", nil, err
		}
		name = metaPath(name)
	}
	if path, adapter, c, err = openModel(ctx, name, f.adapter); err != nil {
		return "", "", nil, err
	}
	if err = f.checkFiles(c); err != nil {
		c.Close()
	}
	return path, adapter, c, err
}

// foldAdapter opens the weights of a checkpoint with the adapter of the flags merged, or nil if
// there is none. Of an adapter that is trained further, or that stays beside weights in blocks,
// only replaced weights are taken.
func (f *modelFlags) foldAdapter(o *opened) (folded *lora.Folded, err error) {
	switch {
	case f.adapter == "":
		return nil, nil
	case f.further || o.blocks:
		folded, err = lora.Replace(o.checkpoint, f.adapter)
	default:
		folded, err = lora.Fold(o.checkpoint, f.adapter, false)
	}
	if err != nil {
		return nil, fmt.Errorf("--adapter_path: %w", err)
	}
	return folded, nil
}

// load makes the model and reads its weights. If processes share the model, it reads this process's
// shard, now or deferred.
func (f *modelFlags) load(o *opened, dtype torch.DType, device torch.Device) (model.Model, error) {
	m, err := o.declare()
	if err == nil && f.fits != nil {
		err = f.fits(m, dtype, device)
	}
	if err != nil {
		return nil, err
	}
	beside := o.blocks
	if o.blocks && device.IsCUDA() && model.HasExperts(m) {
		o.blocks = false
		f.announceConversion(o.checkpoint, dtype,
			"no kernel of a GPU computes on blocks of experts")
	}
	switch {
	case f.divided:
		err = model.Defer(m, o.source(), dtype, device)
	case f.world != nil:
		if _, err = parallel.Divide(m, f.world.All, device); err == nil {
			err = model.Load(m, o.source(), dtype, device)
		}
	default:
		err = model.Load(m, o.source(), dtype, device)
		if err == nil && beside && f.adapter != "" && !f.further {
			err = attachAdapter(m, f.adapter)
		}
	}
	if err == nil {
		err = f.setStates(m)
	}
	if err != nil {
		model.Free(m)
		return nil, err
	}
	if n, why := o.checkpoint.Converted(); n > 0 {
		note("conquer: %d of the quantized weights of %s become %v, because %s\n", n,
			o.checkpoint.Path, dtype, why)
	}
	return m, nil
}

// attachAdapter adds the adapter in a folder to a model of [lora.Replace]'s weights.
func attachAdapter(m model.Model, dir string) error {
	config, err := lora.Open(dir)
	if err == nil {
		err = lora.Attach(m, config)
	}
	return err
}

// keepsBlocks reports whether the quantized weights of a checkpoint stay in their blocks. If they
// cannot, it says why, and that they become dtype.
func (f *modelFlags) keepsBlocks(c *checkpoint.Checkpoint, dtype torch.DType,
	device torch.Device) bool {
	kind, reason := c.Quantized(), f.converts
	switch {
	case kind == "":
		return false
	case f.divided && !f.sharded || f.world != nil:
		reason = "several processes divide the layers of the model"
	case reason == "" && device.IsCUDA():
		reason = c.GPUConverts()
	}
	if reason != "" {
		f.announceConversion(c, dtype, reason)
	}
	return reason == ""
}

// announceConversion says why quantized weights are converted without --dtype.
func (f *modelFlags) announceConversion(c *checkpoint.Checkpoint, dtype torch.DType,
	reason string) {
	if f.world == nil || f.world.All.Rank == 0 {
		note("conquer: the %s weights of %s are converted to %v, because %s (--dtype %v asks for "+
			"it)\n", c.Quantized(), c.Path, dtype, reason, dtype)
	}
}

// maxThreads is the most that --threads may be. Every thread has a stack and a place in tables.
const maxThreads = 1024

// setThreads applies --threads. 0 leaves the default, see torch.SetThreads.
func setThreads(n int) error {
	if n < 0 || n > maxThreads {
		return usagef("--threads is %d, expected 1 to %d", n, maxThreads)
	}
	if n > 0 {
		torch.SetThreads(n)
	}
	return nil
}

// parseDType reads --dtype. It returns nil if the flag was not given.
func parseDType(name string) (*torch.DType, error) {
	if name == "" {
		return nil, nil
	}
	dtype, err := torch.ParseDType(name)
	if err == nil && dtype == torch.Float64 {
		err = fmt.Errorf("unknown dtype %q: use float32, bfloat16 or float16", name)
	}
	if err != nil {
		return nil, usagef("--dtype: %w", err)
	}
	return &dtype, nil
}

// cpuReason prints once why the CPU is used although the machine has a GPU driver.
var cpuReason sync.Once

// parseDevice reads --device. An unknown name is a usage error. A device that cannot be used is a
// failure.
func parseDevice(name string) (torch.Device, error) {
	if name != "" && name != "cpu" && name != "cuda" && !strings.HasPrefix(name, "cuda:") {
		return torch.CPU, usagef("--device: unknown device %q: use cpu, cuda or cuda:N", name)
	}
	if name == "" {
		cpuReason.Do(func() {
			if err := torch.LoadCUDA(); err != nil && !errors.Is(err, torch.ErrNoDriver) {
				note("conquer: using the CPU: %v\n", err)
			}
		})
	}
	device, err := torch.ParseDevice(name)
	if err != nil {
		return device, fmt.Errorf("--device %s: %w", name, err)
	}
	return device, nil
}

// locate returns the path of the files that --model_path names, downloading a named model first.
func locate(ctx context.Context, name string) (string, error) {
	if name == "" {
		return "", usagef("--model_path is missing: give a Hugging Face folder, a .gguf " +
			"file or smollm2-135m")
	}
	path, err := hub.ModelPath(ctx, name, downloadBar(name))
	if err != nil {
		return "", fmt.Errorf("--model_path: %w", err)
	}
	return path, nil
}

// downloadBar shows the progress of a download.
func downloadBar(name string) func(done, total int64) {
	show := progress.Tasks(os.Stderr, progress.Bytes)
	return func(done, total int64) { show("downloading "+name, done, total) }
}

// storedDType is the dtype of most of the stored weights.
func storedDType(c *checkpoint.Checkpoint, device torch.Device) torch.DType {
	sizes := map[torch.DType]int{}
	quantized := 0
	for _, name := range c.Names() {
		switch info, _ := c.Info(name); info.Stored {
		case "F32", "F16", "BF16", "F64":
			sizes[info.DType] += info.Bytes
		default:
			quantized += info.Bytes
		}
	}
	best, most := torch.Float32, 0
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16, torch.Float16} {
		if sizes[dtype] > most {
			best, most = dtype, sizes[dtype]
		}
	}
	if quantized <= most {
		return best
	}
	if device.IsCUDA() {
		return torch.BFloat16
	}
	return torch.Float32
}

// openNamedTokenizer opens the tokenizer that --tokenizer names: a folder, a file, also of a GGUF
// model, char_tokenizer, or a model's name.
func openNamedTokenizer(ctx context.Context, name string) (*tokenizer.Tokenizer, error) {
	if name == tokenizer.CharTokenizer {
		return tokenizer.Open(name)
	}
	path, err := hub.TokenizerPath(ctx, name, downloadBar(name))
	if err != nil {
		return nil, fmt.Errorf("--tokenizer: %w", err)
	}
	if !strings.HasSuffix(path, ".gguf") {
		return tokenizer.Open(path)
	}
	c, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	t, err := ggufVocabulary(path, c)
	if err == nil && t == nil {
		err = fmt.Errorf("--tokenizer: %s holds no tokenizer", path)
	}
	return t, err
}

// ggufVocabulary returns the tokenizer in a GGUF file, or nil if it has none.
func ggufVocabulary(path string, c *checkpoint.Checkpoint) (*tokenizer.Tokenizer, error) {
	meta := c.GGUFMetadata()
	if kind := meta["tokenizer.ggml.model"]; kind == nil || kind == noVocabulary {
		return nil, nil
	}
	t, err := tokenizer.FromGGUF(meta)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// openTokenizer opens the tokenizer that name names. If name is empty, it opens the one that was
// saved with the adapter in the folder adapter, or the model's own. It returns nil if there is
// none. The tokens with which the adapter was trained to end its turns end generation.
func openTokenizer(ctx context.Context, name, modelPath, adapter string, c *checkpoint.Checkpoint) (
	*tokenizer.Tokenizer, error) {
	t, err := findTokenizer(ctx, name, modelPath, adapter, c)
	if err != nil || t == nil || adapter == "" {
		return t, err
	}
	generation, err := adapterGeneration(adapter)
	if err != nil {
		return nil, err
	}
	var ends struct {
		EOS tokenizer.IDs `json:"eos_token_id"`
	}
	if generation != nil {
		err = json.Unmarshal(generation, &ends)
	}
	t.AddEOS(ends.EOS...)
	return t, err
}

func findTokenizer(ctx context.Context, name, modelPath, adapter string, c *checkpoint.Checkpoint) (
	*tokenizer.Tokenizer, error) {
	if name != "" {
		return openNamedTokenizer(ctx, name)
	}
	if adapter != "" && hasTokenizer(adapter) {
		return tokenizer.Open(adapter)
	}
	if c.Format == checkpoint.GGUF {
		return ggufVocabulary(modelPath, c)
	}
	if folder := modelFolder(modelPath); hasTokenizer(folder) {
		return tokenizer.Open(folder)
	}
	return nil, nil
}

// modelFolder returns the folder of a model's files: the path or, for a file, its folder.
func modelFolder(path string) string {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return filepath.Dir(path)
	}
	return path
}

// hasTokenizer reports whether a folder holds a tokenizer.
func hasTokenizer(folder string) bool {
	for _, name := range []string{"tokenizer.json", "tokenizer.model"} {
		if _, err := os.Stat(filepath.Join(folder, name)); err == nil {
			return true
		}
	}
	return false
}

// checkVocabulary refuses a tokenizer that does not belong to the model. Tokens without a row in a
// model that it fits are refused when they occur.
func checkVocabulary(o *opened) error {
	if o.tokenizer == nil {
		return nil
	}
	if rows := o.model.Head().Shape[0]; !o.tokenizer.Fits(rows) {
		return fmt.Errorf("vocabulary mismatch: the tokenizer has %d tokens, but %s has %d rows: "+
			"give the tokenizer that belongs to the model with --tokenizer",
			o.tokenizer.VocabSize(), o.path, rows)
	}
	return nil
}
