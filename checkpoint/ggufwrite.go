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
	"conquer/quant"
	"conquer/torch"
)

// ggufFileTypes are the values of general.file_type by the type of most of the tensors.
var ggufFileTypes = map[string]uint32{"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}

// GGUFTypes lists the quantized types in which a GGUF file's matrices can be written; see
// [Options.Encoding].
var GGUFTypes = []string{"Q8_0", "Q4_0"}

// SaveGGUF writes source, a model of a registered family, atomically as one GGUF file at path, or
// where the symbolic link path leads. It makes the file's folder if that does not exist.
// options.Metadata holds its tokenizer. Matrices have the type that options.Encoding or
// options.DType names, or keep their own. Vectors are float32, which llama.cpp requires. With a
// quantized type, matrices whose rows are not multiples of 32 are float16, and with Q4_0 the
// embedding and the head are Q8_0, which costs little size and improves the output. One tensor is
// in memory at a time.
func SaveGGUF(path string, source Source, options Options) error {
	w, err := planGGUF(path, source, options)
	if err != nil {
		return atomicfile.Explain(path, err)
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path)); err != nil {
		return atomicfile.Explain(path, err)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a symbolic link stays
	}
	return atomicfile.Write(path, func(out io.Writer) error {
		return torch.Run(func() error { return w.write(out, source) })
	})
}

// ggufWriter is a file to be written.
type ggufWriter struct {
	keys     []string
	metadata map[string]any
	tensors  []ggufEntry
}

type ggufEntry struct {
	name, kind string
	shape      []int
	from       record // the tensor as it is read from the source, or the first of a stack
	mapped     Mapped
	part       int       // the entry's number in mapped.Split
	values     []float32 // of a tensor that follows from the config
	size       int       // in bytes, as it is written
}

func (w *ggufWriter) set(key string, value any) {
	if _, ok := w.metadata[key]; !ok {
		w.keys = append(w.keys, key)
	}
	w.metadata[key] = value
}

// GGUFModel is a model as a GGUF file describes it.
type GGUFModel struct {
	Architecture string
	// Tensors holds tensors that follow from the config, such as rotary factors; they are written
	// as F32.
	Tensors map[string][]float32
	// Tensor maps a tensor's Hugging Face name.
	Tensor TensorMap

	keys   []string
	values map[string]any
}

// Set sets a metadata key, without the architecture's prefix. Values are as in [Options.Metadata].
func (m *GGUFModel) Set(key string, value any) {
	if m.values == nil {
		m.values = map[string]any{}
	}
	if _, ok := m.values[key]; !ok {
		m.keys = append(m.keys, key)
	}
	m.values[key] = value
}

func planGGUF(path string, source Source, options Options) (*ggufWriter, error) {
	family, err := familyFor(options.Config, "GGUF", func(f Family) bool { return f.ToGGUF != nil })
	if err != nil {
		return nil, err
	}
	m, err := family.ToGGUF(options.Config)
	if err != nil {
		return nil, fmt.Errorf("GGUF: %w", err)
	}
	shards, err := plan(source, Options{DType: options.DType, ShardBytes: math.MaxInt})
	if err != nil {
		return nil, err
	}
	w := &ggufWriter{metadata: map[string]any{}}
	for _, name := range slices.Sorted(maps.Keys(m.Tensors)) {
		values := m.Tensors[name]
		w.tensors = append(w.tensors, ggufEntry{name: name, kind: "F32", values: values,
			shape: []int{len(values)}, size: 4 * len(values)})
	}
	sizes := map[string]int{}
	byName := map[string]record{}
	for _, r := range shards[0] {
		byName[r.name] = r
	}
	for _, name := range source.Names() {
		if ignored(name) {
			continue
		}
		e := ggufEntry{from: byName[name], shape: byName[name].shape}
		mapped, ok := m.Tensor(name)
		if ok && mapped.Name == "" {
			continue
		}
		e.name, e.mapped = mapped.Name, mapped
		if ok && mapped.Transform != nil {
			e.shape = mapped.Transform.Shape(e.shape)
		}
		if ok && mapped.Stack != nil {
			if name != mapped.Stack[0] {
				continue
			}
			for _, part := range mapped.Stack {
				if r := byName[part]; r.dtype != e.from.dtype || !slices.Equal(r.shape, e.shape) {
					return nil, fmt.Errorf("tensor %.120q is missing or has not the shape and "+
						"dtype of %.120q, with which GGUF stores it", part, name)
				}
			}
			e.shape = append([]int{len(mapped.Stack)}, e.shape...)
		}
		if !ok || len(e.shape) < 1 || len(e.shape) > 3 {
			return nil, fmt.Errorf("tensor %.120q of shape %v has no place in a GGUF file of "+
				"architecture %s: use --format hf", name, e.shape, m.Architecture)
		}
		if heads := mapped.Heads; heads > 0 && e.shape[0]%(2*heads) != 0 {
			return nil, fmt.Errorf("tensor %.120q has %d rows, expected a multiple of twice its "+
				"%d heads", name, e.shape[0], heads)
		}
		names := mapped.Split
		if names == nil {
			names = []string{e.name}
		}
		rows := max(len(e.shape)-2, 0) // of a stack, the rows of each matrix are divided
		if e.shape[rows]%len(names) != 0 {
			return nil, fmt.Errorf("tensor %.120q has %d rows, expected equal parts for %s", name,
				e.shape[rows], strings.Join(names, ", "))
		}
		e.shape = slices.Clone(e.shape)
		e.shape[rows] /= len(names)
		for e.part, e.name = range names {
			if err := e.choose(options); err != nil {
				return nil, err
			}
			if len(e.shape) > 1 {
				sizes[e.kind] += e.size
			}
			w.tensors = append(w.tensors, e)
		}
		for _, e.mapped = range mapped.Also {
			e.name = e.mapped.Name
			if err := e.choose(options); err != nil {
				return nil, err
			}
			sizes[e.kind] += e.size
			w.tensors = append(w.tensors, e)
		}
	}
	most := "F32"
	for kind, size := range sizes {
		if size > sizes[most] {
			most = kind
		}
	}
	w.set("general.architecture", m.Architecture)
	w.set("general.type", "model")
	w.set("general.name", strings.TrimSuffix(filepath.Base(path), ".gguf"))
	w.set("general.file_type", ggufFileTypes[most])
	w.set("general.quantization_version", uint32(2))
	for _, key := range m.keys {
		w.set(m.Architecture+"."+key, m.values[key])
	}
	for _, key := range slices.Sorted(maps.Keys(options.Metadata)) {
		w.set(key, options.Metadata[key])
	}
	return w, nil
}

