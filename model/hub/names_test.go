package hub

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/text/dataset"
)

func TestModelPath_NamesWithoutScheme(t *testing.T) {
	hub := newHub(t)
	t.Chdir(t.TempDir())
	ctx := context.Background()

	path, err := ModelPath(ctx, "org/name", nil)
	if err != nil || !exists(filepath.Join(path, "model.safetensors")) {
		t.Fatalf("org/name: %q, %v", path, err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	hub.requests = nil
	tokenizer, err := TokenizerPath(ctx, "org/name", nil)
	if err != nil || !exists(filepath.Join(tokenizer, "tokenizer.json")) {
		t.Errorf("tokenizer of org/name: %q, %v", tokenizer, err)
	}
	if asked := strings.Join(hub.requests, " "); strings.Contains(asked, "model.safetensors") {
		t.Errorf("a tokenizer needs no weights, but was fetched with %s", asked)
	}
	if _, err := ModelPath(ctx, "org/other", nil); err == nil || !strings.Contains(err.Error(),
		"org/other is not a file or folder here, and was sought on the Hugging Face Hub: ") {
		t.Errorf("org/other: %v", err)
	}

	// A folder of the organization's name makes it a path.
	if err := os.MkdirAll("org/name", 0o777); err != nil {
		t.Fatal(err)
	}
	if path, err := ModelPath(ctx, "org/name", nil); err != nil || path != "org/name" {
		t.Errorf("a folder here: %q, %v", path, err)
	}
	if _, err := ModelPath(ctx, "org/nam", nil); err == nil || !strings.Contains(err.Error(),
		"no file, folder or known model org/nam in the folder org; on the Hugging Face Hub it "+
			"would be hf://org/nam") {
		t.Errorf("mistyped path: %v", err)
	}
	if _, err := ModelPath(ctx, "smollm", nil); err == nil || !strings.Contains(err.Error(),
		"known models: smollm2-135m") {
		t.Errorf("mistyped name: %v", err)
	}
}

func TestDataPaths_NamesWithoutScheme(t *testing.T) {
	newHub(t).files = map[string][]byte{"train.jsonl": []byte("{}\n"),
		"test.jsonl": []byte("{}\n")}
	t.Chdir(t.TempDir())
	for _, name := range []string{"org/name", "hf://datasets/org/name", "org/name:train.*"} {
		paths, heldOut, err := DataPaths(context.Background(), name,
			dataset.SplitFiles(false), nil)
		if err != nil || len(paths) != 1 || filepath.Base(paths[0]) != "train.jsonl" {
			t.Errorf("%s: %v, %v", name, paths, err)
		}
		if glob := strings.Contains(name, ":train"); glob != (len(heldOut) == 0) {
			t.Errorf("%s: holds out %v", name, heldOut)
		}
		paths, _, err = DataPaths(context.Background(), name, dataset.SplitFiles(true), nil)
		if !strings.Contains(name, ":train") && (err != nil || len(paths) != 1 ||
			filepath.Base(paths[0]) != "test.jsonl") {
			t.Errorf("%s for validation: %v, %v", name, paths, err)
		}
		if !OnHub(name) {
			t.Errorf("%s does not count as a name on the hub", name)
		}
	}
	if OnHub("data/train.jsonl:x") || OnHub("/tmp/x") || OnHub("train.jsonl") || OnHub(".") {
		t.Error("a path counts as a name on the hub")
	}
}
