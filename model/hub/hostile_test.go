package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wantError demands an error of one line that contains all words.
func wantError(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) || strings.ContainsAny(err.Error(),
			"\n\x1b") {
			t.Errorf("%s: %v, expected an error with %q", what, err, w)
		}
	}
}

func serve(t *testing.T, f http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

func TestFetchTo_WritesTheListedSizeAtMost(t *testing.T) {
	const listed = 1000
	for what, c := range map[string]struct {
		begun  int
		answer http.HandlerFunc
		words  []string
	}{
		"an endless body": {0, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write(make([]byte, 1<<16))
			}
		}, []string{"more than the 1000 bytes"}},
		"a longer body": {0, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1001")
			w.Write(make([]byte, 1001))
		}, []string{"1001 bytes", "1000 are listed"}},
		"a shorter body": {0, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10")
			w.Write(make([]byte, 10))
		}, []string{"10 bytes", "1000 are listed"}},
		"a shorter body without a length": {0, func(w http.ResponseWriter, r *http.Request) {
			w.Write(make([]byte, 10))
			w.(http.Flusher).Flush()
		}, []string{"after 10 bytes", "1000 are listed"}},
		"another range": {500, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 400-999/1000")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, 600))
		}, []string{"cannot continue after byte 500"}},
		"a range without an end": {500, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 500-")
			w.WriteHeader(http.StatusPartialContent)
			for r.Context().Err() == nil {
				w.Write(make([]byte, 1<<16))
			}
		}, []string{"more than the 1000 bytes"}},
		"no range": {500, func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "no", http.StatusRequestedRangeNotSatisfiable)
		}, []string{"cannot continue after byte 500"}},
	} {
		to := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(to, make([]byte, c.begun), 0o666); err != nil {
			t.Fatal(err)
		}
		err := fetchTo(t.Context(), serve(t, c.answer).URL, to, listed, nil, func(int64) {})
		wantError(t, what, err, c.words...)
		if info, err := os.Stat(to); err != nil || info.Size() > listed {
			t.Errorf("%s: %v, %d bytes are kept", what, err, info.Size())
		}
	}
}

func TestFetchTo_GivesUpAServerThatSendsAlmostNothing(t *testing.T) {
	defer func(before time.Duration) { idleLimit = before }(idleLimit)
	idleLimit = 100 * time.Millisecond
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	err := fetchTo(t.Context(), s.URL, filepath.Join(t.TempDir(), "f"), 1<<20, nil, func(int64) {})
	wantError(t, "a file", err, "almost none")
	_, _, err = page(t.Context(), s.URL, 1<<20, nil)
	wantError(t, "a page", err, "almost none")
}

func TestPage_HasALimit(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.Write(make([]byte, 1<<16))
		}
	})
	_, _, err := page(t.Context(), s.URL, 1<<20, nil)
	wantError(t, "an endless page", err, "more than 1 MiB")
	s = serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 300<<10))
	})
	_, _, err = page(t.Context(), s.URL, 1<<20, nil)
	wantError(t, "a long header", err, "header")
}

func TestFetchTo_SaysThatTheDiskIsFull(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 100)) })
	err := fetchTo(t.Context(), s.URL, "/dev/full", 100, nil, func(int64) {})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Skipf("this system has no /dev/full: %v", err)
	}
	wantError(t, "a full disk", atSpace("/dev/full", err), "no space left", "/dev/full")
	wantError(t, "a large download", checkSpace(t.TempDir(), math.MaxInt64), "GB free",
		"XDG_CACHE_HOME")
}

func TestClient_KeepsTheTokenFromOtherServers(t *testing.T) {
	var sent []string
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		sent = append(sent, r.Header.Get("Authorization"))
	})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/port":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/same":
			http.Redirect(w, r, "/end", http.StatusFound)
		case "/end":
			sent = append(sent, r.Header.Get("Authorization"))
		case "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}
	})
	header := http.Header{"Authorization": {"Bearer hf_secret"}}
	for _, path := range []string{"/port", "/same"} {
		if _, _, err := page(t.Context(), s.URL+path, 100, header); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"", "Bearer hf_secret"}; !slices.Equal(sent, want) {
		t.Errorf("sent %q, expected %q", sent, want)
	}
	_, _, err := page(t.Context(), s.URL+"/loop", 100, header)
	wantError(t, "a loop", err, "redirects more than 10 times")
	_, _, err = page(t.Context(), s.URL+"/file", 100, header)
	wantError(t, "another scheme", err, "file")
}

