package train

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "conquer/bamba"
	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// A child process takes part in the run that the JSON in this variable describes: see TestMain.
const worldVariable = "CONQUER_TRAIN_TEST_WORLD"

// runSpec is a run of several processes.
type runSpec struct {
	Architecture, DType string
	Tied                bool
	Options             Options // as far as it has JSON names
	Distributed         string
	ShardSize           int
	TensorSize          int
	Keep                bool // gathered weights
	Offload             bool
	Checkpoints         string // folder
	Every               int
	Resume              bool
	Recompute           Recompute
	KillRank, KillAt    int // this rank dies when it has done so many steps
	StopAt              int // rank 1 is told to stop then
	Timeout             time.Duration
	Result              string // file for what rank 0 reports
	Trace               string // file for rank 0's trace

	KillAll time.Duration `json:"-"` // all ranks are killed after that time
}

// result is what rank 0 reports.
type result struct {
	Losses, Norms, Looks []float64
	First                int
	Held, Peak           float64 // bytes that tensors hold between two steps, and at most during one
	Weights              map[string][]float32
}

func (s runSpec) options() Options {
	o := s.Options
	o.Distributed, o.ShardSize, o.KeepGathered, o.Recompute = s.Distributed, s.ShardSize, s.Keep, s.Recompute
	o.TensorSize = s.TensorSize
	o.OffloadOptimizer = s.Offload
	o.CheckpointPath, o.CheckpointSteps, o.Resume = s.Checkpoints, s.Every, s.Resume
	return o
}

func (s runSpec) model() (model.Model, error) {
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		return nil, err
	}
	if of, ok := strings.CutPrefix(s.Architecture, "planned "); ok {
		m := plannedModel(&testing.T{}, of, s.Tied)
		return m, torch.Run(func() error {
			torch.ManualSeed(11)
			model.Initialize(m, dtype, torch.CPU)
			return nil
		})
	}
	if of, ok := strings.CutPrefix(s.Architecture, "deep "); ok { // five layers in place of three
		s.Architecture = of
		shallow, err := s.model()
		if err != nil {
			return nil, err
		}
		config := shallow.Config().Clone()
		config["num_hidden_layers"] = 5.0
		model.Free(shallow)
		m, err := model.New(config)
		if err != nil {
			return nil, err
		}
		return m, torch.Run(func() error {
			torch.ManualSeed(11)
			model.Initialize(m, dtype, torch.CPU)
			return nil
		})
	}
	if s.Architecture == "llama" {
		return tiny(&testing.T{}, s.Tied, dtype), nil
	}
	keyHeads := 2.0
	if s.Architecture == "bamba with 4 key heads" {
		keyHeads = 4
	}
	m, err := model.New(model.Config{
		"model_type": "bamba", "architectures": []any{"BambaForCausalLM"}, "vocab_size": float64(vocabulary), "hidden_size": 32.0,
		"intermediate_size": 48.0, "num_hidden_layers": 3.0, "num_attention_heads": 4.0, "num_key_value_heads": keyHeads,
		"attn_layer_indices": []any{1.0}, "attn_rotary_emb": 4.0, "mamba_n_heads": 4.0, "mamba_d_head": 16.0, "mamba_n_groups": 1.0,
		"mamba_d_state": 16.0, "mamba_d_conv": 4.0, "mamba_expand": 2.0, "mamba_chunk_size": 16.0, "mamba_conv_bias": true,
		"mamba_proj_bias": false, "max_position_embeddings": 64.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": s.Tied,
		"initializer_range": 0.2, "hidden_act": "silu", "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
	})
	if err != nil {
		return nil, err
	}
	return m, torch.Run(func() error {
		torch.ManualSeed(11)
		model.Initialize(m, dtype, torch.CPU)
		return nil
	})
}

