package plan

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"

	_ "conquer/bamba"
	_ "conquer/llama"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train"
)

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

func TestOperations_CountGEMMs(t *testing.T) {
	// Weights of q, k, v, o, gate, up and down in six blocks, and of the head. A separate embedding
	// is looked up, not multiplied.
	const blocks, head = 6 * (2*256*256 + 2*256*128 + 3*256*704), 256 * 2000
	adapter := &lora.Config{Rank: 8, Alpha: 8, Targets: []string{lora.AllLinear}}
	for _, c := range []struct {
		options Options
		tied    bool
		passes  float64
	}{
		{Options{}, false, 3},
		{Options{}, true, 3},
		{Options{Recompute: train.RecomputeBlock}, false, 4},
		{Options{Recompute: train.RecomputeSelective}, false, 3},
		{Options{LoRA: adapter}, false, 2},
		// The backward pass ends at the first adapted of six blocks.
		{Options{LoRA: &lora.Config{Rank: 8, Layers: []int{4, 5}}}, false, 1 + 2./6},
	} {
		got, want := Operations(plannedModel(t, "llama", c.tied),
			c.options), 2*c.passes*(blocks+head)
		if math.Abs(got-want) > 0.03*want { // the norms' weights; an adapter's own products
			t.Errorf("%+v, tied=%v: %g operations a token, want %g", c.options, c.tied, got, want)
		}
	}
}

func TestPredict_DividesStateByStrategy(t *testing.T) {
	m := plannedModel(t, "llama", false)
	machine := Machine{
		GPUs:     16,
		PerHost:  8,
		Memory:   80,
		Rate:     600,
		Transfer: 3000,
		Link:     300,
		Network:  40,
		Host:     20,
	}
	options := Options{BatchSize: 2, SequenceLength: 128, DType: torch.BFloat16}
	plans, err := Predict(m, options, machine)
	if err != nil {
		t.Fatal(err)
	}
	weights := float64(model.Parameters(m) * 2)
	shares := map[string]float64{"ddp": 1, "fsdp": 16, "hsdp": 8}
	for _, p := range plans {
		// 4 key and value heads do not divide over the 8 GPUs of a host, nor 6 layers over all 16.
		if p.Strategy == train.TP || p.Strategy == train.PP {
			if p.Refused == "" {
				t.Errorf("%+v", p)
			}
			continue
		}
		if p.Weights != weights/shares[p.Strategy] || p.Optimizer != 6*weights/shares[p.Strategy] {
			t.Errorf("%s: weights %v, optimizer %v of %v", p.Strategy, p.Weights, p.Optimizer,
				weights)
		}
		if p.Step < p.Compute || p.Communication <= 0 || p.Peak < p.Weights+p.Optimizer {
			t.Errorf("%s: %+v", p.Strategy, p)
		}
		delete(shares, p.Strategy)
	}
	if len(shares) > 0 {
		t.Errorf("no plan for %v", shares)
	}
	options.TensorSize = 4
	if plans, err = Predict(m, options, machine); err != nil {
		t.Fatal(err)
	}
	for i, share := range []float64{4, 16} {
		if p := plans[3+i]; p.Strategy != []string{"tp", "fsdp+tp"}[i] ||
			math.Abs(p.Weights/(weights/share)-1) > 0.01 ||
			p.Step < p.Compute ||
			p.Refused != "" {
			t.Errorf("%+v", p)
		}
	}
	for _, p := range nn.Params(m) {
		if p.Shard != nil {
			t.Fatal("Predict left a shard on the model")
		}
	}
	options.TensorSize = 0
	muon := options
	muon.Optimizer = optim.Muon
	plans, err = Predict(m, muon, machine)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plans {
		sharded := p.Strategy == train.FSDP || p.Strategy == train.HSDP
		if refused := strings.Contains(p.Refused, "whole matrices"); refused != sharded &&
			p.Strategy != train.TP {
			t.Errorf("Muon under %s: refused %q", p.Strategy, p.Refused)
		}
	}
	for name, spoil := range map[string]func(*Options, *Machine){
		"batch":   func(o *Options, _ *Machine) { o.BatchSize = 0 },
		"hosts":   func(_ *Options, c *Machine) { c.GPUs = 12 },
		"memory":  func(_ *Options, c *Machine) { c.Memory = 0 },
		"link":    func(_ *Options, c *Machine) { c.Link = math.NaN() },
		"groups":  func(o *Options, _ *Machine) { o.TensorSize = 3 },
		"compute": func(o *Options, _ *Machine) { o.Recompute = "some" },
		"moments": func(o *Options, _ *Machine) { o.Optimizer, o.Moments = optim.Lion, optim.Int8 },
		"host":    func(o *Options, _ *Machine) { o.Stochastic, o.OffloadOptimizer = true, true },
	} {
		o, c := options, machine
		spoil(&o, &c)
		if _, err := Predict(m, o, c); err == nil {
			t.Errorf("no error for an invalid %s", name)
		}
	}
}

