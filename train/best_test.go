package train

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/internal/state"
)

func TestEarlyStop_CountsValidationsWithoutImprovement(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for name, c := range map[string]struct {
		least  float64
		losses []float64 // after steps 0, 1, 2, …
		best   int
		stale  int
	}{
		"the first is not compared":   {0, []float64{1, 5}, 1, 0},
		"better":                      {0, []float64{9, 5, 4, 3}, 3, 0},
		"worse and equal":             {0, []float64{9, 5, 6, 5}, 1, 2},
		"better again":                {0, []float64{9, 5, 6, 4, 7}, 3, 1},
		"too little":                  {0.5, []float64{9, 5, 4.6, 4.5}, 3, 2},
		"little by little, but a lot": {0.5, []float64{9, 5, 4.6, 4.4}, 3, 0},
		"not finite":                  {0, []float64{9, nan, inf, 5, nan}, 3, 1},
		"never finite":                {0, []float64{9, nan, nan}, 0, 2},
	} {
		tr := &Trainer{options: Options{EarlyStop: 2, MinImprovement: c.least}}
		for step, loss := range c.losses {
			tr.judge(Validation{Step: step, Loss: loss})
		}
		if tr.best.Step != c.best || tr.best.Stale != c.stale || tr.stale() != (c.stale >= 2) {
			t.Errorf("%s: %+v, want step %d and %d", name, tr.best, c.best, c.stale)
		}
	}
}

func TestEarlyStop_EndsTheRun(t *testing.T) {
	noLeaks(t)
	o := options()
	o.Steps, o.ValidateSteps, o.EarlyStop, o.MinImprovement = 40, 2, 2, 100
	o.CheckpointPath, o.SaveAtEnd, o.Resume = filepath.Join(t.TempDir(), "c"), true, true
	data, valid := samples(22, 1), samples(5, 2)
	r := train(t, tiny(t, true, torch.Float32), data, valid, o, nil)
	if len(r.steps) != 6 || !strings.Contains(strings.Join(r.notice, "\n"),
		"stopped after step 6 of 40: the last 2 validations brought no improvement") {
		t.Errorf("%d steps, %q", len(r.steps), r.notice)
	}
	// A resumed run counts on: with patience for one more validation, it takes two more steps.
	if r = train(t, tiny(t, true, torch.Float32), data, valid, o, nil); len(r.steps) != 0 {
		t.Errorf("%d more steps", len(r.steps))
	}
	o.EarlyStop = 3
	if r = train(t, tiny(t, true, torch.Float32), data, valid, o, nil); len(r.steps) != 2 {
		t.Errorf("%d more steps with more patience", len(r.steps))
	}
}

// trainedWeights returns all weights of m and its adapters.
func trainedWeights(m model.Model) (list [][]float32) {
	torch.Run(func() error {
		for _, p := range nn.Params(m) {
			list = append(list, torch.Values[float32](p.Tensor))
		}
		for _, a := range lora.Adapters(m) {
			list = append(list, torch.Values[float32](a.A.Tensor),
				torch.Values[float32](a.B.Tensor))
		}
		return nil
	})
	return list
}

// The run, interrupted or not, ends with the weights of the best validation, and keeps their
// checkpoint besides the last one.
func TestKeepBest_MakesTheBestWeightsTheResult(t *testing.T) {
	noLeaks(t)
	for name, c := range map[string]struct {
		stopAt int
		change func(*Options)
	}{
		"hf":     {0, func(o *Options) {}},
		"native": {7, func(o *Options) { o.SaveFormat = FormatNative }},
		"LoRA":   {7, func(o *Options) { o.LoRA = adapterConfig() }},
		"LoRA native": {0, func(o *Options) {
			o.LoRA, o.SaveFormat = adapterConfig(), FormatNative
		}},
	} {
		o := options()
		o.Steps, o.ValidateSteps, o.CheckpointSteps, o.Keep, o.KeepBest = 12, 2, 3, 1, true
		o.CheckpointPath, o.Resume = filepath.Join(t.TempDir(), "c"), true
		c.change(&o)
		var best [][]float32
		if c.stopAt > 0 {
			takeBest(t, o, c.stopAt, &best)
		}
		takeBest(t, o, 0, &best)
		var names []string
		entries, _ := os.ReadDir(o.CheckpointPath)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		want := []string{"latest", "step-00000004", "step-00000009"}
		if !slices.Equal(names, want) {
			t.Errorf("%s: the checkpoints are %v, want %v", name, names, want)
		}
	}
}