// run takes part in the run as the environment's rank.
func (s runSpec) run(world *dist.World) (r result, err error) {
	before, _ := torch.CPU.Memory()
	m, err := s.model()
	if err != nil {
		return r, err
	}
	o := s.options()
	o.World = world
	data, validation := samples(60, 1), samples(7, 2)
	if s.Options.Objective == DPO {
		data, validation = pairs(60, 1), pairs(7, 2)
	}
	if strings.HasPrefix(s.Architecture, "planned ") {
		data, validation = samples(2000, 1), nil
	}
	tr, err := New(m, data, validation, o)
	if err != nil {
		model.Free(m)
		return r, err
	}
	defer func() {
		tr.Close()
		RemoveAdapter(tr.Model())
		model.Free(tr.Model())
	}()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	heard := &recorder{after: func(step Step) {
		if s.KillAt == step.Step && s.KillRank == o.rank() {
			os.Exit(9)
		}
		if s.StopAt == step.Step && o.rank() == o.processes()-1 {
			stop()
		}
	}}
	tr.Listen(heard)
	r.First = tr.Done()
	torch.CPU.ResetPeak()
	run := func() error { return tr.Run(ctx) }
	if s.Trace != "" && o.rank() == 0 {
		_, err = torch.Trace(s.Trace, run)
	} else {
		err = run()
	}
	if err != nil {
		return r, err
	}
	held, peak := torch.CPU.Memory()
	for range 100 { // a thread of Gloo's may be about to let go of what it has sent
		time.Sleep(time.Millisecond)
		now, _ := torch.CPU.Memory()
		held = min(held, now)
	}
	r.Held, r.Peak = float64(held-before), float64(peak-before)
	for _, step := range heard.steps {
		r.Losses, r.Norms = append(r.Losses, step.Loss), append(r.Norms, step.Norm)
	}
	for _, look := range heard.looks {
		r.Looks = append(r.Looks, look.Loss)
	}
	r.Weights = map[string][]float32{}
	return r, tr.Whole(func() error {
		for param, stretches := range named(tr.Model()) {
			all := torch.Values[float32](param.Detach())
			for _, n := range stretches {
				r.Weights[n.name] = all[n.start : n.start+n.count]
			}
		}
		return nil
	})
}

// childOfWorld is a child process's whole life.
func childOfWorld(text string) error {
	var s runSpec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	place, err := dist.FromEnvironment()
	if err != nil {
		return err
	}
	world, err := dist.Join(place, torch.CPU, s.Timeout)
	if err != nil {
		return err
	}
	defer world.Leave()
	r, err := s.run(world)
	if err != nil || world.Rank > 0 {
		return err
	}
	out, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(s.Result, out, 0o666)
}

// ended is how a rank of a world ended.
type ending struct {
	code   int
	stderr string
}

