package hub

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// hubServer speaks the hub's API for one repository.
type hubServer struct {
	*httptest.Server
	sync.Mutex
	files  map[string][]byte
	commit string
	token  string // what a request must carry, if not empty
	// bytes of a file after which a download breaks off, once each time it is set
	breaks   map[string]int
	again    bool              // whether downloads break off every time
	damage   map[string]string // what is served in the place of a file
	requests []string
	ranges   []string
}

func newHub(t *testing.T) *hubServer {
	t.Helper()
	weights := make([]byte, 300_000)
	for i := range weights {
		weights[i] = byte(rand.Uint32())
	}
	h := &hubServer{commit: strings.Repeat("0123456789", 4), breaks: map[string]int{},
		damage: map[string]string{}, files: map[string][]byte{
			"config.json": []byte(`{"model_type":"llama"}`), "tokenizer.json": []byte("{}"),
			"model.safetensors": weights,
			"README.md":         []byte("no"), "pytorch_model.bin": []byte("no"),
			"original/consolidated.00.pth": []byte("no"), "model.py": []byte("no"),
		}}
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	t.Cleanup(h.Close)
	t.Setenv("HF_ENDPOINT", h.URL+"/")
	t.Setenv("HF_TOKEN", "")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	before := pause
	pause = time.Millisecond
	t.Cleanup(func() { pause = before })
	return h
}

func (h *hubServer) serve(w http.ResponseWriter, r *http.Request) {
	h.Lock()
	defer h.Unlock()
	h.requests = append(h.requests, r.URL.Path)
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		http.Error(w, "Invalid credentials", http.StatusUnauthorized)
		return
	}
	// A data set is served in the same way under another prefix.
	path := strings.TrimPrefix(strings.Replace(r.URL.Path, "/api/datasets/", "/api/models/", 1),
		"/datasets")
	if path == "/api/models/org/name/revision/main" ||
		path == "/api/models/org/name/revision/"+h.commit {
		var siblings []map[string]any
		for name, data := range h.files {
			s := map[string]any{"rfilename": name, "size": len(data)}
			if strings.HasSuffix(name, ".safetensors") || strings.HasSuffix(name, ".gguf") {
				s["lfs"] = map[string]any{"sha256": sum(data), "size": len(data),
					"pointerSize": 134}
				s["blobId"] = strings.Repeat("f", 40) // of the pointer
			} else {
				b := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(data)), data...))
				s["blobId"] = hex.EncodeToString(b[:])
			}
			siblings = append(siblings, s)
		}
		json.NewEncoder(w).Encode(map[string]any{"id": "org/name", "sha": h.commit,
			"siblings": siblings})
		return
	}
	name, ok := strings.CutPrefix(path, "/org/name/resolve/"+h.commit+"/")
	data, there := h.files[name]
	if !ok || !there {
		http.NotFound(w, r)
		return
	}
	if other, ok := h.damage[name]; ok {
		data = []byte(other)
	}
	h.ranges = append(h.ranges, name+" "+r.Header.Get("Range"))
	if n := h.breaks[name]; n > 0 && (h.again || r.Header.Get("Range") == "") {
		from := 0
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(data[from:min(from+n, len(data))])
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func fetchHub(t *testing.T, ref string) (string, error) {
	t.Helper()
	var last, total int64
	path, err := FetchModel(context.Background(), ref, func(d, n int64) {
		if d > n || d < last && d == 0 {
			t.Errorf("progress %d of %d", d, n)
		}
		last, total = d, n
	})
	if err == nil && last != total {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	return path, err
}

func TestFetchModel_DownloadsNeededFilesOnce(t *testing.T) {
	h := newHub(t)
	dir, err := fetchHub(t, "hf://org/name")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	if !slices.Equal(names, []string{"config.json", "model.safetensors", "tokenizer.json"}) {
		t.Errorf("fetched %v", names)
	}
	for _, name := range names {
		if data, _ := os.ReadFile(filepath.Join(dir, name)); !bytes.Equal(data, h.files[name]) {
			t.Errorf("%s differs", name)
		}
	}
	if again, err := fetchHub(t,
		"hf://org/name"); err != nil || again != dir || len(h.ranges) != 3 {
		t.Errorf("second call: %s, %v, %d downloads", again, err, len(h.ranges))
	}
	// A commit that is there asks nobody.
	h.Close()
	if again, err := fetchHub(t, "hf://org/name@"+h.commit); err != nil || again != dir {
		t.Errorf("by commit: %s, %v", again, err)
	}
}

func TestFetchModel_RetriesABrokenConnection(t *testing.T) {
	h := newHub(t)
	h.breaks["model.safetensors"], h.again = 40_000, true
	dir, err := fetchHub(t, "hf://org/name")
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "model.safetensors")); !bytes.Equal(data,
		h.files["model.safetensors"]) {
		t.Error("the pieces do not make the file")
	}
	if want := "model.safetensors bytes=280000-"; h.ranges[len(h.ranges)-1] != want &&
		!slices.Contains(h.ranges, want) {
		t.Errorf("ranges asked for: %v", h.ranges)
	}
}