func TestClient_DoesNotLeaveTLS(t *testing.T) {
	asked := 0
	plainText := serve(t, func(w http.ResponseWriter, r *http.Request) { asked++ })
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, plainText.URL, http.StatusFound)
			return
		}
		http.Redirect(w, r, "http://"+r.Host, http.StatusFound)
	}))
	defer secure.Close()
	transport := client.Transport.(*http.Transport)
	defer func(before *http.Transport) { client.Transport = before }(transport)
	trusting := transport.Clone()
	trusting.TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig
	client.Transport = trusting
	told := notices(t)
	for _, path := range []string{"/away", "/same"} {
		err := retry(t.Context(), "x", 5, func() (bool, error) {
			_, _, err := page(t.Context(), secure.URL+path, 100, nil)
			return false, err
		})
		wantError(t, path, err, "not encrypted: refused")
	}
	if asked > 0 || len(*told) > 0 {
		t.Errorf("%d requests in plain text, told %q", asked, *told)
	}
}

// list returns the JSON of a listing with files of the given names.
func list(names ...string) []byte {
	var siblings []map[string]any
	for _, name := range names {
		siblings = append(siblings, map[string]any{"rfilename": name, "size": 1,
			"blobId": strings.Repeat("a", 40)})
	}
	text, _ := json.Marshal(map[string]any{"sha": strings.Repeat("b", 40), "siblings": siblings})
	return text
}

