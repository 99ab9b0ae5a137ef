package train

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"conquer/lora"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/train/report"
)

// interrupted runs `after` steps, stops the run as Ctrl-C does, and returns what it reported.
func interrupted(
	t testing.TB, m model.Model, data, validation *dataset.Dataset, o Options, after int,
) *recorder {
	t.Helper()
	tr, err := New(m, data, validation, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		tr.Close()
		free(tr.Model())
	}()
	ctx, stop := context.WithCancel(context.Background())
	r := &recorder{after: func(s Step) {
		if s.Step == after {
			stop()
		}
	}}
	tr.Listen(r)
	if err := tr.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("a stopped run returned %v", err)
	}
	return r
}

func TestTrainer_ResumeIsBitEqual(t *testing.T) {
	if testing.Short() {
		t.Skip("resumes runs: left out by -short")
	}
	noLeaks(t)
	for name, change := range map[string]func(*Options){
		"all weights": func(o *Options) {},
		"packed": func(o *Options) {
			o.Pack, o.Recompute, o.Accumulate = true, RecomputeBlock, 2
		},
		"head":         func(o *Options) { o.HeadOnly = true },
		"LoRA dropout": func(o *Options) { o.LoRA = adapterConfig(); o.LoRA.Dropout = 0.3 },
		"LoRA, tokens": func(o *Options) {
			o.LoRA = adapterConfig()
			o.LoRA.Tokens = []int{3, 7, 20}
		},
		"LoRA, embedding": func(o *Options) {
			o.LoRA = adapterConfig()
			o.LoRA.Save = []string{"embed_tokens"}
		},
		"DoRA, PiSSA": func(o *Options) {
			o.LoRA = adapterConfig()
			o.LoRA.DoRA, o.LoRA.Init, o.LoRA.Dropout = true, lora.InitPiSSA, 0.2
		},
	} {
		for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
			data, valid := samples(22, 1), samples(5, 2)
			o := options()
			o.Steps, o.ValidateSteps = 12, 4
			change(&o)
			want := train(t, tiny(t, true, dtype), data, valid, o, nil)

			o.CheckpointPath, o.LogPath = filepath.Join(t.TempDir(), "c"), t.TempDir()
			o.CheckpointSteps, o.Keep, o.Resume = 5, 1, true
			first := interrupted(t, tiny(t, true, dtype), data, valid, o, 7)
			second := train(t, tiny(t, true, dtype), data, valid, o, nil)
			steps := append(first.steps, second.steps...)
			validations := append(first.validations, second.validations...)
			if len(steps) != 12 || len(validations) != len(want.validations) {
				t.Fatalf("%s: %d steps and %d validations, want 12 and %d",
					name, len(steps), len(validations), len(want.validations))
			}
			for i, s := range steps {
				if w := want.steps[i]; s.Loss != w.Loss || s.Norm != w.Norm || s.Rate != w.Rate ||
					s.Epoch != w.Epoch {
					t.Errorf("%s %v: step %d gave %+v, uninterrupted %+v", name, dtype, i+1, s, w)
				}
			}
			for i, v := range validations {
				if w := want.validations[i]; v.Loss != w.Loss || v.Step != w.Step {
					t.Errorf("%s %v: validation %d gave %+v, uninterrupted %+v",
						name, dtype, i, v, w)
				}
			}
			entries, _ := filepath.Glob(filepath.Join(o.CheckpointPath, "step-*"))
			if len(entries) != 1 {
				t.Errorf("%s: %d checkpoints are left, want the last one", name, len(entries))
			}
			checkMetrics(t, o.LogPath, want)
		}
	}
}

// checkMetrics fails the test unless metrics.jsonl has each step and validation of want once.
func checkMetrics(t testing.TB, dir string, want *recorder) {
	t.Helper()
	steps, validation, err := report.ReadLosses(filepath.Join(dir, report.MetricsFile))
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) != len(want.steps) || len(validation) != len(want.validations) {
		t.Fatalf("%d steps and %d validations, want %d and %d", len(steps), len(validation),
			len(want.steps), len(want.validations))
	}
	for i, s := range steps {
		if s.Step != i+1 || s.Loss != want.steps[i].Loss {
			t.Errorf("line of step %v has loss %v, want step %d and %v", s.Step, s.Loss, i+1,
				want.steps[i].Loss)
		}
	}
	for i, v := range validation {
		if v.Step != want.validations[i].Step || v.Loss != want.validations[i].Loss {
			t.Errorf("the validation of step %v has loss %v, want %+v",
				v.Step, v.Loss, want.validations[i])
		}
	}
}