func TestFetchModel_ContinuesWithTheNextCall(t *testing.T) {
	h := newHub(t)
	ctx, cancel := context.WithCancel(context.Background())
	h.breaks["model.safetensors"] = 50_000
	_, err := FetchModel(ctx, "hf://org/name", func(done, total int64) {
		if done > 50_000 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	h.Lock()
	h.ranges, h.breaks = nil, map[string]int{}
	h.Unlock()
	if _, err := fetchHub(t, "hf://org/name"); err != nil {
		t.Fatal(err)
	}
	if len(h.ranges) != 1 || !strings.HasPrefix(h.ranges[0],
		"model.safetensors bytes=") || h.ranges[0] == "model.safetensors bytes=0-" {
		t.Errorf("ranges asked for: %v", h.ranges)
	}
}

func TestFetchModel_RefusesADamagedFile(t *testing.T) {
	h := newHub(t)
	for name, what := range map[string]string{"model.safetensors": "SHA-256",
		"config.json": "SHA-1"} {
		t.Setenv("XDG_CACHE_HOME", t.TempDir())
		other := bytes.Clone(h.files[name])
		other[len(other)/2] ^= 1
		h.damage = map[string]string{name: string(other)}
		_, err := fetchHub(t, "hf://org/name")
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(),
			name) {
			t.Errorf("%s: %v", name, err)
		}
		left, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"),
			"conquer/hub/models/org/name/*", name+"*"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	h.damage = nil
	if _, err := fetchHub(t, "hf://org/name"); err != nil {
		t.Error(err)
	}
}

func TestFetchModel_SendsTheTokenOfAPrivateModel(t *testing.T) {
	h := newHub(t)
	h.token = "hf_secret"
	if _, err := fetchHub(t, "hf://org/name"); err == nil || !strings.Contains(err.Error(),
		"set HF_TOKEN") {
		t.Errorf("error %v", err)
	}
	t.Setenv("HF_TOKEN", "hf_wrong")
	if _, err := fetchHub(t, "hf://org/name"); err == nil || !strings.Contains(err.Error(),
		"in HF_TOKEN") || strings.Contains(err.Error(), "hf_wrong") {
		t.Errorf("error %v", err)
	}
	t.Setenv("HF_TOKEN", "hf_secret")
	if _, err := fetchHub(t, "hf://org/name"); err != nil {
		t.Error(err)
	}
}

// The hub sends large files from another host, which must not see the token.
func TestFetchModel_SendsTheTokenToTheHubOnly(t *testing.T) {
	h := newHub(t)
	h.token = "hf_secret"
	var leaked string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked += r.Header.Get("Authorization")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.files["model.safetensors"]))
	}))
	t.Cleanup(elsewhere.Close)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "model.safetensors") {
			http.Redirect(w, r, strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)+"/x",
				http.StatusFound)
			return
		}
		h.serve(w, r)
	}))
	t.Cleanup(front.Close)
	t.Setenv("HF_ENDPOINT", front.URL)
	t.Setenv("HF_TOKEN", "hf_secret")
	if _, err := fetchHub(t, "hf://org/name"); err != nil || leaked != "" {
		t.Errorf("%v, sent %q", err, leaked)
	}
}

func TestFetchModel_NamesWhatTheHubLacks(t *testing.T) {
	h := newHub(t)
	for ref, want := range map[string]string{
		"hf://org/name@v9":          "no revision v9",
		"hf://org/other":            "does not exist",
		"hf://org":                  "expected hf://organization/name",
		"hf://org/../x":             "expected hf://organization/name",
		"hf://org/name/../../x":     "expected hf://organization/name",
		"hf://org/name@":            "expected hf://organization/name",
		"hf://org/name/absent.gguf": "no file absent.gguf",
	} {
		if _, err := fetchHub(t, ref); err == nil || !strings.Contains(err.Error(),
			want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", ref, err)
		}
	}
	h.files = map[string][]byte{"a.Q4_0.gguf": []byte("4"), "a.Q8_0.gguf": []byte("8"),
		"README.md": nil}
	if _, err := fetchHub(t, "hf://org/name"); err == nil || !strings.Contains(err.Error(),
		"a.Q8_0.gguf") {
		t.Errorf("error %v", err)
	}
	path, err := fetchHub(t, "hf://org/name/a.Q8_0.gguf")
	if data, _ := os.ReadFile(path); err != nil || string(data) != "8" {
		t.Errorf("%v, %q", err, data)
	}
	h.files = map[string][]byte{"only.gguf": []byte("x")}
	h.commit = strings.Repeat("a", 40)
	if path, err := fetchHub(t, "hf://org/name"); err != nil || filepath.Base(path) != "only.gguf" {
		t.Errorf("%v, %s", err, path)
	}
	h.files = map[string][]byte{"pytorch_model.bin": []byte("x")}
	if _, err := fetchHub(t, "hf://org/name"); err == nil || !strings.Contains(err.Error(),
		"no model in safetensors or GGUF") {
		t.Errorf("error %v", err)
	}
}
