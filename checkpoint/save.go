package checkpoint

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"conquer/internal/atomicfile"
	"conquer/internal/wrongfile"
	"conquer/torch"
)

// DefaultShardBytes is the file size beyond which [Save] begins a new file: 5 GB, as usual on the
// Hugging Face Hub.
const DefaultShardBytes = 5_000_000_000

// Options configures [Save] and the other writers.
type Options struct {
	// DType, if not nil, is the dtype that floating-point tensors are converted to.
	DType *torch.DType
	// ShardBytes is the maximum size of one file's tensors, DefaultShardBytes if 0. A larger tensor
	// gets a file of its own.
	ShardBytes int
	// Config and GenerationConfig are the JSON of config.json and generation_config.json; nil
	// writes none. The config's torch_dtype (or dtype) is set to that of the written tensors.
	Config, GenerationConfig []byte
	// Encoding, if not empty, is the name of the mix of [quant.Mixes] in which [SaveGGUF] writes
	// matrices.
	Encoding string
	// Importance, by GGUF's names, weighs the errors of quantized numbers; nil weighs all columns
	// alike.
	Importance Importance
	// Packed, if not nil, is called when SaveGGUF has quantized more numbers. An error ends it.
	Packed func(numbers int) error
	// Metadata is further metadata for [SaveGGUF]: the tokenizer. Values are uint32, float32, bool,
	// string or slices of string, int32, uint32 and float32.
	Metadata map[string]any
	// Parts is the number of files, one for each process, that [SaveMeta] divides a model into: 1
	// if 0.
	Parts int
	// TokenizerFrom, if not empty, is a folder whose tokenizer files are copied.
	TokenizerFrom string
	// Also, if not nil, writes more files into the folder dir, which become part of the result.
	Also func(dir string) error
}

// tokenizerFiles are the files of a Hugging Face folder that make up its tokenizer.
var tokenizerFiles = []string{"tokenizer.json", "tokenizer_config.json", "tokenizer.model",
	"special_tokens_map.json",
	"added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"}

// maxTokenizerFile is the largest of tokenizerFiles, in bytes.
const maxTokenizerFile = 64 << 20

// Save writes the tensors of source into the folder dir as Hugging Face's libraries do:
// model.safetensors, or shards model-00001-of-00003.safetensors with model.safetensors.index.json,
// beside the configs. One tensor is in memory at a time.
//
// Everything is first written to a temporary folder beside dir and flushed to the disk. A new dir
// then appears by one rename. An existing dir, which may hold a model in any layout or an adapter,
// is exchanged with the new folder in one step: all files of the old result are gone then (see
// [ResultFiles]), and other files are moved to the new folder. If anything fails before that, the
// old files stay and the temporary folder is removed. After a kill, [Recover] and the next Save
// complete what had begun.
func Save(dir string, source Source, options Options) error {
	return saveFolder(dir, func(stage string) error { return fillStage(stage, source, options) })
}

// saveFolder creates the result dir, or replaces it, with the files that fill writes into a
// temporary folder.
func saveFolder(dir string, fill func(stage string) error) error {
	f, err := atomicfile.OpenFolder(dir, kindOf)
	if err != nil {
		return atomicfile.Explain(dir, err)
	}
	if err := torch.Run(func() error { return fill(f.Stage) }); err != nil {
		f.Abort()
		return atomicfile.Explain(dir, err)
	}
	return atomicfile.Explain(dir, f.Commit())
}

// fillStage writes every file of the checkpoint into dir.
func fillStage(dir string, source Source, options Options) error {
	shards, err := plan(source, options)
	if err != nil {
		return err
	}
	weightMap, total := map[string]string{}, 0
	for i, records := range shards {
		name := weightsFile
		if len(shards) > 1 {
			name = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		}
		for _, r := range records {
			weightMap[r.name] = name
			total += r.bytes
		}
		if err := atomicfile.Create(filepath.Join(dir, name),
			func(w io.Writer) error { return writeSafetensors(w, source, records) }); err != nil {
			return err
		}
	}
	texts := map[string][]byte{generationFile: options.GenerationConfig}
	if texts[configFile], err = configFor(options.Config, shards); err != nil {
		return err
	}
	if len(shards) > 1 {
		index := map[string]any{"metadata": map[string]any{"total_size": total},
			"weight_map": weightMap}
		if texts[indexFile], err = jsonText(index); err != nil {
			return err
		}
	}
	return writeTexts(dir, texts, options)
}