// launch runs s in a world of n processes.
func launch(t testing.TB, s runSpec, n int) (r result, ends []ending) {
	t.Helper()
	s.Result = filepath.Join(t.TempDir(), "result.json")
	if s.Timeout == 0 {
		s.Timeout = 2 * time.Minute
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	store, err := dist.OpenStore("127.0.0.1", 0, true, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ends = make([]ending, n)
	var all sync.WaitGroup
	var children []*exec.Cmd
	for rank := range n {
		child := exec.Command(os.Args[0], "-test.run=none")
		child.Env = append(os.Environ(), worldVariable+"="+string(text), fmt.Sprint("RANK=", rank), fmt.Sprint("WORLD_SIZE=", n),
			fmt.Sprint("LOCAL_RANK=", rank), fmt.Sprint("LOCAL_WORLD_SIZE=", n), "MASTER_ADDR=127.0.0.1",
			fmt.Sprint("MASTER_PORT=", store.Port()), "TORCHELASTIC_USE_AGENT_STORE=True", "OMP_NUM_THREADS=1")
		var stderr bytes.Buffer
		child.Stderr = &stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
		all.Add(1)
		go func() {
			defer all.Done()
			child.Wait()
			ends[rank] = ending{child.ProcessState.ExitCode(), stderr.String()}
		}()
	}
	if s.KillAll > 0 {
		time.Sleep(s.KillAll)
		for _, c := range children {
			c.Process.Kill()
		}
	}
	all.Wait()
	if out, err := os.ReadFile(s.Result); err == nil {
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
	}
	return r, ends
}

// succeedIn is launch of a run that must succeed.
func succeedIn(t testing.TB, s runSpec, n int) result {
	t.Helper()
	r, ends := launch(t, s, n)
	for rank, e := range ends {
		if e.code != 0 {
			t.Fatalf("rank %d of %d ended with %d: %s", rank, n, e.code, e.stderr)
		}
	}
	return r
}

// alone runs s in this process, with batches of all n processes' rows.
func alone(t testing.TB, s runSpec, n int) result {
	t.Helper()
	s.Offload = false
	s.Distributed, s.TensorSize, s.Checkpoints, s.Every, s.Resume = None, 0, "", 0, false
	s.Options.BatchSize *= n
	r, err := s.run(nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// same demands that two runs agree to float32's noise, from a step on.
func same(t testing.TB, what string, got, want result, tolerance float64) {
	t.Helper()
	compare := func(kind string, got, want []float64) {
		if len(got) != len(want) {
			t.Errorf("%s: %d of %s, want %d", what, len(got), kind, len(want))
			return
		}
		for i := range want {
			if !(math.Abs(got[i]-want[i]) <= tolerance*math.Abs(want[i])) {
				t.Errorf("%s: %s %d is %v, alone %v", what, kind, i, got[i], want[i])
				return
			}
		}
	}
	compare("losses", got.Losses, want.Losses[got.First:])
	compare("norms", got.Norms, want.Norms[got.First:])
	if got.First == 0 {
		compare("validation losses", got.Looks, want.Looks)
	}
	if len(got.Weights) != len(want.Weights) {
		t.Errorf("%s: %d weights, want %d", what, len(got.Weights), len(want.Weights))
	}
	for name, w := range want.Weights {
		near(t, what+": "+name, got.Weights[name], w, 50*tolerance)
	}
}

func spec() runSpec {
	return runSpec{Architecture: "llama", DType: "float32", Tied: true, Options: Options{
		Steps: 20, BatchSize: 2, Accumulate: 2, SequenceLength: 24, Rate: 3e-3, Decay: 0.01, Clip: 0.5, Seed: 5}}
}

func TestEveryStrategyLearnsWhatOneProcessLearns(t *testing.T) {
	for what, c := range map[string]struct {
		world  int
		change func(*runSpec)
	}{
		"ddp 2 llama":         {2, func(s *runSpec) { s.Distributed = DDP }},
		"ddp 4 bamba untied":  {4, func(s *runSpec) { s.Distributed, s.Architecture, s.Tied = DDP, "bamba", false }},
		"fsdp 1 llama":        {1, func(s *runSpec) { s.Distributed = FSDP }},
		"fsdp 2 llama packed": {2, func(s *runSpec) { s.Distributed, s.Options.Pack, s.Recompute = FSDP, true, RecomputeBlock }},
		"fsdp 4 bamba":        {4, func(s *runSpec) { s.Distributed, s.Architecture = FSDP, "bamba" }},
		"fsdp 2 llama untied": {2, func(s *runSpec) { s.Distributed, s.Tied, s.Keep = FSDP, false, true }},
		"hsdp 4 llama":        {4, func(s *runSpec) { s.Distributed, s.ShardSize = HSDP, 2 }},
		"hsdp 4 bamba untied": {4, func(s *runSpec) { s.Distributed, s.ShardSize, s.Architecture, s.Tied = HSDP, 2, "bamba", false }},
		"ddp 2 llama LoRA":    {2, func(s *runSpec) { s.Distributed, s.Options.LoRA = DDP, lora() }},
		"mp 2 llama":          {2, func(s *runSpec) { s.Distributed, s.Options.Accumulate = MP, 4 }},
		"mp 4 bamba untied": {4, func(s *runSpec) {
			s.Distributed, s.Architecture, s.Tied, s.Recompute = MP, "deep bamba", false, RecomputeBlock
		}},
		"mp 4 llama packed":        {4, func(s *runSpec) { s.Distributed, s.Architecture, s.Options.Pack = MP, "deep llama", true }},
		"mp 2 llama LoRA":          {2, func(s *runSpec) { s.Distributed, s.Options.LoRA = MP, lora() }},
		"mp 2 bamba head alone":    {2, func(s *runSpec) { s.Distributed, s.Architecture, s.Options.HeadOnly = MP, "bamba", true }},
		"mp 2 llama preferences":   {2, func(s *runSpec) { s.Distributed, s.Options.Objective = MP, DPO }},
		"ddp 2 llama preferences":  {2, func(s *runSpec) { s.Distributed, s.Options.Objective, s.Options.Pack = DDP, DPO, true }},
		"fsdp 2 bamba preferences": {2, func(s *runSpec) { s.Distributed, s.Architecture, s.Options.Objective = FSDP, "bamba", DPO }},
		"fsdp 2 llama LoRA":        {2, func(s *runSpec) { s.Distributed, s.Options.LoRA = FSDP, lora() }},
		"fsdp 2 llama head alone":  {2, func(s *runSpec) { s.Distributed, s.Options.HeadOnly = FSDP, true }},
		"ddp 2 llama head alone":   {2, func(s *runSpec) { s.Distributed, s.Options.HeadOnly = DDP, true }},
	} {
		t.Run(what, func(t *testing.T) {
			s := spec()
			c.change(&s)
			parts := c.world
			if s.Distributed == MP {
				parts = 1
			}
			same(t, what, succeedIn(t, s, c.world), alone(t, s, parts), 2e-4)
		})
	}
}

// plannedSpec is a run of the model that plans are held to.
func plannedSpec() runSpec {
	return runSpec{Architecture: "planned llama", DType: "float32", Distributed: FSDP,
		Options: Options{Steps: 2, BatchSize: 1, SequenceLength: 128, Rate: 1e-4, Pack: true}}
}

// besidePlan runs s in a world of n processes, and plans it.
func (s runSpec) besidePlan(t *testing.T, n int) (result, Plan) {
	t.Helper()
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		t.Fatal(err)
	}
	perHost := n
	if s.Distributed == HSDP {
		perHost = s.ShardSize
	}
	o := s.Options
	plans, err := Plans(plannedModel(t, strings.TrimPrefix(s.Architecture, "planned "), s.Tied),
		PlanOptions{BatchSize: o.BatchSize, SequenceLength: o.SequenceLength, Accumulate: o.Accumulate, DType: dtype,
			Recompute: s.Recompute, LoRA: o.LoRA, HeadOnly: o.HeadOnly, TensorSize: s.TensorSize},
		Machine{GPUs: n, PerHost: perHost, Memory: 1, Rate: 1, Transfer: 1, Link: 1, Network: 1})
	if err != nil {
		t.Fatal(err)
	}
	name := s.Distributed
	if s.TensorSize > 0 && name != TP {
		name += "+" + TP
	}
	for _, plan := range plans {
		if plan.Strategy == name {
			return succeedIn(t, s, n), plan
		}
	}
	t.Fatalf("there is no plan for %s", s.Distributed)
	return result{}, Plan{}
}

// What a plan says about several processes is what each of them holds, within a tenth: between two steps, its part of the weights,
// of their gradients and of the optimizer's state, and at most, with what comes and goes.
func TestThePlanOfManyProcessesIsWhatEachHolds(t *testing.T) {
	for what, c := range map[string]struct {
		world  int
		change func(*runSpec)
	}{
		"fsdp 2":                {2, func(s *runSpec) {}},
		"fsdp 4 tied":           {4, func(s *runSpec) { s.Tied = true }},
		"fsdp 2 bamba bfloat16": {2, func(s *runSpec) { s.Architecture, s.DType = "planned bamba", "bfloat16" }},
		"ddp 2 bfloat16":        {2, func(s *runSpec) { s.Distributed, s.DType = DDP, "bfloat16" }},
		"hsdp 4 recomputed":     {4, func(s *runSpec) { s.Distributed, s.ShardSize, s.Recompute = HSDP, 2, RecomputeBlock }},
	} {
		s := plannedSpec()
		c.change(&s)
		r, plan := s.besidePlan(t, c.world)
		t.Logf("%s: at most %.1f MB, planned %.1f MB", what, r.Peak/1e6, plan.Peak/1e6)
		if planned := plan.Weights + plan.Gradients + plan.Optimizer; s.Distributed != DDP && math.Abs(planned/r.Held-1) > 0.1 {
			t.Errorf("%s: between steps each process holds %.2f MB, the plan says %.2f MB", what, r.Held/1e6, planned/1e6)
		}
		if math.Abs(plan.Peak/r.Peak-1) > 0.1 {
			t.Errorf("%s: each process holds %.2f MB at most, the plan says %.2f MB", what, r.Peak/1e6, plan.Peak/1e6)
		}
	}
}

// While a block computes, the weights of the next one come, and the gradients of the one before go: a trace of rank 0 shows it.
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
	// How often a transfer began just before a block did, that is, behind the block before it, and was still under way then.
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
		began, overlapped := beside(fmt.Sprintf("block %d forward", i), fmt.Sprintf("gather block %d", i+1))
		if gathers += overlapped; began != steps {
			t.Errorf("block %d was gathered before block %d ran in %d of %d steps", i+1, i, began, steps)
		}
		began, overlapped = beside(fmt.Sprintf("block %d backward", i), fmt.Sprintf("sum gradients of block %d", i+1))
		if sums += overlapped; began != steps {
			t.Errorf("the gradients of block %d went before block %d ran backward in %d of %d steps", i+1, i, began, steps)
		}
	}
	t.Logf("of %d times each: %d gathers and %d sums overlapped with computation", steps*(blocks-1), gathers, sums)
	if gathers == 0 || sums == 0 {
		t.Errorf("%d gathers and %d sums overlapped with computation", gathers, sums)
	}
}

// Weights of 16 bits are rounded in other places than one process rounds them, so that only their course is the same.
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

// Of four processes one is killed, two go on until they are stopped, and one ends it: each with another strategy, at the losses
// of one process.
func TestARunGoesOnInAWorldOfAnotherSize(t *testing.T) {
	s := spec()
	s.Architecture, s.Checkpoints, s.Every, s.Resume = "bamba", filepath.Join(t.TempDir(), "c"), 5, true
	s.Options.BatchSize, s.Options.Accumulate = 1, 2
	want := alone(t, s, 4)

	s.Distributed, s.KillRank, s.KillAt = FSDP, 2, 8
	_, ends := launch(t, s, 4)
	if ends[2].code != 9 || ends[0].code != 1 || !strings.Contains(ends[0].stderr, "rank 2 is gone") {
		t.Fatalf("a killed rank ended the others with %+v", ends)
	}
	s.KillAt, s.Distributed, s.ShardSize, s.Options.BatchSize, s.StopAt = 0, HSDP, 2, 2, 12
	if _, ends = launch(t, s, 2); !strings.Contains(ends[0].stderr, "canceled") {
		t.Fatalf("a stopped run ended with %+v", ends)
	}
	s.StopAt, s.Distributed, s.Options.Accumulate = 0, None, 4
	last, err := s.run(nil)
	if err != nil {
		t.Fatal(err)
	}
	if last.First != 12 {
		t.Errorf("the last run began after step %d, want 12", last.First)
	}
	same(t, "the last run", last, want, 2e-4)
}

func TestKillingAllRanksAtAnyMomentLeavesACheckpointThatResumes(t *testing.T) {
	s := spec()
	s.Options.Steps, s.Every, s.Resume, s.Checkpoints, s.Distributed = 80, 1, true, filepath.Join(t.TempDir(), "c"), FSDP
	want := alone(t, s, 2)
	for range 4 {
		s.KillAll = 300*time.Millisecond + rand.N(1200*time.Millisecond)
		_, ends := launch(t, s, 2)
		for _, e := range ends {
			if e.code > 0 && !strings.Contains(e.stderr, "gone") { // killed itself, or by the other's death
				t.Fatalf("before it was killed a rank ended with %+v", e)
			}
		}
	}
	s.KillAll = 0
	last := succeedIn(t, s, 2)
	t.Logf("the last run began after step %d", last.First)
	same(t, "the last run", last, want, 2e-3)
}

// Of a pipeline of four processes one is killed; what it left goes on in one of two, and then in one process.
func TestAPipelineGoesOnInAWorldOfAnotherSize(t *testing.T) {
	s := spec()
	s.Architecture, s.Checkpoints, s.Every, s.Resume = "deep llama", filepath.Join(t.TempDir(), "c"), 5, true
	want := alone(t, s, 1)
	s.Distributed, s.KillRank, s.KillAt = MP, 2, 8
	if _, ends := launch(t, s, 4); ends[2].code != 9 || ends[0].code != 1 || !strings.Contains(ends[0].stderr, "rank 2 is gone") {
		t.Fatalf("a killed rank ended the others with %+v", ends)
	}
	s.KillAt, s.StopAt = 0, 12
	if _, ends := launch(t, s, 2); !strings.Contains(ends[0].stderr, "canceled") {
		t.Fatalf("a stopped run ended with %+v", ends)
	}
	s.StopAt, s.Distributed = 0, None
	last, err := s.run(nil)
	if err != nil {
		t.Fatal(err)
	}
	if last.First != 12 {
		t.Errorf("the last run began after step %d, want 12", last.First)
	}
	same(t, "the last run", last, want, 2e-4)
}

// A stage holds its own layers, and the activations of no more micro-batches than there are stages behind it, itself included.
func TestAStageOfAPipelineHoldsItsPart(t *testing.T) {
	s := plannedSpec()
	s.Distributed, s.Options.Accumulate = MP, 3
	few := succeedIn(t, s, 2)
	s.Options.Accumulate = 8
	many := succeedIn(t, s, 2)
	whole := float64(16 * model.Parameters(plannedModel(t, "llama", false)))
	// Weights and both averages of the first of two stages; the second has the head.
	if part := few.Held / (whole * 3 / 4); part < 0.4 || part > 0.6 {
		t.Errorf("the first of two stages holds %.1f MB of %.1f MB", few.Held/1e6, whole*3/4e6)
	}
	t.Logf("at most %.1f MB with 3 micro-batches, %.1f MB with 8", few.Peak/1e6, many.Peak/1e6)
	if many.Peak > 1.05*few.Peak {
		t.Errorf("with 8 micro-batches a stage holds %.1f MB at most, with 3 %.1f MB", many.Peak/1e6, few.Peak/1e6)
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
		units := [][]*nn.Param{nil}
		for _, n := range c.blocks {
			units = append(units, unit(n))
		}
		got, err := stages(append(units, nil), c.head, len(c.want)-1)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v and a head of %d: %v, %v, want %v", c.blocks, c.head, got, err, c.want)
		}
	}
	if _, err := stages(make([][]*nn.Param, 5), 0, 4); err == nil || !strings.Contains(err.Error(), "3 layers") {
		t.Errorf("3 layers over 4 processes: %v", err)
	}
}

