package checkpoint

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"conquer/internal/budget"
)

// close unmaps what was opened.
func (o *opener) close() {
	for _, file := range o.files {
		file.Close()
	}
}

// The index is fuzzed beside two small shards. What it accepts must name tensors that are there.
func FuzzShardIndex(f *testing.F) {
	dir := f.TempDir()
	for name, header := range map[string]string{
		"a.safetensors": `{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},` +
			`"y":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}`,
		"b.safetensors": `{"z":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}`,
	} {
		file := safetensorsFile(header, "12345678")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(file), 0o666); err != nil {
			f.Fatal(err)
		}
	}
	f.Add([]byte(`{"metadata":{"total_size":16},"weight_map":{"x":"a.safetensors",` +
		`"z":"b.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"x":"../a.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		o := &opener{budget: budget.New(budget.Model)}
		defer o.close()
		_, tensors, err := readShards(o, dir, "index", text)
		if err != nil {
			return
		}
		var index struct {
			Map map[string]string `json:"weight_map"`
		}
		if err := json.Unmarshal(text, &index); err != nil {
			t.Fatalf("%q was accepted: %v", text, err)
		}
		if len(tensors) != len(index.Map) || len(tensors) > 3 {
			t.Fatalf("%q gave %d tensors", text, len(tensors))
		}
		for _, s := range tensors {
			if filepath.Base(s.file.path) != index.Map[s.name] || len(s.data()) != s.bytes {
				t.Fatalf("%q: %+v", text, s)
			}
		}
	})
}

// params.json and two parts with pickles of any content. What opens must lie inside the files.
func FuzzMetaFolder(f *testing.F) {
	dir := f.TempDir()
	params := `{"dim":4,"n_heads":2,"n_layers":1,"norm_eps":1e-5,"vocab_size":-1}`
	pickle := pickled(24, 0, []int{4, 6}, []int{6, 1})
	f.Add([]byte(params), []byte(pickle), []byte(pickle), []byte(floats(24)))
	f.Add([]byte(`{"dim":4096,"n_heads":32,"n_kv_heads":8,"multiple_of":256,"rope_theta":5e5,`+
		`"ffn_dim_multiplier":1.3,"use_scaled_rope":true}`), []byte(pickle), []byte{}, []byte{1})
	f.Fuzz(func(t *testing.T, params, first, second, storage []byte) {
		files := map[string][]byte{paramsFile: params}
		for i, pickle := range [][]byte{first, second} {
			if len(pickle) > 0 || i == 0 {
				files[[]string{"consolidated.00.pth", "consolidated.01.pth"}[i]] =
					torchArchive(string(pickle), map[string]string{"0": string(storage)})
			}
		}
		os.Remove(filepath.Join(dir, "consolidated.01.pth"))
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		o := &opener{budget: budget.New(budget.Model)}
		defer o.close()
		_, c, err := readMeta(o, dir)
		if err != nil {
			return
		}
		for _, s := range c.tensors {
			for _, part := range append(s.parts, s) {
				if part.parts == nil && len(part.data()) != part.bytes {
					t.Fatalf("%+v", part)
				}
			}
		}
	})
}

// Blocks of any bytes must decode in every type, wherever they are cut and in any order of rows,
// to the same numbers.
func FuzzDequantize(f *testing.F) {
	var kinds []string
	for kind := range decoders {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for i := range kinds {
		f.Add(i, uint8(2), []byte{0x3c, 1, 0x80, 0xff, 0x7c, 0, 0x12, byte(i)})
	}
	f.Fuzz(func(t *testing.T, kind int, rows uint8, data []byte) {
		name := kinds[uint(kind)%uint(len(kinds))]
		b, n := ggmlByName[name], int(rows)%4+1
		if len(data) == 0 {
			return
		}
		blocks := min((len(data)-1)/(b.bytes*n)+1, 8) // in a row
		src := make([]byte, n*blocks*b.bytes)
		for i := range src {
			src[i] = data[i%len(data)]
		}
		columns := blocks * b.block
		decoded := func(dtype string, source func(int) int) []byte {
			dst := make([]byte, n*columns*safetensorsBits[dtype]/8)
			for i := range dst {
				dst[i] = 0xa5
			}
			if err := dequantize(dst, dtype, src, name, n, columns, source); err != nil {
				t.Fatal(err)
			}
			return dst
		}
		all := float32s(decoded("F32", nil))
		reversed := float32s(decoded("F32", func(row int) int { return n - 1 - row }))
		half, brain := decoded("F16", nil), decoded("BF16", nil)
		var one, want [2]byte
		for i, x := range all {
			if math.Float32bits(x) == 0xa5a5a5a5 && name != "F32" {
				t.Fatalf("%s: number %d is not written", name, i)
			}
			if y := reversed[(n-1-i/columns)*columns+i%columns]; math.Float32bits(x) !=
				math.Float32bits(y) {
				t.Fatalf("%s: number %d is %g, and %g in another order of rows", name, i, x, y)
			}
			copy(one[:], half[2*i:])
			if roundF16(want[:], []float32{x}); x == x && one != want {
				t.Fatalf("%s: %g became %x in float16, expected %x", name, x, one, want)
			}
			copy(one[:], brain[2*i:])
			if roundBF16(want[:], []float32{x}); x == x && one != want {
				t.Fatalf("%s: %g became %x in bfloat16, expected %x", name, x, one, want)
			}
		}
		if err := dequantize(make([]byte, 4*n*columns), "F32", src[1:], name, n, columns,
			nil); err == nil {
			t.Fatalf("%s: a truncated row was decoded", name)
		}
	})
}

// Quantized numbers must be near the numbers.
func FuzzQuantize(f *testing.F) {
	f.Add([]byte{1, 2, 3, 200}, false, uint8(3))
	f.Add([]byte{128}, true, uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, four bool, scale uint8) {
		if len(data) == 0 {
			return
		}
		src := make([]float32, 64)
		for i := range src {
			src[i] = float32(int8(data[i%len(data)])) * float32(math.Ldexp(1, int(scale%16)-8))
		}
		kind, levels := "Q8_0", 127.0
		if four {
			kind, levels = "Q4_0", 8
		}
		packed, err := quantize(kind, src)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, len(src))
		decoders[kind](got, packed)
		for at := 0; at < len(src); at += 32 {
			largest := 0.0
			for _, x := range src[at : at+32] {
				largest = max(largest, math.Abs(float64(x)))
			}
			for i := at; i < at+32; i++ {
				// Half a step, or a whole one where 4 bits end at 7; the scale is a float16.
				most := largest/levels*map[bool]float64{false: 0.6, true: 1.05}[four] + 1e-7
				if off := math.Abs(float64(got[i] - src[i])); !(off <= most) {
					t.Fatalf("%s: %g became %g, off by more than %g", kind, src[i], got[i], most)
				}
			}
		}
	})
}
