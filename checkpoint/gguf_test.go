package checkpoint

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"conquer/torch"
)

func TestGGUF_MetadataBecomesTheConfig(t *testing.T) {
	for name, test := range map[string]struct {
		architecture string
		metadata     map[string]any
		tensors      map[string][]int
		want         map[string]any
	}{
		"llama": {"llama", map[string]any{"tokenizer.ggml.bos_token_id": uint32(1)}, nil,
			map[string]any{
				"architectures": []any{"LlamaForCausalLM"}, "model_type": "llama",
				"hidden_size":       16.,
				"intermediate_size": 4.,
				"num_hidden_layers": 1., "num_attention_heads": 2., "num_key_value_heads": 1.,
				"head_dim": 8., "vocab_size": 3.,
				"max_position_embeddings": 64., "rms_norm_eps": 1e-6, "rope_theta": 500000.,
				"rope_scaling": nil, "hidden_act": "silu",
				"tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
				"bos_token_id": 1., "torch_dtype": "float32"}},
		"heads listed by layer": {"llama",
			map[string]any{"llama.attention.head_count": []int32{2, 2}}, nil,
			map[string]any{"num_attention_heads": 2.}},
		"no key heads": {"llama", map[string]any{"llama.attention.head_count_kv": nil},
			map[string][]int{"blk.0.attn_k.weight": {16, 16}},
			map[string]any{"num_key_value_heads": 2.}},
		"untied with biases": {"llama", nil, map[string][]int{"output.weight": {3, 16},
			"blk.0.attn_q.bias": {16}},
			map[string]any{"tie_word_embeddings": false, "attention_bias": true}},
		"explicit head": {"llama", map[string]any{"llama.attention.key_length": uint32(4),
			"llama.attention.value_length": uint32(4)}, nil,
			map[string]any{"head_dim": 4.}},
		"linear scaling": {"llama", map[string]any{"llama.rope.scaling.type": "linear",
			"llama.rope.scaling.factor": float32(2.5)}, nil,
			map[string]any{"rope_scaling": map[string]any{"rope_type": "linear", "factor": 2.5}}},
		"old linear scaling": {"llama", map[string]any{"llama.rope.scale_linear": float32(4)}, nil,
			map[string]any{"rope_scaling": map[string]any{"rope_type": "linear", "factor": 4.}}},
		"sliding window": {"llama", map[string]any{"llama.attention.sliding_window": uint32(32)},
			nil,
			map[string]any{"architectures": []any{"MistralForCausalLM"}, "model_type": "mistral",
				"sliding_window": 32.}},
		"odd token ids": {"llama", map[string]any{"tokenizer.ggml.bos_token_id": []int32{},
			"tokenizer.ggml.eos_token_id":     []int32{2, 1},
			"tokenizer.ggml.padding_token_id": uint32(3),
			"llama.attention.sliding_window":  []int32{}}, nil,
			map[string]any{"model_type": "llama"}},
		"qwen2": {"qwen2", nil, map[string][]int{"blk.0.attn_q.bias": {16}},
			map[string]any{"architectures": []any{"Qwen2ForCausalLM"}, "model_type": "qwen2",
				"sliding_window": nil, "use_sliding_window": false}},
	} {
		t.Run(name, func(t *testing.T) {
			c := mustOpen(t, writeFile(t, "m.gguf",
				ggufModel(tinyMetadata(test.architecture, test.metadata),
					tinyTensors(test.tensors))))
			config := c.Config()
			for key, want := range test.want {
				if got, ok := config[key]; !ok || !reflect.DeepEqual(got, want) {
					t.Errorf("%s is %v, expected %v", key, got, want)
				}
			}
		})
	}
}

