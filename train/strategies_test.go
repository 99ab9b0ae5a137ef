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

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train/internal/units"
)

// worldCase is a run of several processes that must learn what one process learns.
type worldCase struct {
	name   string
	world  int
	change func(*runSpec)
}

var worldCases = []worldCase{
	{"ddp llama", 2, func(s *runSpec) { s.Distributed = DDP }},
	{"ddp llama LoRA", 2, func(s *runSpec) {
		s.Distributed, s.Options.LoRA = DDP, adapterConfig()
	}},
	{"ddp llama head alone", 2, func(s *runSpec) { s.Distributed, s.Options.HeadOnly = DDP, true }},
	{"ddp llama preferences", 2, func(s *runSpec) {
		s.Distributed, s.Options.Objective, s.Options.Pack = DDP, DPO, true
	}},
	{"ddp bamba untied", 4, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Tied = DDP, "bamba", false
	}},

	{"fsdp llama alone", 1, func(s *runSpec) { s.Distributed = FSDP }},
	{"fsdp llama packed", 2, func(s *runSpec) {
		s.Distributed, s.Options.Pack, s.Recompute = FSDP, true, RecomputeBlock
	}},
	{"fsdp llama untied, kept", 2, func(s *runSpec) {
		s.Distributed, s.Tied, s.Keep = FSDP, false, true
	}},
	{"fsdp llama LoRA", 2, func(s *runSpec) {
		s.Distributed, s.Options.LoRA = FSDP, adapterConfig()
	}},
	{"fsdp llama DoRA, PiSSA", 2, func(s *runSpec) {
		s.Distributed, s.Options.LoRA = FSDP, adapterConfig()
		s.Options.LoRA.DoRA, s.Options.LoRA.Init = true, lora.InitPiSSA
	}},
	{"fsdp llama LoRA, embedding", 2, func(s *runSpec) {
		s.Distributed, s.Options.LoRA = FSDP, adapterConfig()
		s.Options.LoRA.Save = []string{"embed_tokens"}
	}},
	{"ddp llama LoRA, tokens", 2, func(s *runSpec) {
		s.Distributed, s.Tied, s.Options.LoRA = DDP, false, adapterConfig()
		s.Options.LoRA.Tokens = []int{3, 7, 20}
	}},
	{"fsdp llama head alone", 2, func(s *runSpec) {
		s.Distributed, s.Options.HeadOnly = FSDP, true
	}},
	{"fsdp bamba preferences", 2, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Options.Objective = FSDP, "bamba", IPO
	}},
	{"fsdp llama rated answers", 2, func(s *runSpec) {
		s.Distributed, s.Options.Objective, s.Options.Pack = FSDP, KTO, true
	}},
	{"fsdp bamba", 4, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Recompute = FSDP, "bamba", RecomputeSelective
	}},

	{"ddp bamba carried", 2, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Options.CarryState = DDP, "bamba", true
	}},
	{"fsdp bamba carried, packed", 2, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Recompute = FSDP, "bamba", RecomputeBlock
		s.Options.CarryState, s.Options.Pack = true, true
	}},

	{"cp ddp llama", 2, func(s *runSpec) { s.Distributed, s.ContextSize = DDP, 2 }},
	{"cp ddp bamba", 3, func(s *runSpec) {
		s.Distributed, s.ContextSize, s.Architecture = DDP, 3, "bamba"
	}},
	{"cp fsdp bamba", 2, func(s *runSpec) {
		s.Distributed, s.ContextSize, s.Architecture, s.Tied = FSDP, 2, "bamba", false
	}},
	{"cp fsdp bamba, recomputed, two groups", 4, func(s *runSpec) {
		s.Distributed, s.ContextSize, s.Architecture = FSDP, 2, "deep bamba"
		s.Recompute = RecomputeBlock
	}},
	{"cp fsdp bamba LoRA, selective", 2, func(s *runSpec) {
		s.Distributed, s.ContextSize, s.Architecture = FSDP, 2, "bamba"
		s.Options.LoRA, s.Recompute = adapterConfig(), RecomputeSelective
	}},

	{"hsdp llama", 4, func(s *runSpec) { s.Distributed, s.ShardSize = HSDP, 2 }},
	{"hsdp bamba untied", 4, func(s *runSpec) {
		s.Distributed, s.ShardSize, s.Architecture, s.Tied = HSDP, 2, "bamba", false
	}},

	{"pp llama", 2, func(s *runSpec) { s.Distributed, s.Options.Accumulate = PP, 4 }},
	{"pp llama LoRA", 2, func(s *runSpec) { s.Distributed, s.Options.LoRA = PP, adapterConfig() }},
	{"pp llama PiSSA", 2, func(s *runSpec) {
		s.Distributed, s.Options.LoRA = PP, adapterConfig()
		s.Options.LoRA.Init = lora.InitPiSSA
	}},
	{"pp llama LoRA, tokens", 2, func(s *runSpec) {
		s.Distributed, s.Options.LoRA = PP, adapterConfig()
		s.Options.LoRA.Tokens = []int{3, 7, 20}
	}},
	{"pp llama preferences", 2, func(s *runSpec) { s.Distributed, s.Options.Objective = PP, ORPO }},
	{"pp llama rated answers", 2, func(s *runSpec) {
		s.Distributed, s.Options.Objective, s.Options.Accumulate = PP, KTO, 2
	}},
	{"pp bamba head alone", 2, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Options.HeadOnly = "mp", "bamba", true // pp's second name
	}},
	{"pp bamba untied", 4, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Tied, s.Recompute = PP, "deep bamba", false, RecomputeBlock
	}},
	{"pp llama packed", 4, func(s *runSpec) {
		s.Distributed, s.Architecture, s.Options.Pack = PP, "deep llama", true
		s.Recompute = RecomputeSelective
	}},

	{"tp llama untied, packed, recomputed", 2, func(s *runSpec) {
		s.Distributed, s.TensorSize = TP, 2
		s.Tied, s.Options.Pack, s.Recompute = false, true, RecomputeBlock
	}},
	{"tp llama LoRA", 2, func(s *runSpec) {
		s.Distributed, s.TensorSize, s.Options.LoRA = TP, 2, adapterConfig()
	}},
	{"tp llama head, smoothed", 2, func(s *runSpec) {
		s.Distributed, s.TensorSize = TP, 2
		s.Options.HeadOnly, s.Options.LabelSmoothing, s.Options.ZLoss = true, 0.1, 1e-2
	}},
	{"tp llama preferences", 2, func(s *runSpec) {
		s.Distributed, s.TensorSize, s.Options.Objective, s.Options.Beta = TP, 2, DPO, 0.3
	}},
	{"tp llama rated answers", 2, func(s *runSpec) {
		s.Distributed, s.TensorSize, s.Options.Objective = TP, 2, KTO
	}},
	{"tp llama odd rows", 2, func(s *runSpec) {
		s.Distributed, s.TensorSize, s.Options.BatchSize, s.Options.SequenceLength = TP, 2, 1, 23
	}},
	{"tp bamba", 4, func(s *runSpec) {
		s.Distributed, s.TensorSize = TP, 4
		s.Architecture, s.Recompute = "bamba with 4 key heads", RecomputeSelective
	}},
	{"tp and ddp bamba untied", 4, func(s *runSpec) {
		s.Distributed, s.TensorSize, s.Architecture, s.Tied = TP, 2, "bamba", false
	}},
	{"tp and fsdp llama", 4, func(s *runSpec) { s.Distributed, s.TensorSize = FSDP, 2 }},
	{"tp and fsdp bamba LoRA, recomputed", 4, func(s *runSpec) {
		s.Distributed, s.TensorSize, s.Architecture = FSDP, 2, "bamba"
		s.Options.LoRA, s.Recompute = adapterConfig(), RecomputeBlock
	}},
}

