package checkpoint

import (
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"conquer/internal/atomicfile"
	"conquer/internal/budget"
	"conquer/quant"
)

// Importance has for tensors by name what their columns are multiplied by. Names are Hugging
// Face's, or GGUF's after [Importance.GGUF] and in files.
type Importance map[string]Inputs

// Inputs are the inputs of a tensor's matrices: of the experts of a stack, or of one matrix.
type Inputs struct {
	Squares []float32 // sums of squares: matrices times columns
	Counts  []float32 // tokens that passed through each matrix
}

// Add adds the squares of the inputs of one of a tensor's matrices, summed over a number of tokens.
func (m Importance) Add(name string, matrix, matrices int, squares []float32, tokens int) {
	in, ok := m[name]
	if !ok {
		in = Inputs{make([]float32, matrices*len(squares)), make([]float32, matrices)}
		m[name] = in
	}
	for i, s := range squares {
		in.Squares[matrix*len(squares)+i] += s
	}
	in.Counts[matrix] += float32(tokens)
}

// Means gives the mean square of each column's input, of one matrix after another. Those of a
// matrix that no token passed through are 1.
func (in Inputs) Means() []float32 {
	means := make([]float32, len(in.Squares))
	columns := len(in.Squares) / max(len(in.Counts), 1)
	for i, s := range in.Squares {
		if n := in.Counts[i/columns]; n > 0 {
			means[i] = s / n
		} else {
			means[i] = 1
		}
	}
	return means
}

// GGUF gives the importance by GGUF's names of the tensors of a model with a config.json. Tensors
// that a GGUF file does not hold are left out.
func (m Importance) GGUF(config []byte) (Importance, error) {
	family, err := familyFor(config, "GGUF", func(f Family) bool { return f.ToGGUF != nil })
	if err != nil {
		return nil, err
	}
	described, err := family.ToGGUF(config)
	if err != nil {
		return nil, fmt.Errorf("GGUF: %w", err)
	}
	result := Importance{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		mapped, ok := described.Tensor(name)
		in := m[name]
		switch {
		case !ok || mapped.Name == "":
		case mapped.Stack != nil:
			n, columns := len(mapped.Stack), len(in.Squares)
			stack, begun := result[mapped.Name]
			if !begun {
				stack = Inputs{make([]float32, n*columns), make([]float32, n)}
				result[mapped.Name] = stack
			}
			i := slices.Index(mapped.Stack, name)
			if len(stack.Squares) != n*columns || i < 0 || len(in.Counts) != 1 {
				return nil, fmt.Errorf("the inputs of %.120q have not those of %.120q", name,
					mapped.Stack[0])
			}
			copy(stack.Squares[i*columns:], in.Squares)
			stack.Counts[i] = in.Counts[0]
		case mapped.Split != nil:
			for _, part := range mapped.Split {
				result[part] = in
			}
		default:
			result[mapped.Name] = in
		}
	}
	return result, nil
}

// The endings of the tensors of llama.cpp's importance files.
const (
	squaresOf = ".in_sum2"
	countsOf  = ".counts"
)

// SaveImportance writes an importance by GGUF's names atomically as a GGUF file, as llama.cpp's
// llama-imatrix does. datasets names the data; chunks texts of length tokens were read.
func SaveImportance(path string, m Importance, datasets []string, chunks, length int) error {
	w := &ggufWriter{metadata: map[string]any{}}
	w.set("general.type", "imatrix")
	w.set("imatrix.datasets", datasets)
	w.set("imatrix.chunk_count", uint32(chunks))
	w.set("imatrix.chunk_size", uint32(length))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		in := m[name]
		n := len(in.Counts)
		for _, t := range []ggufEntry{
			{name: name + squaresOf, values: in.Squares, shape: []int{n, len(in.Squares) / n}},
			{name: name + countsOf, values: in.Counts, shape: []int{n, 1}}} {
			t.kind, t.size = "F32", 4*len(t.values)
			w.tensors = append(w.tensors, t)
		}
	}
	err := atomicfile.Write(path, func(out io.Writer) error { return w.write(out, nil) })
	return atomicfile.Explain(path, err)
}

// LoadImportance reads a file that [SaveImportance] or llama.cpp's llama-imatrix wrote.
func LoadImportance(path string) (Importance, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := parseImportance(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func parseImportance(data []byte) (Importance, error) {
	file, err := parseGGUF(data, budget.New(budget.Model))
	if err != nil {
		return nil, fmt.Errorf("not an importance matrix in GGUF, which llama-imatrix writes: %w",
			err)
	}
	if kind, _ := file.metadata["general.type"].(string); kind != "imatrix" {
		return nil, fmt.Errorf("general.type is %.40q, expected \"imatrix\"", kind)
	}
	floats := map[string][]float32{}
	for _, r := range file.records {
		if r.dtype != "F32" {
			return nil, fmt.Errorf("tensor %.120q is %s, expected F32", r.name, r.dtype)
		}
		values := make([]float32, r.bytes/4)
		quant.Unpack(values, "F32", data[r.offset:r.offset+r.bytes])
		for i, v := range values {
			if !(v >= 0) || math.IsInf(float64(v), 0) {
				return nil, fmt.Errorf("number %d of tensor %.120q is %g", i, r.name, v)
			}
		}
		floats[r.name] = values
	}
	m := Importance{}
	for name, squares := range floats {
		name, ok := strings.CutSuffix(name, squaresOf)
		if !ok {
			continue
		}
		counts := floats[name+countsOf]
		if len(counts) == 0 || len(squares) == 0 || len(squares)%len(counts) != 0 {
			return nil, fmt.Errorf("tensor %.120q has %d numbers and %.120q has %d", name+squaresOf,
				len(squares), name+countsOf, len(counts))
		}
		m[name] = Inputs{squares, counts}
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("there is no tensor that ends in %s", squaresOf)
	}
	return m, nil
}
