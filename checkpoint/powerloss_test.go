package checkpoint

import (
	"os"
	"path/filepath"
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
			root := t.TempDir()
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
