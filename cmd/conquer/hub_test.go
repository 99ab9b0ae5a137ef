package main

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// serveHub serves a folder as a repository of the hub, of a kind such as models, with a branch v1.
func serveHub(t *testing.T, kind, dir string) {
	t.Helper()
	commit, prefix := strings.Repeat("c", 40), ""
	if kind != "models" {
		prefix = "/" + kind
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/"+kind+"/org/tiny/revision/v1" {
			var siblings []map[string]any
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				data, _ := os.ReadFile(filepath.Join(dir, e.Name()))
				blob := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(data)), data...))
				siblings = append(siblings, map[string]any{
					"rfilename": e.Name(),
					"size":      len(data),
					"blobId":    fmt.Sprintf("%x", blob),
				})
			}
			json.NewEncoder(w).Encode(map[string]any{"sha": commit, "siblings": siblings})
			return
		}
		http.StripPrefix(prefix+"/org/tiny/resolve/"+commit,
			http.FileServer(http.Dir(dir))).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	t.Setenv("HF_ENDPOINT", server.URL)
	t.Setenv("HF_TOKEN", "")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
}

// A local server with the hub's API serves a folder. The program runs the model by its hub name.
func TestHub_ModelRunsByName(t *testing.T) {
	dir := writeModel(t, 704, true)
	serveHub(t, "models", dir)
	ask := func(path string) string {
		return succeed(t, "generate", "--model_path", path, "--prompt", "hello there",
			"--max_new_tokens", "6")
	}
	if a, b := ask(dir), ask("hf://org/tiny@v1"); a != b {
		t.Errorf("%q, expected %q", b, a)
	}
	_, stderr, code := invoke(t, "", "info", "--model_path", "hf://org/nothing")
	if code != 1 || !strings.Contains(stderr, "hf://org/nothing has no revision main") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestHub_TrainsOnDataSetAndRefusesBadRow(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	os.WriteFile(filepath.Join(dir, "train-0.jsonl"),
		[]byte(strings.Repeat("{\"text\":\"round and round\"}\n", 9)), 0o666)
	os.WriteFile(filepath.Join(dir, "train-1.jsonl"), []byte("{\"tokens\":[2,97,98,3]}\n"), 0o666)
	os.WriteFile(filepath.Join(dir, "bad.jsonl"),
		[]byte("{\"text\":\"x\"}\n{\"tokens\":[1,300]}\n"), 0o666)
	serveHub(t, "datasets", dir)
	args := []string{"train", "--architecture", "bamba", "--variant", "bytes", "--tokenizer",
		"char_tokenizer", "--pack", "--sequence_length", "32", "--batch_size", "2", "--steps", "2",
		"--output_path", out, "--data_path"}
	_, stderr, code := invoke(t, "", append(args, "hf://datasets/org/tiny@v1:bad.*")...)
	if code != 1 || !strings.Contains(stderr,
		"bad.jsonl:2: token 2 is 300, the tokenizer's vocabulary has 256") ||
		strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a refused run left files behind")
	}
	stdout, stderr, code := invoke(t, "", append(args, "hf://datasets/org/tiny@v1")...)
	if code != 0 || !strings.Contains(stdout, "9 samples from 9 records") ||
		!strings.Contains(stdout, "1 sample from 1 record") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}