func TestATunedAdapterGoesOnInAnotherWorld(t *testing.T) {
	s := spec()
	s.Checkpoints, s.Every, s.Resume, s.Options.LoRA = filepath.Join(t.TempDir(), "c"), 5, true, lora()
	want := alone(t, s, 2)
	s.Distributed, s.StopAt = FSDP, 7
	if _, ends := launch(t, s, 2); !strings.Contains(ends[1].stderr, "canceled") {
		t.Fatalf("a stopped run ended with %+v", ends)
	}
	s.StopAt, s.Distributed, s.Options.BatchSize = 0, None, 4
	last, err := s.run(nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the last run", last, want, 2e-4)
}

// nativeCheckpoint makes a native checkpoint of two processes and returns its folder.
func nativeCheckpoint(t testing.TB, change func(*runSpec)) (runSpec, string) {
	s := spec()
	s.Distributed, s.Checkpoints, s.Every, s.Options.Steps = FSDP, filepath.Join(t.TempDir(), "c"), 2, 3
	change(&s)
	succeedIn(t, s, 2)
	return s, filepath.Join(s.Checkpoints, "step-00000002")
}

func TestANativeCheckpointIsAModel(t *testing.T) {
	noLeaks(t)
	s, dir := nativeCheckpoint(t, func(s *runSpec) { s.DType = "bfloat16" })
	c, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := filepath.Join(t.TempDir(), "hf")
	if err := checkpoint.Save(out, c, checkpoint.Options{Config: c.ConfigJSON()}); err != nil {
		t.Fatal(err)
	}
	m, err := model.Open(out, torch.BFloat16, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	// What the run had after two steps.
	s.Checkpoints, s.Every, s.Options.Steps, s.Options.Schedule = "", 0, 2, ""
	want := succeedIn(t, s, 2)
	torch.Run(func() error {
		for param, stretches := range named(m) {
			all := torch.Values[float32](param.Tensor)
			for _, n := range stretches {
				near(t, n.name, all[n.start:n.start+n.count], want.Weights[n.name], 0.02)
			}
		}
		return nil
	})
}

func TestADamagedNativeCheckpointIsRefusedInOneLine(t *testing.T) {
	s, dir := nativeCheckpoint(t, func(*runSpec) {})
	_, other := nativeCheckpoint(t, func(s *runSpec) { s.Options.Seed = 6 })
	file := filepath.Join(dir, "rank-00001-of-00002.safetensors")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(other, filepath.Base(file)))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-9] ^= 1
	s.Resume, s.Options.BatchSize = true, 4
	for want, content := range map[string][]byte{
		"no such file":                  nil,
		"truncated":                     whole[:len(whole)-1],
		"damaged, or of another run":    foreign,
		"does not have the checksum th": flipped,
	} {
		os.Remove(file)
		if content != nil {
			os.WriteFile(file, content, 0o666)
		}
		s.Distributed = None
		_, err := s.run(nil)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q and the file's name in one line", err, want)
		}
	}
	os.WriteFile(file, whole, 0o666)
	if r, err := s.run(nil); err != nil || r.First != 2 {
		t.Errorf("undamaged, it resumes after step %d with %v", r.First, err)
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
		if _, err := New(m, samples(8, 1), nil, changed); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		model.Free(m)
	}
}
