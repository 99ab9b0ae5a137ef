package train_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/optim"
	"conquer/train"
	"conquer/train/plan"
)

// A plan for one device is within a tenth of what a run holds there.
// pattern returns a list of one pattern.
func pattern(t testing.TB, key string, value float64) lora.Patterns {
	p, err := lora.NewPattern(key, value)
	if err != nil {
		t.Fatal(err)
	}
	return lora.Patterns{p}
}

func TestPlan_OneDeviceMatchesRun(t *testing.T) {
	train.NoLeaks(t)
	const rows, length = 2, 256
	const selective = train.RecomputeSelective
	adapter := &lora.Config{Rank: 8, Alpha: 8, Targets: []string{lora.AllLinear}}
	upper := &lora.Config{Rank: 8, Layers: []int{3, 4, 5},
		Exclude: []string{"layers.3.mlp.up_proj"}, RankPattern: pattern(t, "(q|v)_proj", 200)}
	dora := &lora.Config{Rank: 8, DoRA: true}
	save := &lora.Config{Rank: 8, Layers: []int{5}, Save: []string{"lm_head"}}
	tokens := &lora.Config{Rank: 8, Tokens: []int{3, 4}}
	for i, c := range []struct {
		architecture string
		tied         bool
		dtype        torch.DType
		options      train.Options
	}{
		{"llama", false, torch.Float32, train.Options{}},
		{"llama", true, torch.BFloat16, train.Options{}},
		{"llama", false, torch.BFloat16, train.Options{Accumulate: 2}},
		{"llama", false, torch.Float32, train.Options{Recompute: train.RecomputeBlock}},
		{"llama", false, torch.Float32, train.Options{Recompute: train.RecomputeSelective}},
		{"llama", true, torch.BFloat16, train.Options{Recompute: selective, Accumulate: 2}},
		{"llama", false, torch.Float32, train.Options{Recompute: selective, LoRA: adapter}},
		{"llama", false, torch.Float32, train.Options{LoRA: adapter}},
		{"llama", false, torch.Float32, train.Options{LoRA: upper}},
		{"llama", false, torch.Float32, train.Options{LoRA: dora}},
		{"llama", false, torch.Float32, train.Options{LoRA: save}},
		{"llama", true, torch.Float32, train.Options{LoRA: tokens}},
		{"llama", false, torch.Float32, train.Options{HeadOnly: true}},
		{"llama", false, torch.BFloat16, train.Options{Moments: optim.Int8}},
		{"llama", true, torch.BFloat16, train.Options{Stochastic: true}},
		{"llama", false, torch.BFloat16, train.Options{Stochastic: true, Accumulate: 2}},
		{"llama", false, torch.Float32, train.Options{Optimizer: optim.Lion}},
		{"bamba", false, torch.Float32, train.Options{}},
		{"bamba", false, torch.BFloat16, train.Options{Recompute: train.RecomputeBlock}},
		{"bamba", false, torch.Float32, train.Options{Recompute: train.RecomputeSelective}},
	} {
		o := c.options
		name := fmt.Sprintf("%s tied=%v %v %s%s stochastic=%v accumulate=%d recompute=%s",
			c.architecture, c.tied, c.dtype, o.Optimizer, o.Moments, o.Stochastic, o.Accumulate,
			o.Recompute)
		name += fmt.Sprintf(" case=%d lora=%v head_only=%v", i, o.LoRA != nil, o.HeadOnly)
		t.Run(name, func(t *testing.T) {
			if testing.Short() && i%4 > 0 {
				t.Skip("-short runs every fourth case")
			}
			m := train.PlannedModel(t, c.architecture, c.tied)
			plans, err := plan.Predict(m, plan.Options{
				BatchSize: rows, SequenceLength: length, Accumulate: o.Accumulate, DType: c.dtype,
				Recompute: o.Recompute, LoRA: o.LoRA, HeadOnly: o.HeadOnly, Optimizer: o.Optimizer,
				Moments: o.Moments, Stochastic: o.Stochastic,
			}, plan.Machine{
				GPUs: 1, PerHost: 1, Memory: 1, Rate: 1, Transfer: 1, Link: 1, Network: 1, Host: 1,
			})
			if err != nil {
				t.Fatal(err)
			}
			before, _ := torch.CPU.Memory()
			initialize := func() error { model.Initialize(m, c.dtype, torch.CPU); return nil }
			if err := torch.Run(initialize); err != nil {
				t.Fatal(err)
			}
			o.Steps, o.BatchSize, o.SequenceLength, o.Rate, o.Pack = 2, rows, length, 1e-4, true
			torch.CPU.ResetPeak()
			train.RunOnce(t, m, train.Samples(2000, 1), nil, o, nil)
			_, peak := torch.CPU.Memory()
			held, plan := float64(peak-before), plans[0]
			t.Logf("held %.1f MB, planned %.1f MB: %+v", held/1e6, plan.Peak/1e6, plan)
			scratch := 256e3 * float64(torch.Threads()) // of attention, per thread
			if math.Abs(plan.Peak-held) > 0.1*held+scratch {
				t.Errorf("a run held %.1f MB, the plan says %.1f MB", held/1e6, plan.Peak/1e6)
			}
		})
	}
}