func TestPredict_RefusesDivisionsWhoseCopiesDiverge(t *testing.T) {
	m := plannedModel(t, "bamba", false)
	o := Options{
		BatchSize:      1,
		SequenceLength: 24,
		DType:          torch.Float32,
		TensorSize:     2,
		Moments:        optim.Int8,
	}
	machine := Machine{
		GPUs:     2,
		PerHost:  2,
		Memory:   1,
		Rate:     1,
		Transfer: 1,
		Link:     1,
		Network:  1,
		Host:     1,
	}
	plans, err := Predict(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(plans, func(p Plan) bool { return p.Strategy == train.TP })
	if i < 0 || !strings.Contains(plans[i].Refused, "8-bit moments") {
		t.Errorf("planned %+v", plans)
	}
}

// Times and memory of any possible machine can be written as JSON.
func TestPredict_IsFiniteForEveryMachine(t *testing.T) {
	m := plannedModel(t, "llama", false)
	options := Options{BatchSize: 1 << 20, SequenceLength: 512, Accumulate: 1 << 20,
		DType: torch.BFloat16}
	for _, rate := range []float64{1e-6, 1e12} {
		machine := Machine{GPUs: 8, PerHost: 8, Memory: rate, Rate: rate, Transfer: rate,
			Link: rate, Network: rate, Host: rate}
		plans, err := Predict(m, options, machine)
		if err == nil {
			_, err = json.Marshal(plans)
		}
		if err != nil {
			t.Errorf("rates of %g: %v", rate, err)
		}
	}
	for _, rate := range []float64{0, -1, 1e-320, 1e308, math.Inf(1), math.NaN()} {
		machine := Machine{GPUs: 1, PerHost: 1, Memory: rate, Rate: 1, Transfer: 1, Link: 1,
			Network: 1, Host: 1}
		if _, err := Predict(m, options, machine); err == nil {
			t.Errorf("a memory of %g GB is accepted", rate)
		}
	}
}

// On the CPU, each adapter of 16-bit weights keeps its layer's input in float32.
func TestPredict_CountsInputsOfAdaptersOnTheCPU(t *testing.T) {
	m := plannedModel(t, "llama", false)
	machine := Machine{GPUs: 1, PerHost: 1, Memory: 1, Rate: 1, Transfer: 1, Link: 1, Network: 1,
		Host: 1}
	kept := func(dtype torch.DType, cpu bool) float64 {
		o := Options{BatchSize: 2, SequenceLength: 64, DType: dtype, CPU: cpu,
			LoRA: &lora.Config{Rank: 4, Targets: []string{"q_proj", "v_proj"}}}
		plans, err := Predict(m, o, machine)
		if err != nil {
			t.Fatal(err)
		}
		return plans[0].Activations
	}
	inputs := 4 * 2 * 64 * 2 * float64(len(m.Blocks())*m.Head().Shape[1])
	if more := kept(torch.BFloat16, true) - kept(torch.BFloat16, false); math.Abs(more-inputs) > 1 {
		t.Errorf("the CPU keeps %g bytes more, expected %g", more, inputs)
	}
	if kept(torch.Float32, true) != kept(torch.Float32, false) {
		t.Error("weights in float32 need no copies")
	}
}

// Frozen weights that stay quantized are held whole by each process of ddp and fsdp, in their own
// size; under tp they are converted.
func TestPredict_QuantizedWeightsKeepTheirSize(t *testing.T) {
	m := plannedModel(t, "llama", false)
	adapter := &lora.Config{Rank: 8, Alpha: 8}
	o := Options{BatchSize: 2, SequenceLength: 128, DType: torch.BFloat16, LoRA: adapter}
	machine := Machine{GPUs: 2, PerHost: 2, Memory: 80, Rate: 600, Transfer: 3000, Link: 300,
		Network: 40, Host: 20}
	plain, err := Predict(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	const head = 2000 * 256
	all := float64(model.Parameters(m))
	o.Quantized = Quantized{Numbers: all - head, Bytes: (all - head) * 5 / 8}
	quantized, err := Predict(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	for i, q := range quantized {
		saved := plain[i].Weights - q.Weights
		want := 0.0 // tp and pp convert
		switch q.Strategy {
		case train.DDP:
			want = (all - head) * (2 - 5.0/8)
		case train.FSDP:
			want = (all - head) * (1 - 5.0/8)
		}
		if math.Abs(saved-want) > 1 {
			t.Errorf("%s saves %g bytes of weights, expected %g", q.Strategy, saved, want)
		}
		if q.Strategy == train.DDP && q.Peak >= plain[i].Peak {
			t.Errorf("%s needs %g bytes, and %g with converted weights", q.Strategy, q.Peak,
				plain[i].Peak)
		}
	}
}
