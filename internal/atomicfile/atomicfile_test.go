package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// wantError demands an error that contains all words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, expected an error with %q", err, w)
		}
	}
}

func TestWrite_ReplacesAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	put := func(text string, fail error) error {
		return Write(path, func(w io.Writer) error { io.WriteString(w, text); return fail })
	}
	if err := put("one", nil); err != nil {
		t.Fatal(err)
	}
	// A file left by a killed process is replaced, not extended.
	if err := os.WriteFile(path+Suffix, []byte("a longer text than two"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := put("two", nil); err != nil {
		t.Fatal(err)
	}
	wantError(t, put("three", errors.New("broke")), path, "broke")
	wantError(t, Write(filepath.Join(dir, "none", "f"), nil), "none")
	entries, err := os.ReadDir(dir)
	if text, _ := os.ReadFile(path); err != nil || string(text) != "two" || len(entries) != 1 {
		t.Errorf("%v, %q, %v", err, text, entries)
	}
}

func TestWrite_SecondWriterFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	err := Write(path, func(w io.Writer) error {
		wantError(t, Write(path, func(io.Writer) error { return nil }), path,
			"another process is writing")
		_, err := io.WriteString(w, "first")
		return err
	})
	if text, _ := os.ReadFile(path); err != nil || string(text) != "first" {
		t.Errorf("%v, %q", err, text)
	}
}

func TestCreate_RefusesAnExistingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	put := func() error {
		return Create(path,
			func(w io.Writer) error { _, err := w.Write([]byte("x")); return err })
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	wantError(t, put(), path)
}
