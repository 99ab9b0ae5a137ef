package train

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/internal/atomicfile/powerloss"
	"conquer/lora"
	"conquer/torch"
	"conquer/train/internal/state"
	"conquer/train/report"
)

// A run with a checkpoint after each step writes its result over an older one. Whatever a power
// failure leaves, the run resumes from its last complete checkpoint, or a later one, with the
// metrics up to there, and the folder holds a whole result.
func TestTrainer_CheckpointsSurvivePowerLoss(t *testing.T) {
	noLeaks(t)
	t.Run("hf", func(t *testing.T) { testPowerLoss(t, FormatHF, nil) })
	t.Run("native", func(t *testing.T) { testPowerLoss(t, FormatNative, nil) })
	t.Run("hf adapter", func(t *testing.T) { testPowerLoss(t, FormatHF, adapterConfig()) })
}

func testPowerLoss(t *testing.T, format string, adapter *lora.Config) {
	root := powerloss.Folder(t)
	out := filepath.Join(root, "out")
	o := options()
	o.Steps, o.CheckpointSteps, o.Keep, o.SaveFormat = 3, 1, 1, format
	o.LogPath, o.CheckpointPath = out, filepath.Join(out, "checkpoints")
	o.LoRA = adapter
	m := tiny(t, true, torch.Float32)
	older := &checkpoint.Tensors{}
	if err := torch.Run(func() error {
		older.Add("w", torch.Ones([]int{9}, torch.Float32, torch.CPU))
		return checkpoint.SaveNative(out, older, checkpoint.Options{Config: []byte("{}")})
	}); err != nil {
		t.Fatal(err)
	}
	oldTree := resultIn(out)
	r := powerloss.Record(t, root)
	tr, err := New(m, samples(16, 1), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		tr.Close()
		free(m)
	}()
	if err := tr.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := tr.Export(out); err != nil {
		t.Fatal(err)
	}
	newTree := resultIn(out)
	r.Crashes(t, 1000, func(root string, done []powerloss.Op, complete bool) error {
		out := filepath.Join(root, "out")
		if err := checkpoint.Recover(out); err != nil {
			return err
		}
		switch tree := resultIn(out); {
		case fmt.Sprint(tree) == fmt.Sprint(newTree):
		case complete || fmt.Sprint(tree) != fmt.Sprint(oldTree):
			return fmt.Errorf("the result is neither the old nor the new one")
		}
		f := state.Folder{Path: filepath.Join(out, "checkpoints")}
		dir, s, err := f.Latest()
		if err != nil {
			return err
		}
		if want := committed(done); s.Step < want {
			return fmt.Errorf("the checkpoint is of step %d, expected %d", s.Step, want)
		}
		if dir == "" {
			return nil
		}
		if err := state.VerifyAll(dir); err != nil {
			return err
		}
		return checkSteps(out, s.Step)
	})
}

// resultIn returns the files of the result in a folder.
func resultIn(dir string) map[string]string {
	names, _ := checkpoint.ResultFiles(dir)
	files := map[string]string{}
	for _, name := range names {
		text, _ := os.ReadFile(filepath.Join(dir, name))
		files[name] = string(text)
	}
	return files
}

// committed is the number of times that the pointer to the latest checkpoint was flushed.
func committed(done []powerloss.Op) (n int) {
	moved := false
	for _, op := range done {
		switch {
		case op.Kind == powerloss.Rename && filepath.Base(op.To) == "latest":
			moved = true
		case op.Kind == powerloss.SyncFolder && moved && filepath.Base(op.Name) == "checkpoints":
			n, moved = n+1, false
		}
	}
	return n
}

// checkSteps returns an error unless metrics.jsonl has the steps 1 to n after it is opened again.
func checkSteps(dir string, n int) error {
	l, err := report.OpenLog(dir, false, n)
	if err != nil {
		return err
	}
	l.Close()
	steps, _, err := report.ReadLosses(filepath.Join(dir, report.MetricsFile))
	if err != nil {
		return err
	}
	if len(steps) != n {
		return fmt.Errorf("the metrics have %d steps, expected %d", len(steps), n)
	}
	return nil
}

func TestResume_RefusesAFlippedByte(t *testing.T) {
	noLeaks(t)
	for format, name := range map[string]string{FormatHF: "model.safetensors",
		FormatNative: "rank-00000-of-00001.safetensors"} {
		o := options()
		o.CheckpointPath, o.SaveFormat = filepath.Join(t.TempDir(), "c"), format
		o.CheckpointSteps = 2
		data := samples(16, 1)
		interrupted(t, tiny(t, true, torch.Float32), data, nil, o, 4)
		resume := func() (step int, err error) {
			again := o
			again.Resume = true
			m := tiny(t, true, torch.Float32)
			defer free(m)
			tr, err := New(m, data, nil, again)
			if err != nil {
				return 0, err
			}
			defer tr.Close()
			return tr.Done(), nil
		}
		if step, err := resume(); err != nil || step != 4 {
			t.Fatalf("undamaged, it resumed after step %d: %v", step, err)
		}
		path := filepath.Join(o.CheckpointPath, "step-00000004", name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)-100] ^= 4
		if err := os.WriteFile(path, text, 0o666); err != nil {
			t.Fatal(err)
		}
		latest := filepath.Join(o.CheckpointPath, "latest")
		_, err = resume()
		wantWords(t, err, path, "checksum", "damaged", "step-00000002 is intact", latest)
		// What the error says is what helps.
		if err := os.WriteFile(latest, []byte("step-00000002\n"), 0o666); err != nil {
			t.Fatal(err)
		}
		if step, err := resume(); err != nil || step != 2 {
			t.Errorf("%s: it resumed after step %d: %v", format, step, err)
		}
		os.Remove(filepath.Join(o.CheckpointPath, "step-00000002", "checksums.json"))
		_, err = resume()
		wantWords(t, err, "checksums.json does not exist", "start again")
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("the error has several lines: %v", err)
		}
	}
}

func TestTrainer_RefusesASecondRunInAFolder(t *testing.T) {
	noLeaks(t)
	o := options()
	o.LogPath = t.TempDir()
	o.CheckpointPath = filepath.Join(o.LogPath, "a")
	m, other := tiny(t, true, torch.Float32), tiny(t, true, torch.Float32)
	defer free(m)
	defer free(other)
	tr, err := New(m, samples(16, 1), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	second := o
	second.CheckpointPath = filepath.Join(o.LogPath, "b")
	_, err = New(other, samples(16, 1), nil, second)
	wantWords(t, err, "another run is writing to "+o.LogPath)
	tr.Close()
	third := o
	third.CheckpointPath = o.LogPath // one folder for all
	if tr, err = New(other, samples(16, 1), nil, third); err != nil {
		t.Fatal(err)
	}
	tr.Close()
}
