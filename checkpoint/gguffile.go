package checkpoint

import (
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"conquer/quant"
)

// GGUFFile is an open GGUF file as a [Family] reads it. Keys are given without the architecture's
// prefix. The first problem is kept in Err.
type GGUFFile struct {
	Architecture string // general.architecture
	Err          error

	metadata map[string]any
	tensors  map[string]ggufRecord
}

// ggufRecord is a tensor and the bytes of its file.
type ggufRecord struct {
	record
	data []byte
}

func newGGUFFile(parts []ggufPart) (*GGUFFile, error) {
	g := &GGUFFile{metadata: parts[0].metadata, tensors: map[string]ggufRecord{}}
	g.Architecture, _ = g.metadata["general.architecture"].(string)
	for _, part := range parts {
		for _, r := range part.records {
			if g.Has(r.name) {
				return nil, fmt.Errorf("%s: tensor %.80q is in another part, too", part.file.path,
					r.name)
			}
			g.tensors[r.name] = ggufRecord{r, part.data}
		}
	}
	return g, nil
}

// Fail keeps a problem, unless one is kept already.
func (f *GGUFFile) Fail(format string, args ...any) {
	if f.Err == nil {
		f.Err = fmt.Errorf(format, args...)
	}
}

// Has reports whether the file holds a tensor.
func (f *GGUFFile) Has(tensor string) bool { return f.tensors[tensor].name != "" }

// Shape is a tensor's shape, rows first; nil if the file lacks it.
func (f *GGUFFile) Shape(tensor string) []int { return f.tensors[tensor].shape }

// Floats reads a tensor of type F32; nil if there is none.
func (f *GGUFFile) Floats(tensor string) []float32 {
	r, ok := f.tensors[tensor]
	if !ok || r.dtype != "F32" {
		return nil
	}
	values := make([]float32, r.bytes/4)
	quant.Unpack(values, "F32", r.data[r.offset:r.offset+r.bytes])
	return values
}

// Int reads a positive integer, or a list whose entries are all the same. A missing key gives
// fallback, and is a problem if that is 0.
func (f *GGUFFile) Int(key string, fallback int) int {
	key = f.Architecture + "." + key
	value, ok := f.metadata[key]
	if !ok {
		if fallback == 0 {
			f.Fail("the metadata lacks %s", key)
		}
		return fallback
	}
	list, ok := integers(value)
	for _, n := range list {
		ok = ok && n == list[0] && n > 0
	}
	if !ok || len(list) == 0 {
		f.Fail("%s is %.80s, expected one positive integer for all layers", key, fmt.Sprint(value))
		return fallback
	}
	return list[0]
}

// HasKey reports whether the file has a key.
func (f *GGUFFile) HasKey(key string) bool {
	_, ok := f.metadata[f.Architecture+"."+key]
	return ok
}

// Flag reads a bool; fallback if the key is missing or of another type.
func (f *GGUFFile) Flag(key string, fallback bool) bool {
	if value, ok := f.metadata[f.Architecture+"."+key].(bool); ok {
		return value
	}
	return fallback
}

// Natural reads one integer; -1 if there is none, or it is negative.
func (f *GGUFFile) Natural(key string) int { return natural(f.metadata, f.Architecture+"."+key) }

// Ints reads a list of n integers; a single integer counts as n equal ones. It returns nil if the
// key is missing.
func (f *GGUFFile) Ints(key string, n int) []int {
	key = f.Architecture + "." + key
	value, ok := f.metadata[key]
	if !ok {
		return nil
	}
	list, ok := integers(value)
	if ok && len(list) == 1 && n > 1 {
		list = slices.Repeat(list, n)
	}
	if !ok || len(list) != n {
		f.Fail("%s is %.80s, expected %d integers", key, fmt.Sprint(value), n)
		return nil
	}
	return list
}

// Number reads a finite number in its shortest decimal form, so that a float32 1e-5 is 1e-5 again.
// A missing key gives fallback, and is a problem if that is NaN.
func (f *GGUFFile) Number(key string, fallback float64) float64 {
	key = f.Architecture + "." + key
	value, ok := f.metadata[key]
	if !ok {
		if math.IsNaN(fallback) {
			f.Fail("the metadata lacks %s", key)
		}
		return fallback
	}
	var n float64
	switch v := value.(type) {
	case float32:
		n, _ = strconv.ParseFloat(strconv.FormatFloat(float64(v), 'g', -1, 32), 64)
	case float64:
		n = v
	default:
		n = math.NaN()
	}
	if math.IsNaN(n) || math.IsInf(n, 0) {
		f.Fail("%s is %.80s, expected a finite number", key, fmt.Sprint(value))
	}
	return n
}

