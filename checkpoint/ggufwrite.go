package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"conquer/internal/atomicfile"
	"conquer/torch"
)

// The values of general.file_type for what most of a file's tensors are.
var ggufFileTypes = map[string]uint32{"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}

// GGUFTypes lists what a GGUF file's matrices can be written as, beside the dtypes: see [Options.Encoding].
var GGUFTypes = []string{"Q8_0", "Q4_0"}

// SaveGGUF writes source as one GGUF file at path: a model of the Llama family with its metadata, and in options.Metadata
// its tokenizer. Matrices have the type that options.Encoding or options.DType names, or their own; vectors are float32,
// because llama.cpp computes with them so; the embedding and the head of a Q4_0 file are Q8_0, which costs little and
// answers better; a matrix whose rows are no multiple of 32 is float16 where a quantized type is asked for.
// The file takes its place in one step, and one tensor is in memory at a time.
func SaveGGUF(path string, source Source, options Options) error {
	w, err := planGGUF(path, source, options)
	if err != nil {
		return atomicfile.Explain(path, err)
	}
	return atomicfile.Write(path, func(out io.Writer) error {
		return torch.Run(func() error { return w.write(out, source) })
	})
}

// A ggufWriter is a file to be written.
type ggufWriter struct {
	keys     []string
	metadata map[string]any
	tensors  []ggufEntry
}

type ggufEntry struct {
	name, kind string
	record     // as it is read; its offset is that in the file's data
	heads      int
	values     []float32 // of a tensor that comes from the config, not from the source
	size       int       // bytes as they are written
}

func (w *ggufWriter) set(key string, value any) {
	if _, ok := w.metadata[key]; !ok {
		w.keys = append(w.keys, key)
	}
	w.metadata[key] = value
}

func planGGUF(path string, source Source, options Options) (*ggufWriter, error) {
	config, err := parseLlamaConfig(options.Config)
	if err != nil {
		return nil, fmt.Errorf("GGUF: %w", err)
	}
	shards, err := plan(source, Options{DType: options.DType, ShardBytes: math.MaxInt})
	if err != nil {
		return nil, err
	}
	w := &ggufWriter{metadata: map[string]any{}}
	architecture := config.ModelType
	if architecture == "mistral" {
		architecture = "llama" // as llama.cpp has it
	}
	if factors := config.ropeFactors(); factors != nil {
		w.tensors = append(w.tensors, ggufEntry{name: "rope_freqs.weight", kind: "F32", values: factors, record: record{shape: []int{len(factors)}}, size: 4 * len(factors)})
	}
	sizes := map[string]int{}
	byName := map[string]record{}
	for _, r := range shards[0] {
		byName[r.name] = r
	}
	for _, name := range source.Names() {
		if ignored(name) || config.Tied && name == "lm_head.weight" {
			continue
		}
		e := ggufEntry{record: byName[name]}
		var ok bool
		if e.name, ok = foreignName(name, "blk.", ggufNames); !ok || len(e.shape) < 1 || len(e.shape) > 2 {
			return nil, fmt.Errorf("tensor %.120q of shape %v has no place in a GGUF file of the Llama family: use --format hf", name, e.shape)
		}
		e.heads = permutedHeads(architecture, "."+e.name, config.Heads, config.KVHeads)
		if e.heads > 0 && e.shape[0]%(2*e.heads) != 0 {
			return nil, fmt.Errorf("tensor %.120q has %d rows, expected a multiple of twice its %d heads", name, e.shape[0], e.heads)
		}
		if err := e.choose(options); err != nil {
			return nil, err
		}
		if len(e.shape) == 2 {
			sizes[e.kind] += e.size
		}
		w.tensors = append(w.tensors, e)
	}
	most := "F32"
	for kind, size := range sizes {
		if size > sizes[most] {
			most = kind
		}
	}
	w.describe(path, architecture, config, most)
	for _, key := range slices.Sorted(maps.Keys(options.Metadata)) {
		w.set(key, options.Metadata[key])
	}
	return w, nil
}

// choose sets the type that the entry is written as, and the one that it is read as.
func (e *ggufEntry) choose(options Options) error {
	e.kind = e.dtype
	columns := e.shape[len(e.shape)-1]
	switch {
	case len(e.shape) == 1:
		e.kind = "F32"
	case options.Encoding != "" && columns%32 != 0:
		e.kind = "F16"
	case options.Encoding == "Q4_0" && (e.name == "token_embd.weight" || e.name == "output.weight"):
		e.kind = "Q8_0"
	case options.Encoding != "":
		e.kind = options.Encoding
	}
	t, ok := ggmlByName[e.kind]
	if _, known := ggufFileTypes[e.kind]; !ok || !known {
		return fmt.Errorf("tensor %.120q: %s cannot be written to GGUF: choose a dtype", e.record.name, e.kind)
	}
	e.dtype = e.kind
	if encoders[e.kind] != nil {
		e.dtype = "F32"
	}
	count := 1
	for _, n := range e.shape {
		count *= n
	}
	e.size = count / t.block * t.bytes
	return nil
}

// describe sets what llama.cpp reads about the model.
func (w *ggufWriter) describe(path, architecture string, c *llamaConfig, most string) {
	w.set("general.architecture", architecture)
	w.set("general.type", "model")
	w.set("general.name", strings.TrimSuffix(filepath.Base(path), ".gguf"))
	w.set("general.file_type", ggufFileTypes[most])
	w.set("general.quantization_version", uint32(2))
	at := architecture + "."
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"vocab_size", c.Vocabulary}, {"context_length", c.MaxLength}, {"embedding_length", c.Width}, {"block_count", c.Layers},
		{"feed_forward_length", c.Inner}, {"attention.head_count", c.Heads}, {"attention.head_count_kv", c.KVHeads},
		{"attention.key_length", c.HeadDim}, {"attention.value_length", c.HeadDim}, {"rope.dimension_count", c.HeadDim},
	} {
		w.set(at+pair.key, uint32(pair.n))
	}
	w.set(at+"attention.layer_norm_rms_epsilon", float32(c.Epsilon))
	w.set(at+"rope.freq_base", float32(c.Theta))
	if c.Window > 0 {
		w.set(at+"attention.sliding_window", uint32(c.Window))
	}
	switch s := c.Scaling; s.kind() {
	case "linear":
		w.set(at+"rope.scaling.type", "linear")
		w.set(at+"rope.scaling.factor", float32(s.Factor))
	case "llama3":
		// The tensor rope_freqs says all that running the model needs; these are to find the way back.
		if s.Low != 1 || s.High != 4 || s.Original != 8192 {
			w.set(at+"rope.scaling.low_freq_factor", float32(s.Low))
			w.set(at+"rope.scaling.high_freq_factor", float32(s.High))
			w.set(at+"rope.scaling.original_context_length", uint32(s.Original))
		}
	}
}