// takeBest runs to the end or, if stopAt is not 0, to that step. best holds the weights after step
// 4.
func takeBest(t *testing.T, o Options, stopAt int, best *[][]float32) {
	t.Helper()
	m := tiny(t, true, torch.BFloat16)
	tr, err := New(m, samples(22, 1), samples(5, 2), o)
	if err != nil {
		t.Fatal(err)
	}
	defer free(m)
	defer tr.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	r := &recorder{after: func(s Step) {
		if s.Step == stopAt {
			stop()
		}
	}}
	tr.Listen(r)
	tr.Listen(&bestAt4{tr, best})
	err = tr.Run(ctx)
	if stopAt > 0 {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := trainedWeights(m); !slices.EqualFunc(got, *best, slices.Equal) {
		t.Error("the weights are not those of the best validation")
	}
	if !strings.Contains(strings.Join(r.notice, "\n"), "weights after step 4") {
		t.Errorf("the notices are %q", r.notice)
	}
	if err := tr.Save(); err == nil {
		t.Error("a checkpoint has the best weights and the last moments")
	}
}

// bestAt4 makes the validation after step 4 the best one.
type bestAt4 struct {
	tr   *Trainer
	best *[][]float32
}

func (s *bestAt4) Step(Step) error { return nil }
func (s *bestAt4) Validation(v Validation) error {
	if v.Step == 4 {
		*s.best = trainedWeights(s.tr.Model())
		s.tr.best = state.Best{Step: 4, Loss: -1, Mark: -1}
	}
	return nil
}
func (s *bestAt4) Notice(string) {}

func TestKeepBest_UnderEachStrategy(t *testing.T) {
	skipWorlds(t)
	var specs []runSpec
	for _, change := range []func(*runSpec){
		func(s *runSpec) { s.Distributed = FSDP },
		func(s *runSpec) { s.Distributed = PP },
		func(s *runSpec) { s.Distributed, s.TensorSize = TP, 2 },
		func(s *runSpec) { s.Distributed, s.Options.LoRA = DDP, adapterConfig() },
	} {
		s := spec()
		s.Options.Schedule, s.KeepBest = "constant", true
		s.Checkpoints = filepath.Join(t.TempDir(), "c")
		change(&s)
		specs = append(specs, s)
	}
	for i, got := range succeed(t, 2, specs...) {
		s := specs[i]
		n := 2
		if s.Distributed == PP || s.Distributed == TP {
			n = 1
		}
		s.Options.Steps = 8
		want := alone(t, s, n)
		if len(got.Losses) != 16 || len(got.Weights) != len(want.Weights) {
			t.Errorf("%s: %d steps, %d weights", s.Distributed, len(got.Losses), len(got.Weights))
		}
		for name, w := range want.Weights {
			near(t, s.Distributed+": "+name, got.Weights[name], w, 1e-2)
		}
	}
}

// A run that has ended continues to the losses of a longer one.
func TestSaveAtEnd_MoreStepsEqualALongerRun(t *testing.T) {
	noLeaks(t)
	data, valid := samples(22, 1), samples(5, 2)
	o := options()
	o.Steps, o.WarmupSteps, o.Schedule = 10, -1, "constant"
	want := train(t, tiny(t, true, torch.Float32), data, valid, o, nil)
	o.Steps = 6
	o.CheckpointPath, o.SaveAtEnd, o.Resume = filepath.Join(t.TempDir(), "c"), true, true
	train(t, tiny(t, true, torch.Float32), data, valid, o, nil)
	o.Steps = 10
	// Other validation data changes nothing in what is learned.
	got := train(t, tiny(t, true, torch.Float32), data, samples(5, 9), o, nil)
	if !slices.Equal(got.losses(), want.losses()[6:]) {
		t.Errorf("losses %v, want %v", got.losses(), want.losses()[6:])
	}
	if notices := strings.Join(got.notice, "\n"); !strings.Contains(notices,
		"the validation data differs from that before") {
		t.Errorf("%q", notices)
	}
	// The rates of a decaying schedule become those of the longer run.
	o = options()
	o.WarmupSteps = -1
	o.CheckpointPath, o.SaveAtEnd, o.Resume = filepath.Join(t.TempDir(), "c"), true, true
	train(t, tiny(t, true, torch.Float32), data, nil, o, nil)
	o.Steps = 40 // the default of a run of 40 steps would be 2 warm-up steps
	got = train(t, tiny(t, true, torch.Float32), data, nil, o, nil)
	if notices := strings.Join(got.notice, "\n"); !strings.Contains(notices,
		"40 steps now, and had 6: from step 7 on") {
		t.Errorf("%q", notices)
	}
	if rate, want := got.steps[0].Rate, o.Rate*(1+math.Cos(math.Pi*6/40))/2; math.Abs(
		rate-want) > 1e-3*want {
		t.Errorf("step 7 has the rate %g, want %g", rate, want)
	}
}

func TestNew_WantsValidationDataForTheBest(t *testing.T) {
	noLeaks(t)
	m := tiny(t, true, torch.Float32)
	defer free(m)
	o := options()
	for want, change := range map[string]func(*Options){
		"need validation data": func(o *Options) { o.EarlyStop = 1 },
		"neither can be":       func(o *Options) { o.MinImprovement = 1 },
		"no checkpoint path":   func(o *Options) { o.SaveAtEnd = true },
	} {
		changed := o
		change(&changed)
		if _, err := New(m, samples(16, 1), nil, changed); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// folderBytes is the size of the tensors' files below a folder.
func folderBytes(t *testing.T, dir string) (n int64) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		if info, _ := d.Info(); strings.HasSuffix(path, ".safetensors") {
			n += info.Size()
		}
		return nil
	})
	return n
}