func TestListing_RefusesNamesAndSizesThatCannotBe(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "/etc/passwd", "a/../../x", "a/../b",
		"a//b", "./a", "a/", "a\x00b", "a\x1b[31mb", "a\nb", strings.Repeat("../", 50) + "x"} {
		_, err := parseListing(list("config.json", name))
		wantError(t, fmt.Sprintf("%q", name), err, "invalid name")
	}
	for _, name := range []string{`a\b`, `..\x`, ".lock", ".LOCK", ".listing.json", ".stamps.json",
		".incomplete/x"} {
		l, err := parseListing(list("config.json", name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.pick([]string{"config.json"}); err != nil {
			t.Errorf("%q, which is not wanted: %v", name, err)
		}
		if _, err := l.pick([]string{name}); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
	l, err := parseListing(list("a", "b", "a"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.pick([]string{"a"})
	wantError(t, "a name twice", err, "listed twice")
	for _, size := range []string{"-1", "1152921504606846976", "1099511627777"} {
		text := strings.Replace(string(list("a")), `"size":1`, `"size":`+size, 1)
		if l, err = parseListing([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_, err = l.pick([]string{"a"})
		wantError(t, size, err, size, "expected 0 to")
	}
	for _, sum := range []string{"../../x", "zz", strings.Repeat("a", 41)} {
		text := strings.Replace(string(list("a")), strings.Repeat("a", 40), sum, 1)
		if l, err = parseListing([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_, err = l.pick([]string{"a"})
		wantError(t, sum, err, "hash")
	}
	for _, text := range []string{"", "{}", "[]", "null", `{"sha":"../x"}`, "<html>",
		strings.Repeat("[", 1<<20)} {
		_, err := parseListing([]byte(text))
		wantError(t, fmt.Sprintf("%.20q", text), err, "does not answer as")
	}
}

func FuzzListing(f *testing.F) {
	f.Add(list("config.json", "model.safetensors", "a/b.jsonl"))
	f.Add(list("../x", `a\b`, ".lock"))
	f.Add([]byte(`{"sha":"` + strings.Repeat("b", 40) + `","siblings":` +
		`[{"rfilename":"a","lfs":{}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := parseListing(text)
		if err != nil {
			return
		}
		var names []string
		for _, file := range l.Files {
			names = append(names, file.Name)
		}
		if wanted, err := modelFiles(names, Repo{Kind: "models", Name: "o/n"}); err == nil {
			l.pick(wanted)
		}
		files, err := l.pick(names)
		if err != nil {
			return
		}
		var total int64
		places := map[string]bool{}
		d := &folder{repo: Repo{Kind: "models", Name: "o/n"}, dir: "/cache"}
		for _, file := range files {
			place := d.path(file)
			rel, err := filepath.Rel("/cache", place)
			if err != nil || !filepath.IsLocal(rel) || rel == "." || places[place] ||
				slices.Contains(reserved, strings.Split(rel, "/")[0]) {
				t.Errorf("%q is kept at %q", file.Name, place)
			}
			if filepath.Dir(d.part(file)) != "/cache/"+partFolder && file.sum() != "" {
				t.Errorf("a part is kept at %q", d.part(file))
			}
			places[place] = true
			if total += file.size(); file.size() < 0 || total < 0 {
				t.Errorf("%q has %d bytes", file.Name, file.size())
			}
		}
	})
}

func TestAsk_RefusesAnotherCommitThanTheOneAskedFor(t *testing.T) {
	newHub(t)
	h := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(list("config.json")) })
	t.Setenv("HF_ENDPOINT", h.URL)
	_, err := fetchHub(t, "hf://org/name@"+strings.Repeat("c", 40))
	wantError(t, "another commit", err, "lists commit bbbb")
}

// age sets the time of a file's last modification.
func age(t *testing.T, path string, to time.Time) {
	t.Helper()
	if err := os.Chtimes(path, to, to); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshot_FetchesADamagedFileAgain(t *testing.T) {
	h := newHub(t)
	told := notices(t)
	dir, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)
	weights := filepath.Join(dir, "model.safetensors")
	info, err := os.Stat(weights)
	if err != nil {
		t.Fatal(err)
	}
	damage := func() {
		t.Helper()
		if err := os.WriteFile(weights, make([]byte, info.Size()), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	age(t, weights, info.ModTime().Add(time.Second))
	dir, err = fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)
	if len(*told) != 1 || !strings.Contains((*told)[0], "fetching it again") {
		t.Errorf("told %q", *told)
	}

	// Damage that leaves the time of modification is found with Verify.
	if info, err = os.Stat(weights); err != nil {
		t.Fatal(err)
	}
	damage()
	age(t, weights, info.ModTime())
	if _, err := fetchHub(t, "hf://org/name"); err != nil || len(*told) != 1 {
		t.Errorf("%v, told %q: expected the stamp to be trusted", err, *told)
	}
	Verify = true
	defer func() { Verify = false }()
	dir, err = fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)

	// Without the hub, damage is an error, and an unharmed copy without stamps is used.
	h.Close()
	Verify = false
	if err := os.Remove(filepath.Join(dir, stampFile)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HF_HUB_OFFLINE", "1")
	dir, err = fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)
	damage()
	age(t, weights, time.Now().Add(time.Hour))
	_, err = fetchHub(t, "hf://org/name")
	wantError(t, "a damaged file", err, "HF_HUB_OFFLINE is set", "lacks some of its files")
}

func TestSnapshot_VerifiesTheCacheOfHuggingfaceHub(t *testing.T) {
	h := newHub(t)
	told := notices(t)
	cache := t.TempDir()
	t.Setenv("HF_HUB_CACHE", cache)
	h.files = map[string][]byte{"model.safetensors": h.files["model.safetensors"]}
	weights := bytes.Clone(h.files["model.safetensors"])
	blob := filepath.Join(cache, "models--org--name", "blobs", sum(weights))
	link := filepath.Join(cache, "models--org--name", "snapshots", h.commit, "model.safetensors")
	for _, path := range []string{blob, link} {
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	weights[100] ^= 1
	if err := os.WriteFile(blob, weights, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(blob, link); err != nil {
		t.Fatal(err)
	}
	Verify = true
	defer func() { Verify = false }()
	dir, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)
	if len(*told) != 1 || !strings.Contains((*told)[0], "is damaged") {
		t.Errorf("told %q", *told)
	}
}

// A machine that loses its power may keep a file's size and lose its bytes.
func TestFetchModel_StartsAgainIfThePiecesDoNotFit(t *testing.T) {
	h := newHub(t)
	notices(t)
	ctx, cancel := context.WithCancel(t.Context())
	h.breaks["model.safetensors"] = 50_000
	FetchModel(ctx, "hf://org/name", func(done, total int64) {
		if done > 50_000 {
			cancel()
		}
	})
	parts, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"),
		"conquer/hub/models/org/name/*", partFolder, "*"))
	if err != nil || len(parts) != 1 {
		t.Fatalf("%v, parts %v", err, parts)
	}
	if err := os.WriteFile(parts[0], make([]byte, 70_000), 0o666); err != nil {
		t.Fatal(err)
	}
	dir, err := fetchHub(t, "hf://org/name")
	holdsModel(t, h, dir, err)
	if _, err := os.Stat(filepath.Dir(parts[0])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of parts is left behind: %v", err)
	}
}