func TestResume_NamesDifferences(t *testing.T) {
	noLeaks(t)
	data, valid := samples(16, 1), samples(5, 2)
	o := options()
	o.CheckpointPath = filepath.Join(t.TempDir(), "c")
	interrupted(t, tiny(t, true, torch.Float32), data, valid, o, 2)
	attempt := func(m model.Model, data, valid *dataset.Dataset, o Options) error {
		tr, err := New(m, data, valid, o)
		if err == nil {
			tr.Close()
			m = tr.Model()
		}
		free(m)
		return err
	}
	if err := attempt(tiny(t, true, torch.Float32), data, valid, o); err == nil ||
		!strings.Contains(err.Error(), "resume it") {
		t.Errorf("a second run into the same folder gave %v", err)
	}
	o.Resume = true
	for want, change := range map[string]func(o *Options){
		"batch_size 4 (now 2)":         func(o *Options) { o.BatchSize = 2 },
		"learning_rate 0.003 (now 1)":  func(o *Options) { o.Rate = 1 },
		"lora none (now {\"rank\":4":   func(o *Options) { o.LoRA = adapterConfig() },
		"schedule \"cosine\" (now \"l": func(o *Options) { o.Schedule = "linear" },
	} {
		changed := o
		change(&changed)
		if err := attempt(tiny(t, true, torch.Float32), data, valid, changed); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	short := o
	short.Steps = 1
	for want, err := range map[string]error{
		"other data": attempt(tiny(t, true, torch.Float32), samples(16, 9), valid, o),
		"after step 2, and the run would end after step 1": attempt(tiny(t, true, torch.Float32),
			data, valid, short),

		"dtype float32 (now bfloat16)":    attempt(tiny(t, true, torch.BFloat16), data, valid, o),
		"tie_word_embeddings true (now f": attempt(tiny(t, false, torch.Float32), data, valid, o),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	if err := attempt(tiny(t, true, torch.Float32), data, valid, o); err != nil {
		t.Errorf("the same run was not resumed: %v", err)
	}
}

func TestResume_RefusesAdapterOnOtherWeights(t *testing.T) {
	noLeaks(t)
	o := options()
	o.CheckpointPath, o.LoRA, o.Resume = filepath.Join(t.TempDir(), "c"), adapterConfig(), true
	interrupted(t, tiny(t, true, torch.Float32), samples(16, 1), nil, o, 2)
	m := tiny(t, true, torch.Float32)
	defer free(m)
	torch.Run(func() error { torch.NoGrad(func() { m.Head().Select(0, 0).Zero() }); return nil })
	if tr, err := New(m, samples(16, 1), nil, o); err == nil ||
		!strings.Contains(err.Error(), "base model's weights") {
		tr.Close()
		t.Errorf("got %v", err)
	}
}

func TestNew_RefusesFolderOfAnotherRun(t *testing.T) {
	noLeaks(t)
	o := options()
	o.CheckpointPath = filepath.Join(t.TempDir(), "c")
	m := tiny(t, true, torch.Float32)
	defer free(m)
	tr, err := New(m, samples(16, 1), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if _, err := New(m, samples(16, 1), nil, o); err == nil ||
		!strings.Contains(err.Error(), "another run") {
		t.Errorf("got %v", err)
	}
}

func TestSave_FullDiskKeepsOlderCheckpoint(t *testing.T) {
	for _, format := range []string{FormatHF, FormatNative} {
		t.Run(format, func(t *testing.T) { fillDisk(t, format) })
	}
}

func fillDisk(t *testing.T, format string) {
	noLeaks(t)
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=700k"); err != nil {
		t.Skip("needs a small file system: ", err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	data := samples(16, 1)
	o := options()
	o.CheckpointPath, o.CheckpointSteps, o.Resume, o.SaveFormat = filepath.Join(disk,
		"c"), 2, true, format
	m := tiny(t, true, torch.Float32)
	tr, err := New(m, data, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{after: func(s Step) {
		if s.Step == 3 { // leave too little for a second checkpoint
			if err := tr.finishSaving(); err != nil {
				t.Error(err)
			}
			os.WriteFile(filepath.Join(disk, "filler"), make([]byte, 350<<10), 0o666)
		}
	}}
	tr.Listen(r)
	err = tr.Run(context.Background())
	tr.Close()
	free(m)
	if err == nil || !strings.Contains(err.Error(), "no space left") ||
		strings.Contains(err.Error(), "\n") {
		t.Fatalf("a full disk gave %v", err)
	}
	os.Remove(filepath.Join(disk, "filler"))
	want := train(t, tiny(t, true, torch.Float32), data, nil, options(), nil)
	again := train(t, tiny(t, true, torch.Float32), data, nil, o, nil)
	if first := again.steps[0]; first.Step != 3 || first.Loss != want.steps[2].Loss {
		t.Errorf("resumed at %+v, want step 3 with loss %v", first, want.steps[2].Loss)
	}
}

// childVariable names the folder in which a child process trains, until it is done or killed.
const childVariable = "CONQUER_TRAIN_TEST_CHILD"

func childOptions(dir string) Options {
	o := options()
	o.Steps, o.ValidateSteps, o.CheckpointSteps, o.Keep, o.Resume = 400, 50, 7, 2, true
	o.CheckpointPath, o.LogPath = filepath.Join(dir, "checkpoints"), filepath.Join(dir, "log")
	return o
}

func childRun(dir string) {
	tr, err := New(tiny(&testing.T{}, true, torch.Float32), samples(22, 1), samples(5, 2),
		childOptions(dir))
	if err == nil {
		err = tr.Run(context.Background())
		tr.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestResume_AfterKillAtAnyMoment(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes: left out by -short")
	}
	uninterrupted := childOptions("")
	uninterrupted.CheckpointPath, uninterrupted.LogPath, uninterrupted.Resume = "", "", false
	m := tiny(t, true, torch.Float32)
	want := train(t, m, samples(22, 1), samples(5, 2), uninterrupted, nil)

	draw := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	const enough = 8
	// On a fast machine a run may end before that many kills. Then another run starts.
	for kills, runs := 0, 0; kills < enough; runs++ {
		if runs == 20 {
			t.Fatalf("%d runs were killed only %d times", runs, kills)
		}
		dir := t.TempDir()
		for ended := false; !ended; {
			if err := killedRun(dir, kills < enough, draw); err == errKilled {
				kills++
			} else if err != nil {
				t.Fatalf("after %d kills the run failed: %v", kills, err)
			} else {
				ended = true
			}
		}
		checkMetrics(t, childOptions(dir).LogPath, want)
	}
}

var errKilled = errors.New("killed")

// killedRun runs a child in dir and, if kill is set, kills it at a random moment. It returns
// errKilled if the child had not ended before.
func killedRun(dir string, kill bool, draw *rand.Rand) error {
	child := exec.Command(os.Args[0], "-test.run=none")
	child.Env = append(os.Environ(), childVariable+"="+dir)
	var output bytes.Buffer
	child.Stderr = &output
	if err := child.Start(); err != nil {
		return err
	}
	if kill {
		waitForProgress(dir, draw)
		child.Process.Kill()
	}
	err := child.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if exit.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
			return errKilled
		}
		return errors.New(output.String())
	}
	return err
}

// waitForProgress waits until a child has written something, and then for a random time, up to that
// of a few checkpoints.
func waitForProgress(dir string, draw *rand.Rand) {
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "log", report.MetricsFile))
		if err != nil {
			return 0
		}
		return info.ModTime().UnixNano()
	}
	before := size()
	for range 2000 {
		if size() != before {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(time.Duration(math.Pow(draw.Float64(), 2) * float64(250*time.Millisecond)))
}