func TestGGUF_QueryAndKeyRowsAreReordered(t *testing.T) {
	tensors := tinyTensors(map[string][]int{"blk.0.attn_q.bias": {16}, "blk.0.attn_v.bias": {16}})
	// Row 2i of a head of 8 is its row i, row 2i+1 its row 4+i.
	heads := []float32{0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15}
	straight := []float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	for architecture, want := range map[string][]float32{"llama": heads, "qwen2": straight} {
		c := mustOpen(t, writeFile(t, "m.gguf",
			ggufModel(tinyMetadata(architecture, nil), tensors)))
		inTorch(t, func() {
			for name, want := range map[string][]float32{"q_proj.bias": want,
				"v_proj.bias": straight} {
				bias, err := c.Tensor("model.layers.0.self_attn." + name)
				if err != nil || !slices.Equal(torch.Values[float32](bias), want) {
					t.Errorf("%s %s: %v, %v, expected %v", architecture, name, err,
						torch.Values[float32](bias), want)
				}
			}
			matrix, err := c.TensorAs("model.layers.0.self_attn.k_proj.weight", torch.Float64)
			if err != nil {
				t.Fatal(err)
			}
			for row, first := range torch.Values[float32](matrix.Narrow(1, 0, 1)) {
				if first != 16*want[row] {
					t.Errorf("%s: row %d begins with %v, expected %v", architecture, row, first,
						16*want[row])
				}
			}
		})
	}
}

func TestGGUF_MetadataKeepsTheTypesOfTheFile(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "types.gguf"))
	m := c.GGUFMetadata()
	tokens, _ := m["tokenizer.ggml.tokens"].([]string)
	types, _ := m["tokenizer.ggml.token_type"].([]int32)
	if len(tokens) != 48 || tokens[2] != "</s>" || len(types) != 48 || types[1] != 3 ||
		m["llama.block_count"] != uint32(2) {
		t.Errorf("%v", m)
	}
}

