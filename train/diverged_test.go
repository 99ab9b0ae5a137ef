package train

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/model"
	"conquer/torch"
)

// diverging are the options of a run whose weights explode after the first step.
func diverging() Options {
	o := options()
	o.Rate, o.Clip, o.Steps, o.Schedule = 1e30, 0, 40, "constant"
	return o
}

// wantWords fails the test unless err contains all words.
func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want an error with %q", err, w)
		}
	}
}

func TestTrainer_StopsWhenItDiverges(t *testing.T) {
	noLeaks(t)
	for name, c := range map[string]struct {
		steps, skip, taken int
		words              []string
	}{
		"after 20 steps": {40, 0, 21, []string{"steps 2 to 21 were skipped", "gradients",
			"--learning_rate below 1e+30", "--clip 1", "nothing was written"}},
		"after 3 steps":   {40, 3, 4, []string{"steps 2 to 4 were skipped"}},
		"at its end":      {8, 0, 8, []string{"steps 2 to 8 were skipped"}},
		"at its last one": {2, 0, 2, []string{"step 2 was skipped"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := tiny(t, true, torch.Float32)
			o := diverging()
			o.Steps, o.MaxSkipped = c.steps, c.skip
			tr, err := New(m, samples(16, 1), nil, o)
			if err != nil {
				t.Fatal(err)
			}
			defer model.Free(m)
			defer tr.Close()
			r := &recorder{}
			tr.Listen(r)
			wantWords(t, tr.Run(context.Background()), append(c.words, "diverged")...)
			if last := r.steps[len(r.steps)-1]; !last.Skipped || last.Step != c.taken {
				t.Errorf("the last step was %+v, want step %d, skipped", last, c.taken)
			}
		})
	}
}

// A run that diverges after its checkpoints keeps them, also if more checkpoints would be due.
func TestTrainer_KeepsTheLastGoodCheckpoint(t *testing.T) {
	noLeaks(t)
	for _, format := range []string{FormatHF, FormatNative} {
		o := options()
		o.CheckpointPath, o.SaveFormat = filepath.Join(t.TempDir(), "c"), format
		o.Steps, o.CheckpointSteps, o.Keep = 40, 2, 1
		m := tiny(t, false, torch.Float32)
		tr, err := New(m, samples(16, 1), nil, o)
		if err != nil {
			t.Fatal(err)
		}
		tr.Listen(&recorder{after: func(s Step) {
			if s.Step == 5 { // the checkpoint of step 4 is there
				damage(m, 1e38)
			}
		}})
		err = tr.Run(context.Background())
		good := filepath.Join(o.CheckpointPath, "step-00000004")
		wantWords(t, err, "steps 6 to 25 were skipped", "loss of", good, "was kept")
		if _, err := os.Stat(filepath.Join(good, "state.json")); err != nil {
			t.Error(err)
		}
		if list, _ := filepath.Glob(filepath.Join(o.CheckpointPath, "step-*")); len(list) != 1 {
			t.Errorf("%s: the checkpoints are %v, want the last good one", format, list)
		}
		tr.Close()
		free(m)
	}
}

// damage multiplies the weights of m's head.
func damage(m model.Model, by float64) {
	torch.NoGrad(func() {
		torch.Scoped(func() {
			head := m.Head().Param.Detach()
			head.Copy(head.MulScalar(by))
		})
	})
}

func TestTrainer_WritesNoWeightsThatAreNotFinite(t *testing.T) {
	noLeaks(t)
	o := options()
	o.CheckpointPath = filepath.Join(t.TempDir(), "c")
	m := tiny(t, true, torch.Float32)
	tr, err := New(m, samples(16, 1), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		tr.Close()
		free(m)
	}()
	tr.Listen(&recorder{after: func(s Step) {
		if s.Step == o.Steps {
			damage(m, 1e39)
		}
	}})
	wantWords(t, tr.Run(context.Background()), "after step 6", "embed_tokens", "not finite")
	out := filepath.Join(t.TempDir(), "out")
	wantWords(t, tr.Save(), "embed_tokens", "not finite")
	wantWords(t, tr.Export(out), "embed_tokens", "not finite")
	wantWords(t, tr.ExportMerged(out), "embed_tokens", "not finite")
	for _, path := range []string{out, o.CheckpointPath} {
		if entries, _ := os.ReadDir(path); len(entries) > 0 {
			t.Errorf("%s holds %v", path, entries)
		}
	}
}

// A model whose loss was never finite is at fault itself.
func TestTrainer_NamesAModelThatNeverHadAFiniteLoss(t *testing.T) {
	noLeaks(t)
	m := tiny(t, true, torch.Float32)
	damage(m, 1e39)
	tr, err := New(m, samples(16, 1), nil, options())
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	defer tr.Close()
	wantWords(t, tr.Run(context.Background()), "steps 1 to 6 were skipped", "model's weights")
}