// stagePlans predicts the run s for each of n processes.
func stagePlans(t *testing.T, s train.RunSpec, n int) []plan.Plan {
	t.Helper()
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		t.Fatal(err)
	}
	machine := plan.Machine{
		GPUs: n, PerHost: n, Memory: 1, Rate: 1, Transfer: 1, Link: 1, Network: 1, Host: 1,
	}
	if s.Distributed == train.HSDP {
		machine.PerHost = s.ShardSize
	}
	m := train.PlannedModel(t, strings.TrimPrefix(s.Architecture, "planned "), s.Tied)
	o := plan.Options{
		BatchSize: s.Options.BatchSize, SequenceLength: s.Options.SequenceLength,
		Accumulate: s.Options.Accumulate, DType: dtype, Recompute: s.Recompute,
		LoRA: s.Options.LoRA, HeadOnly: s.Options.HeadOnly,
		TensorSize: s.TensorSize, Stochastic: s.Options.Stochastic,
		OffloadOptimizer: s.Offload,
	}
	plans, err := plan.Predict(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	name := s.Distributed
	if s.TensorSize > 0 && name != train.TP {
		name += "+" + train.TP
	}
	i := slices.IndexFunc(plans, func(p plan.Plan) bool { return p.Strategy == name })
	if i < 0 || plans[i].Refused != "" {
		t.Fatalf("no plan for %s among %+v", name, plans)
	}
	if name != train.PP {
		return slices.Repeat(plans[i:i+1], n)
	}
	stages, err := plan.Stages(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	byPeak := func(a, b plan.Plan) int { return cmp.Compare(a.Peak, b.Peak) }
	fullest := slices.MaxFunc(stages, byPeak)
	if plans[i].Peak != fullest.Peak || plans[i].Weights != fullest.Weights {
		t.Errorf("the plan is %+v, that of the fullest stage %+v", plans[i], fullest)
	}
	return stages
}

// A plan for several processes is within a tenth of what each of them holds: between two steps, its
// part of the weights, of the optimizer's state and, if they are sharded, of the gradients; and at
// the peak, everything temporary too.
func TestPlan_ProcessesMatchWorld(t *testing.T) {
	train.SkipWorlds(t)
	adapter := &lora.Config{Rank: 8, Alpha: 8, Targets: []string{lora.AllLinear}}
	cases := []struct {
		name   string
		world  int
		change func(*train.RunSpec)
	}{
		{"fsdp", 2, func(s *train.RunSpec) {}},
		{"fsdp tied", 4, func(s *train.RunSpec) { s.Tied = true }},
		{"fsdp bamba bfloat16", 2, func(s *train.RunSpec) {
			s.Architecture, s.DType = "planned bamba", "bfloat16"
		}},
		{"fsdp bfloat16, stochastic rounding", 2, func(s *train.RunSpec) {
			s.DType, s.Options.Stochastic = "bfloat16", true
		}},
		{"fsdp selective", 2, func(s *train.RunSpec) { s.Recompute = train.RecomputeSelective }},
		{"fsdp alone, offloaded", 1, func(s *train.RunSpec) { s.Offload = true }},
		{"ddp tied bfloat16, stochastic rounding", 2, func(s *train.RunSpec) {
			s.Distributed, s.Tied, s.DType, s.Options.Stochastic = train.DDP, true, "bfloat16", true
		}},
		{"ddp bfloat16", 2, func(s *train.RunSpec) {
			s.Distributed, s.DType = train.DDP, "bfloat16"
		}},
		{"hsdp recomputed", 4, func(s *train.RunSpec) {
			s.Distributed, s.ShardSize, s.Recompute = train.HSDP, 2, train.RecomputeBlock
		}},
		{"hsdp bfloat16, offloaded, accumulated", 4, func(s *train.RunSpec) {
			s.Distributed, s.ShardSize, s.Offload = train.HSDP, 2, true
			s.DType, s.Options.Accumulate = "bfloat16", 2
		}},
		{"tp bfloat16", 4, func(s *train.RunSpec) {
			s.Distributed, s.TensorSize, s.DType = train.TP, 4, "bfloat16"
		}},
		{"tp selective", 2, func(s *train.RunSpec) {
			s.Distributed, s.TensorSize, s.Recompute = train.TP, 2, train.RecomputeSelective
		}},
		{"tp bamba recomputed", 2, func(s *train.RunSpec) {
			s.Distributed, s.TensorSize = train.TP, 2
			s.Architecture, s.Recompute = "planned bamba", train.RecomputeBlock
		}},
		{"tp tied, accumulated", 2, func(s *train.RunSpec) {
			s.Distributed, s.TensorSize, s.Tied, s.Options.Accumulate = train.TP, 2, true, 2
		}},
		{"fsdp and tp", 4, func(s *train.RunSpec) { s.TensorSize = 2 }},
		{"pp", 2, func(s *train.RunSpec) { s.Distributed = train.PP }},
		{"pp selective, accumulated twice", 2, func(s *train.RunSpec) {
			s.Distributed, s.Recompute, s.Options.Accumulate = train.PP, train.RecomputeSelective, 2
		}},
		{"pp tied bfloat16, accumulated", 2, func(s *train.RunSpec) {
			s.Distributed, s.Tied, s.DType, s.Options.Accumulate = train.PP, true, "bfloat16", 6
		}},
		{"pp accumulated", 4, func(s *train.RunSpec) {
			s.Distributed, s.Options.Accumulate = train.PP, 8
		}},
		{"pp bamba recomputed, accumulated", 3, func(s *train.RunSpec) {
			s.Distributed, s.Architecture = train.PP, "planned bamba"
			s.Recompute, s.Options.Accumulate = train.RecomputeBlock, 4
		}},
		{"pp LoRA", 2, func(s *train.RunSpec) {
			s.Distributed, s.Options.LoRA, s.Options.Accumulate = train.PP, adapter, 4
		}},
	}
	specs, results := map[int][]train.RunSpec{}, map[int][]train.Result{}
	for _, c := range cases {
		s := train.PlannedSpec()
		c.change(&s)
		specs[c.world] = append(specs[c.world], s)
	}
	for n, list := range specs {
		results[n] = train.Succeed(t, n, list...)
	}
	for _, c := range cases {
		s, r := specs[c.world][0], results[c.world][0]
		specs[c.world], results[c.world] = specs[c.world][1:], results[c.world][1:]
		for rank, p := range stagePlans(t, s, c.world) {
			held, peak := p.Weights+p.Optimizer+p.Host, p.Peak+p.Host
			if s.Distributed == train.FSDP || s.Distributed == train.HSDP {
				held += p.Gradients
			}
			t.Logf("%s, rank %d: %.1f MB between steps, planned %.1f; peak %.1f MB, planned %.1f",
				c.name, rank, r.Held[rank]/1e6, held/1e6, r.Peak[rank]/1e6, peak/1e6)
			if math.Abs(held/r.Held[rank]-1) > 0.1 {
				t.Errorf("%s: between steps process %d holds %.2f MB, the plan says %.2f MB",
					c.name, rank, r.Held[rank]/1e6, held/1e6)
			}
			if math.Abs(peak/r.Peak[rank]-1) > 0.1 {
				t.Errorf("%s: the peak of process %d is %.2f MB, the plan says %.2f MB",
					c.name, rank, r.Peak[rank]/1e6, peak/1e6)
			}
		}
	}
}