func TestStrategy_EqualsOneProcess(t *testing.T) {
	skipWorlds(t)
	specs := map[int][]runSpec{} // by world size
	for _, c := range worldCases {
		s := spec()
		s.Options.Steps = 6
		c.change(&s)
		specs[c.world] = append(specs[c.world], s)
	}
	results := map[int][]result{}
	for n, list := range specs {
		files := slices.Clone(list)
		for i := range files {
			files[i] = files[i].fromFiles(t)
		}
		results[n] = succeed(t, n, files...)
	}
	for _, c := range worldCases {
		s, got := specs[c.world][0], results[c.world][0]
		specs[c.world], results[c.world] = specs[c.world][1:], results[c.world][1:]
		t.Run(c.name, func(t *testing.T) {
			parts := c.world / max(1, s.TensorSize) / max(1, s.ContextSize)
			if StrategyName(s.Distributed) == PP {
				parts = 1
			}
			same(t, c.name, got, alone(t, s, parts), 2e-4)
		})
	}
}

// A process that reads a model from files never holds more than its part and one unit. Frozen
// weights show this: they have no moments, which would need more memory than reading.
func TestNew_ReadsOnlyThisProcessesPart(t *testing.T) {
	skipWorlds(t)
	m := plannedModel(t, "llama", false)
	whole, unit := float64(4*model.Parameters(m)), 0.0
	for _, params := range units.Of(m) {
		size := 0
		for _, p := range params {
			size += 4 * units.Elements(p.Shape)
		}
		unit = max(unit, float64(size))
	}
	names := []string{"fsdp LoRA", "fsdp head", "tp LoRA", "pp LoRA"}
	specs := make([]runSpec, len(names))
	for i, change := range []func(*runSpec){
		func(s *runSpec) { s.Options.LoRA = adapterConfig() },
		func(s *runSpec) { s.Options.HeadOnly = true },
		func(s *runSpec) { s.Distributed, s.TensorSize, s.Options.LoRA = TP, 2, adapterConfig() },
		func(s *runSpec) { s.Distributed, s.Options.LoRA = PP, adapterConfig() },
	} {
		s := plannedSpec()
		change(&s)
		specs[i] = s.fromFiles(t)
	}
	for i, r := range succeed(t, 2, specs...) {
		for rank, opened := range r.Opened {
			t.Logf("%s: rank %d held %.1f MB to open a model of %.1f MB, and %.1f MB between steps",
				names[i], rank, opened/1e6, whole/1e6, r.Held[rank]/1e6)
			if opened > r.Held[rank]+unit {
				t.Errorf("%s: rank %d held %.1f MB to open %.1f MB and a unit of %.1f MB",
					names[i], rank, opened/1e6, r.Held[rank]/1e6, unit/1e6)
			}
		}
	}
}

