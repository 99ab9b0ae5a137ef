package checkpoint

// Fuzz targets for the readers of untrusted bytes, and builders of such bytes that other tests use,
// too. They run without libtorch.

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"conquer/internal/budget"
	"conquer/quant"
)

const fixtures = "testdata"

func safetensorsFile(header, data string) string {
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header + data
}

// A parsed header must be consistent, and take time and memory in proportion to its length.
func FuzzSafetensors(f *testing.F) {
	f.Add([]byte(safetensorsFile(`{"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},`+
		`"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}`, "123456")))
	f.Add([]byte(safetensorsFile(`{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[],`+
		`"data_offsets":[0,2]},"b":{"dtype":"F4","shape":[2,4],"data_offsets":[2,6]},`+
		`"c":{"dtype":"BOOL","shape":[0],"data_offsets":[6,6]}}`, "123456")))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, _, err := parseSafetensors(data, budget.New(budget.Model))
		if err != nil {
			return
		}
		seen, total := map[string]bool{}, 8+int(binary.LittleEndian.Uint64(data))
		for _, r := range records {
			if seen[r.name] || r.offset != total || r.bytes < 0 {
				t.Fatalf("%+v at %d", r, total)
			}
			seen[r.name], total = true, total+r.bytes
		}
		if total != len(data) {
			t.Fatalf("%d bytes of %d", total, len(data))
		}
	})
}

// ggufBuilder lays out valid and invalid GGUF files.
type ggufBuilder struct{ bytes.Buffer }

func (b *ggufBuilder) put(values ...any) *ggufBuilder {
	for _, v := range values {
		switch v := v.(type) {
		case string:
			b.put(uint64(len(v)))
			b.WriteString(v)
		default:
			binary.Write(b, binary.LittleEndian, v)
		}
	}
	return b
}

func (b *ggufBuilder) head(tensors, pairs uint64) *ggufBuilder {
	b.WriteString("GGUF")
	return b.put(uint32(3), tensors, pairs)
}

type ggufTensor struct {
	name   string
	kind   uint32
	dims   []uint64 // columns first, as in the file
	offset uint64
}

func (b *ggufBuilder) tensors(ts ...ggufTensor) *ggufBuilder {
	for _, t := range ts {
		b.put(t.name, uint32(len(t.dims)), t.dims, t.kind, t.offset)
	}
	return b
}

// data pads to the alignment and adds bytes.
func (b *ggufBuilder) data(n int) string {
	b.Write(make([]byte, (32-b.Len()%32)%32+n))
	return b.String()
}

// ggufModel lays out a file with this metadata and F32 tensors (shapes rows first) that count 0, 1,
// 2, … each.
func ggufModel(metadata map[string]any, tensors map[string][]int) string {
	b := new(ggufBuilder).head(uint64(len(tensors)), uint64(len(metadata)))
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		b.put(key)
		switch v := metadata[key].(type) {
		case string:
			b.put(uint32(ggufString), v)
		case uint32:
			b.put(uint32(ggufUint32), v)
		case float32:
			b.put(uint32(ggufFloat32), v)
		case []int32:
			b.put(uint32(ggufArray), uint32(ggufInt32), uint64(len(v)), v)
		default:
			panic(v)
		}
	}
	var offset uint64
	var values []float32
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		t := ggufTensor{name: name, offset: offset}
		count := 1
		for _, n := range slices.Backward(tensors[name]) {
			t.dims = append(t.dims, uint64(n))
			count *= n
		}
		b.tensors(t)
		padded := (count + 7) / 8 * 8
		for i := range padded {
			values = append(values, float32(i))
		}
		offset += uint64(padded * 4)
	}
	b.data(0)
	b.put(values)
	return b.String()
}

// tinyMetadata describes a llama with 2 heads of 8, one of them for keys, and one layer.
func tinyMetadata(architecture string, change map[string]any) map[string]any {
	m := map[string]any{"general.architecture": architecture}
	for key, value := range map[string]any{"embedding_length": uint32(16),
		"block_count": uint32(1), "feed_forward_length": uint32(4),
		"attention.head_count": uint32(2), "attention.head_count_kv": uint32(1),
		"context_length":                   uint32(64),
		"attention.layer_norm_rms_epsilon": float32(1e-6), "rope.freq_base": float32(500000)} {
		m[architecture+"."+key] = value
	}
	for key, value := range change {
		m[key] = value
		if value == nil {
			delete(m, key)
		}
	}
	return m
}

func tinyTensors(change map[string][]int) map[string][]int {
	m := map[string][]int{"token_embd.weight": {3, 16}, "output_norm.weight": {16},
		"blk.0.attn_norm.weight": {16},
		"blk.0.attn_q.weight":    {16, 16}, "blk.0.attn_k.weight": {8, 16}}
	maps.Copy(m, change)
	return m
}

// A file that opens must describe tensors inside the file and decode without a crash.
func FuzzGGUF(f *testing.F) {
	small, err := os.ReadFile(filepath.Join(fixtures, "types.gguf"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small[:8192])
	f.Add([]byte(ggufModel(tinyMetadata("llama", nil), tinyTensors(nil))))
	f.Add([]byte(ggufModel(tinyMetadata("qwen2",
		map[string]any{"qwen2.rope.scaling.type": "yarn",
			"qwen2.rope.scaling.factor": float32(2)}), tinyTensors(nil))))
	f.Add([]byte(ggufModel(tinyMetadata("llama", nil),
		tinyTensors(map[string][]int{"rope_freqs.weight": {4}}))))
	f.Add([]byte(new(ggufBuilder).head(1, 1).put("k", uint32(ggufArray), uint32(ggufString),
		uint64(1), "x").
		tensors(ggufTensor{"token_embd.weight", 12, []uint64{256, 2}, 0}).data(288)))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parseGGUF(data, budget.New(budget.Model))
		if err != nil {
			return
		}
		for _, r := range file.records {
			if r.offset < 0 || r.bytes < 0 || r.offset+r.bytes > len(data) {
				t.Fatalf("%+v lies outside %d bytes", r, len(data))
			}
			columns := 1
			kind, _ := quant.ByName(r.dtype)
			if len(r.shape) > 0 {
				columns = r.shape[len(r.shape)-1]
			}
			if rows := r.bytes / kind.Bytes * kind.Block / columns; quant.Unpacks(r.dtype) &&
				rows*columns < 1<<20 {
				dst := make([]byte, 4*rows*columns)
				if err := quant.UnpackRows(dst, "F32", data[r.offset:r.offset+r.bytes],
					r.dtype, rows, columns, nil); err != nil {
					t.Fatalf("%+v: %v", r, err)
				}
			}
		}
		whole, err := newGGUFFile([]ggufPart{{ggufFile: file, data: data}})
		if err != nil {
			t.Fatal(err)
		}
		config, generation, tensors, err := whole.config()
		if err != nil {
			return
		}
		if _, err := json.Marshal([]any{config, generation}); err != nil {
			t.Fatal(err)
		}
		for _, r := range file.records {
			tensors(r.name)
		}
	})
}
