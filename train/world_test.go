package train

import (
	"bytes"
	"context"
	"encoding/json"
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
	"conquer/torch"
	"conquer/torch/dist"
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
	Apart               bool   // ranks but the first have another
	Every               int
	Resume              bool
	Recompute           Recompute
	KillRank, KillAt    int // this rank dies when it has done so many steps
	StopAt              int // rank 1 is told to stop then
	Timeout             time.Duration
	Files               string // folder to read the model from
	Result              string // file for what rank 0 reports
	Trace               string // file for rank 0's trace

	KillAll time.Duration `json:"-"` // all ranks are killed after that time
}

// result is what rank 0 reports.
type result struct {
	Losses, Norms, Looks []float64
	First                int
	Opened               []float64 // bytes that each rank's tensors held at most while the run was prepared
	Held, Peak           []float64 // bytes that each rank's tensors hold between two steps, and at most during one
	Whole                []float64 // as Peak, while rank 0 has all weights
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

// initialize draws the same weights in every process.
func initialize(m model.Model, dtype torch.DType) error {
	return torch.Run(func() error {
		torch.ManualSeed(11)
		model.Initialize(m, dtype, torch.CPU)
		return nil
	})
}

// open makes the model, or reads it from files: as each process needs it, where they divide it.
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

// fromFiles is s with its model in files.
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
	if err := checkpoint.Save(
		s.Files,
		model.Weights(m),
		checkpoint.Options{Config: config},
	); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s runSpec) model() (model.Model, error) {
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		return nil, err
	}
	if of, ok := strings.CutPrefix(s.Architecture, "planned "); ok {
		m := plannedModel(&testing.T{}, of, s.Tied)
		return m, initialize(m, dtype)
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
		"model_type":          "bamba",
		"architectures":       []any{"BambaForCausalLM"},
		"vocab_size":          float64(vocabulary),
		"hidden_size":         32.0,
		"intermediate_size":   48.0,
		"num_hidden_layers":   3.0,
		"num_attention_heads": 4.0,
		"num_key_value_heads": keyHeads,
		"attn_layer_indices": []any{
			1.0,
		},
		"attn_rotary_emb":         4.0,
		"mamba_n_heads":           4.0,
		"mamba_d_head":            16.0,
		"mamba_n_groups":          1.0,
		"mamba_d_state":           16.0,
		"mamba_d_conv":            4.0,
		"mamba_expand":            2.0,
		"mamba_chunk_size":        16.0,
		"mamba_conv_bias":         true,
		"mamba_proj_bias":         false,
		"max_position_embeddings": 64.0,
		"rms_norm_eps":            1e-5,
		"tie_word_embeddings":     s.Tied,
		"initializer_range":       0.2,
		"hidden_act":              "silu",
		"partial_rotary_factor":   0.5,
		"rope_theta":              10000.0,
	})
	if err != nil {
		return nil, err
	}
	return m, initialize(m, dtype)
}

// run takes part in the run as the environment's rank.
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
	if s.Apart && world.Rank > 0 {
		o.CheckpointPath += " elsewhere"
	}
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
		lora.Remove(tr.Model())
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
	_, opened := torch.CPU.Memory()
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
	if r.Held, err = everyones(o, float64(held-before)); err != nil {
		return r, err
	}
	if r.Opened, err = everyones(o, float64(opened-before)); err != nil {
		return r, err
	}
	if r.Peak, err = everyones(o, float64(peak-before)); err != nil {
		return r, err
	}
	for _, step := range heard.steps {
		r.Losses, r.Norms = append(r.Losses, step.Loss), append(r.Norms, step.Norm)
	}
	for _, look := range heard.looks {
		r.Looks = append(r.Looks, look.Loss)
	}
	r.Weights = map[string][]float32{}
	torch.CPU.ResetPeak()
	err = tr.Whole(func() error {
		for param, stretches := range componentsOf(tr.Model()) {
			all := torch.Values[float32](param.Detach())
			for _, n := range stretches {
				r.Weights[n.name] = all[n.start : n.start+n.count]
			}
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	_, peak = torch.CPU.Memory()
	r.Whole, err = everyones(o, float64(peak-before))
	return r, err
}

// everyones lists every rank's number.
func everyones(o Options, mine float64) (list []float64, err error) {
	list = make([]float64, o.processes())
	list[o.rank()] = mine
	if o.World == nil {
		return list, nil
	}
	err = torch.Run(func() error { list = o.World.All.Sums(list...); return nil })
	return list, err
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
		child.Env = append(
			os.Environ(),
			worldVariable+"="+string(text),
			fmt.Sprint("RANK=", rank),
			fmt.Sprint("WORLD_SIZE=", n),
			fmt.Sprint(
				"LOCAL_RANK=",
				rank,
			),
			fmt.Sprint("LOCAL_WORLD_SIZE=", n),
			"MASTER_ADDR=127.0.0.1",
			fmt.Sprint(
				"MASTER_PORT=",
				store.Port(),
			),
			"TORCHELASTIC_USE_AGENT_STORE=True",
			"OMP_NUM_THREADS=1",
		)
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
	s.Offload, s.Files = false, ""
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
		Steps:          20,
		BatchSize:      2,
		Accumulate:     2,
		SequenceLength: 24,
		Rate:           3e-3,
		Decay:          0.01,
		Clip:           0.5,
		Seed:           5,
	}}
}

func plannedModel(t *testing.T, architecture string, tied bool) model.Model {
	t.Helper()
	config := model.Config{
		"model_type":              "llama",
		"architectures":           []any{"LlamaForCausalLM"},
		"vocab_size":              2000.0,
		"hidden_size":             256.0,
		"intermediate_size":       704.0,
		"num_hidden_layers":       6.0,
		"num_attention_heads":     8.0,
		"num_key_value_heads":     4.0,
		"max_position_embeddings": 512.0,
		"rms_norm_eps":            1e-5,
		"tie_word_embeddings":     tied,
		"initializer_range":       0.02,
	}
	if architecture == "bamba" {
		config["model_type"], config["architectures"] = "bamba", []any{"BambaForCausalLM"}
		for key, value := range map[string]any{"mamba_expand": 2.0, "mamba_n_heads": 8.0, "mamba_d_head": 64.0, "mamba_d_state": 32.0,
			"mamba_n_groups": 1.0, "mamba_d_conv": 4.0, "mamba_chunk_size": 64.0, "attn_layer_indices": []any{3.0}} {
			config[key] = value
		}
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// plannedSpec is a run of the model that plans are held to.
func plannedSpec() runSpec {
	return runSpec{Architecture: "planned llama", DType: "float32", Distributed: FSDP,
		Options: Options{Steps: 2, BatchSize: 1, SequenceLength: 128, Rate: 1e-4, Pack: true}}
}