// ropeFactors gives the divisors of the rotary frequencies of Llama 3's scaling, nil without it.
func (c *llamaConfig) ropeFactors() []float32 {
	s := c.Scaling
	if s.kind() != "llama3" {
		return nil
	}
	factors := make([]float32, c.HeadDim/2)
	for i := range factors {
		factors[i] = float32(llama3Divisor(c.Theta, c.HeadDim, i, s.Factor, s.Low, s.High, s.Original))
	}
	return factors
}

// llama3Divisor is what Llama 3's scaling divides the i-th rotary frequency by: 1 for short wavelengths, factor for long
// ones, and something between for those between.
func llama3Divisor(theta float64, headDim, i int, factor, low, high, original float64) float64 {
	wavelength := 2 * math.Pi * math.Pow(theta, 2*float64(i)/float64(headDim))
	switch {
	case wavelength > original/low:
		return factor
	case wavelength < original/high:
		return 1
	}
	smooth := (original/wavelength - low) / (high - low)
	return 1 / ((1-smooth)/factor + smooth)
}

const ggufAlign = 32

func (w *ggufWriter) write(out io.Writer, source Source) error {
	head, err := w.header()
	if err != nil {
		return err
	}
	if _, err := out.Write(head); err != nil {
		return err
	}
	zeros := make([]byte, ggufAlign)
	for _, e := range w.tensors {
		torch.Scoped(func() {
			var data []byte
			if data, err = e.data(source); err == nil {
				_, err = out.Write(data)
			}
		})
		if err != nil {
			return err
		}
		if _, err := out.Write(zeros[:(ggufAlign-e.size%ggufAlign)%ggufAlign]); err != nil {
			return err
		}
	}
	return nil
}

// data is the entry's bytes, valid while the scope is open.
func (e *ggufEntry) data(source Source) ([]byte, error) {
	if e.values != nil {
		var b bytes.Buffer
		err := binary.Write(&b, binary.LittleEndian, e.values)
		return b.Bytes(), err
	}
	t, err := readAs(source, e.record)
	if err != nil {
		return nil, err
	}
	if e.heads > 0 {
		t = permuteHeads(t, e.heads).Contiguous()
	}
	if encoders[e.kind] != nil {
		return quantize(e.kind, float32s(t.Data()))
	}
	return t.Data(), nil
}

// header is all that stands before the data.
func (w *ggufWriter) header() ([]byte, error) {
	b := &ggufBuffer{}
	b.WriteString("GGUF")
	b.put(uint32(3))
	b.put(uint64(len(w.tensors)))
	b.put(uint64(len(w.keys)))
	for _, key := range w.keys {
		b.text(key)
		if err := b.value(w.metadata[key]); err != nil {
			return nil, fmt.Errorf("metadata %s: %w", key, err)
		}
	}
	offset := 0
	for _, e := range w.tensors {
		b.text(e.name)
		b.put(uint32(len(e.shape)))
		for _, n := range slices.Backward(e.shape) {
			b.put(uint64(n))
		}
		b.put(ggmlNumber(e.kind))
		b.put(uint64(offset))
		offset += (e.size + ggufAlign - 1) / ggufAlign * ggufAlign
	}
	b.Write(make([]byte, (ggufAlign-b.Len()%ggufAlign)%ggufAlign))
	return b.Bytes(), nil
}

type ggufBuffer struct{ bytes.Buffer }

func (b *ggufBuffer) put(v any) { binary.Write(b, binary.LittleEndian, v) } // to memory, of fixed size: it cannot fail

func (b *ggufBuffer) text(s string) {
	b.put(uint64(len(s)))
	b.WriteString(s)
}

func (b *ggufBuffer) value(v any) error {
	switch v := v.(type) {
	case uint32:
		b.put(uint32(ggufUint32))
		b.put(v)
	case float32:
		b.put(uint32(ggufFloat32))
		b.put(v)
	case bool:
		b.put(uint32(ggufBool))
		b.put(v)
	case string:
		b.put(uint32(ggufString))
		b.text(v)
	case []string:
		b.put([]uint32{ggufArray, ggufString})
		b.put(uint64(len(v)))
		for _, s := range v {
			b.text(s)
		}
	case []int32:
		b.put([]uint32{ggufArray, ggufInt32})
		b.put(uint64(len(v)))
		b.put(v)
	case []float32:
		b.put([]uint32{ggufArray, ggufFloat32})
		b.put(uint64(len(v)))
		b.put(v)
	default:
		return fmt.Errorf("a %T has no type in GGUF here", v)
	}
	return nil
}
