package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/internal/atomicfile/powerloss"
	"conquer/torch"
)

// Each format is written over another model, of another layout and size where a folder can have
// one, beside files of other names.
func TestSave_SurvivesPowerLoss(t *testing.T) {
	old, oldConfig := randomLlama(t, "llama", torch.Float32, 1)
	fresh, config := randomLlama(t, "llama", torch.BFloat16, 2)
	for _, f := range Formats {
		t.Run(f.Name, func(t *testing.T) {
			root := powerloss.Folder(t)
			out := filepath.Join(root, "out")
			files := func(dir string) error {
				templates := filepath.Join(dir, templateFolder)
				if err := os.MkdirAll(templates, 0o777); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(templates, "a.jinja"), []byte("old"), 0o666)
			}
			prepare := func() {
				if err := os.RemoveAll(out); err != nil {
					t.Fatal(err)
				}
				save, options := Save, Options{Config: oldConfig, ShardBytes: 13000, Also: files}
				if f.File {
					save = SaveGGUF
				}
				if err := save(out, old, options); err != nil {
					t.Fatal(err)
				}
				if f.File {
					return
				}
				if err := os.WriteFile(filepath.Join(out, "README.md"), nil, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			prepare()
			powerloss.Replacement{Root: root, Path: "out", Beside: []string{"README.md"},
				Prepare: prepare, Recover: recoverModel,
				Write: func() error {
					return f.Save(out, fresh, Options{Config: config})
				}}.Test(t, 1000)
		})
	}
}

// recoverModel opens the result before and after its recovery.
func recoverModel(path string) error {
	for range 2 {
		c, err := Open(path)
		if err != nil {
			return err
		}
		c.Close()
		if err := Recover(path); err != nil {
			return err
		}
	}
	return nil
}

// A program was killed between the two renames of a file system without an exchange.
func TestSave_InterruptedReplacementIsNamedAndCompleted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	if err := Save(dir, someTensors(), Options{}); err != nil {
		t.Fatal(err)
	}
	killed := errors.New("killed")
	renames := 0
	r := powerloss.Record(t, filepath.Dir(dir))
	r.Fail = func(i int, op powerloss.Op) error {
		if op.Kind == powerloss.Rename && strings.HasPrefix(op.To, dir) {
			renames++
		}
		if renames > 2 { // plan, the old folder aside, and no further operation
			return killed
		}
		return powerloss.NoExchange(i, op)
	}
	more := someTensors().add("more", torch.Float32, 2)
	if err := Save(dir, more, Options{}); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	_, err := Open(dir)
	wantError(t, err, dir, "run it again")
	r.Fail = nil
	if err := Recover(dir); err != nil {
		t.Fatal(err)
	}
	wantSame(t, mustOpen(t, dir), more)
}

func TestSaveGGUF_KeepsASymbolicLink(t *testing.T) {
	model, config := randomLlama(t, "llama", torch.Float32, 1)
	dir := t.TempDir()
	link := filepath.Join(dir, "link.gguf")
	if err := os.Symlink("real.gguf", link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "real.gguf"), []byte("old"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := SaveGGUF(link, model, Options{Config: config}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is now %v, %v", info.Mode(), err)
	}
	wantSame(t, mustOpen(t, filepath.Join(dir, "real.gguf")), model)
}
