package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train/internal/units"
)

func TestEveryStrategyLearnsWhatOneProcessLearns(t *testing.T) {
	for what, c := range map[string]struct {
		world  int
		change func(*runSpec)
	}{
		"ddp 2 llama":         {2, func(s *runSpec) { s.Distributed = DDP }},
		"ddp 4 bamba untied":  {4, func(s *runSpec) { s.Distributed, s.Architecture, s.Tied = DDP, "bamba", false }},
		"fsdp 1 llama":        {1, func(s *runSpec) { s.Distributed = FSDP }},
		"fsdp 2 llama packed": {2, func(s *runSpec) { s.Distributed, s.Options.Pack, s.Recompute = FSDP, true, RecomputeBlock }},
		"fsdp 4 bamba":        {4, func(s *runSpec) { s.Distributed, s.Architecture, s.Recompute = FSDP, "bamba", RecomputeSelective }},
		"fsdp 2 llama untied": {2, func(s *runSpec) { s.Distributed, s.Tied, s.Keep = FSDP, false, true }},
		"hsdp 4 llama":        {4, func(s *runSpec) { s.Distributed, s.ShardSize = HSDP, 2 }},
		"hsdp 4 bamba untied": {4, func(s *runSpec) { s.Distributed, s.ShardSize, s.Architecture, s.Tied = HSDP, 2, "bamba", false }},
		"ddp 2 llama LoRA":    {2, func(s *runSpec) { s.Distributed, s.Options.LoRA = DDP, adapterConfig() }},
		"mp 2 llama":          {2, func(s *runSpec) { s.Distributed, s.Options.Accumulate = PP, 4 }},
		"mp 4 bamba untied": {4, func(s *runSpec) {
			s.Distributed, s.Architecture, s.Tied, s.Recompute = PP, "deep bamba", false, RecomputeBlock
		}},
		"mp 4 llama packed": {4, func(s *runSpec) {
			s.Distributed, s.Architecture, s.Options.Pack, s.Recompute = PP, "deep llama", true, RecomputeSelective
		}},
		"mp 2 llama LoRA":          {2, func(s *runSpec) { s.Distributed, s.Options.LoRA = PP, adapterConfig() }},
		"mp 2 bamba head alone":    {2, func(s *runSpec) { s.Distributed, s.Architecture, s.Options.HeadOnly = PP, "bamba", true }},
		"mp 2 llama preferences":   {2, func(s *runSpec) { s.Distributed, s.Options.Objective = PP, DPO }},
		"ddp 2 llama preferences":  {2, func(s *runSpec) { s.Distributed, s.Options.Objective, s.Options.Pack = DDP, DPO, true }},
		"fsdp 2 bamba preferences": {2, func(s *runSpec) { s.Distributed, s.Architecture, s.Options.Objective = FSDP, "bamba", DPO }},
		"fsdp 2 llama LoRA":        {2, func(s *runSpec) { s.Distributed, s.Options.LoRA = FSDP, adapterConfig() }},
		"fsdp 2 llama head alone":  {2, func(s *runSpec) { s.Distributed, s.Options.HeadOnly = FSDP, true }},
		"ddp 2 llama head alone":   {2, func(s *runSpec) { s.Distributed, s.Options.HeadOnly = DDP, true }},
	} {
		t.Run(what, func(t *testing.T) {
			s := spec()
			c.change(&s)
			parts := c.world
			if s.Distributed == PP {
				parts = 1
			}
			same(t, what, succeedIn(t, s.fromFiles(t), c.world), alone(t, s, parts), 2e-4)
		})
	}
}

