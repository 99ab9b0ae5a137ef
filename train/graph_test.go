package train

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/optim"
	"conquer/train/internal/network"
)

// On the CPU a recorded pass runs as it is, on the recording's tensors and gradients. It must learn
// what operations launched one by one learn, for all shapes, accumulations and objectives.
func TestReplayer_EqualsLaunchedSteps(t *testing.T) {
	noLeaks(t)
	for name, change := range map[string]func(*Options){
		"all weights": func(*Options) {},
		"accumulated": func(o *Options) { o.BatchSize, o.Accumulate = 1, 3 },
		"packed":      func(o *Options) { o.Pack = true },
		"dropout": func(o *Options) {
			o.LoRA, o.Recompute = adapterConfig(), RecomputeSelective
			o.LoRA.Dropout = 0.3
		},
		"head alone":    func(o *Options) { o.HeadOnly = true },
		"recomputed":    func(o *Options) { o.Recompute, o.Clip = RecomputeBlock, 0.1 },
		"smoothed":      func(o *Options) { o.LabelSmoothing, o.ZLoss = 0.1, 1e-2 },
		"lion":          func(o *Options) { o.Optimizer, o.Rate = optim.Lion, 1e-4 },
		"preferences":   func(o *Options) { o.Objective, o.Rate = DPO, 1e-4 },
		"rated answers": func(o *Options) { o.Objective, o.Rate = KTO, 1e-4 },
		"odds ratios": func(o *Options) {
			o.Objective, o.Rate, o.BatchSize, o.Accumulate = ORPO, 1e-4, 2, 2
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(compile Compile) (r *recorder, shapes int) {
				o := options()
				o.Steps, o.Compile = 10, compile
				change(&o)
				data := samples(30, 3)
				if o.Layout() == dataset.Preference {
					data = pairs(30, 3)
				}
				if o.Layout() == dataset.Rated {
					data = rated(30, 3)
				}
				r = train(t, tiny(t, true, torch.Float32), data, nil, o, func(tr *Trainer) {
					if tr.replayer != nil {
						shapes = tr.replayer.Shapes()
					}
				})
				return r, shapes
			}
			want, none := run(CompileNone)
			got, shapes := run(CompileGraph)
			if none != 0 || shapes < 2 {
				t.Errorf("%d and %d shapes were prepared for recording, expected none and several",
					none, shapes)
			}
			for i, w := range want.steps {
				g := got.steps[i]
				if math.Abs(g.Loss-w.Loss) > 1e-4*(1+w.Loss) ||
					math.Abs(g.Norm-w.Norm) > 2e-3*w.Norm ||
					g.Tokens != w.Tokens {
					t.Errorf("step %d: %+v, launched one by one %+v", i+1, g, w)
				}
				if len(g.Measures) != len(w.Measures) {
					t.Fatalf("step %d: %v, launched one by one %v", i+1, g.Measures, w.Measures)
				}
				for k, m := range w.Measures {
					if math.Abs(g.Measures[k].Value-m.Value) > 1e-3*(1+math.Abs(m.Value)) {
						t.Errorf("step %d: %v, launched one by one %v", i+1, g.Measures, w.Measures)
					}
				}
			}
		})
	}
}

// Shapes beyond network.MaxRecordings run as they would without recording.
func TestReplayer_ManyShapesEqualLaunchedSteps(t *testing.T) {
	noLeaks(t)
	data := &dataset.Dataset{}
	for length := 3; length < 60; length++ {
		var s dataset.Sample
		for i := range length {
			id := int32(i * i % vocabulary)
			s.IDs, s.Labels = append(s.IDs, id), append(s.Labels, id)
		}
		data.Samples = append(data.Samples, s)
	}
	run := func(compile Compile) *recorder {
		o := options()
		o.Steps, o.BatchSize, o.SequenceLength, o.Compile = 50, 1, 60, compile
		return train(t, tiny(t, false, torch.Float32), data, nil, o, func(tr *Trainer) {
			if compile == CompileGraph && tr.replayer.Shapes() != network.MaxRecordings {
				t.Errorf("%d shapes were prepared for recording", tr.replayer.Shapes())
			}
		})
	}
	want, got := run(CompileNone), run(CompileGraph)
	for i := range want.steps {
		if math.Abs(got.steps[i].Loss-want.steps[i].Loss) > 1e-4*(1+want.steps[i].Loss) {
			t.Errorf("step %d: loss %v, launched one by one %v", i+1, got.steps[i].Loss,
				want.steps[i].Loss)
		}
	}
}

// A step without labels does not change the weights, also if gradients exist and are zero.
func TestTrainer_StepWithoutLabelsChangesNothing(t *testing.T) {
	noLeaks(t)
	for _, compile := range []Compile{CompileNone, CompileGraph} {
		data := samples(2, 1)
		for _, s := range data.Samples {
			for i := range s.Labels {
				s.Labels[i] = dataset.IgnoreLabel
			}
		}
		m := tiny(t, true, torch.Float32)
		o := options()
		o.Steps, o.Decay, o.Compile = 2, 0.5, compile
		weight := func() []float32 {
			var list []float32
			read := func() error { list = torch.Values[float32](m.Head().Detach()); return nil }
			if err := torch.Run(read); err != nil {
				t.Fatal(err)
			}
			return list
		}
		want := weight()
		tr, err := New(m, data, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(weight(), want) {
			t.Errorf("compile %s: the weights changed", compile)
		}
		tr.Close()
		model.Free(m)
	}
}

func TestOptions_RefusesUnrecordableSteps(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"unknown value \"jit\"":     func(o *Options) { o.Compile = "jit" },
		"works in one process only": func(o *Options) { o.Distributed = DDP },
		"cannot record dropout with --recompute block": func(o *Options) {
			o.Recompute, o.LoRA = RecomputeBlock, adapterConfig()
			o.LoRA.Dropout = 0.1
		},
	} {
		o := options()
		o.Compile = CompileGraph
		change(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
