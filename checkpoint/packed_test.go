package checkpoint

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/internal/budget"
)

// tensorOf describes a tensor of a safetensors file for packedFile.
type tensorOf struct {
	name, dtype string
	shape       []int
}

// packedFile makes a safetensors file of zeros.
func packedFile(list ...tensorOf) string {
	header, at := map[string]any{}, 0
	for _, t := range list {
		bits, _ := sizeInBits(t.shape, safetensorsBits[t.dtype])
		header[t.name] = map[string]any{"dtype": t.dtype, "shape": t.shape,
			"data_offsets": []int{at, at + bits/8}}
		at += bits / 8
	}
	text, _ := json.Marshal(header)
	return safetensorsFile(string(text), strings.Repeat("\x00", at))
}

var (
	gptqTensors = []tensorOf{{"a.qweight", "I32", []int{4, 8}}, {"a.scales", "F16", []int{2, 8}},
		{"a.qzeros", "I32", []int{2, 1}}, {"a.g_idx", "I32", []int{32}}}
	awqTensors = []tensorOf{{"a.qweight", "I32", []int{8, 2}}, {"a.scales", "BF16", []int{2, 16}},
		{"a.qzeros", "I32", []int{2, 2}}}
	float8Tensors = []tensorOf{{"a.weight", "F8_E4M3", []int{5, 3}},
		{"a.weight_scale_inv", "F32", []int{3, 1}}, {"a.input_scale", "F32", []int{}}}
)

// openPacked reads a folder of two files and its quantized matrices, as Open does.
func openPacked(t *testing.T, dir, config, weights string) (*opener, contents, error) {
	t.Helper()
	for name, data := range map[string]string{configFile: config, weightsFile: weights} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	o := &opener{budget: budget.New(budget.Model)}
	_, c, err := readFolder(o, dir)
	if err == nil {
		err = c.unpack(dir)
	}
	return o, c, err
}

// packedNames are the names of tensors in FuzzQuantizedFolder, and packedTypes their types.
var (
	packedNames = []string{"a.qweight", "a.scales", "a.qzeros", "a.g_idx", "a.weight",
		"a.weight_scale_inv", "a.weight_scale", "a.input_scale"}
	packedTypes = []string{"I32", "F16", "BF16", "F32", "F8_E4M3", "F8_E8M0", "U8"}
)

// describe gives the first bytes of FuzzQuantizedFolder's input: four for each tensor.
func describe(list []tensorOf) (text []byte) {
	for _, t := range list {
		text = append(text, byte(slices.Index(packedNames, t.name)),
			byte(slices.Index(packedTypes, t.dtype)))
		for i := range 2 {
			size := byte(0) // of a dimension that is not there
			if i < len(t.shape) {
				size = 1 + byte(t.shape[i])
			}
			text = append(text, size)
		}
	}
	return text
}

// Configs and tensors of any shape and content must be refused, or give matrices of their numbers.
func FuzzQuantizedFolder(f *testing.F) {
	const secondVersion = `{"quant_method":"gptq","group_size":16,"checkpoint_format":"gptq_v2"}`
	for config, list := range map[string][]tensorOf{
		`{"quant_method":"gptq","bits":4,"group_size":16}`: gptqTensors,
		secondVersion: gptqTensors[:3],
		`{"quant_method":"awq","group_size":4,"version":"gemm"}`:                    awqTensors,
		`{"quant_method":"fp8","weight_block_size":[2,3]}`:                          float8Tensors,
		`{"quant_method":"compressed-tensors","config_groups":{"a":{"weights":1}}}`: float8Tensors,
	} {
		f.Add(config, describe(list), byte(1))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, config string, shapes []byte, data byte) {
		var list []tensorOf
		size := 0
		for ; len(shapes) >= 4 && len(list) < 6; shapes = shapes[4:] {
			one := tensorOf{packedNames[int(shapes[0])%len(packedNames)],
				packedTypes[int(shapes[1])%len(packedTypes)], []int{}}
			for _, n := range shapes[2:4] {
				if n > 0 {
					one.shape = append(one.shape, int(n)-1)
				}
			}
			bits, _ := sizeInBits(one.shape, safetensorsBits[one.dtype])
			size += bits / 8
			list = append(list, one)
		}
		weights := []byte(packedFile(list...))
		for i := len(weights) - size; i < len(weights); i++ {
			weights[i] = data
			data = data*5 + 1
		}
		o, c, err := openPacked(t, dir, `{"quantization_config":`+config+`}`, string(weights))
		defer o.close()
		if err != nil {
			return
		}
		for _, s := range c.tensors {
			if s.packed == nil {
				continue
			}
			n := s.shape[0] * s.shape[1]
			if n < 1 || n > 16*size {
				t.Fatalf("%d numbers of %d bytes", n, size)
			}
			if matrix, err := s.packed.open(); err == nil {
				matrix.Values(make([]float32, n))
			}
		}
	})
}

func TestQuantizedFolder_ErrorsNameTheTensor(t *testing.T) {
	without := func(list []tensorOf, name string) (left []tensorOf) {
		for _, t := range list {
			if t.name != name {
				left = append(left, t)
			}
		}
		return left
	}
	reshaped := func(list []tensorOf, name string, shape ...int) (all []tensorOf) {
		for _, t := range list {
			if t.name == name {
				t.shape = shape
			}
			all = append(all, t)
		}
		return all
	}
	const gptq = `{"quant_method":"gptq","bits":4,"group_size":16}`
	const awq = `{"quant_method":"awq","group_size":4}`
	const fp8 = `{"quant_method":"fp8","weight_block_size":[2,3]}`
	for _, c := range []struct {
		config  string
		tensors []tensorOf
		want    string // "" for a folder that opens
	}{
		{gptq, gptqTensors, ""},
		{gptq, gptqTensors[:3], ""},
		{gptq, without(gptqTensors, "a.scales"), `"a.scales" is missing`},
		{gptq, without(gptqTensors, "a.qzeros"), `"a.qzeros" is missing`},
		{gptq, reshaped(gptqTensors, "a.qzeros", 1, 1), `"a.qzeros" is I32 of shape [1 1]`},
		{gptq, reshaped(gptqTensors, "a.g_idx", 33), `"a.qweight": shape [4 8] does not hold`},
		{gptq, reshaped(gptqTensors[:3], "a.scales", 3, 8), `"a.qzeros"`},
		{`{"quant_method":"gptq","bits":4,"group_size":8}`, gptqTensors[:3], "has 2 groups"},
		{gptq, append(gptqTensors, tensorOf{"a.weight", "F16", []int{8, 32}}), "two forms"},
		{awq, awqTensors, ""},
		{awq, reshaped(awqTensors, "a.scales", 2, 8), `"a.scales" is BF16 of shape [2 8]`},
		{`{"quant_method":"awq","group_size":3}`, awqTensors, "not a multiple of group_size"},
		{fp8, float8Tensors, ""},
		{fp8, without(float8Tensors, "a.weight_scale_inv"), "F8_E4M3 without a scale"},
		{fp8, reshaped(float8Tensors, "a.weight_scale_inv", 2, 1), "scales of tiles"},
	} {
		o, found, err := openPacked(t, t.TempDir(), `{"quantization_config":`+c.config+`}`,
			packedFile(c.tensors...))
		if c.want == "" {
			if err != nil || len(found.tensors) != 1 || found.tensors[0].name != "a.weight" ||
				decoded(found.config)["quantization_config"] != nil {
				t.Errorf("%s: %v, %d tensors", c.config, err, len(found.tensors))
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, expected %q", c.config, err, c.want)
		}
		o.close()
	}
}
