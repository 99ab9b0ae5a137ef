package hub

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// notices records what Notice is told during a test.
func notices(t *testing.T) *[]string {
	t.Helper()
	var list []string
	before := Notice
	Notice = func(message string) { list = append(list, message) }
	t.Cleanup(func() { Notice = before })
	return &list
}

// holdsModel fails unless dir has the hub's weights.
func holdsModel(t *testing.T, h *hubServer, dir string, err error) {
	t.Helper()
	got, failed := os.ReadFile(filepath.Join(dir, "model.safetensors"))
	if err != nil || failed != nil || !bytes.Equal(got, h.files["model.safetensors"]) {
		t.Fatalf("%q: %v, %v", dir, err, failed)
	}
}

func TestSnapshot_UsesTheCopyIfTheHubCannotBeReached(t *testing.T) {
	h := newHub(t)
	told := notices(t)
	first, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, first, err)

	// A server that accepts connections and never answers.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "maintenance", http.StatusServiceUnavailable)
	}))
	defer broken.Close()
	defer func(before time.Duration) { patience = before }(patience)
	patience = 100 * time.Millisecond
	for _, address := range []string{"http://" + silent.Addr().String(), closed.URL, broken.URL} {
		t.Setenv("HF_ENDPOINT", address)
		*told = nil
		began := time.Now()
		dir, err := fetchHub(t, "hf://org/name")
		if holdsModel(t, h, dir, err); dir != first {
			t.Errorf("%s: %s, expected the copy %s", address, dir, first)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: the copy came after %v", address, took)
		}
		if len(*told) != 1 || !strings.Contains((*told)[0],
			"using the copy of commit 012345678901") {
			t.Errorf("%s: told %q", address, *told)
		}
	}
	t.Setenv("HF_ENDPOINT", closed.URL)
	if _, err := fetchHub(t, "hf://org/name@v2"); err == nil {
		t.Error("a revision that was never fetched is answered by another's copy")
	}
}

func TestSnapshot_OfflineMakesNoRequest(t *testing.T) {
	h := newHub(t)
	first, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, first, err)
	t.Setenv("HF_HUB_OFFLINE", "1")
	h.requests = nil
	dir, err := fetchHub(t, "hf://org/name")
	if holdsModel(t, h, dir, err); len(h.requests) > 0 {
		t.Errorf("offline, but requested %v", h.requests)
	}
	for ref, want := range map[string]string{
		"hf://org/other":            "HF_HUB_OFFLINE is set, and there is no copy",
		"hf://org/name@v2":          "HF_HUB_OFFLINE is set, and there is no copy",
		"hf://org/name/README.md":   "lacks some of its files",
		"hf://org/name@" + h.commit: "",
	} {
		_, err := fetchHub(t, ref)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(),
			want)) {
			t.Errorf("%s: %v, expected %q", ref, err, want)
		}
	}
	if len(h.requests) > 0 {
		t.Errorf("offline, but requested %v", h.requests)
	}
}

func TestSnapshot_UsesTheCacheOfHuggingfaceHub(t *testing.T) {
	h := newHub(t)
	cache := t.TempDir()
	t.Setenv("HF_HUB_CACHE", cache)
	repo := filepath.Join(cache, "models--org--name")
	dir := filepath.Join(repo, "snapshots", h.commit)
	blobs := filepath.Join(repo, "blobs")
	for _, folder := range []string{dir, filepath.Join(repo, "refs"), blobs} {
		if err := os.MkdirAll(folder, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	err := os.WriteFile(filepath.Join(repo, "refs", "main"), []byte(h.commit), 0o666)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"config.json", "tokenizer.json", "model.safetensors"} {
		if err := os.WriteFile(filepath.Join(blobs, name), h.files[name], 0o666); err != nil {
			t.Fatal(err)
		}
		err := os.Symlink(filepath.Join("../../blobs", name), filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := fetchHub(t, "hf://org/name")
	if holdsModel(t, h, got, err); got != dir || len(h.ranges) > 0 {
		t.Errorf("%s, fetched %v: expected %s and nothing fetched", got, h.ranges, dir)
	}
	h.Close() // the reference tells the commit
	notices(t)
	got, err = fetchHub(t, "hf://org/name")
	if holdsModel(t, h, got, err); got != dir {
		t.Errorf("%s without a hub, expected %s", got, dir)
	}
}

func TestSnapshot_FetchesANewCommit(t *testing.T) {
	h := newHub(t)
	first, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, first, err)
	h.commit = strings.Repeat("b", 40)
	h.files["model.safetensors"] = []byte("new weights")
	second, err := fetchHub(t, "hf://org/name")
	if holdsModel(t, h, second, err); second == first {
		t.Error("the branch has moved, but the old commit is used")
	}
}

func TestFetchTo_GivesUpAnIdleConnection(t *testing.T) {
	defer func(before time.Duration) { idleLimit = before }(idleLimit)
	idleLimit = 50 * time.Millisecond
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write([]byte("half"))
		w.(http.Flusher).Flush()
		<-release
	}))
	defer server.Close()
	defer close(release)
	to := filepath.Join(t.TempDir(), "file")
	err := fetchTo(t.Context(), server.URL, to, 100, nil, func(int64) {})
	if err == nil || !strings.Contains(err.Error(), "after 4 bytes: no data, or almost none") {
		t.Errorf("%v", err)
	}
	if part, _ := os.ReadFile(to); string(part) != "half" {
		t.Errorf("kept %q for the next attempt", part)
	}
}

func TestRetry_SaysWhatItWaitsFor(t *testing.T) {
	h := newHub(t)
	told := notices(t)
	h.breaks["model.safetensors"] = 100_000
	dir, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)
	if len(*told) != 1 || !strings.Contains((*told)[0], "model.safetensors: the download was "+
		"interrupted after 100000 bytes") || !strings.Contains((*told)[0], "next attempt is in") {
		t.Errorf("told %q", *told)
	}
}
