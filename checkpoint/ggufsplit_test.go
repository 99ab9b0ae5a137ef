package checkpoint

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"conquer/torch"
)

// splitGGUF writes source as three GGUF files, of which the first holds no tensors, as llama.cpp's
// gguf-split can write them. change edits the metadata of a part. It returns the paths.
func splitGGUF(t *testing.T, source Source, config []byte,
	change func(part int, metadata map[string]any)) []string {
	t.Helper()
	dir := t.TempDir()
	whole, err := planGGUF(filepath.Join(dir, "m.gguf"), source, Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	half := len(whole.tensors) / 2
	for i, tensors := range [][]ggufEntry{nil, whole.tensors[:half], whole.tensors[half:]} {
		w := &ggufWriter{metadata: map[string]any{}, tensors: tensors}
		if i == 0 {
			for _, key := range whole.keys {
				w.set(key, whole.metadata[key])
			}
		}
		values := map[string]any{"split.no": uint32(i), "split.count": uint32(3),
			"split.tensors.count": uint32(len(whole.tensors))}
		if change != nil {
			change(i, values)
		}
		for key, value := range values {
			w.set(key, value)
		}
		var b bytes.Buffer
		inTorch(t, func() { err = w.write(&b, source) })
		path := filepath.Join(dir, fmt.Sprintf("m-%05d-of-00003.gguf", i+1))
		if err == nil {
			err = os.WriteFile(path, b.Bytes(), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestGGUF_PartsMakeOneModel(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.Float32, 11)
	paths := splitGGUF(t, source, config, nil)
	c := mustOpen(t, paths[0])
	wantSame(t, c, source)
	if len(c.Files()) != 3 {
		t.Errorf("files %v", c.Files())
	}
	llama3, text := randomLlama(t, "llama3", torch.Float32, 12) // its factors lie in a later part
	wantSame(t, mustOpen(t, splitGGUF(t, llama3, text, nil)[0]), llama3)
}

func TestGGUF_IncompletePartsAreNamed(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.Float32, 13)
	open := func(path string) error {
		c, err := Open(path)
		if err == nil {
			c.Close()
		}
		return err
	}
	paths := splitGGUF(t, source, config, nil)
	wantError(t, open(paths[1]), paths[1], "part 2 of 3", "open the first part", paths[0])
	if err := os.Remove(paths[2]); err != nil {
		t.Fatal(err)
	}
	wantError(t, open(paths[0]), "part 3 of 3", paths[2], "missing")
	copyFile(t, paths[1], paths[2])
	wantError(t, open(paths[0]), paths[2], "says that it is part 2 of 3, expected part 3 of 3")
	renamed := filepath.Join(t.TempDir(), "m.gguf")
	copyFile(t, paths[0], renamed)
	wantError(t, open(renamed), renamed, "one of 3 files", "NAME-00001-of-00003.gguf")

	paths = splitGGUF(t, source, config, func(_ int, m map[string]any) {
		m["split.tensors.count"] = uint32(5)
	})
	wantError(t, open(paths[0]), paths[0], "expected 5")
	paths = splitGGUF(t, source, config, func(part int, m map[string]any) {
		if part == 0 {
			m["split.count"] = uint32(1 << 31)
		}
	})
	wantError(t, open(paths[0]), paths[0], "not named")
	paths = splitGGUF(t, source, config, nil)
	text, err := os.ReadFile(paths[2])
	if err == nil {
		err = os.WriteFile(paths[2], text[:len(text)-40], 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, open(paths[0]), paths[2], "truncated")
	if err := os.WriteFile(paths[1], []byte("version https://git-lfs.github.com/spec/v1\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	wantError(t, open(paths[0]), paths[1], "git lfs pull")
}