func TestFSDP_ReportsUnreadableWeights(t *testing.T) {
	noLeaks(t)
	m := tiny(t, true, torch.Float32)
	defer model.Free(m)
	params, gone := nn.Params(m), errors.New("the disk is gone")
	last := params[len(params)-1]
	err := torch.Run(func() error {
		last.Defer(torch.Float32, torch.CPU, func(*nn.Param) error { return gone })
		_, err := newSharded(units.Of(m), &dist.Group{Size: 2}, nil, Options{}, true)
		return err
	})
	if !errors.Is(err, gone) {
		t.Errorf("got %v, want %v", err, gone)
	}
}

func TestDefer_RefusesFilesThatLackWeights(t *testing.T) {
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
		err = model.Defer(m, c, torch.Float32, torch.CPU)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// Sharding changes where 16-bit weights are rounded, so only the course of the loss is the same.
func TestFSDP_BFloat16FollowsOneProcess(t *testing.T) {
	skipWorlds(t)
	s := spec()
	s.DType, s.Distributed = "bfloat16", FSDP
	got, want := succeed(t, 2, s)[0], alone(t, s, 2)
	for i := range want.Losses {
		if math.Abs(got.Losses[i]-want.Losses[i]) > 0.03*want.Losses[i] {
			t.Errorf("loss %d is %v, alone %v", i, got.Losses[i], want.Losses[i])
		}
	}
}

// interval is a span of time in a trace.
type interval struct{ from, to float64 }

// readTrace returns the intervals of blocks and of transfers in a trace, by name.
func readTrace(t *testing.T, path string) (blocks, transfers map[string][]interval) {
	t.Helper()
	var trace struct {
		TraceEvents []struct {
			Name, Cat string
			TS, Dur   float64
		} `json:"traceEvents"`
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &trace)
	}
	if err != nil {
		t.Fatal(err)
	}
	blocks, transfers = map[string][]interval{}, map[string][]interval{}
	for _, e := range trace.TraceEvents {
		i := interval{e.TS, e.TS + e.Dur}
		switch e.Cat {
		case "user_annotation":
			blocks[e.Name] = append(blocks[e.Name], i)
		case "communication":
			transfers[e.Name] = append(transfers[e.Name], i)
		}
	}
	return blocks, transfers
}

