package mapping

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMapping_HoldsTheFileUntilClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("contents"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Map(f)
	f.Close()
	if err != nil || string(m.Bytes()) != "contents" {
		t.Fatalf("%v, %q", err, m.Bytes())
	}
	if err := m.Close(); err != nil || m.Bytes() != nil {
		t.Errorf("%v, %q", err, m.Bytes())
	}
	if err := m.Close(); err != nil { // a second time
		t.Error(err)
	}
}

func TestMap_RefusesAFolder(t *testing.T) {
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Map(f); err == nil {
		t.Error("a folder was mapped")
	}
}