func TestDividedLayersLearnWhatOneProcessLearns(t *testing.T) {
	for what, c := range map[string]struct {
		world, tensor int
		change        func(*runSpec)
	}{
		"2 llama untied, packed, recomputed": {2, 2, func(s *runSpec) { s.Tied, s.Options.Pack, s.Recompute = false, true, RecomputeBlock }},
		"4 bamba":                            {4, 4, func(s *runSpec) { s.Architecture, s.Recompute = "bamba with 4 key heads", RecomputeSelective }},
		"2x2 bamba untied":                   {4, 2, func(s *runSpec) { s.Architecture, s.Tied = "bamba", false }},
		"2x2 fsdp llama":                     {4, 2, func(s *runSpec) { s.Distributed = FSDP }},
		"2x2 fsdp bamba LoRA recomputed": {4, 2, func(s *runSpec) {
			s.Distributed, s.Architecture, s.Options.LoRA, s.Recompute = FSDP, "bamba", adapterConfig(), RecomputeBlock
		}},
		"2 llama LoRA":           {2, 2, func(s *runSpec) { s.Options.LoRA = adapterConfig() }},
		"2 llama head, smoothed": {2, 2, func(s *runSpec) { s.Options.HeadOnly, s.Options.LabelSmoothing, s.Options.ZLoss = true, 0.1, 1e-2 }},
		"2 llama preferences":    {2, 2, func(s *runSpec) { s.Options.Objective, s.Options.Beta = DPO, 0.3 }},
		"2 llama odd rows":       {2, 2, func(s *runSpec) { s.Options.BatchSize, s.Options.SequenceLength = 1, 23 }},
	} {
		t.Run(what, func(t *testing.T) {
			s := spec()
			s.Distributed, s.TensorSize = TP, c.tensor
			c.change(&s)
			same(
				t,
				what,
				succeedIn(t, s.fromFiles(t), c.world),
				alone(t, s, c.world/c.tensor),
				2e-4,
			)
		})
	}
}

// Of a model that is read from files, a process never holds more than its part and one unit. Frozen
// weights show it, which have no averages that would take more memory than reading does.
func TestAProcessReadsItsPartOfTheFiles(t *testing.T) {
	m := plannedModel(t, "llama", false)
	whole, unit := float64(4*model.Parameters(m)), 0.0
	for _, params := range units.Of(m) {
		size := 0
		for _, p := range params {
			size += 4 * units.Elements(p.Shape)
		}
		unit = max(unit, float64(size))
	}
	for what, change := range map[string]func(*runSpec){
		"fsdp LoRA": func(s *runSpec) { s.Options.LoRA = adapterConfig() },
		"fsdp head": func(s *runSpec) { s.Options.HeadOnly = true },
		"tp LoRA":   func(s *runSpec) { s.Distributed, s.TensorSize, s.Options.LoRA = TP, 2, adapterConfig() },
		"mp LoRA":   func(s *runSpec) { s.Distributed, s.Options.LoRA = PP, adapterConfig() },
	} {
		s := plannedSpec()
		change(&s)
		r := succeedIn(t, s.fromFiles(t), 2)
		for rank, opened := range r.Opened {
			t.Logf(
				"%s: rank %d held %.1f MB while it opened a model of %.1f MB, and %.1f MB between steps",
				what,
				rank,
				opened/1e6,
				whole/1e6,
				r.Held[rank]/1e6,
			)
			if opened > r.Held[rank]+unit {
				t.Errorf(
					"%s: rank %d held %.1f MB to open a model of %.1f MB, of which it has %.1f MB, and a unit %.1f MB",
					what,
					rank,
					opened/1e6,
					whole/1e6,
					r.Held[rank]/1e6,
					unit/1e6,
				)
			}
		}
	}
}

func TestAWeightThatCannotBeReadIsAnError(t *testing.T) {
	noLeaks(t)
	m := tiny(t, true, torch.Float32)
	defer model.Free(m)
	params, gone := nn.Params(m), errors.New("the disk is gone")
	err := torch.Run(func() error {
		params[len(params)-1].Defer(torch.Float32, torch.CPU, func(*nn.Param) error { return gone })
		_, err := newSharded(units.Of(m), &dist.Group{Size: 2}, nil, Options{}, true)
		return err
	})
	if !errors.Is(err, gone) {
		t.Errorf("got %v, want %v", err, gone)
	}
}

