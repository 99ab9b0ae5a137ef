package checkpoint

import (
	"fmt"
	"io"
	"slices"

	"conquer/quant"
)

// ggufFileTypes are the values of general.file_type by the type of most of the tensors, of files
// that are not quantized.
var ggufFileTypes = map[string]uint32{"F32": 0, "F16": 1, "BF16": 32}

// choose sets the kind in which each entry is written, and the dtype in which it is read. It
// returns general.file_type.
func (w *ggufWriter) choose(m *GGUFModel, options Options) (fileType uint32, err error) {
	mix, quantized := quant.MixByName(options.Encoding)
	if options.Encoding != "" && !quantized {
		return 0, fmt.Errorf("GGUF: there is no mix %.40q", options.Encoding)
	}
	var matrices []quant.Matrix
	var indices []int
	sizes := map[string]int{}
	for i := range w.tensors {
		e := &w.tensors[i]
		if e.values != nil {
			continue
		}
		e.kind = e.from.dtype
		if len(e.shape) == 1 || e.mapped.Float32 {
			e.kind = "F32"
		} else {
			matrices = append(matrices, quant.Matrix{Name: e.name, Shape: e.shape})
			indices = append(indices, i)
		}
	}
	if quantized {
		model := quant.Model{Architecture: m.Architecture, Layers: m.number("block_count"),
			Heads: m.number("attention.head_count"), KeyHeads: m.number("attention.head_count_kv"),
			Experts: m.number("expert_count"), Importance: options.Importance != nil}
		for i, kind := range mix.Kinds(model, matrices) {
			if kind != "" {
				w.tensors[indices[i]].kind = kind
			}
		}
	}
	for i := range w.tensors {
		e := &w.tensors[i]
		kind, ok := quant.ByName(e.kind)
		if _, plain := ggufFileTypes[e.kind]; !ok || !plain && !quant.Packs(e.kind) {
			return 0, fmt.Errorf("tensor %.120q: %s cannot be written to GGUF: choose a dtype",
				e.from.name, e.kind)
		}
		e.size = numel(e.shape) / kind.Block * kind.Bytes
		if e.values != nil {
			continue
		}
		e.from.dtype = e.kind
		if quant.Packs(e.kind) {
			e.from.dtype = "F32"
		}
		if len(e.shape) > 1 {
			sizes[e.kind] += e.size
		}
	}
	if quantized {
		return mix.Number, nil
	}
	most := "F32"
	for kind, size := range sizes {
		if size > sizes[most] {
			most = kind
		}
	}
	return ggufFileTypes[most], nil
}

// number reads a positive number that was set, of a list the largest; 0 without one.
func (m *GGUFModel) number(key string) int {
	list, ok := integers(m.values[key])
	if !ok || len(list) == 0 {
		return 0
	}
	return slices.Max(list)
}

// packAtOnce is the number of weights that are packed before they are written.
const packAtOnce = 1 << 22

// pack writes an entry in its blocks, some rows at a time. The matrices of a stack have their own
// importance.
func (w *ggufWriter) pack(out io.Writer, e ggufEntry, values []float32) error {
	if len(values) == 0 {
		return nil
	}
	columns := e.shape[len(e.shape)-1]
	var importance []float32
	if inputs, ok := w.options.Importance[e.name]; ok {
		importance = inputs.Means()
	}
	matrix := len(values)
	if len(e.shape) == 3 {
		matrix /= e.shape[0]
	}
	if n := len(values) / matrix * columns; importance != nil && len(importance) != n {
		return fmt.Errorf("the importance of %.120q has %d numbers, expected %d: it is that of "+
			"another model", e.name, len(importance), n)
	}
	for first := 0; first < len(values); first += matrix {
		var weights []float32
		if importance != nil {
			weights = importance[first/matrix*columns:][:columns]
		}
		step := max(packAtOnce/columns, 1) * columns
		for at := first; at < first+matrix; at += step {
			part := values[at:min(at+step, first+matrix)]
			data, err := quant.Pack(e.kind, part, columns, weights)
			if err == nil {
				_, err = out.Write(data)
			}
			if err == nil && w.options.Packed != nil {
				err = w.options.Packed(len(part))
			}
			if err != nil {
				return fmt.Errorf("tensor %.120q: %w", e.from.name, err)
			}
		}
	}
	return nil
}
