package train

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/optim"
)

// After 50 steps, the loss with bfloat16 or int8 moments is within 3 % of that with float32
// moments. Lion lowers the loss at least half as far as AdamW.
func TestOptimizer_SmallMomentsFollowFloat32(t *testing.T) {
	noLeaks(t)
	data, valid := samples(200, 1), samples(20, 2)
	end := func(change func(*Options), dtype torch.DType) (first, last float64) {
		o := options()
		o.Steps = 50
		change(&o)
		r := train(t, tiny(t, true, dtype), data, valid, o, nil)
		return r.validations[0].Loss, r.validations[len(r.validations)-1].Loss
	}
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		if testing.Short() && dtype != torch.Float32 {
			continue
		}
		first, want := end(func(*Options) {}, dtype)
		for _, moments := range []string{optim.BFloat16, optim.Int8} {
			_, got := end(func(o *Options) { o.Moments = moments }, dtype)
			if t.Logf("%v: from %.4f to %.4f, with moments in %s to %.4f", dtype, first, want,
				moments, got); math.Abs(
				got-want,
			) > 0.03*want {
				t.Errorf("%v: %s moments lead from %v to %v, float32 to %v", dtype, moments,
					first, got, want)
			}
		}
		_, got := end(func(o *Options) { o.Optimizer, o.Rate = optim.Lion, 1e-3 }, dtype)
		if t.Logf("%v: with Lion to %.4f", dtype, got); got > first-0.5*(first-want) {
			t.Errorf("%v: Lion lowers the loss from %v to %v, AdamW to %v", dtype, first, got, want)
		}
	}
}

// Each optimizer's state is saved and restored bit by bit, in both formats.
func TestOptimizer_ResumeIsBitEqual(t *testing.T) {
	if testing.Short() {
		t.Skip("resumes runs: left out by -short")
	}
	noLeaks(t)
	data := samples(22, 1)
	for _, format := range []string{FormatHF, FormatNative} {
		for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
			for name, change := range map[string]func(*Options){
				"bfloat16": func(o *Options) { o.Moments = optim.BFloat16 },
				"int8":     func(o *Options) { o.Moments = optim.Int8 },
				"LoRA, int8": func(o *Options) {
					o.LoRA, o.Moments = adapterConfig(), optim.Int8
				},
				"lion":       func(o *Options) { o.Optimizer, o.Rate = optim.Lion, 1e-3 },
				"stochastic": func(o *Options) { o.Stochastic = true },
				"stochastic, int8": func(o *Options) {
					o.Stochastic, o.Moments = true, optim.Int8
				},
				"muon": func(o *Options) { o.Optimizer = optim.Muon },
				"LoRA, muon": func(o *Options) {
					o.LoRA, o.Optimizer = adapterConfig(), optim.Muon
				},
			} {
				what := fmt.Sprint(name, " ", dtype, " ", format)
				if strings.HasPrefix(name, "stochastic") && dtype == torch.Float32 {
					continue // there is nothing to round
				}
				o := options()
				o.Steps = 9
				change(&o)
				want := train(t, tiny(t, true, dtype), data, nil, o, nil)
				o.CheckpointPath, o.SaveFormat, o.Resume = filepath.Join(t.TempDir(),
					"c"), format, true
				steps := interrupted(t, tiny(t, true, dtype), data, nil, o, 5).steps
				steps = append(steps, train(t, tiny(t, true, dtype), data, nil, o, nil).steps...)
				for i, s := range steps {
					if w := want.steps[i]; s.Loss != w.Loss || s.Norm != w.Norm {
						t.Errorf("%s: step %d gave %v and %v, uninterrupted %v and %v", what, i+1,
							s.Loss, s.Norm, w.Loss, w.Norm)
						break
					}
				}
				o.Optimizer, o.Moments, o.Stochastic = optim.AdamW, optim.Float32, false
				m := tiny(t, true, dtype)
				if _, err := New(m, data, nil, o); err == nil ||
					!strings.Contains(err.Error(), "differs from the one to resume") {
					t.Errorf("%s: another optimizer resumed: %v", what, err)
				}
				free(m)
			}
		}
	}
}