func TestAPromiseOfWeightsThatFilesLackIsRefused(t *testing.T) {
	c, err := checkpoint.Open(spec().fromFiles(t).Files)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for want, change := range map[string]func(model.Config){
		"lacks 18 of the tensors": func(c model.Config) { c["num_hidden_layers"] = 5.0 },
		"config.json asks for":    func(c model.Config) { c["intermediate_size"] = 40.0 },
	} {
		config := model.Config(c.Config()).Clone()
		change(config)
		m, err := model.New(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := model.Defer(
			m,
			c,
			torch.Float32,
			torch.CPU,
		); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// Weights of 16 bits are rounded in other places than one process rounds them, so that only their
// course is the same.
func TestShardedBfloat16FollowsOneProcess(t *testing.T) {
	s := spec()
	s.DType, s.Distributed = "bfloat16", FSDP
	got, want := succeedIn(t, s, 2), alone(t, s, 2)
	for i := range want.Losses {
		if math.Abs(got.Losses[i]-want.Losses[i]) > 0.03*want.Losses[i] {
			t.Errorf("loss %d is %v, alone %v", i, got.Losses[i], want.Losses[i])
		}
	}
}

// While a block computes, the weights of the next one come, and the gradients of the one before go:
// a trace of rank 0 shows it.
func TestATraceShowsCommunicationBesideComputation(t *testing.T) {
	s := plannedSpec()
	s.Options.Steps = 3
	s.Trace = filepath.Join(t.TempDir(), "trace.json")
	succeedIn(t, s, 2)
	var trace struct {
		TraceEvents []struct {
			Name, Cat string
			TS, Dur   float64
		} `json:"traceEvents"`
	}
	data, err := os.ReadFile(s.Trace)
	if err == nil {
		err = json.Unmarshal(data, &trace)
	}
	if err != nil {
		t.Fatal(err)
	}
	type stretch struct{ from, to float64 }
	block, aside := map[string][]stretch{}, map[string][]stretch{}
	for _, e := range trace.TraceEvents {
		switch e.Cat {
		case "user_annotation":
			block[e.Name] = append(block[e.Name], stretch{e.TS, e.TS + e.Dur})
		case "communication":
			aside[e.Name] = append(aside[e.Name], stretch{e.TS, e.TS + e.Dur})
		}
	}
	// How often a transfer began just before a block did, that is, behind the block before it, and
	// was still under way then.
	beside := func(computing, communicating string) (began, overlapped int) {
		for _, b := range block[computing] {
			before := 0.0
			for name, list := range block {
				for _, other := range list {
					if strings.HasPrefix(name, "block ") && other.to < b.from {
						before = max(before, other.to)
					}
				}
			}
			for _, a := range aside[communicating] {
				if a.from > before && a.from < b.from {
					began++
					if a.to > b.from {
						overlapped++
					}
				}
			}
		}
		return began, overlapped
	}
	gathers, sums, steps := 0, 0, s.Options.Steps
	const blocks = 6
	for i := range blocks - 1 {
		began, overlapped := beside(
			fmt.Sprintf("block %d forward", i),
			fmt.Sprintf("gather block %d", i+1),
		)
		if gathers += overlapped; began != steps {
			t.Errorf(
				"block %d was gathered before block %d ran in %d of %d steps",
				i+1,
				i,
				began,
				steps,
			)
		}
		began, overlapped = beside(
			fmt.Sprintf("block %d backward", i),
			fmt.Sprintf("sum gradients of block %d", i+1),
		)
		if sums += overlapped; began != steps {
			t.Errorf(
				"the gradients of block %d went before block %d ran backward in %d of %d steps",
				i+1,
				i,
				began,
				steps,
			)
		}
	}
	t.Logf(
		"of %d times each: %d gathers and %d sums overlapped with computation",
		steps*(blocks-1),
		gathers,
		sums,
	)
	if gathers == 0 || sums == 0 {
		t.Errorf("%d gathers and %d sums overlapped with computation", gathers, sums)
	}
}

// With originals and averages in float32, what is learned differs by the rounding alone.
func TestShardedWeightsThatAreRoundedAtRandomHaveNoOriginals(t *testing.T) {
	s := plannedSpec()
	s.DType, s.Options.Steps = "bfloat16", 6
	want := succeedIn(t, s, 2)
	s.Options.Stochastic = true
	got := succeedIn(t, s, 2)
	for i, loss := range got.Losses {
		if w := want.Losses[i]; !(math.Abs(loss-w) < 0.01*w) {
			t.Errorf("step %d gave %v, with originals %v", i+1, loss, w)
		}
	}
	// A weight's original (4 bytes), gradient (4) and averages (8), or gradient (2) and averages
	// (4).
	less := 10 * float64(model.Parameters(plannedModel(t, "llama", false))) / 2
	for rank := range want.Held {
		if saved := (want.Held[rank] - got.Held[rank]) / less; saved < 0.95 || saved > 1.05 {
			t.Errorf(
				"rank %d holds %.1f MB, with originals %.1f MB",
				rank,
				got.Held[rank]/1e6,
				want.Held[rank]/1e6,
			)
		}
	}
}

// A stage holds its own layers, and the activations of no more micro-batches than there are stages
// behind it, itself included.
func TestAStageOfAPipelineHoldsItsPart(t *testing.T) {
	s := plannedSpec()
	s.Distributed, s.Options.Accumulate = PP, 3
	few := succeedIn(t, s, 2)
	s.Options.Accumulate = 8
	many := succeedIn(t, s, 2)
	whole := float64(16 * model.Parameters(plannedModel(t, "llama", false)))
	// Weights and both averages of the first of two stages; the second has the head.
	if part := few.Held[0] / (whole * 3 / 4); part < 0.4 || part > 0.6 {
		t.Errorf("the first of two stages holds %.1f MB of %.1f MB", few.Held[0]/1e6, whole*3/4e6)
	}
	t.Logf(
		"at most %.1f MB with 3 micro-batches, %.1f MB with 8",
		few.Peak[0]/1e6,
		many.Peak[0]/1e6,
	)
	if many.Peak[0] > 1.05*few.Peak[0] {
		t.Errorf(
			"with 8 micro-batches a stage holds %.1f MB at most, with 3 %.1f MB",
			many.Peak[0]/1e6,
			few.Peak[0]/1e6,
		)
	}
}

// For the export one process has all weights; the others have what they had, and what is on its
// way.
func TestOneProcessHoldsTheWholeModelForTheExport(t *testing.T) {
	for what, change := range map[string]func(*runSpec){
		"fsdp": func(s *runSpec) {},
		"tp":   func(s *runSpec) { s.Distributed, s.TensorSize = TP, 2 },
		"mp":   func(s *runSpec) { s.Distributed = PP },
	} {
		s := plannedSpec()
		change(&s)
		r := succeedIn(t, s, 2)
		whole := float64(4 * model.Parameters(plannedModel(t, "llama", false)))
		t.Logf(
			"%s: %.1f and %.1f MB between steps, %.1f and %.1f MB for the export of %.1f MB",
			what,
			r.Held[0]/1e6,
			r.Held[1]/1e6,
			r.Whole[0]/1e6,
			r.Whole[1]/1e6,
			whole/1e6,
		)
		if more := r.Whole[0] - r.Held[0]; more < whole/3 || more > 1.2*whole {
			t.Errorf(
				"%s: rank 0 takes %.1f MB more for the export of %.1f MB",
				what,
				more/1e6,
				whole/1e6,
			)
		}
		if more := r.Whole[1] - r.Held[1]; more > whole/3 {
			t.Errorf(
				"%s: rank 1 takes %.1f MB more while rank 0 exports %.1f MB",
				what,
				more/1e6,
				whole/1e6,
			)
		}
	}
}

func TestBlocksAreDividedOverStages(t *testing.T) {
	unit := func(n int) []*nn.Param { return []*nn.Param{nn.NewParam(nn.Zeros, n, 1)} }
	for _, c := range []struct {
		blocks []int
		head   int
		want   []int
	}{
		{[]int{1, 1, 1, 1}, 0, []int{0, 2, 4}},
		{[]int{1, 1, 1, 1}, 2, []int{0, 3, 4}},
		{[]int{1, 1, 1, 1}, 100, []int{0, 1, 2, 3, 4}},
		{[]int{100, 1, 1, 1}, 0, []int{0, 1, 2, 4}},
		{[]int{1, 1, 1, 1, 1, 1, 1, 1}, 0, []int{0, 2, 4, 6, 8}},
	} {
		list := [][]*nn.Param{nil}
		for _, n := range c.blocks {
			list = append(list, unit(n))
		}
		got, err := units.Stages(append(list, nil), c.head, len(c.want)-1)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v and a head of %d: %v, %v, want %v", c.blocks, c.head, got, err, c.want)
		}
	}
	if _, err := units.Stages(
		make([][]*nn.Param, 5),
		0,
		4,
	); err == nil ||
		!strings.Contains(err.Error(), "3 layers") {
		t.Errorf("3 layers over 4 processes: %v", err)
	}
}

func TestCopiesThatWouldPartAreRefused(t *testing.T) {
	s := spec()
	s.Architecture, s.Distributed, s.TensorSize, s.Options.Moments = "bamba", TP, 2, optim.Int8
	if _, ends := launch(
		t,
		s,
		2,
	); ends[0].code != 1 ||
		!strings.Contains(ends[0].stderr, "8-bit moments and stochastic rounding") {
		t.Errorf("ended with %+v", ends)
	}
}

func TestProcessesThatDoNotDoTheSameAreToldApart(t *testing.T) {
	s := spec()
	s.Distributed, s.Options.LoRA, s.Timeout = DDP, nil, 20*time.Second
	o := s.options()
	for want, change := range map[string]func(*Options){
		"unknown strategy": func(o *Options) { o.Distributed = "dpd" },
		"no run to take":   func(o *Options) { o.Distributed = FSDP },
	} {
		changed := o
		change(&changed)
		m := tiny(t, true, torch.Float32)
		if _, err := New(
			m,
			samples(8, 1),
			nil,
			changed,
		); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		model.Free(m)
	}
}
