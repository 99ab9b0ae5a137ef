package hub

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"conquer/internal/atomicfile/powerloss"
)

// A download that breaks off once is recorded. In each state that a power failure may leave, the
// cache offers the whole model or none, and the next download completes it.
func TestFetchModel_SurvivesPowerLoss(t *testing.T) {
	h := newHub(t)
	h.files["model.safetensors"] = h.files["model.safetensors"][:3000]
	h.breaks["model.safetensors"] = 1000
	root := powerloss.Folder(t)
	t.Setenv("XDG_CACHE_HOME", root)
	notices(t)
	r := powerloss.Record(t, root)
	whole, err := fetchHub(t, "hf://org/name")
	if err != nil {
		t.Fatal(err)
	}
	// The cache offers what its files hold: see atHand.
	same := func(dir string) error {
		for _, name := range []string{"config.json", "tokenizer.json", "model.safetensors"} {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			if !bytes.Equal(data, h.files[name]) {
				return fmt.Errorf("%s has %d bytes that differ from the hub's %d", name, len(data),
					len(h.files[name]))
			}
		}
		return nil
	}
	if err := same(whole); err != nil {
		t.Fatal(err)
	}
	r.Crashes(t, 1000, func(cache string, _ []powerloss.Op, complete bool) error {
		t.Setenv("XDG_CACHE_HOME", cache)
		t.Setenv("HF_HUB_OFFLINE", "1")
		dir, err := fetchHub(t, "hf://org/name")
		if err == nil {
			err = same(dir)
		} else if !complete {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("offline: %w", err)
		}
		t.Setenv("HF_HUB_OFFLINE", "")
		if dir, err = fetchHub(t, "hf://org/name"); err == nil {
			err = same(dir)
		}
		return err
	})
}

// Each operation fails in turn. The next download completes the model.
func TestFetchModel_SurvivesAFailingDisk(t *testing.T) {
	h := newHub(t)
	h.files["model.safetensors"] = h.files["model.safetensors"][:3000]
	notices(t)
	for i := 0; ; i++ {
		root := powerloss.Folder(t)
		t.Setenv("XDG_CACHE_HOME", root)
		r, failed := powerloss.Record(t, root), false
		r.Fail = func(index int, op powerloss.Op) error {
			if failed || index != i {
				return nil
			}
			failed = true
			return fmt.Errorf("%v: %w", op, os.ErrDeadlineExceeded)
		}
		dir, err := fetchHub(t, "hf://org/name")
		r.Fail = nil
		if !failed {
			return
		}
		if err == nil {
			holdsModel(t, h, dir, nil)
		}
		dir, err = fetchHub(t, "hf://org/name")
		holdsModel(t, h, dir, err)
	}
}