// choose sets the type in which the entry is written, and the dtype in which it is read.
func (e *ggufEntry) choose(options Options) error {
	e.kind = e.from.dtype
	columns := e.shape[len(e.shape)-1]
	switch {
	case len(e.shape) == 1 || e.mapped.Float32:
		e.kind = "F32"
	case options.Encoding != "" && columns%32 != 0:
		e.kind = "F16"
	case options.Encoding == "Q4_0" && (e.name == "token_embd.weight" || e.name == "output.weight"):
		e.kind = "Q8_0"
	case options.Encoding != "":
		e.kind = options.Encoding
	}
	t, ok := quant.ByName(e.kind)
	if _, known := ggufFileTypes[e.kind]; !ok || !known {
		return fmt.Errorf("tensor %.120q: %s cannot be written to GGUF: choose a dtype",
			e.from.name, e.kind)
	}
	e.from.dtype = e.kind
	if quant.Packs(e.kind) {
		e.from.dtype = "F32"
	}
	e.size = numel(e.shape) / t.Block * t.Bytes
	return nil
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

// data returns the entry's bytes, which are valid while the scope is open.
func (e *ggufEntry) data(source Source) ([]byte, error) {
	if e.values != nil {
		var b bytes.Buffer
		err := binary.Write(&b, binary.LittleEndian, e.values)
		return b.Bytes(), err
	}
	t, err := e.read(source)
	if err != nil {
		return nil, err
	}
	if e.mapped.Heads > 0 {
		t = permuteHeads(t, e.mapped.Heads)
	}
	if n := len(e.mapped.Split); n > 0 {
		dim := max(t.Rank()-2, 0)
		rows := t.Size(dim) / n
		t = t.Narrow(dim, e.part*rows, rows)
	}
	t = t.Reshape(e.shape...)
	if transform := e.mapped.Transform; transform != nil && transform.To != nil {
		t = transform.To(t)
	}
	t = t.Contiguous()
	if quant.Packs(e.kind) {
		return quant.Pack(e.kind, torch.Values[float32](t))
	}
	return t.Data(), nil
}

// read returns the entry's values, of a stack joined.
func (e *ggufEntry) read(source Source) (torch.Tensor, error) {
	if e.mapped.Stack == nil {
		return readAs(source, e.from)
	}
	all := make([]torch.Tensor, len(e.mapped.Stack))
	for i, name := range e.mapped.Stack {
		part := e.from
		part.name = name
		t, err := readAs(source, part)
		if err != nil {
			return t, err
		}
		all[i] = t
	}
	return torch.Cat(0, all...), nil
}

// header returns everything before the data.
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
		kind, _ := quant.ByName(e.kind)
		b.put(uint32(kind.Number))
		b.put(uint64(offset))
		offset += (e.size + ggufAlign - 1) / ggufAlign * ggufAlign
	}
	b.Write(make([]byte, (ggufAlign-b.Len()%ggufAlign)%ggufAlign))
	return b.Bytes(), nil
}

type ggufBuffer struct{ bytes.Buffer }

// cannot fail: the value has a fixed size
func (b *ggufBuffer) put(v any) { binary.Write(b, binary.LittleEndian, v) }

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
	case []uint32:
		b.put([]uint32{ggufArray, ggufUint32})
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
