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

// A server that speaks the hub's API serves a folder; the program runs the model by its name there.
func TestAModelOfTheHubRunsByItsName(t *testing.T) {
	dir, commit := writeModel(t, 704, true), strings.Repeat("c", 40)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/models/org/tiny/revision/v1" {
			var siblings []map[string]any
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				data, _ := os.ReadFile(filepath.Join(dir, e.Name()))
				blob := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(data)), data...))
				siblings = append(siblings, map[string]any{"rfilename": e.Name(), "size": len(data), "blobId": fmt.Sprintf("%x", blob)})
			}
			json.NewEncoder(w).Encode(map[string]any{"sha": commit, "siblings": siblings})
			return
		}
		http.StripPrefix("/org/tiny/resolve/"+commit, http.FileServer(http.Dir(dir))).ServeHTTP(w, r)
	}))
	defer server.Close()
	t.Setenv("HF_ENDPOINT", server.URL)
	t.Setenv("HF_TOKEN", "")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	ask := func(path string) string {
		return succeed(t, "generate", "--model_path", path, "--prompt", "hello there", "--max_new_tokens", "6")
	}
	if a, b := ask(dir), ask("hf://org/tiny@v1"); a != b {
		t.Errorf("%q, expected %q", b, a)
	}
	_, stderr, code := invoke(t, "", "info", "--model_path", "hf://org/nothing")
	if code != 1 || !strings.Contains(stderr, "hf://org/nothing has no revision main") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
