package train

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/dist"
)

// skipWorlds skips a test that starts processes if -short is set.
func skipWorlds(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts worlds of several processes: left out by -short")
	}
}

// worldVariable holds the runs, as a JSON list of runSpec, that a child process takes part in.
const worldVariable = "CONQUER_TRAIN_TEST_WORLD"

// runSpec describes a run of several processes.
type runSpec struct {
	Architecture, DType string
	Tied                bool
	Options             Options // the fields that have JSON names
	Distributed         string
	ShardSize           int
	TensorSize          int
	ContextSize         int
	Keep                bool // gathered weights
	Offload             bool
	Checkpoints         string // folder
	SeparateFolders     bool   // ranks above 0 have another folder
	Every               int
	Resume              bool
	KeepBest            bool // the validation after step 8 is the best
	Recompute           Recompute
	KillRank, KillAt    int // this rank dies after this step
	StopAt              int // the last rank is canceled after this step
	Timeout             time.Duration
	Files               string // folder to read the model from
	Result              string // file for rank 0's result
	Trace               string // file for rank 0's trace
	killAllAfter        time.Duration
}

// result is what rank 0 reports.
type result struct {
	Losses, Norms, Validation []float64
	First                     int       // steps done before
	Stopped                   bool      // by StopAt
	Opened                    []float64 // per rank: peak bytes of tensors in New
	Held, Peak                []float64 // per rank: bytes of tensors between steps, and peak
	Whole                     []float64 // per rank: peak while rank 0 has all weights
	Weights                   map[string][]float32
}

func (s runSpec) options() Options {
	o := s.Options
	o.Distributed, o.ShardSize, o.TensorSize = s.Distributed, s.ShardSize, s.TensorSize
	o.KeepGathered, o.Recompute = s.Keep, s.Recompute
	o.ContextSize = s.ContextSize
	o.OffloadOptimizer, o.ValidateSteps = s.Offload, 8
	o.CheckpointPath, o.CheckpointSteps, o.Resume = s.Checkpoints, s.Every, s.Resume
	o.KeepBest = s.KeepBest
	return o
}

// initialize draws the same weights in every process.
func initialize(m model.Model, dtype torch.DType) error {
	return torch.Run(func() error {
		torch.ManualSeed(11)
		model.Initialize(m, dtype, torch.CPU)
		return nil
	})
}

// open makes the model, or reads it from files: deferred if processes divide it.
func (s runSpec) open() (m model.Model, closeFiles func(), err error) {
	if s.Files == "" {
		m, err = s.model()
		return m, func() {}, err
	}
	c, err := checkpoint.Open(s.Files)
	if err != nil {
		return nil, nil, err
	}
	if m, err = model.Declare(c); err != nil {
		return nil, nil, err
	}
	read := model.Defer
	if s.Distributed == DDP && s.TensorSize == 0 {
		read = model.Load
	}
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		return nil, nil, err
	}
	return m, c.Close, torch.Run(func() error { return read(m, c, dtype, torch.CPU) })
}

// fromFiles returns s with its model in files.
func (s runSpec) fromFiles(t testing.TB) runSpec {
	t.Helper()
	m, err := s.model()
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	config, err := json.Marshal(m.Config())
	if err != nil {
		t.Fatal(err)
	}
	s.Files = filepath.Join(t.TempDir(), "model")
	err = checkpoint.Save(s.Files, model.Weights(m), checkpoint.Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s runSpec) model() (model.Model, error) {
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		return nil, err
	}
	if name, ok := strings.CutPrefix(s.Architecture, "planned "); ok {
		m := plannedModel(&testing.T{}, name, s.Tied)
		return m, initialize(m, dtype)
	}
	if name, ok := strings.CutPrefix(s.Architecture, "deep "); ok { // five layers instead of three
		s.Architecture = name
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
		return m, initialize(m, dtype)
	}
	if s.Architecture == "llama" {
		return tiny(&testing.T{}, s.Tied, dtype), nil
	}
	keyHeads := 2.0
	if s.Architecture == "bamba with 4 key heads" {
		keyHeads = 4
	}
	m, err := model.New(model.Config{
		"model_type": "bamba", "architectures": []any{"BambaForCausalLM"},
		"vocab_size": float64(vocabulary), "hidden_size": 32.0, "intermediate_size": 48.0,
		"num_hidden_layers": 3.0, "num_attention_heads": 4.0, "num_key_value_heads": keyHeads,
		"attn_layer_indices": []any{1.0}, "attn_rotary_emb": 4.0, "mamba_n_heads": 4.0,
		"mamba_d_head": 16.0, "mamba_n_groups": 1.0, "mamba_d_state": 16.0, "mamba_d_conv": 4.0,
		"mamba_expand": 2.0, "mamba_chunk_size": 16.0, "mamba_conv_bias": true,
		"mamba_proj_bias": false, "max_position_embeddings": 64.0, "rms_norm_eps": 1e-5,
		"tie_word_embeddings": s.Tied, "initializer_range": 0.2, "hidden_act": "silu",
		"partial_rotary_factor": 0.5, "rope_theta": 10000.0,
	})
	if err != nil {
		return nil, err
	}
	return m, initialize(m, dtype)
}