// Text reads a string; "" if the key is missing or of another type.
func (f *GGUFFile) Text(key string) string {
	text, _ := f.metadata[f.Architecture+"."+key].(string)
	return text
}

// natural reads one integer of the metadata; -1 if there is none, or it is negative.
func natural(metadata map[string]any, key string) int {
	if list, ok := integers(metadata[key]); ok && len(list) == 1 && list[0] >= 0 {
		return list[0]
	}
	return -1
}

// integers gives a metadata value of any integer type, or list of them, as ints.
func integers(value any) ([]int, bool) {
	switch v := value.(type) {
	case uint32:
		return []int{int(v)}, true
	case int32:
		return []int{int(v)}, true
	case uint64:
		return []int{int(v)}, v <= math.MaxInt64
	case int64:
		return []int{int(v)}, true
	case uint16:
		return []int{int(v)}, true
	case int16:
		return []int{int(v)}, true
	case uint8:
		return []int{int(v)}, true
	case int8:
		return []int{int(v)}, true
	case []uint32:
		return widen(v), true
	case []int32:
		return widen(v), true
	}
	return nil, false
}

func widen[T uint32 | int32](list []T) []int {
	wide := make([]int, len(list))
	for i, n := range list {
		wide[i] = int(n)
	}
	return wide
}

// config asks the file's family for its config.json and the names of its tensors there, and reads
// the token ids of generation_config.json.
func (f *GGUFFile) config() (config, generation map[string]any, tensors TensorMap, err error) {
	family, ok := familyOf(func(c Family) bool {
		return slices.Contains(c.Architectures, f.Architecture) && c.Accepts != nil && c.Accepts(f)
	})
	if !ok {
		family, ok = familyOf(func(c Family) bool {
			return slices.Contains(c.Architectures, f.Architecture) && c.Accepts == nil
		})
	}
	if !ok {
		known := registered(func(c Family) []string { return c.Architectures })
		return nil, nil, nil, fmt.Errorf("general.architecture is %.40q, expected one of %s",
			f.Architecture, known)
	}
	embedding := f.Shape("token_embd.weight")
	if len(embedding) != 2 || embedding[0] == 0 {
		return nil, nil, nil, fmt.Errorf("tensor \"token_embd.weight\" is missing or not a matrix")
	}
	config, tensors, err = family.FromGGUF(f)
	if err == nil {
		err = f.Err
	}
	if err != nil {
		return nil, nil, nil, err
	}
	dtypes := map[string]int{}
	for _, r := range f.tensors {
		if len(r.shape) > 1 {
			dtypes[r.dtype] += r.bytes
		}
	}
	config["torch_dtype"] = ggufDtype(dtypes)
	generation = f.generation(config, embedding[0])
	asDecimals(config)
	return config, generation, tensors, nil
}

// generation gives generation_config.json, and adds its tokens to the config.
func (f *GGUFFile) generation(config map[string]any, vocabulary int) map[string]any {
	generation := map[string]any{"_from_model_config": true}
	for key, to := range map[string]string{"bos": "bos_token_id", "eos": "eos_token_id",
		"padding": "pad_token_id"} {
		id := natural(f.metadata, "tokenizer.ggml."+key+"_token_id")
		if id >= 0 && id < vocabulary {
			config[to], generation[to] = id, id
		}
	}
	// A chat turn ends with another token than a text.
	eos, hasEOS := config["eos_token_id"].(int)
	id := natural(f.metadata, "tokenizer.ggml.eot_token_id")
	if hasEOS && id >= 0 && id < vocabulary && id != eos {
		generation["eos_token_id"] = []int{eos, id}
	}
	return generation
}

// ggufDtype is PyTorch's name of the dtype that most of a file's matrix bytes are read as.
func ggufDtype(bytes map[string]int) string {
	best, most := "", -1
	for _, name := range slices.Sorted(maps.Keys(bytes)) {
		if bytes[name] > most {
			best, most = name, bytes[name]
		}
	}
	switch best {
	case "F16":
		return "float16"
	case "BF16":
		return "bfloat16"
	}
	return "float32"
}

