package checkpoint

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"conquer/torch"
)

func TestImportance_IsReadAsItWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	want := Importance{}
	want.Add("blk.0.ffn_down_exps.weight", 1, 2, []float32{4, 6, 8}, 2)
	want.Add("blk.0.ffn_down_exps.weight", 1, 2, []float32{0, 0, 8}, 2)
	want.Add("output.weight", 0, 1, []float32{9}, 3)
	if err := SaveImportance(path, want, []string{"a.txt"}, 2, 512); err != nil {
		t.Fatal(err)
	}
	got, err := LoadImportance(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; expected %v", got, err, want)
	}
	if got := got["blk.0.ffn_down_exps.weight"].Means(); !reflect.DeepEqual(got,
		[]float32{1, 1, 1, 1, 1.5, 4}) {
		t.Errorf("means %v", got)
	}
	os.WriteFile(path, []byte("mine"), 0o644)
	_, err = LoadImportance(path)
	wantError(t, err, path, "llama-imatrix")
	model := filepath.Join(t.TempDir(), "model.gguf")
	source, config := randomLlama(t, "llama", torch.Float32, 1)
	if err := SaveGGUF(model, source, Options{Config: config}); err != nil {
		t.Fatal(err)
	}
	_, err = LoadImportance(model)
	wantError(t, err, `general.type is "model"`)
}

func TestImportance_OfAnotherModelIsRefused(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.Float32, 1)
	wrong := Importance{}
	wrong.Add("blk.0.attn_q.weight", 0, 1, []float32{1, 2, 3}, 1)
	wantError(t, SaveGGUF(filepath.Join(t.TempDir(), "m.gguf"), source, Options{Config: config,
		Encoding: "Q4_0", Importance: wrong}), "blk.0.attn_q.weight", "3 numbers")
}

// Bytes that are no importance matrix must be refused, and others read to one that is written to
// the same.
func FuzzImportance(f *testing.F) {
	path := filepath.Join(f.TempDir(), "m.gguf")
	m := Importance{}
	m.Add("a", 0, 1, []float32{1, 2}, 3)
	if err := SaveImportance(path, m, nil, 1, 2); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(bytes.Replace(seed, []byte("counts"), []byte("c\x00unts"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseImportance(data)
		if err != nil {
			return
		}
		for name, in := range m {
			if len(in.Counts) == 0 || len(in.Squares)%len(in.Counts) != 0 ||
				len(in.Means()) != len(in.Squares) {
				t.Fatalf("%q has %d numbers for %d matrices", name, len(in.Squares),
					len(in.Counts))
			}
		}
	})
}