// data returns the training and the validation data.
func (s runSpec) data() (data, validation *dataset.Dataset) {
	switch {
	case s.Options.Layout() == dataset.Preference:
		return pairs(60, 1), pairs(7, 2)
	case s.Options.Layout() == dataset.Rated:
		return rated(50, 1), rated(7, 2)
	case strings.HasPrefix(s.Architecture, "planned "):
		return samples(2000, 1), nil
	}
	if s.Options.CarryState {
		size := s.options().RowLength()
		return text(1, size, 150, 80, 7, 300, 12, 99, 41), text(2, size, 100, 30)
	}
	return samples(60, 1), samples(7, 2)
}

// run takes part in the run as a rank of world, or alone if world is nil.
func (s runSpec) run(world *dist.World) (r result, err error) {
	before, _ := torch.CPU.Memory()
	torch.CPU.ResetPeak()
	m, closeFiles, err := s.open()
	if err != nil {
		return r, err
	}
	defer closeFiles()
	o := s.options()
	o.World = world
	if s.SeparateFolders && world.Rank > 0 {
		o.CheckpointPath += " elsewhere"
	}
	data, validation := s.data()
	tr, err := New(m, data, validation, o)
	if err != nil {
		model.Free(m)
		return r, err
	}
	defer func() {
		tr.Close()
		lora.Remove(tr.Model())
		model.Free(tr.Model())
	}()
	r.First = tr.Done()
	_, opened := torch.CPU.Memory()
	torch.CPU.ResetPeak()
	heard, err := s.take(tr, o)
	if s.StopAt > 0 && errors.Is(err, context.Canceled) {
		r.Stopped = true
		return r, nil
	} else if err != nil {
		return r, err
	}
	held, peak := torch.CPU.Memory()
	for range 100 { // a thread of Gloo's may still free what it has sent
		time.Sleep(time.Millisecond)
		now, _ := torch.CPU.Memory()
		held = min(held, now)
	}
	for _, step := range heard.steps {
		r.Losses, r.Norms = append(r.Losses, step.Loss), append(r.Norms, step.Norm)
	}
	for _, v := range heard.validations {
		r.Validation = append(r.Validation, v.Loss)
	}
	r.Weights = map[string][]float32{}
	torch.CPU.ResetPeak()
	err = tr.Whole(func() error {
		if strings.HasPrefix(s.Architecture, "planned ") { // too large to report
			return nil
		}
		for param, components := range componentsOf(tr.Model()) {
			all := torch.Values[float32](param.Detach())
			for _, c := range components {
				r.Weights[c.name] = all[c.start : c.start+c.count]
			}
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	_, whole := torch.CPU.Memory()
	for list, bytes := range map[*[]float64]int64{
		&r.Held: held, &r.Opened: opened, &r.Peak: peak, &r.Whole: whole,
	} {
		*list = make([]float64, o.processes())
		(*list)[o.rank()] = float64(bytes - before)
	}
	for _, list := range []*[]float64{&r.Held, &r.Opened, &r.Peak, &r.Whole} {
		if err := torch.Run(func() error { *list = o.sums(*list...); return nil }); err != nil {
			return r, err
		}
	}
	return r, nil
}

// take takes the steps of the run, with the interruptions of s.
func (s runSpec) take(tr *Trainer, o Options) (*recorder, error) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	heard := &recorder{after: func(step Step) {
		if s.KillAt == step.Step && s.KillRank == o.rank() {
			os.Exit(9)
		}
		if s.KeepBest && step.Step == 9 {
			tr.best.Loss = -1
		}
		if s.StopAt == step.Step && o.rank() == o.processes()-1 {
			stop()
		}
	}}
	tr.Listen(heard)
	run := func() error { return tr.Run(ctx) }
	if s.Trace != "" && o.rank() == 0 {
		_, err := torch.Trace(s.Trace, run)
		return heard, err
	}
	return heard, run()
}

// childOfWorld takes part in all runs that text lists, one after the other.
func childOfWorld(text string) error {
	var specs []runSpec
	if err := json.Unmarshal([]byte(text), &specs); err != nil {
		return err
	}
	place, err := dist.FromEnvironment()
	if err != nil {
		return err
	}
	for i, s := range specs {
		place.Attempt = fmt.Sprint(i) // keeps the runs apart in the store
		if err := s.child(place); err != nil {
			return err
		}
	}
	return nil
}

func (s runSpec) child(place dist.Place) error {
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

// ending is how a rank of a world ended.
type ending struct {
	code   int
	stderr string
}

// launch runs specs, one after the other, in one world of n processes.
func launch(t testing.TB, n int, specs ...runSpec) (results []result, ends []ending) {
	t.Helper()
	dir := t.TempDir()
	for i := range specs {
		specs[i].Result = filepath.Join(dir, fmt.Sprint(i))
		if specs[i].Timeout == 0 {
			specs[i].Timeout = 2 * time.Minute
		}
	}
	text, err := json.Marshal(specs)
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
		child.Env = append(os.Environ(), worldVariable+"="+string(text),
			fmt.Sprint("RANK=", rank), fmt.Sprint("WORLD_SIZE=", n),
			fmt.Sprint("LOCAL_RANK=", rank), fmt.Sprint("LOCAL_WORLD_SIZE=", n),
			"MASTER_ADDR=127.0.0.1", fmt.Sprint("MASTER_PORT=", store.Port()),
			"TORCHELASTIC_USE_AGENT_STORE=True", "OMP_NUM_THREADS=1")
		var stderr bytes.Buffer
		child.Stderr = &stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
		all.Go(func() {
			child.Wait()
			ends[rank] = ending{child.ProcessState.ExitCode(), stderr.String()}
		})
	}
	if wait := specs[0].killAllAfter; wait > 0 {
		time.Sleep(wait)
		for _, c := range children {
			c.Process.Kill()
		}
	}
	all.Wait()
	results = make([]result, len(specs))
	for i, s := range specs {
		if out, err := os.ReadFile(s.Result); err == nil {
			if err := json.Unmarshal(out, &results[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return results, ends
}

// succeed is launch of runs that must succeed.
func succeed(t testing.TB, n int, specs ...runSpec) []result {
	t.Helper()
	results, ends := launch(t, n, specs...)
	for rank, e := range ends {
		if e.code != 0 {
			t.Fatalf("rank %d of %d ended with %d: %s", rank, n, e.code, e.stderr)
		}
	}
	return results
}

// alone runs s in this process, with batches of all n processes' rows.
func alone(t testing.TB, s runSpec, n int) result {
	t.Helper()
	s.Offload, s.Files = false, ""
	s.Distributed, s.TensorSize, s.Checkpoints, s.Every, s.Resume = None, 0, "", 0, false
	s.KeepBest, s.ContextSize = false, 0
	s.Options.BatchSize *= n
	r, err := s.run(nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// same fails the test unless two runs agree up to the tolerance, from got's first step on.
func same(t testing.TB, what string, got, want result, tolerance float64) {
	t.Helper()
	compare := func(kind string, got, want []float64) {
		if len(got) != len(want) {
			t.Errorf("%s: %d %s, want %d", what, len(got), kind, len(want))
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
		compare("validation losses", got.Validation, want.Validation)
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
		Steps: 16, BatchSize: 2, Accumulate: 2, SequenceLength: 24, Rate: 3e-3, Decay: 0.01,
		Clip: 0.5, Seed: 5,
	}}
}

// plannedSpec is a run of plannedModel.
func plannedSpec() runSpec {
	return runSpec{
		Architecture: "planned llama", DType: "float32", Distributed: FSDP,
		Options: Options{Steps: 2, BatchSize: 1, SequenceLength: 128, Rate: 1e-4, Pack: true},
	}
}

// plannedModel declares a model that is large enough to compare its memory with a plan.
func plannedModel(t *testing.T, architecture string, tied bool) model.Model {
	t.Helper()
	config := model.Config{
		"model_type": "llama", "architectures": []any{"LlamaForCausalLM"}, "vocab_size": 2000.0,
		"hidden_size": 256.0, "intermediate_size": 704.0, "num_hidden_layers": 6.0,
		"num_attention_heads": 8.0, "num_key_value_heads": 4.0, "max_position_embeddings": 512.0,
		"rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "initializer_range": 0.02,
	}
	if architecture == "bamba" {
		config["model_type"], config["architectures"] = "bamba", []any{"BambaForCausalLM"}
		for key, value := range map[string]any{
			"mamba_expand": 2.0, "mamba_n_heads": 8.0, "mamba_d_head": 64.0, "mamba_d_state": 32.0,
			"mamba_n_groups": 1.0, "mamba_d_conv": 4.0, "mamba_chunk_size": 64.0,
			"attn_layer_indices": []any{3.0},
		} {
			config[key] = value
		}
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