func TestGGUF_HostileFilesAreRefusedByTensor(t *testing.T) {
	file := func() *ggufBuilder { return new(ggufBuilder) }
	one := func(t ggufTensor, bytes int) string { return file().head(1, 0).tensors(t).data(bytes) }
	nested := func(depth int) string {
		b := file().head(0, 1).put("k", uint32(ggufArray))
		for range depth {
			b.put(uint32(ggufArray), uint64(1))
		}
		b.put(uint32(ggufUint8), uint64(0))
		return b.String()
	}
	model := func(metadata map[string]any, tensors map[string][]int) string {
		return ggufModel(tinyMetadata("llama", metadata), tinyTensors(tensors))
	}
	huge := uint64(math.MaxUint64)
	for name, test := range map[string]struct {
		file string
		want []string
	}{
		"empty":       {"", []string{"it is empty"}},
		"other magic": {"GGML1234567890123456789012345678", []string{"GGUF"}},
		"only magic":  {"GGUF", []string{"byte 4", "truncated"}},
		"version 1":   {"GGUF\x01\x00\x00\x00", []string{"version 1"}},
		"big-endian":  {"GGUF\x00\x00\x00\x03", []string{"big-endian"}},
		"absurd tensor count": {file().head(huge, 0).String(),
			[]string{"tensors", "18446744073709551615"}},
		"absurd pair count": {file().head(0, 1<<40).data(100),
			[]string{"metadata", "1099511627776"}},
		"absurd key": {file().head(0, 1).put(huge).data(100),
			[]string{"metadata 1", "18446744073709551615"}},
		"absurd string": {file().head(0, 1).put("k", uint32(ggufString), huge).data(100),
			[]string{`"k"`, "string"}},
		"absurd array": {file().head(0, 1).put("k", uint32(ggufArray), uint32(ggufUint8),
			huge).data(100), []string{`"k"`, "array"}},
		"array just too long": {file().head(0, 1).put("k", uint32(ggufArray), uint32(ggufUint32),
			uint64(40)).data(100), []string{`"k"`, "array"}},
		"array of unknown": {file().head(0, 1).put("k", uint32(ggufArray), uint32(77),
			uint64(1)).data(100), []string{`"k"`, "type 77"}},
		"unknown value": {file().head(0, 1).put("k", uint32(13)).data(100),
			[]string{`"k"`, "type 13"}},
		"nested arrays":      {nested(5), []string{`"k"`, "nested"}},
		"very nested arrays": {nested(1e6), []string{`"k"`, "nested"}},
		"bool of 2": {file().head(0, 1).put("k", uint32(ggufBool), uint8(2)).data(100),
			[]string{`"k"`, "bool"}},
		"key twice": {file().head(0, 2).put("k", uint32(ggufUint8), uint8(2), "k",
			uint32(ggufUint8), uint8(2)).data(0), []string{`"k"`, "twice"}},
		"alignment of 7": {file().head(0, 1).put("general.alignment", uint32(ggufUint32),
			uint32(7)).data(0), []string{"alignment", "7"}},
		"alignment of 0": {file().head(0, 1).put("general.alignment", uint32(ggufUint32),
			uint32(0)).data(0), []string{"alignment", "0"}},
		"tensor twice": {file().head(2, 0).tensors(ggufTensor{"w", 0, []uint64{8}, 0},
			ggufTensor{"w", 0, []uint64{8}, 32}).data(64), []string{`"w"`, "twice"}},
		"overlap": {file().head(2, 0).tensors(ggufTensor{"v", 0, []uint64{16}, 0},
			ggufTensor{"w", 0, []uint64{8}, 32}).data(64), []string{`"w"`, `"v"`, "overlaps"}},
		"five dimensions": {one(ggufTensor{"w", 0, []uint64{1, 1, 1, 1, 1}, 0}, 32),
			[]string{`"w"`, "5 dimensions"}},
		"absurd rank": {file().head(1, 0).put("w", uint32(math.MaxUint32)).data(100),
			[]string{`"w"`, "4294967295"}},
		"no dimension": {one(ggufTensor{"w", 0, []uint64{0}, 0}, 32),
			[]string{`"w"`, "dimension"}},
		"overflowing product": {one(ggufTensor{"w", 0, []uint64{1 << 40, 1 << 40}, 0}, 32),
			[]string{`"w"`, "2^62"}},
		"overflowing to small": {one(ggufTensor{"w", 0, []uint64{1 << 32, 1 << 32, 4}, 0}, 32),
			[]string{`"w"`, "2^62"}},
		"negative dimension": {one(ggufTensor{"w", 0, []uint64{huge}, 0}, 32),
			[]string{`"w"`, "dimension"}},
		"unknown type": {one(ggufTensor{"w", 1000, []uint64{8}, 0}, 32),
			[]string{`"w"`, "type 1000"}},
		"half a block": {one(ggufTensor{"w", 2, []uint64{16}, 0}, 32),
			[]string{`"w"`, "multiple of 32", "Q4_0"}},
		"unaligned offset": {one(ggufTensor{"w", 0, []uint64{8}, 4}, 64),
			[]string{`"w"`, "alignment"}},
		"offset behind": {one(ggufTensor{"w", 0, []uint64{8}, 64}, 32),
			[]string{`"w"`, "behind the file"}},
		"absurd offset": {one(ggufTensor{"w", 0, []uint64{8}, huge - 31}, 32),
			[]string{`"w"`, "offset"}},
		"data cut": {one(ggufTensor{"w", 0, []uint64{8}, 0}, 31),
			[]string{`"w"`, "truncated"}},
		"descriptions cut": {one(ggufTensor{"w", 0, []uint64{8}, 0}, 32)[:40],
			[]string{"tensor"}},
		"no architecture": {file().head(0, 0).data(0), []string{"general.architecture"}},
		"other architecture": {model(map[string]any{"general.architecture": "bert"}, nil),
			[]string{`"bert"`, "llama"}},
		"no embedding": {ggufModel(tinyMetadata("llama", nil),
			map[string][]int{"output.weight": {3, 16}}), []string{"token_embd.weight"}},
		"no layers": {model(map[string]any{"llama.block_count": nil}, nil),
			[]string{"llama.block_count"}},
		"too many layers": {model(map[string]any{"llama.block_count": uint32(math.MaxUint32)},
			nil), []string{"blk.4294967294.attn_norm.weight", "missing"}},
		"zero heads": {model(map[string]any{"llama.attention.head_count": uint32(0)},
			nil), []string{"attention.head_count", "positive"}},
		"heads that differ": {
			model(map[string]any{"llama.attention.head_count_kv": []int32{1, 2}}, nil),
			[]string{"head_count_kv", "all layers"}},
		"heads as text": {model(map[string]any{"llama.attention.head_count": "2"}, nil),
			[]string{"attention.head_count"}},
		"infinite theta": {model(map[string]any{"llama.rope.freq_base": float32(math.Inf(1))},
			nil), []string{"rope.freq_base", "finite"}},
		"partial rotation": {model(map[string]any{"llama.rope.dimension_count": uint32(4)},
			nil), []string{"rope.dimension_count"}},
		"unknown scaling": {model(map[string]any{"llama.rope.scaling.type": "spiral"}, nil),
			[]string{`"spiral"`}},
		"unknown rope factors": {model(nil, map[string][]int{"rope_freqs.weight": {4}}),
			[]string{"rope_freqs.weight"}},
		"odd rows": {model(nil, map[string][]int{"blk.0.attn_q.weight": {6, 16}}),
			[]string{`"blk.0.attn_q.weight"`, "6 rows"}},
		"experts": {model(nil, map[string][]int{"blk.0.ffn_gate_exps.weight": {6, 16}}),
			[]string{`"blk.0.ffn_gate_exps.weight"`, "llama"}},
		"one of several": {model(map[string]any{"split.count": uint32(3)}, nil),
			[]string{"one of 3", "NAME-00001-of-00003.gguf"}},
		"layer 01": {model(nil, map[string][]int{"blk.01.ffn_up.weight": {6, 16}}),
			[]string{`"blk.01.ffn_up.weight"`}},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, "bad.gguf", test.file)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Open(path)
			runtime.ReadMemStats(&after)
			wantError(t, err, append(test.want, path)...)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
				t.Errorf("%d bytes were allocated for a file of %d", grown, len(test.file))
			}
		})
	}
}