// While a block computes, the next block is gathered, and the gradients of the previous one are
// summed.
func TestFSDP_CommunicationOverlapsComputation(t *testing.T) {
	skipWorlds(t)
	s := plannedSpec()
	s.Options.Steps = 3
	s.Trace = filepath.Join(t.TempDir(), "trace.json")
	succeed(t, 2, s)
	blocks, transfers := readTrace(t, s.Trace)
	// How often a transfer started right before a block, after the block before it, and was still
	// in progress when the block started.
	overlap := func(computing, communicating string) (started, overlapped int) {
		for _, b := range blocks[computing] {
			before := 0.0
			for name, list := range blocks {
				for _, other := range list {
					if strings.HasPrefix(name, "block ") && other.to < b.from {
						before = max(before, other.to)
					}
				}
			}
			for _, a := range transfers[communicating] {
				if a.from > before && a.from < b.from {
					started++
					if a.to > b.from {
						overlapped++
					}
				}
			}
		}
		return started, overlapped
	}
	gathers, sums, steps := 0, 0, s.Options.Steps
	const count = 6
	for i := range count - 1 {
		started, overlapped := overlap(
			fmt.Sprintf("block %d forward", i), fmt.Sprintf("gather block %d", i+1))
		if gathers += overlapped; started != steps {
			t.Errorf("block %d was gathered before block %d ran in %d of %d steps",
				i+1, i, started, steps)
		}
		started, overlapped = overlap(
			fmt.Sprintf("block %d backward", i), fmt.Sprintf("sum gradients of block %d", i+1))
		if sums += overlapped; started != steps {
			t.Errorf("gradients of block %d were sent before block %d ran in %d of %d steps",
				i+1, i, started, steps)
		}
	}
	t.Logf("of %d each, %d gathers and %d sums overlapped with computation",
		steps*(count-1), gathers, sums)
	if gathers == 0 || sums == 0 {
		t.Errorf("%d gathers and %d sums overlapped with computation", gathers, sums)
	}
}

// Stochastic rounding needs no master weights, and the losses differ by rounding only.
func TestFSDP_StochasticRoundingHasNoMasterWeights(t *testing.T) {
	skipWorlds(t)
	s := plannedSpec()
	s.DType, s.Options.Steps = "bfloat16", 6
	stochastic := s
	stochastic.Options.Stochastic = true
	results := succeed(t, 2, s, stochastic)
	want, got := results[0], results[1]
	for i, loss := range got.Losses {
		if w := want.Losses[i]; !(math.Abs(loss-w) < 0.01*w) {
			t.Errorf("step %d gave %v, with master weights %v", i+1, loss, w)
		}
	}
	// Bytes per weight: master weight 4, gradient 4, moments 8; or gradient 2, moments 4.
	less := 10 * float64(model.Parameters(plannedModel(t, "llama", false))) / 2
	for rank := range want.Held {
		if saved := (want.Held[rank] - got.Held[rank]) / less; saved < 0.95 || saved > 1.05 {
			t.Errorf("rank %d holds %.1f MB, with master weights %.1f MB",
				rank, got.Held[rank]/1e6, want.Held[rank]/1e6)
		}
	}
}

