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

// What a plan says about one device is what a run holds there, within a tenth.
func TestPlan_OneDeviceMatchesRun(t *testing.T) {
	train.NoLeaks(t)
	const rows, length = 4, 256
	for _, c := range []struct {
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
		{"llama", true, torch.BFloat16, train.Options{Recompute: train.RecomputeSelective, Accumulate: 2}},
		{"llama", false, torch.Float32, train.Options{Recompute: train.RecomputeSelective, LoRA: &lora.Config{Rank: 8, Alpha: 8, Targets: []string{lora.AllLinear}}}},
		{"llama", false, torch.Float32, train.Options{LoRA: &lora.Config{Rank: 8, Alpha: 8, Targets: []string{lora.AllLinear}}}},
		{"llama", false, torch.Float32, train.Options{HeadOnly: true}},
		{"llama", false, torch.BFloat16, train.Options{Moments: optim.Int8}},
		{"llama", true, torch.BFloat16, train.Options{Stochastic: true}},
		{"llama", false, torch.BFloat16, train.Options{Stochastic: true, Accumulate: 2}},
		{"llama", false, torch.Float32, train.Options{Optimizer: optim.Lion}},
		{"bamba", false, torch.Float32, train.Options{}},
		{"bamba", false, torch.BFloat16, train.Options{Recompute: train.RecomputeBlock}},
		{"bamba", false, torch.Float32, train.Options{Recompute: train.RecomputeSelective}},
	} {
		name := fmt.Sprintf(
			"%s tied=%v %v %s%s stochastic=%v accumulate=%d recompute=%s lora=%v head_only=%v",
			c.architecture,
			c.tied,
			c.dtype,
			c.options.Optimizer,
			c.options.Moments,
			c.options.Stochastic,
			c.options.Accumulate,
			c.options.Recompute,
			c.options.LoRA != nil,
			c.options.HeadOnly,
		)
		t.Run(name, func(t *testing.T) {
			m := train.PlannedModel(t, c.architecture, c.tied)
			plans, err := plan.Predict(
				m,
				plan.Options{
					BatchSize:      rows,
					SequenceLength: length,
					Accumulate:     c.options.Accumulate,
					DType:          c.dtype,
					Recompute:      c.options.Recompute,
					LoRA:           c.options.LoRA,
					HeadOnly:       c.options.HeadOnly,
					Optimizer:      c.options.Optimizer,
					Moments:        c.options.Moments,
					Stochastic:     c.options.Stochastic,
				},
				plan.Machine{
					GPUs:     1,
					PerHost:  1,
					Memory:   1,
					Rate:     1,
					Transfer: 1,
					Link:     1,
					Network:  1,
					Host:     1,
				},
			)
			if err != nil {
				t.Fatal(err)
			}
			before, _ := torch.CPU.Memory()
			if err := torch.Run(
				func() error { model.Initialize(m, c.dtype, torch.CPU); return nil },
			); err != nil {
				t.Fatal(err)
			}
			o := c.options
			o.Steps, o.BatchSize, o.SequenceLength, o.Rate, o.Pack = 2, rows, length, 1e-4, true
			torch.CPU.ResetPeak()
			train.RunOnce(t, m, train.Samples(2000, 1), nil, o, nil)
			_, peak := torch.CPU.Memory()
			held, plan := float64(peak-before), plans[0]
			t.Logf("held %.1f MB, planned %.1f MB: %+v", held/1e6, plan.Peak/1e6, plan)
			scratch := 256e3 * float64(torch.Threads()) // attention's, for each thread
			if math.Abs(plan.Peak-held) > 0.1*held+scratch {
				t.Errorf("a run held %.1f MB, the plan says %.1f MB", held/1e6, plan.Peak/1e6)
			}
		})
	}
}

// besidePlan runs s in a world of n processes, and plans it for each.
func besidePlan(t *testing.T, s train.RunSpec, n int) (train.Result, []plan.Plan) {
	t.Helper()
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		t.Fatal(err)
	}
	machine := plan.Machine{
		GPUs:     n,
		PerHost:  n,
		Memory:   1,
		Rate:     1,
		Transfer: 1,
		Link:     1,
		Network:  1,
		Host:     1,
	}
	if s.Distributed == train.HSDP {
		machine.PerHost = s.ShardSize
	}
	m := train.PlannedModel(t, strings.TrimPrefix(s.Architecture, "planned "), s.Tied)
	o := plan.Options{
		BatchSize:        s.Options.BatchSize,
		SequenceLength:   s.Options.SequenceLength,
		Accumulate:       s.Options.Accumulate,
		DType:            dtype,
		Recompute:        s.Recompute,
		LoRA:             s.Options.LoRA,
		HeadOnly:         s.Options.HeadOnly,
		TensorSize:       s.TensorSize,
		Stochastic:       s.Options.Stochastic,
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
	each := slices.Repeat(plans[i:i+1], n)
	if name == train.PP {
		if each, err = plan.Stages(m, o, machine); err != nil {
			t.Fatal(err)
		}
		fullest := slices.MaxFunc(
			each,
			func(a, b plan.Plan) int { return cmp.Compare(a.Peak, b.Peak) },
		)
		if plans[i].Peak != fullest.Peak || plans[i].Weights != fullest.Weights {
			t.Errorf("the plan is %+v, that of the fullest stage %+v", plans[i], fullest)
		}
	}
	return train.SucceedIn(t, s, n), each
}