func TestGGUF_UnsupportedTypeIsNamedWhenItIsRead(t *testing.T) {
	whole := ggufModel(tinyMetadata("llama", nil),
		tinyTensors(map[string][]int{"output.weight": {3, 256}}))
	// The last tensor in the table becomes IQ2_XS: 3 rows of 74 bytes in the room of 3 × 256 × 4.
	at := strings.Index(whole, "output.weight") + len("output.weight") + 4 + 16
	copied := []byte(whole)
	binary.LittleEndian.PutUint32(copied[at:], 17)
	c := mustOpen(t, writeFile(t, "m.gguf", string(copied)))
	info, _ := c.Info("lm_head.weight")
	if info.Stored != "IQ2_XS" || info.DType != Unsupported || info.Bytes != 3*74 {
		t.Errorf("%+v", info)
	}
	inTorch(t, func() {
		for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
			_, err := c.TensorAs("lm_head.weight", dtype)
			wantError(t, err, "m.gguf", "lm_head.weight", "IQ2_XS", "Q4_K")
		}
	})
}

// The benchmark reads every weight of the file that CONQUER_GGUF names, in the dtypes of loaded
// models.
func BenchmarkReadGGUF(b *testing.B) {
	path := os.Getenv("CONQUER_GGUF")
	if path == "" {
		b.Skip("CONQUER_GGUF names no file")
	}
	c := mustOpen(b, path)
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16, torch.Float16} {
		b.Run(fmt.Sprint(dtype), func(b *testing.B) {
			for b.Loop() {
				inTorch(b, func() {
					for _, name := range c.Names() {
						torch.Scoped(func() {
							if _, err := c.TensorAs(name, dtype); err != nil {
								b.Fatal(err)
							}
						})
					}
				})
			}
		})
	}
}