// readGGUF reads the files of a GGUF model with the help of its family.
func readGGUF(parts []ggufPart) (c contents, err error) {
	c.metadata = parts[0].metadata
	f, err := newGGUFFile(parts)
	if err != nil {
		return c, err
	}
	config, generation, tensors, err := f.config()
	if err != nil {
		return c, err
	}
	if c.config, err = jsonText(config); err != nil {
		return c, err
	}
	if c.generation, err = jsonText(generation); err != nil {
		return c, err
	}
	joined := joiner{}
	for _, part := range parts {
		for _, r := range part.records {
			mapped, ok := tensors(r.name)
			if !ok {
				return c, fmt.Errorf("a %s model has no tensor %.80q", f.Architecture, r.name)
			}
			if mapped.Name == "" {
				continue
			}
			list, err := mapped.unstack(r)
			if err != nil {
				return c, err
			}
			for name, r := range list {
				mapped.Name = name
				s, err := mapped.place(r, part.file)
				if err == nil && mapped.Split != nil {
					s, err = joined.add(s, r.name, mapped.Split)
				}
				if err != nil {
					return c, err
				}
				if s == nil {
					continue
				}
				c.tensors = append(c.tensors, s)
			}
		}
	}
	return c, joined.missing()
}

// joiner collects the parts of tensors that a file holds split, by their Hugging Face names.
type joiner map[string]*splitTensor

type splitTensor struct {
	names []string // as in Mapped.Split
	shape []int    // of each part
	whole *stored
	found int
}

// add takes a part, whose name in the file is given. It returns the whole tensor with its first
// part, and nil with the others.
func (j joiner) add(part *stored, name string, names []string) (*stored, error) {
	t, ok := j[part.name]
	if !ok {
		t = &splitTensor{names: names, whole: &stored{record: part.record, file: part.file,
			parts: make([]*stored, len(names))}}
		if t.shape = part.shape; len(t.shape) == 0 {
			return nil, fmt.Errorf("tensor %.80q has no rows", name)
		}
		t.whole.shape = slices.Clone(part.shape)
		t.whole.joined = max(len(part.shape)-2, 0) // of a stack, the rows of each matrix
		t.whole.shape[t.whole.joined] *= len(names)
		t.whole.bytes = 0
		j[part.name] = t
	}
	if !slices.Equal(part.shape, t.shape) {
		return nil, fmt.Errorf("tensor %.80q has shape %v, expected %v as that of %s", name,
			part.shape, t.shape, strings.Join(names, " and "))
	}
	t.whole.parts[slices.Index(names, name)] = part
	t.whole.bytes += part.bytes
	if t.found++; ok {
		return nil, nil
	}
	return t.whole, nil
}

// missing names a part that no file holds.
func (j joiner) missing() error {
	for _, t := range j {
		if t.found == len(t.names) {
			continue
		}
		return fmt.Errorf("tensor %.80q is missing, which belongs to %s",
			t.names[slices.Index(t.whole.parts, nil)], strings.Join(t.names, ", "))
	}
	return nil
}

// unstack gives the model's tensors that r holds, by name: itself, or the parts of a stack.
func (m Mapped) unstack(r record) (iter.Seq2[string, record], error) {
	n := len(m.Stack)
	if n == 0 {
		return func(yield func(string, record) bool) { yield(m.Name, r) }, nil
	}
	if len(r.shape) != 3 || r.shape[0] != n {
		return nil, fmt.Errorf("tensor %.80q has shape %v, expected one matrix for each of %d "+
			"experts", r.name, r.shape, n)
	}
	return func(yield func(string, record) bool) {
		for i, name := range m.Stack {
			part := r
			part.shape, part.bytes = r.shape[1:], r.bytes/n
			part.offset += i * part.bytes
			if !yield(name, part) {
				return
			}
		}
	}, nil
}

// place is the tensor that r describes in a GGUF file.
func (m Mapped) place(r record, file *mapping) (*stored, error) {
	s := &stored{record: r, file: file}
	if m.Heads > 0 && len(r.shape) > 0 {
		if r.shape[0]%(2*m.Heads) != 0 {
			return nil, fmt.Errorf("tensor %.80q has %d rows, expected a multiple of twice its %d "+
				"heads", r.name, r.shape[0], m.Heads)
		}
		s.headRows = r.shape[0] / m.Heads
	}
	if s.transform = m.Transform; s.transform != nil {
		if s.shape = s.transform.Back(r.shape); s.shape == nil {
			return nil, fmt.Errorf("tensor %.80q has the unexpected shape %v", r.name, r.shape)
		}
	}
	s.name = m.Name
	return s, nil
}