// writeTexts writes the small files of a checkpoint: those of texts that are not nil, the
// tokenizer's, and options.Also's.
func writeTexts(dir string, texts map[string][]byte, options Options) error {
	if options.TokenizerFrom != "" {
		for _, name := range tokenizerFiles {
			text, err := wrongfile.Read(filepath.Join(options.TokenizerFrom, name),
				maxTokenizerFile)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			texts[name] = text
		}
	}
	for name, text := range texts {
		if text == nil {
			continue
		}
		if err := atomicfile.Create(filepath.Join(dir, name),
			func(w io.Writer) error { _, err := w.Write(text); return err }); err != nil {
			return err
		}
	}
	if options.Also != nil {
		return options.Also(dir)
	}
	return nil
}

// plan divides the source's tensors into files. Inside a file they are ordered by the size of their
// elements, so that each is aligned to it.
func plan(source Source, options Options) ([][]record, error) {
	most := options.ShardBytes
	if most <= 0 {
		most = DefaultShardBytes
	}
	var shards [][]record
	filled, seen := 0, map[string]bool{"__metadata__": true} // reserved by the format
	for _, name := range source.Names() {
		if seen[name] {
			return nil, fmt.Errorf("tensor %.120q: the source has this name twice, or it is the "+
				"format's own", name)
		}
		seen[name] = true
		info, ok := source.Info(name)
		if !ok {
			return nil, fmt.Errorf("tensor %.120q: the source names it but does not describe it",
				name)
		}
		dtype := info.DType
		if options.DType != nil && dtype.Floating() {
			dtype = *options.DType
		}
		r := record{name: name, dtype: safetensorsName(dtype), shape: info.Shape}
		if r.dtype == "" {
			return nil, fmt.Errorf("tensor %.120q: %s cannot be written to safetensors", name,
				cmp.Or(info.Stored, dtype.String()))
		}
		size, ok := sizeInBits(r.shape, 8*dtype.Size())
		if !ok {
			return nil, fmt.Errorf("tensor %.120q: the shape %v is too large", name, r.shape)
		}
		r.bytes = size / 8
		if len(shards) == 0 || r.bytes > most-filled && filled > 0 {
			shards, filled = append(shards, nil), 0
		}
		shards[len(shards)-1] = append(shards[len(shards)-1], r)
		filled += r.bytes
	}
	if len(shards) == 0 {
		shards = [][]record{nil}
	}
	for _, records := range shards {
		slices.SortStableFunc(records,
			func(a, b record) int { return safetensorsBits[b.dtype] - safetensorsBits[a.dtype] })
	}
	return shards, nil
}

func safetensorsName(dtype torch.DType) string {
	for name, d := range safetensorsTorch {
		if d == dtype {
			return name
		}
	}
	return ""
}

// caster is a source that decodes to a dtype directly.
type caster interface {
	TensorAs(name string, dtype torch.DType) (torch.Tensor, error)
}

// writeSafetensors writes one file: the header, then each tensor in a scope of its own.
func writeSafetensors(w io.Writer, source Source, records []record) error {
	header, err := safetensorsHeader(records)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, r := range records {
		torch.Scoped(func() {
			var t torch.Tensor
			if t, err = readAs(source, r); err == nil {
				_, err = w.Write(t.Data())
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readAs reads a tensor as r describes it: contiguous, on the CPU.
func readAs(source Source, r record) (t torch.Tensor, err error) {
	dtype := safetensorsTorch[r.dtype]
	if c, ok := source.(caster); ok {
		t, err = c.TensorAs(r.name, dtype)
	} else {
		t, err = source.Tensor(r.name)
	}
	if err != nil {
		return t, err
	}
	if !slices.Equal(t.Shape(), r.shape) {
		return t, fmt.Errorf("tensor %.120q has the shape %v, but the source announced %v", r.name,
			t.Shape(), r.shape)
	}
	return t.To(dtype).ToDevice(torch.CPU).Contiguous(), nil
}

// configFor returns the config with torch_dtype or dtype, or both if it has both, set to the dtype
// of most of the bytes. Its other keys stay unchanged.
func configFor(config []byte, shards [][]record) ([]byte, error) {
	if config == nil {
		return nil, nil
	}
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(config))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		return nil, fmt.Errorf("%s: expected a JSON object: %w", configFile, err)
	}
	sizes := map[string]int{}
	for _, records := range shards {
		for _, r := range records {
			sizes[r.dtype] += r.bytes
		}
	}
	best := ""
	for _, name := range []string{"F32", "BF16", "F16", "F64"} {
		if sizes[name] > sizes[best] {
			best = name
		}
	}
	keys := []string{"dtype", "torch_dtype"} // the names in transformers 5 and before
	keys = slices.DeleteFunc(keys, func(key string) bool { return object[key] == nil })
	if len(keys) == 0 {
		keys = []string{"torch_dtype"} // which both read
	}
	changed := false
	for _, key := range keys {
		if name := safetensorsTorch[best].String(); best != "" && object[key] != name {
			object[key], changed = name, true
		}
	}
	if changed {
		return jsonText(object)
	}
	return config, nil
}