// A sharded run with 8-bit moments resumes bit by bit in a world of the same size, and
// approximately in another.
func TestOptimizer_ShardedInt8MomentsResume(t *testing.T) {
	skipWorlds(t)
	sharded, divided := spec(), spec()
	sharded.Distributed, sharded.Options.Moments, sharded.Options.Steps = FSDP, optim.Int8, 12
	divided.Distributed, divided.TensorSize = TP, 2
	divided.Options.Moments, divided.Options.Steps = optim.Int8, 8
	interrupted := func(s runSpec, stop int) (first, second runSpec) {
		s.Checkpoints, s.StopAt = filepath.Join(t.TempDir(), "c"), stop
		first, second = s, s
		second.StopAt, second.Resume = 0, true
		return first, second
	}
	first, second := interrupted(sharded, 6)
	firstDivided, secondDivided := interrupted(divided, 4)
	r := succeed(t, 2, sharded, first, second, divided, firstDivided, secondDivided)
	want := r[0]
	same(t, "fsdp in a world of 2", r[2], want, 0)
	same(t, "tp in a world of 2", r[5], r[3], 0)

	first, second = interrupted(sharded, 6)
	first.Options.BatchSize /= 2
	succeed(t, 4, first)
	other := succeed(t, 2, second)[0]
	if other.First != 6 {
		t.Fatalf("resumed after step %d", other.First)
	}
	for i, loss := range other.Losses {
		if math.Abs(loss-want.Losses[6+i]) > 0.05*want.Losses[6+i] {
			t.Errorf("step %d gave %v, in one world %v", 7+i, loss, want.Losses[6+i])
		}
	}
}

func TestOptions_NoDecaySelectsKinds(t *testing.T) {
	noLeaks(t)
	decaying := func(architecture string, kinds []string) (list []string) {
		m, err := runSpec{Architecture: architecture, DType: "float32", Tied: true}.model()
		if err != nil {
			t.Fatal(err)
		}
		o := options()
		o.NoDecay, o.Steps = kinds, 1
		train(t, m, samples(8, 1), nil, o, func(tr *Trainer) {
			for _, p := range tr.params {
				if !p.NoDecay {
					list = append(list, p.Name)
				}
			}
		})
		slices.Sort(list)
		return list
	}
	has := func(list []string, part string) bool {
		contains := func(name string) bool { return strings.Contains(name, part) }
		return slices.ContainsFunc(list, contains)
	}
	for _, architecture := range []string{"llama", "bamba"} {
		all, usual := decaying(architecture, []string{"none"}), decaying(architecture, nil)
		matrices := decaying(architecture, []string{"norm", "bias", "embedding"})
		if !has(all, "norm") || has(usual, "norm") || !has(usual, "embed_tokens") ||
			has(matrices, "embed_tokens") || !has(matrices, "q_proj") {
			t.Errorf("%s: decay of %v, %v, %v", architecture, all, usual, matrices)
		}
		rates := has(all, "A_log") && !has(usual, "A_log") && !has(usual, "dt_bias")
		if architecture == "bamba" && (!rates || !has(usual, "conv1d.weight")) {
			t.Errorf("%s: decay of %v, %v", architecture, all, usual)
		}
	}
	for want, spoil := range map[string]func(*Options){
		"unknown optimizer \"sgd\"": func(o *Options) { o.Optimizer = "sgd" },
		"unknown dtype \"int4\"":    func(o *Options) { o.Moments = "int4" },
		"--moments int8 is for adamw only": func(o *Options) {
			o.Optimizer, o.Moments = optim.Lion, optim.Int8
		},
		"--stochastic_rounding is for adamw only": func(o *Options) {
			o.Stochastic, o.Optimizer = true, optim.Lion
		},
		"muon needs whole matrices": func(o *Options) {
			o.Optimizer, o.Distributed = optim.Muon, FSDP
			o.World = &dist.World{Place: dist.Place{Size: 2, LocalSize: 2}}
		},
		"muon is for the matrices": func(o *Options) { o.Optimizer, o.HeadOnly = optim.Muon, true },
		"wsd, not constant":        func(o *Options) { o.Schedule, o.DecaySteps = "constant", 5 },

		"adapters are float32": func(o *Options) {
			o.Stochastic, o.LoRA = true, adapterConfig()
		},
		"keeps float32 master weights": func(o *Options) {
			o.Stochastic, o.OffloadOptimizer = true, true
		},
		"unknown kind \"head\"": func(o *Options) { o.NoDecay = []string{"norm", "head"} },
	} {
		o := options()
		spoil(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