// What a plan says about several processes is what each of them holds, within a tenth: between two
// steps, its part of the weights, of the optimizer's state and, where they are sharded, of the
// gradients; and at most, with what comes and goes.
func TestPlan_ProcessesMatchWorld(t *testing.T) {
	for what, c := range map[string]struct {
		world  int
		change func(*train.RunSpec)
	}{
		"fsdp 2":                            {2, func(s *train.RunSpec) {}},
		"fsdp 4 tied":                       {4, func(s *train.RunSpec) { s.Tied = true }},
		"fsdp 2 bamba bfloat16":             {2, func(s *train.RunSpec) { s.Architecture, s.DType = "planned bamba", "bfloat16" }},
		"fsdp 2 bfloat16 rounded at random": {2, func(s *train.RunSpec) { s.DType, s.Options.Stochastic = "bfloat16", true }},
		"ddp 2 tied bfloat16 rounded at random": {2, func(s *train.RunSpec) {
			s.Distributed, s.Tied, s.DType, s.Options.Stochastic = train.DDP, true, "bfloat16", true
		}},
		"ddp 2 bfloat16":    {2, func(s *train.RunSpec) { s.Distributed, s.DType = train.DDP, "bfloat16" }},
		"hsdp 4 recomputed": {4, func(s *train.RunSpec) { s.Distributed, s.ShardSize, s.Recompute = train.HSDP, 2, train.RecomputeBlock }},
		"tp 4 bfloat16":     {4, func(s *train.RunSpec) { s.Distributed, s.TensorSize, s.DType = train.TP, 4, "bfloat16" }},
		"fsdp 2 selective":  {2, func(s *train.RunSpec) { s.Recompute = train.RecomputeSelective }},
		"tp 2 selective": {2, func(s *train.RunSpec) {
			s.Distributed, s.TensorSize, s.Recompute = train.TP, 2, train.RecomputeSelective
		}},
		"tp 2 bamba recomputed": {2, func(s *train.RunSpec) {
			s.Distributed, s.TensorSize, s.Architecture, s.Recompute = train.TP, 2, "planned bamba", train.RecomputeBlock
		}},
		"tp 2 tied, accumulated": {2, func(s *train.RunSpec) {
			s.Distributed, s.TensorSize, s.Tied, s.Options.Accumulate = train.TP, 2, true, 2
		}},
		"fsdp and tp 2x2": {4, func(s *train.RunSpec) { s.TensorSize = 2 }},
		"hsdp 4 bfloat16, offloaded, accumulated": {4, func(s *train.RunSpec) {
			s.Distributed, s.ShardSize, s.Offload, s.DType, s.Options.Accumulate = train.HSDP, 2, true, "bfloat16", 2
		}},
		"fsdp alone, offloaded": {1, func(s *train.RunSpec) { s.Offload = true }},
		"mp 2":                  {2, func(s *train.RunSpec) { s.Distributed = train.PP }},
		"mp 2 selective, accumulated twice": {2, func(s *train.RunSpec) {
			s.Distributed, s.Recompute, s.Options.Accumulate = train.PP, train.RecomputeSelective, 2
		}},
		"mp 2 tied bfloat16, accumulated": {2, func(s *train.RunSpec) {
			s.Distributed, s.Tied, s.DType, s.Options.Accumulate = train.PP, true, "bfloat16", 6
		}},
		"mp 4 accumulated": {4, func(s *train.RunSpec) { s.Distributed, s.Options.Accumulate = train.PP, 8 }},
		"mp 3 bamba recomputed, accumulated": {3, func(s *train.RunSpec) {
			s.Distributed, s.Architecture, s.Recompute, s.Options.Accumulate = train.PP, "planned bamba", train.RecomputeBlock, 4
		}},
		"mp 2 LoRA": {2, func(s *train.RunSpec) {
			s.Distributed, s.Options.LoRA, s.Options.Accumulate = train.PP, &lora.Config{Rank: 8, Alpha: 8, Targets: []string{lora.AllLinear}}, 4
		}},
	} {
		s := train.PlannedSpec()
		c.change(&s)
		r, plans := besidePlan(t, s, c.world)
		for rank, plan := range plans {
			held, peak := plan.Weights+plan.Optimizer+plan.Host, plan.Peak+plan.Host
			if s.Distributed == train.FSDP || s.Distributed == train.HSDP {
				held += plan.Gradients
			}
			t.Logf(
				"%s, rank %d: %.1f MB between steps, planned %.1f MB; at most %.1f MB, planned %.1f MB",
				what,
				rank,
				r.Held[rank]/1e6,
				held/1e6,
				r.Peak[rank]/1e6,
				peak/1e6,
			)
			if math.Abs(held/r.Held[rank]-1) > 0.1 {
				t.Errorf(
					"%s: between steps process %d holds %.2f MB, the plan says %.2f MB",
					what,
					rank,
					r.Held[rank]/1e6,
					held/1e6,
				)
			}
			if math.Abs(peak/r.Peak[rank]-1) > 0.1 {
				t.Errorf(
					"%s: process %d holds %.2f MB at most, the plan says %.2f MB",
					what,
					rank,
					r.Peak[rank]/1e6,
					peak/1e6,
				)
			}
		}
	}
}
