package checkpoint

import (
	"encoding/json"
	"os"
	"path/filepath"
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
