package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"conquer/internal/budget"
	"conquer/quant"
	"conquer/torch"
)

func TestFormats_RoundTripChangesNoBit(t *testing.T) {
	for kind := range llamaKinds {
		seed := rand.Uint64()
		source, config := randomLlama(t, kind, torch.Float32, seed)
		dir := t.TempDir()
		meta, gguf, native, hf := filepath.Join(dir, "meta"), filepath.Join(dir, "new", "m.gguf"),
			filepath.Join(dir, "native"), filepath.Join(dir, "hf")
		if err := SaveMeta(meta, source, Options{Config: config, Parts: 2}); err != nil {
			t.Fatalf("%s, seed %d: %v", kind, seed, err)
		}
		c := mustOpen(t, meta)
		live := torch.LiveTensors()
		metadata := map[string]any{"tokenizer.ggml.tokens": []string{"a", ""},
			"tokenizer.ggml.scores": []float32{1, 2}, "x": true}
		if err := SaveGGUF(gguf, c, Options{Config: c.ConfigJSON(),
			Metadata: metadata}); err != nil {
			t.Fatalf("%s, seed %d: %v", kind, seed, err)
		}
		if torch.LiveTensors() != live {
			t.Errorf("%d tensors are left over", torch.LiveTensors()-live)
		}
		c = mustOpen(t, gguf)
		if got := c.GGUFMetadata(); !slices.Equal(got["tokenizer.ggml.tokens"].([]string),
			[]string{"a", ""}) || got["x"] != true {
			t.Errorf("metadata %v", got)
		}
		if err := SaveNative(native, c, Options{Config: c.ConfigJSON(),
			ShardBytes: 5000}); err != nil {
			t.Fatal(err)
		}
		c = mustOpen(t, native)
		if c.Format != Native || len(c.Files()) < 2 {
			t.Errorf("format %s, files %v", c.Format, c.Files())
		}
		if err := Save(hf, c, Options{Config: c.ConfigJSON()}); err != nil {
			t.Fatal(err)
		}
		last := mustOpen(t, hf)
		wantSame(t, last, source)
		var first map[string]any
		if err := json.Unmarshal(config, &first); err != nil {
			t.Fatal(err)
		}
		back := last.Config()
		for key, want := range first {
			switch got := back[key]; key {
			case "architectures", "use_sliding_window", "attention_bias":
			case "rope_parameters":
				parameters := want.(map[string]any)
				scaling := back["rope_scaling"].(map[string]any)
				if back["rope_theta"] != parameters["rope_theta"] ||
					scaling["rope_type"] != parameters["rope_type"] ||
					scaling["factor"] != parameters["factor"] {
					t.Errorf("%s: theta %v, scaling %v, expected %v", kind, back["rope_theta"],
						scaling, parameters)
				}
			default:
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s: config %s is %v, expected %v", kind, key, got, want)
				}
			}
		}
	}
}

func TestPack_GivesTheBitsOfGGMLInQ8_0(t *testing.T) {
	c := mustOpen(t, filepath.Join(fixtures, "quantized.safetensors"))
	inTorch(t, func() {
		input, err := c.Tensor("input")
		if err != nil {
			t.Fatal(err)
		}
		values := torch.Values[float32](input)
		got, err := quant.Pack("Q8_0", values, input.Size(-1), nil)
		want, err2 := c.Tensor("Q8_0")
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if !bytes.Equal(got, want.Data()) {
			t.Error("Q8_0 differs")
		}
	})
}