// A run writes as many bytes as predicted. The headers of the files are not counted.
func TestCheckDisk_KnowsTheSizes(t *testing.T) {
	noLeaks(t)
	for name, change := range map[string]func(*Options){
		"hf":          func(o *Options) {},
		"native":      func(o *Options) { o.SaveFormat = FormatNative },
		"int8":        func(o *Options) { o.Moments = "int8" },
		"int8 native": func(o *Options) { o.Moments, o.SaveFormat = "int8", FormatNative },
		"stochastic":  func(o *Options) { o.Stochastic, o.SaveFormat = true, FormatNative },
		"lion":        func(o *Options) { o.Optimizer, o.SaveFormat = "lion", FormatNative },
		"LoRA":        func(o *Options) { o.LoRA = adapterConfig() },
		"LoRA native": func(o *Options) { o.LoRA, o.SaveFormat = adapterConfig(), "native" },
		"LoRA merged": func(o *Options) { o.LoRA = adapterConfig() },
		"head":        func(o *Options) { o.HeadOnly = true },
	} {
		o := options()
		o.Steps, o.SaveAtEnd, o.CheckpointPath = 1, true, filepath.Join(t.TempDir(), "c")
		change(&o)
		out := filepath.Join(t.TempDir(), "out")
		train(t, tiny(t, true, torch.BFloat16), samples(22, 1), nil, o, func(tr *Trainer) {
			export, merged := tr.Export, name == "LoRA merged"
			if merged {
				export = tr.ExportMerged
			}
			predicted, each := tr.resultBytes(merged), tr.checkpointBytes()
			if err := export(out); err != nil {
				t.Fatal(err)
			}
			for what, c := range map[string]struct{ got, want int64 }{
				"checkpoint": {each, folderBytes(t, o.CheckpointPath)},
				"result":     {predicted, folderBytes(t, out)},
			} {
				const headers = 40 << 10
				if c.got > c.want || c.got < c.want-headers {
					t.Errorf("%s: a %s of %d bytes, and there are %d", name, what, c.got, c.want)
				}
			}
		})
	}
}

func TestCheckDisk_ComparesWhatIsThereAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		need    diskNeed // checkpoints of 10, a result of 3
		same    bool
		free    int64
		stopped bool
		want    string
	}{
		"result alone":       {diskNeed{keep: 2}, true, 3, false, ""},
		"no room for it":     {diskNeed{keep: 2}, true, 2, false, "0.000 GB for the result"},
		"one save":           {diskNeed{saves: 1, keep: 2}, true, 13, false, ""},
		"one save too large": {diskNeed{saves: 1, keep: 2}, true, 12, false, "1 of"},
		"before one is removed": {diskNeed{saves: 9, keep: 2}, true, 29, false,
			"3 of 0.000 GB for checkpoints"},
		"enough":             {diskNeed{saves: 9, keep: 2}, true, 30, false, ""},
		"some are there":     {diskNeed{saves: 9, keep: 2, have: 2}, true, 10, false, ""},
		"apart":              {diskNeed{saves: 1, keep: 2}, false, 10, false, ""},
		"apart, too large":   {diskNeed{saves: 1, keep: 2}, false, 9, false, "1 of"},
		"if it is stopped":   {diskNeed{saves: 0, keep: 2}, true, 9, true, "1 of"},
		"stopped, with room": {diskNeed{saves: 0, keep: 2}, true, 10, true, ""},
		"unknown":            {diskNeed{saves: 9, keep: 2}, true, -1, false, ""},
	} {
		c.need.checkpoint, c.need.result = 10, 3
		p := place{path: "out", free: c.free, same: c.same}
		err := c.need.check([2]place{p, p}, c.stopped)
		if err == nil && c.want != "" || err != nil && (c.want == "" ||
			!strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestNative_HoldsTheEndsOfTurns(t *testing.T) {
	noLeaks(t)
	o := options()
	o.CheckpointPath, o.SaveFormat = filepath.Join(t.TempDir(), "c"), FormatNative
	o.SaveAtEnd = true
	m := tiny(t, true, torch.Float32)
	defer free(m)
	tr, err := New(m, samples(16, 1), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	tr.ends = []byte(`{"eos_token_id": [2, 7]}`)
	if err := tr.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	c, err := checkpoint.Open(tr.folder().Step(o.Steps))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := string(c.GenerationConfigJSON()); !strings.Contains(got, "[2, 7]") {
		t.Errorf("its generation config is %q", got)
	}
}
