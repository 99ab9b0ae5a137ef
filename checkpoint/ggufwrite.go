package checkpoint

import (
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

// SaveGGUF writes source, a model of a registered family, atomically as one GGUF file at path, or
// where the symbolic link path leads. It makes the file's folder if that does not exist.
// options.Metadata holds its tokenizer. Matrices have the type that options.Encoding or
// options.DType names, or keep their own. Vectors are float32, which llama.cpp requires. One tensor
// is in memory at a time.
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
	options  Options
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
	w := &ggufWriter{metadata: map[string]any{}, options: options}
	for _, name := range slices.Sorted(maps.Keys(m.Tensors)) {
		values := m.Tensors[name]
		w.tensors = append(w.tensors, ggufEntry{name: name, kind: "F32", values: values,
			shape: []int{len(values)}, size: 4 * len(values)})
	}
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
			w.tensors = append(w.tensors, e)
		}
		for _, e.mapped = range mapped.Also {
			e.name = e.mapped.Name
			w.tensors = append(w.tensors, e)
		}
	}
	fileType, err := w.choose(m, options)
	if err != nil {
		return nil, err
	}
	w.set("general.architecture", m.Architecture)
	w.set("general.type", "model")
	w.set("general.name", strings.TrimSuffix(filepath.Base(path), ".gguf"))
	w.set("general.file_type", fileType)
	w.set("general.quantization_version", uint32(2))
	for _, key := range m.keys {
		w.set(m.Architecture+"."+key, m.values[key])
	}
	for _, key := range slices.Sorted(maps.Keys(options.Metadata)) {
		w.set(key, options.Metadata[key])
	}
	return w, nil
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
		torch.Scoped(func() { err = w.writeTensor(out, e, source) })
		if err != nil {
			return err
		}
		if _, err := out.Write(zeros[:(ggufAlign-e.size%ggufAlign)%ggufAlign]); err != nil {
			return err
		}
	}
	return nil
}

// writeTensor writes the entry's bytes.
func (w *ggufWriter) writeTensor(out io.Writer, e ggufEntry, source Source) error {
	if e.values != nil {
		return binary.Write(out, binary.LittleEndian, e.values)
	}
	t, err := e.read(source)
	if err != nil {
		return err
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
		return w.pack(out, e, torch.Values[float32](t))
	}
	_, err = out.Write(t.Data())
	return err
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
