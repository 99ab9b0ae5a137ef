package hub

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var kills = flag.Int("kills", 4,
	"how many downloading processes TestFetchModel_SurvivesKills kills")

// downloadVariable makes the test binary download a model, and nothing else.
const downloadVariable = "CONQUER_HUB_TEST_DOWNLOAD"

func TestMain(m *testing.M) {
	if ref := os.Getenv(downloadVariable); ref != "" {
		if _, err := FetchModel(context.Background(), ref, nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// slow serves the hub's files in small pieces, so that a download takes about half a second.
func slow(h *hubServer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		h.serve(answer, r)
		for key, values := range answer.Header() {
			w.Header()[key] = values
		}
		w.WriteHeader(answer.Code)
		for piece := range bytes.Lines(answer.Body.Bytes()) { // of random bytes: 256 on average
			w.Write(piece)
			w.(http.Flusher).Flush()
			time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
		}
	}
}

// wholeFiles counts the files that have their final name. Each of them must be the hub's.
func wholeFiles(t *testing.T, h *hubServer, cache string) (whole, parts int) {
	t.Helper()
	err := filepath.WalkDir(cache, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && entry.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		if filepath.Base(filepath.Dir(path)) == partFolder {
			parts++
		}
		want, ok := h.files[filepath.Base(path)]
		if !ok {
			return nil
		}
		got, err := os.ReadFile(path)
		if whole++; !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes that are not the hub's %d", path, len(got), len(want))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return whole, parts
}

// A process is killed again and again while it downloads. At each moment the files with a final
// name are whole, and the next process continues. The campaign:
//
//	go test ./model/hub -run SurvivesKills -kills 150 -v
func TestFetchModel_SurvivesKills(t *testing.T) {
	h := newHub(t)
	front := serve(t, slow(h))
	cache := t.TempDir()
	var killed, finished, between, withPart int
	for killed < *kills {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), downloadVariable+"=hf://org/name", "HF_ENDPOINT="+front.URL,
			"XDG_CACHE_HOME="+cache)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(rand.IntN(600))*time.Millisecond,
			func() { c.Process.Kill() })
		err := c.Wait()
		stopped := timer.Stop()
		whole, parts := wholeFiles(t, h, cache)
		if err != nil && c.ProcessState.ExitCode() >= 0 {
			t.Fatalf("the download after %d kills: %v\n%s", killed, err, &stderr)
		}
		switch {
		case err == nil && whole != 3:
			t.Errorf("a download that succeeded left %d whole files", whole)
		case err == nil:
			finished++
			cache = t.TempDir()
		case stopped:
			t.Errorf("not killed, and ended with %v\n%s", err, &stderr)
		default:
			killed++
			if whole > 0 {
				between++
			}
			if parts > 0 {
				withPart++
			}
		}
	}
	t.Setenv("XDG_CACHE_HOME", cache)
	dir, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)
	h.Lock()
	defer h.Unlock()
	continued := 0
	for _, request := range h.ranges {
		if !strings.HasSuffix(request, " ") {
			continued++
		}
	}
	t.Logf("%d kills: %d with a part, %d with whole files; %d downloads finished; %d of %d "+
		"requests for files continued a part", killed, withPart, between, finished, continued,
		len(h.ranges))
}
