package train

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	"conquer/torch/optim"
)

func TestDividedLayersLearnWhatOneProcessLearns(t *testing.T) {
	for what, c := range map[string]struct {
		world, tensor int
		change        func(*runSpec)
	}{
		"2 llama untied, packed, recomputed": {2, 2, func(s *runSpec) { s.Tied, s.Options.Pack, s.Recompute = false, true, RecomputeBlock }},
		"4 bamba":                            {4, 4, func(s *runSpec) { s.Architecture = "bamba with 4 key heads" }},
		"2x2 bamba untied":                   {4, 2, func(s *runSpec) { s.Architecture, s.Tied = "bamba", false }},
		"2x2 fsdp llama":                     {4, 2, func(s *runSpec) { s.Distributed = FSDP }},
		"2x2 fsdp bamba LoRA recomputed": {4, 2, func(s *runSpec) {
			s.Distributed, s.Architecture, s.Options.LoRA, s.Recompute = FSDP, "bamba", lora(), RecomputeBlock
		}},
		"2 llama LoRA":           {2, 2, func(s *runSpec) { s.Options.LoRA = lora() }},
		"2 llama head, smoothed": {2, 2, func(s *runSpec) { s.Options.HeadOnly, s.Options.LabelSmoothing, s.Options.ZLoss = true, 0.1, 1e-2 }},
		"2 llama preferences":    {2, 2, func(s *runSpec) { s.Options.Objective, s.Options.Beta = DPO, 0.3 }},
		"2 llama odd rows":       {2, 2, func(s *runSpec) { s.Options.BatchSize, s.Options.SequenceLength = 1, 23 }},
	} {
		t.Run(what, func(t *testing.T) {
			s := spec()
			s.Distributed, s.TensorSize = TP, c.tensor
			c.change(&s)
			same(t, what, succeedIn(t, s, c.world), alone(t, s, c.world/c.tensor), 2e-4)
		})
	}
}

// Runs go on in worlds that divide the layers otherwise, also together with sharding, and end in one process.
func TestARunGoesOnUnderAnotherDivisionOfItsLayers(t *testing.T) {
	type part struct {
		strategy            string
		world, tensor, stop int
	}
	for what, c := range map[string]struct {
		change func(*runSpec)
		parts  []part
	}{
		"llama bfloat16": {func(s *runSpec) { s.DType = "bfloat16" }, []part{{FSDP, 4, 0, 5}, {TP, 2, 2, 9}, {FSDP, 4, 2, 13}}},
		"bamba untied":   {func(s *runSpec) { s.Architecture, s.Tied = "bamba", false }, []part{{TP, 4, 2, 5}, {TP, 2, 2, 13}}},
		"llama LoRA":     {func(s *runSpec) { s.Options.LoRA = lora() }, []part{{TP, 2, 2, 13}}},
	} {
		t.Run(what, func(t *testing.T) {
			s := spec()
			c.change(&s)
			s.Checkpoints, s.Every, s.Resume = filepath.Join(t.TempDir(), "c"), 100, true
			s.Options.BatchSize, s.Options.Accumulate = 4, 1
			want := alone(t, s, 1)
			for _, p := range c.parts {
				s.Distributed, s.TensorSize, s.Options.BatchSize, s.StopAt = p.strategy, p.tensor, 4*max(1, p.tensor)/p.world, p.stop
				if _, ends := launch(t, s, p.world); !strings.Contains(ends[0].stderr, "canceled") {
					t.Fatalf("%+v ended with %+v", p, ends)
				}
			}
			s.Distributed, s.TensorSize, s.Options.BatchSize, s.StopAt = None, 0, 4, 0
			last, err := s.run(nil)
			if err != nil {
				t.Fatal(err)
			}
			if last.First != 13 {
				t.Errorf("the last run began after step %d, want 13", last.First)
			}
			tolerance := 2e-4
			if s.DType == "bfloat16" {
				tolerance = 0.03
			}
			same(t, what, last, want, tolerance)
		})
	}
}

// What a process of those that divide the layers holds is what the plan says of it, within a tenth: between two steps, and at
// most.
func TestThePlanOfDividedLayersIsWhatEachProcessHolds(t *testing.T) {
	for what, c := range map[string]struct {
		world  int
		change func(*runSpec)
	}{
		"4 bfloat16":          {4, func(s *runSpec) { s.TensorSize, s.DType = 4, "bfloat16" }},
		"2 bamba recomputed":  {2, func(s *runSpec) { s.Architecture, s.Recompute = "planned bamba", RecomputeBlock }},
		"2 tied, accumulated": {2, func(s *runSpec) { s.Tied, s.Options.Accumulate = true, 2 }},
		"2x2 fsdp":            {4, func(s *runSpec) { s.Distributed = FSDP }},
	} {
		s := plannedSpec()
		s.Distributed, s.TensorSize = TP, 2
		c.change(&s)
		r, plan := s.besidePlan(t, c.world)
		t.Logf("%s: %.1f MB, at most %.1f MB; planned at most %.1f MB", what, r.Held/1e6, r.Peak/1e6, plan.Peak/1e6)
		planned := plan.Weights + plan.Optimizer
		if s.Distributed == FSDP {
			planned += plan.Gradients
		}
		if math.Abs(planned/r.Held-1) > 0.1 {
			t.Errorf("%s: between steps each process holds %.2f MB, the plan says %.2f MB", what, r.Held/1e6, planned/1e6)
		}
		if math.Abs(plan.Peak/r.Peak-1) > 0.1 {
			t.Errorf("%s: each process holds %.2f MB at most, the plan says %.2f MB", what, r.Peak/1e6, plan.Peak/1e6)
		}
	}
}

func TestCopiesThatWouldPartAreRefused(t *testing.T) {
	s := spec()
	s.Architecture, s.Distributed, s.TensorSize, s.Options.Moments = "bamba", TP, 2, optim.Int8
	if _, ends := launch(t, s, 2); ends[0].code != 1 || !strings.Contains(ends[0].stderr, "moments of 8 bits and stochastic rounding are not for") {
		t.Errorf("ended with %+v", ends)
	}
}