// A stage holds its own layers, and the activations of at most as many micro-batches as there are
// stages from it on.
func TestPipeline_StageHoldsItsPart(t *testing.T) {
	skipWorlds(t)
	s := plannedSpec()
	s.Distributed, s.Options.Accumulate = PP, 3
	longer := s
	longer.Options.Accumulate = 8
	results := succeed(t, 2, s, longer)
	few, many := results[0], results[1]
	whole := float64(16 * model.Parameters(plannedModel(t, "llama", false)))
	// Weights and both moments of the first of two stages; the second also has the head.
	if part := few.Held[0] / (whole * 3 / 4); part < 0.4 || part > 0.6 {
		t.Errorf("the first of two stages holds %.1f MB of %.1f MB", few.Held[0]/1e6, whole*3/4e6)
	}
	t.Logf("peak %.1f MB with 3 micro-batches, %.1f MB with 8", few.Peak[0]/1e6, many.Peak[0]/1e6)
	if many.Peak[0] > 1.05*few.Peak[0] {
		t.Errorf("the peak of a stage is %.1f MB with 8 micro-batches, %.1f MB with 3",
			many.Peak[0]/1e6, few.Peak[0]/1e6)
	}
}

// For the export one process holds all weights. The others hold what they held, and what they send.
func TestWhole_OneProcessHoldsTheModel(t *testing.T) {
	skipWorlds(t)
	fsdp, tp, pp := plannedSpec(), plannedSpec(), plannedSpec()
	tp.Distributed, tp.TensorSize = TP, 2
	pp.Distributed = PP
	for i, r := range succeed(t, 2, fsdp, tp, pp) {
		what := []string{"fsdp", "tp", "pp"}[i]
		whole := float64(4 * model.Parameters(plannedModel(t, "llama", false)))
		t.Logf("%s: %.1f and %.1f MB between steps, %.1f and %.1f MB for the export of %.1f MB",
			what, r.Held[0]/1e6, r.Held[1]/1e6, r.Whole[0]/1e6, r.Whole[1]/1e6, whole/1e6)
		if more := r.Whole[0] - r.Held[0]; more < whole/3 || more > 1.2*whole {
			t.Errorf("%s: rank 0 needs %.1f MB more for the export of %.1f MB",
				what, more/1e6, whole/1e6)
		}
		if more := r.Whole[1] - r.Held[1]; more > whole/3 {
			t.Errorf("%s: rank 1 needs %.1f MB more while rank 0 exports %.1f MB",
				what, more/1e6, whole/1e6)
		}
	}
}

func TestStages_BalanceWeights(t *testing.T) {
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
	_, err := units.Stages(make([][]*nn.Param, 5), 0, 4)
	if err == nil || !strings.Contains(err.Error(), "3 layers") {
		t.Errorf("3 layers over 4 processes: %v", err)
	}
}

func TestTensorParallel_RefusesDivergingCopies(t *testing.T) {
	skipWorlds(t)
	s := spec()
	s.Architecture, s.Distributed, s.TensorSize, s.Options.Moments = "bamba", TP, 2, optim.Int8
	_, ends := launch(t, 2, s)
	want := "8-bit moments and stochastic rounding"
	if ends[0].code != 1 || !strings.Contains(ends[0].stderr, want) {
		t.Errorf("ended with %+v", ends)
	}
}

func TestNew_RefusesUnknownOrUnusableStrategies(t *testing.T) {
	for want, strategy := range map[string]string{
		"unknown strategy": "dpd", "not part of one": FSDP,
	} {
		o := options()
		o.Distributed = strategy
		m := tiny(t, true, torch.Float32)
		_, err := New(m, samples(8, 1), nil, o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		model.Free(m)
	}
}