func TestSaveGGUF_WritesTheRequestedTypes(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.BFloat16, rand.Uint64())
	f16 := torch.Float16
	for _, test := range []struct {
		options     Options
		matrix, emb string
	}{
		{Options{}, "BF16", "BF16"}, {Options{DType: &f16}, "F16", "F16"},
		{Options{Encoding: "Q8_0"}, "Q8_0", "Q8_0"},
		{Options{Encoding: "Q4_0"}, "Q4_0", "Q4_0"},
		{Options{Encoding: "Q4_K_M"}, "Q5_0", "Q5_0"}, // rows are not multiples of 256
		{Options{Encoding: "IQ4_XS"}, "IQ4_NL", "IQ4_NL"},
	} {
		test.options.Config = config
		path := filepath.Join(t.TempDir(), "m.gguf")
		if err := SaveGGUF(path, source, test.options); err != nil {
			t.Fatal(err)
		}
		c := mustOpen(t, path)
		for name, want := range map[string]string{"model.embed_tokens.weight": test.emb,
			"model.layers.0.self_attn.q_proj.weight": test.matrix, "model.norm.weight": "F32"} {
			if info, _ := c.Info(name); info.Stored != want {
				t.Errorf("%s is %s, expected %s", name, info.Stored, want)
			}
		}
		inTorch(t, func() { // the rows are in order: quantized values are near the values
			got, err := c.TensorAs("model.layers.0.self_attn.k_proj.weight", torch.Float32)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := source.Tensor("model.layers.0.self_attn.k_proj.weight")
			worst := torch.Item[float64](got.Sub(want.To(torch.Float32)).Abs().Max())
			if worst > 0.6 { // an eighth of the largest value, at most
				t.Errorf("%s: off by %g", test.matrix, worst)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	wantError(t, SaveGGUF(path, source, Options{Config: []byte(`{"model_type":"bamba"}`)}), path,
		"bamba", "--format hf")
	source.fail = fmt.Errorf("the source broke")
	wantError(t, SaveGGUF(path, source, Options{Config: config}), path, "the source broke")
	if left := entries(t, filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Metadata of every type and tensors of every shape must be read as they were written.
func FuzzGGUFRoundTrip(f *testing.F) {
	f.Add("general.name", "text", uint32(7), float32(0.5), true, []byte{1, 2, 3}, 3, 32)
	f.Add("", "", uint32(0), float32(0), false, []byte{}, 1, 1)
	f.Fuzz(func(t *testing.T, key, text string, n uint32, x float32, yes bool, list []byte, rows,
		columns int) {
		if rows < 1 || columns < 1 || rows > 64 || columns > 512 || x != x ||
			key == "general.alignment" {
			return
		}
		w := &ggufWriter{metadata: map[string]any{}}
		var strings []string
		var ints []int32
		var numbers []float32
		for _, b := range list {
			strings, ints, numbers = append(strings, text[:min(int(b), len(text))]),
				append(ints, int32(b)-128), append(numbers, float32(b)*x)
		}
		for i, value := range []any{text, n, x, yes, strings, ints, numbers} {
			w.set(fmt.Sprint(key, i), value)
		}
		values := make([]float32, rows*columns)
		for i := range values {
			values[i] = float32(i) * x
		}
		for i := range 2 {
			w.tensors = append(w.tensors, ggufEntry{name: fmt.Sprint(key, i), kind: "F32",
				shape: []int{rows, columns}, values: values, size: 4 * len(values)})
		}
		var b bytes.Buffer
		if err := w.write(&b, nil); err != nil {
			t.Fatal(err)
		}
		file, err := parseGGUF(b.Bytes(), budget.New(budget.Model))
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range w.keys {
			if fmt.Sprint(file.metadata[k]) != fmt.Sprint(w.metadata[k]) {
				t.Errorf("%q is %v, expected %v", k, file.metadata[k], w.metadata[k])
			}
		}
		for i, r := range file.records {
			got := make([]float32, len(values))
			quant.Unpack(got, "F32", b.Bytes()[r.offset:])
			if r.name != w.tensors[i].name || !slices.Equal(r.shape,
				[]int{rows, columns}) || fmt.Sprint(got) != fmt.Sprint(values) {
				t.Errorf("%+v differs", r)
			}
		}
	})
}
