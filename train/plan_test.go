package train

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
)

func plannedModel(t *testing.T, architecture string, tied bool) model.Model {
	t.Helper()
	config := model.Config{
		"model_type": "llama", "architectures": []any{"LlamaForCausalLM"}, "vocab_size": 2000.0, "hidden_size": 256.0,
		"intermediate_size": 704.0, "num_hidden_layers": 6.0, "num_attention_heads": 8.0, "num_key_value_heads": 4.0,
		"max_position_embeddings": 512.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "initializer_range": 0.02,
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

// What a plan says about one device is what a run holds there, within a tenth.
func TestThePlanOfOneDeviceIsWhatARunHolds(t *testing.T) {
	noLeaks(t)
	const rows, length = 4, 256
	for _, c := range []struct {
		architecture string
		tied         bool
		dtype        torch.DType
		options      Options
	}{
		{"llama", false, torch.Float32, Options{}},
		{"llama", true, torch.BFloat16, Options{}},
		{"llama", false, torch.BFloat16, Options{Accumulate: 2}},
		{"llama", false, torch.Float32, Options{Recompute: RecomputeBlock}},
		{"llama", false, torch.Float32, Options{Recompute: RecomputeSelective}},
		{"llama", true, torch.BFloat16, Options{Recompute: RecomputeSelective, Accumulate: 2}},
		{"llama", false, torch.Float32, Options{Recompute: RecomputeSelective, LoRA: &LoRA{Rank: 8, Alpha: 8, Targets: []string{AllLinear}}}},
		{"llama", false, torch.Float32, Options{LoRA: &LoRA{Rank: 8, Alpha: 8, Targets: []string{AllLinear}}}},
		{"llama", false, torch.Float32, Options{HeadOnly: true}},
		{"llama", false, torch.BFloat16, Options{Moments: optim.Int8}},
		{"llama", true, torch.BFloat16, Options{Stochastic: true}},
		{"llama", false, torch.BFloat16, Options{Stochastic: true, Accumulate: 2}},
		{"llama", false, torch.Float32, Options{Optimizer: optim.Lion}},
		{"bamba", false, torch.Float32, Options{}},
		{"bamba", false, torch.BFloat16, Options{Recompute: RecomputeBlock}},
		{"bamba", false, torch.Float32, Options{Recompute: RecomputeSelective}},
	} {
		name := fmt.Sprintf("%s tied=%v %v %s%s stochastic=%v accumulate=%d recompute=%s lora=%v head_only=%v", c.architecture, c.tied, c.dtype, c.options.Optimizer, c.options.Moments,
			c.options.Stochastic, c.options.Accumulate, c.options.Recompute, c.options.LoRA != nil, c.options.HeadOnly)
		t.Run(name, func(t *testing.T) {
			m := plannedModel(t, c.architecture, c.tied)
			plans, err := Plans(m, PlanOptions{BatchSize: rows, SequenceLength: length, Accumulate: c.options.Accumulate, DType: c.dtype,
				Recompute: c.options.Recompute, LoRA: c.options.LoRA, HeadOnly: c.options.HeadOnly, Optimizer: c.options.Optimizer, Moments: c.options.Moments, Stochastic: c.options.Stochastic},
				Machine{GPUs: 1, PerHost: 1, Memory: 1, Rate: 1, Transfer: 1, Link: 1, Network: 1, Host: 1})
			if err != nil {
				t.Fatal(err)
			}
			before, _ := torch.CPU.Memory()
			if err := torch.Run(func() error { model.Initialize(m, c.dtype, torch.CPU); return nil }); err != nil {
				t.Fatal(err)
			}
			o := c.options
			o.Steps, o.BatchSize, o.SequenceLength, o.Rate, o.Pack = 2, rows, length, 1e-4, true
			torch.CPU.ResetPeak()
			train(t, m, samples(2000, 1), nil, o, nil)
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

func TestOperationsAreThoseOfTheProducts(t *testing.T) {
	// Weights of q, k, v, o, gate, up and down in six blocks, and the head. An embedding of its own is no product.
	const blocks, head = 6 * (2*256*256 + 2*256*128 + 3*256*704), 256 * 2000
	adapter := &LoRA{Rank: 8, Alpha: 8, Targets: []string{AllLinear}}
	for _, c := range []struct {
		options PlanOptions
		tied    bool
		passes  float64
	}{
		{PlanOptions{}, false, 3}, {PlanOptions{}, true, 3}, {PlanOptions{Recompute: RecomputeBlock}, false, 4},
		{PlanOptions{Recompute: RecomputeSelective}, false, 3}, {PlanOptions{LoRA: adapter}, false, 2},
	} {
		got, want := Operations(plannedModel(t, "llama", c.tied), c.options), 2*c.passes*(blocks+head)
		if math.Abs(got-want) > 0.03*want { // the norms' weights; an adapter's own products
			t.Errorf("%+v, tied=%v: %g operations a token, want %g", c.options, c.tied, got, want)
		}
	}
}

func TestAPlanOfManyDevicesSharesWhatTheStrategyShares(t *testing.T) {
	m := plannedModel(t, "llama", false)
	machine := Machine{GPUs: 16, PerHost: 8, Memory: 80, Rate: 600, Transfer: 3000, Link: 300, Network: 40, Host: 20}
	options := PlanOptions{BatchSize: 2, SequenceLength: 128, DType: torch.BFloat16}
	plans, err := Plans(m, options, machine)
	if err != nil {
		t.Fatal(err)
	}
	weights := float64(model.Parameters(m) * 2)
	shares := map[string]float64{"ddp": 1, "fsdp": 16, "hsdp": 8}
	for _, p := range plans {
		// Over the 8 of a host, which its 4 heads of keys and values do not allow, and over all 16, for its 6 layers.
		if p.Strategy == TP || p.Strategy == MP {
			if p.Refused == "" {
				t.Errorf("%+v", p)
			}
			continue
		}
		if p.Weights != weights/shares[p.Strategy] || p.Optimizer != 6*weights/shares[p.Strategy] {
			t.Errorf("%s: weights %v, optimizer %v of %v", p.Strategy, p.Weights, p.Optimizer, weights)
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
	if plans, err = Plans(m, options, machine); err != nil {
		t.Fatal(err)
	}
	for i, share := range []float64{4, 16} {
		if p := plans[3+i]; p.Strategy != []string{"tp", "fsdp+tp"}[i] || math.Abs(p.Weights/(weights/share)-1) > 0.01 || p.Step < p.Compute || p.Refused != "" {
			t.Errorf("%+v", p)
		}
	}
	for _, p := range nn.Params(m) {
		if p.Shard != nil {
			t.Fatal("a plan left its mark on the model")
		}
	}
	options.TensorSize = 0
	for name, spoil := range map[string]func(*PlanOptions, *Machine){
		"batch":   func(o *PlanOptions, _ *Machine) { o.BatchSize = 0 },
		"hosts":   func(_ *PlanOptions, c *Machine) { c.GPUs = 12 },
		"memory":  func(_ *PlanOptions, c *Machine) { c.Memory = 0 },
		"link":    func(_ *PlanOptions, c *Machine) { c.Link = math.NaN() },
		"groups":  func(o *PlanOptions, _ *Machine) { o.TensorSize = 3 },
		"compute": func(o *PlanOptions, _ *Machine) { o.Recompute = "some" },
		"moments": func(o *PlanOptions, _ *Machine) { o.Stochastic, o.Moments = true, optim.Int8 },
		"host":    func(o *PlanOptions, _ *Machine) { o.Stochastic, o.OffloadOptimizer = true, true },
	} {
		o, c := options, machine
		spoil(&o, &c)
		if _, err := Plans(m, o, c); err == nil {
			t.Errorf("a spoiled %s was planned with", name)
		}
	}
}

// plannedSpec is a run of the model that plans are held to.
func plannedSpec() runSpec {
	return runSpec{Architecture: "planned llama", DType: "float32", Distributed: FSDP,
		Options: Options{Steps: 2, BatchSize: 1, SequenceLength: 128, Rate: 1e-4, Pack: true}}
}

// besidePlan runs s in a world of n processes, and plans it for each.
func (s runSpec) besidePlan(t *testing.T, n int) (result, []Plan) {
	t.Helper()
	dtype, err := torch.ParseDType(s.DType)
	if err != nil {
		t.Fatal(err)
	}
	machine := Machine{GPUs: n, PerHost: n, Memory: 1, Rate: 1, Transfer: 1, Link: 1, Network: 1, Host: 1}
	if s.Distributed == HSDP {
		machine.PerHost = s.ShardSize
	}
	m := plannedModel(t, strings.TrimPrefix(s.Architecture, "planned "), s.Tied)
	o := PlanOptions{BatchSize: s.Options.BatchSize, SequenceLength: s.Options.SequenceLength, Accumulate: s.Options.Accumulate, DType: dtype,
		Recompute: s.Recompute, LoRA: s.Options.LoRA, HeadOnly: s.Options.HeadOnly, TensorSize: s.TensorSize, Stochastic: s.Options.Stochastic, OffloadOptimizer: s.Offload}
	plans, err := Plans(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	name := s.Distributed
	if s.TensorSize > 0 && name != TP {
		name += "+" + TP
	}
	i := slices.IndexFunc(plans, func(p Plan) bool { return p.Strategy == name })
	if i < 0 || plans[i].Refused != "" {
		t.Fatalf("no plan for %s among %+v", name, plans)
	}
	each := slices.Repeat(plans[i:i+1], n)
	if name == MP {
		if each, err = stagePlans(m, o, machine); err != nil {
			t.Fatal(err)
		}
		fullest := slices.MaxFunc(each, func(a, b Plan) int { return cmp.Compare(a.Peak, b.Peak) })
		if plans[i].Peak != fullest.Peak || plans[i].Weights != fullest.Weights {
			t.Errorf("the plan is %+v, that of the fullest stage %+v", plans[i], fullest)
		}
	}
	return succeedIn(t, s, n), each
}

// What a plan says about several processes is what each of them holds, within a tenth: between two steps, its part of the weights,
// of the optimizer's state and, where they are sharded, of the gradients; and at most, with what comes and goes.
func TestThePlanOfManyProcessesIsWhatEachHolds(t *testing.T) {
	for what, c := range map[string]struct {
		world  int
		change func(*runSpec)
	}{
		"fsdp 2":                                {2, func(s *runSpec) {}},
		"fsdp 4 tied":                           {4, func(s *runSpec) { s.Tied = true }},
		"fsdp 2 bamba bfloat16":                 {2, func(s *runSpec) { s.Architecture, s.DType = "planned bamba", "bfloat16" }},
		"fsdp 2 bfloat16 rounded at random":     {2, func(s *runSpec) { s.DType, s.Options.Stochastic = "bfloat16", true }},
		"ddp 2 tied bfloat16 rounded at random": {2, func(s *runSpec) { s.Distributed, s.Tied, s.DType, s.Options.Stochastic = DDP, true, "bfloat16", true }},
		"ddp 2 bfloat16":                        {2, func(s *runSpec) { s.Distributed, s.DType = DDP, "bfloat16" }},
		"hsdp 4 recomputed":                     {4, func(s *runSpec) { s.Distributed, s.ShardSize, s.Recompute = HSDP, 2, RecomputeBlock }},
		"tp 4 bfloat16":                         {4, func(s *runSpec) { s.Distributed, s.TensorSize, s.DType = TP, 4, "bfloat16" }},
		"fsdp 2 selective":                      {2, func(s *runSpec) { s.Recompute = RecomputeSelective }},
		"tp 2 selective":                        {2, func(s *runSpec) { s.Distributed, s.TensorSize, s.Recompute = TP, 2, RecomputeSelective }},
		"tp 2 bamba recomputed": {2, func(s *runSpec) {
			s.Distributed, s.TensorSize, s.Architecture, s.Recompute = TP, 2, "planned bamba", RecomputeBlock
		}},
		"tp 2 tied, accumulated": {2, func(s *runSpec) { s.Distributed, s.TensorSize, s.Tied, s.Options.Accumulate = TP, 2, true, 2 }},
		"fsdp and tp 2x2":        {4, func(s *runSpec) { s.TensorSize = 2 }},
		"hsdp 4 bfloat16, offloaded, accumulated": {4, func(s *runSpec) {
			s.Distributed, s.ShardSize, s.Offload, s.DType, s.Options.Accumulate = HSDP, 2, true, "bfloat16", 2
		}},
		"fsdp alone, offloaded":             {1, func(s *runSpec) { s.Offload = true }},
		"mp 2":                              {2, func(s *runSpec) { s.Distributed = MP }},
		"mp 2 selective, accumulated twice": {2, func(s *runSpec) { s.Distributed, s.Recompute, s.Options.Accumulate = MP, RecomputeSelective, 2 }},
		"mp 2 tied bfloat16, accumulated":   {2, func(s *runSpec) { s.Distributed, s.Tied, s.DType, s.Options.Accumulate = MP, true, "bfloat16", 6 }},
		"mp 4 accumulated":                  {4, func(s *runSpec) { s.Distributed, s.Options.Accumulate = MP, 8 }},
		"mp 3 bamba recomputed, accumulated": {3, func(s *runSpec) {
			s.Distributed, s.Architecture, s.Recompute, s.Options.Accumulate = MP, "planned bamba", RecomputeBlock, 4
		}},
		"mp 2 LoRA": {2, func(s *runSpec) {
			s.Distributed, s.Options.LoRA, s.Options.Accumulate = MP, &LoRA{Rank: 8, Alpha: 8, Targets: []string{AllLinear}}, 4
		}},
	} {
		s := plannedSpec()
		c.change(&s)
		r, plans := s.besidePlan(t, c.world)
		for rank, plan := range plans {
			held, peak := plan.Weights+plan.Optimizer+plan.Host, plan.Peak+plan.Host
			if s.Distributed == FSDP || s.Distributed == HSDP {
				held += plan.Gradients
			}
			t.Logf("%s, rank %d: %.1f MB between steps, planned %.1f MB; at most %.1f MB, planned %.1f MB", what, rank, r.Held[rank]/1e6, held/1e6, r.Peak[rank]/1e6, peak/1e6)
			if math.Abs(held/r.Held[rank]-1) > 0.1 {
				t.Errorf("%s: between steps process %d holds %.2f MB, the plan says %.2f MB", what, rank, r.Held[rank]/1e6, held/1e6)
			}
			if math.Abs(peak/r.Peak[rank]-1) > 0.1 {
				t.Errorf("%s: process %d holds %.2f MB at most, the plan says %.2f MB", what, rank, r.Peak[rank]/1e6, peak/1e6)
			}
		}
	}
}
