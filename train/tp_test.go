package train

import (
	"testing"
)

func TestDividedLayersLearnWhatOneProcessLearns(t *testing.T) {
	for what, c := range map[string]struct {
		world, tensor int
		change        func(*runSpec)
	}{
		"2 llama":                            {2, 2, func(s *runSpec) {}},
		"2 llama untied, packed, recomputed": {2, 2, func(s *runSpec) { s.Tied, s.Options.Pack, s.Recompute = false, true, RecomputeBlock }},
		"2 bamba":                            {2, 2, func(s *runSpec) { s.Architecture = "bamba" }},
		"2x2 ddp bamba untied":               {4, 2, func(s *runSpec) { s.Architecture, s.Tied = "bamba", false }},
		"2x2 fsdp llama":                     {4, 2, func(s *runSpec) { s.Distributed = FSDP }},
		"2x2 fsdp bamba recomputed":          {4, 2, func(s *runSpec) { s.Distributed, s.Architecture, s.Recompute = FSDP, "bamba", RecomputeBlock }},
		"2 llama LoRA":                       {2, 2, func(s *runSpec) { s.Options.LoRA = lora() }},
		"2 bamba LoRA":                       {2, 2, func(s *runSpec) { s.Architecture, s.Options.LoRA = "bamba", lora() }},
		"2x2 fsdp llama LoRA":                {4, 2, func(s *runSpec) { s.Distributed, s.Options.LoRA = FSDP, lora() }},
		"2 llama head alone":                 {2, 2, func(s *runSpec) { s.Options.HeadOnly = true }},
		"2 llama preferences":                {2, 2, func(s *runSpec) { s.Options.Objective, s.Tied = DPO, false }},
		"2x2 fsdp bamba preferences":         {4, 2, func(s *runSpec) { s.Distributed, s.Architecture, s.Options.Objective = FSDP, "bamba", DPO }},
		"2 llama smoothed":                   {2, 2, func(s *runSpec) { s.Options.LabelSmoothing, s.Options.ZLoss = 0.1, 1e-2 }},
	} {
		t.Run(what, func(t *testing.T) {
			s := spec()
			s.Distributed, s.TensorSize = TP, c.tensor
			c.change(&s)
			same(t, what, succeedIn(t, s, c.world), alone(t, s, c.world/c.tensor), 2e-4)
		})
	}
}
