package llama

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch/nn"
)

// ggufNames are GGUF's names of a decoder's tensors.
var ggufNames = checkpoint.Names{
	Blocks: "blk.", Layers: "model.layers.",
	Whole: map[string]string{
		"token_embd":  "model.embed_tokens",
		"output_norm": "model.norm",
		"output":      "lm_head",
	},
	Block: map[string]string{
		"attn_norm":   "input_layernorm",
		"attn_q":      "self_attn.q_proj",
		"attn_k":      "self_attn.k_proj",
		"attn_v":      "self_attn.v_proj",
		"attn_output": "self_attn.o_proj",
		"attn_q_norm": "self_attn.q_norm",
		"attn_k_norm": "self_attn.k_norm",
		"ffn_norm":    "post_attention_layernorm",
		"ffn_gate":    "mlp.gate_proj",
		"ffn_up":      "mlp.up_proj",
		"ffn_down":    "mlp.down_proj",
	},
}

// names are GGUF's names of this family's tensors, with a number of experts.
func (f Family) names(experts int) checkpoint.Names {
	n := ggufNames
	n.Block = maps.Clone(n.Block)
	maps.Copy(n.Block, f.Parts)
	n.Stacks, n.Experts = f.Stacks, experts
	return n
}

// split lists the tensors that hold parts of the rows of the same Hugging Face tensor as that of a
// name in GGUF; nil if it holds all of them.
func (f Family) split(name string) (list []string) {
	rest, _ := strings.CutPrefix(name, ggufNames.Blocks)
	layer, stem, _ := strings.Cut(strings.TrimSuffix(rest, ".weight"), ".")
	for _, other := range slices.Sorted(maps.Keys(f.Parts)) {
		if f.Parts[other] == f.Parts[stem] && f.Parts[stem] != "" {
			list = append(list, ggufNames.Blocks+layer+"."+other+".weight")
		}
	}
	if len(list) < 2 {
		return nil
	}
	return list
}

const ropeFactors = "rope_freqs.weight"

// interleaved gives the number of heads among a tensor's rows, by its Hugging Face name; 0 unless
// it is of q or k.
func interleaved(name string, heads, keyHeads int) int {
	switch component(name) {
	case "q_proj":
		return heads
	case "k_proj":
		return keyHeads
	}
	return 0
}

// fromGGUF reads a GGUF file of this family.
func (f Family) fromGGUF(g *checkpoint.GGUFFile) (map[string]any, checkpoint.TensorMap, error) {
	width, heads := g.Int("embedding_length", 0), g.Int("attention.head_count", 0)
	headDim := g.Int("attention.key_length", max(width/max(heads, 1), 1))
	keyHeads := g.Int("attention.head_count_kv", heads)
	config := map[string]any{
		"architectures":           []string{f.Class},
		"model_type":              f.ModelType,
		"hidden_act":              "silu",
		"hidden_size":             width,
		"intermediate_size":       g.Int("feed_forward_length", 0),
		"num_hidden_layers":       g.Int("block_count", 0),
		"num_attention_heads":     heads,
		"num_key_value_heads":     keyHeads,
		"head_dim":                headDim,
		"max_position_embeddings": g.Int("context_length", 0),
		"rms_norm_eps":            g.Number("attention.layer_norm_rms_epsilon", math.NaN()),
		"rope_theta":              g.Number("rope.freq_base", 10000),
		"vocab_size":              g.Shape("token_embd.weight")[0],
		"tie_word_embeddings":     !g.Has("output.weight"),
		"initializer_range":       0.02,
		"attention_dropout":       0.0,
		"use_cache":               true,
		"attention_bias":          g.Has("blk.0.attn_q.bias"),
		"mlp_bias":                g.Has("blk.0.ffn_gate.bias"),
		"rope_scaling":            nil,
	}
	if n := g.Int("rope.dimension_count", headDim); n != headDim {
		g.Fail("%s.rope.dimension_count is %d of a head's %d: partial rotation is not supported",
			g.Architecture, n, headDim)
	}
	if n := g.Int("attention.value_length", headDim); n != headDim {
		g.Fail("%s.attention.value_length is %d, expected the keys' %d", g.Architecture, n, headDim)
	}
	if last := fmt.Sprintf("blk.%d.attn_norm.weight", g.Int("block_count", 0)-1); !g.Has(last) {
		g.Fail("tensor %q is missing: %s.block_count is %v", last, g.Architecture,
			config["num_hidden_layers"])
	}
	if scaling := ropeScaling(g, config); scaling != nil {
		config["rope_scaling"] = scaling
	}
	if f.FromGGUF != nil && g.Err == nil {
		f.FromGGUF(g, config)
	}
	experts := 0
	if f.Stacks != nil {
		experts = g.Int("expert_count", 0)
		if experts > model.Experts {
			g.Fail("%s.expert_count is %d, expected at most %d", g.Architecture, experts,
				model.Experts)
		}
	}
	names := f.names(experts)
	tensors := func(name string) (checkpoint.Mapped, bool) {
		if name == ropeFactors { // part of the config
			return checkpoint.Mapped{}, true
		}
		if m, ok := names.Stacked(name); ok {
			return m, true
		}
		hf, ok := names.HuggingFace(name)
		m := checkpoint.Mapped{Name: hf, Split: f.split(name)}
		if f.Interleaved && g.Architecture == f.GGUF {
			m.Heads = interleaved(hf, heads, keyHeads)
		}
		return m, ok
	}
	return config, tensors, g.Err
}

// toGGUF describes a model of this family for a GGUF file.
func (f Family) toGGUF(text []byte) (*checkpoint.GGUFModel, error) {
	config, err := configOf(text)
	if err != nil {
		return nil, err
	}
	r, d := f.read(config)
	if r.Err != nil {
		return nil, r.Err
	}
	m := &checkpoint.GGUFModel{Architecture: f.GGUF}
	a := d.Attention
	for i := range d.Layers {
		if d.AttentionOf(i).Window != a.Window {
			return nil, fmt.Errorf("config.json: sliding windows in some layers only have no " +
				"form in GGUF")
		}
	}
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"vocab_size", d.Vocabulary}, {"context_length", d.MaxLength},
		{"embedding_length", d.Width},
		{"block_count", d.Layers}, {"feed_forward_length", d.Inner},
		{"attention.head_count", a.Heads},
		{"attention.head_count_kv", a.KeyHeads}, {"attention.key_length", a.HeadDim},
		{"attention.value_length", a.HeadDim}, {"rope.dimension_count", a.HeadDim},
	} {
		m.Set(pair.key, uint32(pair.n))
	}
	m.Set("attention.layer_norm_rms_epsilon", float32(d.Eps))
	m.Set("rope.freq_base", float32(d.Rotary.Theta))
	if a.Window > 0 {
		m.Set("attention.sliding_window", uint32(a.Window))
	}
	switch s := d.Rotary; s.Scaling {
	case "", "default":
	case "linear":
		m.Set("rope.scaling.type", "linear")
		m.Set("rope.scaling.factor", float32(s.Factor))
	case "llama3":
		// llama.cpp reads the tensor of divisors; the parameters are written to find the way back.
		if s.LowFreqFactor != 1 || s.HighFreqFactor != 4 || s.OriginalPosition != 8192 {
			m.Set("rope.scaling.low_freq_factor", float32(s.LowFreqFactor))
			m.Set("rope.scaling.high_freq_factor", float32(s.HighFreqFactor))
			m.Set("rope.scaling.original_context_length", uint32(s.OriginalPosition))
		}
		m.Tensors = map[string][]float32{ropeFactors: llama3Divisors(*s)}
	case "yarn":
		if err := setYarn(m, *s); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("config.json: rope_scaling of type %.40q has no form in GGUF, "+
			"expected linear, llama3 or yarn: use --format hf", s.Scaling)
	}
	if f.ToGGUF != nil {
		if err := f.ToGGUF(r, d, m); err != nil {
			return nil, err
		}
	}
	names := f.names(d.Experts)
	m.Tensor = func(name string) (checkpoint.Mapped, bool) {
		if d.Tied && name == "lm_head.weight" {
			return checkpoint.Mapped{}, true
		}
		if m, ok := names.Stacker(name); ok {
			return m, true
		}
		foreign, ok := names.Foreign(name)
		mapped := checkpoint.Mapped{Name: foreign, Split: f.split(foreign)}
		if f.Interleaved {
			mapped.Heads = interleaved(name, a.Heads, a.KeyHeads)
		}
		return mapped, ok
	}
	return m, r.Err
}

// setYarn writes YaRN's parameters, of which llama.cpp reads few from a file.
func setYarn(m *checkpoint.GGUFModel, s nn.RotaryConfig) error {
	if s.Fractional {
		return fmt.Errorf("config.json: YaRN with truncate false has no form in GGUF: use " +
			"--format hf")
	}
	if s.BetaFast != 32 || s.BetaSlow != 1 {
		return fmt.Errorf("config.json: YaRN with beta_fast %g and beta_slow %g has no form in a "+
			"GGUF file, only in llama.cpp's flags: use --format hf", s.BetaFast, s.BetaSlow)
	}
	m.Set("rope.scaling.type", "yarn")
	m.Set("rope.scaling.factor", float32(s.Factor))
	m.Set("rope.scaling.original_context_length", uint32(s.OriginalPosition))
	// llama.cpp multiplies by YaRN's own factor
	if own := nn.YarnAttention(s.Factor, 1); s.AttentionFactor != own {
		m.Set("rope.scaling.attn_factor", float32(s.AttentionFactor/own))
	}
	return nil
}

// RefuseBias is a [Family.ToGGUF] for architectures that have no bias of the output projection and
// the feed-forward layer.
func RefuseBias(_ *model.Reader, d *Decoder, m *checkpoint.GGUFModel) error {
	if d.Attention.OutputBias || d.MLPBias {
		return fmt.Errorf("config.json: attention_bias and mlp_bias have no form in GGUF's "+
			"architecture %s", m.Architecture)
	}
	return nil
}

// configOf reads a config.json from text.
func configOf(text []byte) (config model.Config, err error) {
	if err = json.Unmarshal(text, &config); err != nil {
		err = fmt.Errorf("config.json: %w", err)
	}
	return config, err
}

// ropeScaling gives config.json's rope_scaling, or nil. GGUF names linear and yarn scaling in its
// metadata; Llama 3's scaling is a tensor of one divisor per frequency.
func ropeScaling(g *checkpoint.GGUFFile, config map[string]any) map[string]any {
	kind := g.Text("rope.scaling.type")
	original := g.Int("rope.scaling.original_context_length",
		config["max_position_embeddings"].(int))
	factors := g.Floats(ropeFactors)
	switch {
	case len(factors) > 0:
		return llama3Scaling(g, config, factors)
	case kind == "" || kind == "none":
		// Files from before rope.scaling.type have the factor alone.
		if factor := g.Number("rope.scale_linear", 1); factor != 1 && factor != 0 {
			return map[string]any{"rope_type": "linear", "factor": factor}
		}
		return nil
	case kind == "linear":
		return map[string]any{"rope_type": "linear",
			"factor": g.Number("rope.scaling.factor", math.NaN())}
	case kind == "yarn":
		factor := g.Number("rope.scaling.factor", math.NaN())
		scaling := map[string]any{"rope_type": "yarn", "factor": factor,
			"original_max_position_embeddings": original,
			"beta_fast":                        g.Number("rope.scaling.yarn_beta_fast", 32),
			"beta_slow":                        g.Number("rope.scaling.yarn_beta_slow", 1)}
		if more := g.Number("rope.scaling.attn_factor", 1); more != 1 {
			scaling["attention_factor"] = more * nn.YarnAttention(factor, 1)
		}
		return scaling
	}
	g.Fail("%s.rope.scaling.type is %.40q, expected none, linear or yarn", g.Architecture, kind)
	return nil
}

// llama3Scaling finds the parameters that give the divisors in factors. Llama 3.1 and 3.2 differ in
// the factor only; files of this package name other parameters, which are not guessed.
func llama3Scaling(g *checkpoint.GGUFFile, config map[string]any,
	factors []float32) map[string]any {
	headDim := config["head_dim"].(int)
	c := nn.RotaryConfig{
		Dims: headDim, Theta: config["rope_theta"].(float64), Scaling: "llama3",
		LowFreqFactor:    g.Number("rope.scaling.low_freq_factor", 1),
		HighFreqFactor:   g.Number("rope.scaling.high_freq_factor", 4),
		OriginalPosition: g.Int("rope.scaling.original_context_length", 8192),
	}
	if len(factors) != headDim/2 {
		g.Fail("tensor %q has %d numbers, expected half a head's %d", ropeFactors, len(factors),
			headDim)
		return nil
	}
	// Factors in use are whole or nearly so; float32 division has blurred the last digits.
	c.Factor = math.Round(float64(slices.Max(factors))*1e4) / 1e4
	for i, expected := range llama3Divisors(c) {
		stored, want := float64(factors[i]), float64(expected)
		if !(math.Abs(stored-want) <= 1e-3*want) {
			g.Fail("tensor %q holds %v at %d, but Llama 3's scaling by %v gives %v", ropeFactors,
				stored, i, c.Factor, expected)
			return nil
		}
	}
	if c.Factor == 1 {
		return nil
	}
	return map[string]any{"rope_type": "llama3", "factor": c.Factor,
		"low_freq_factor":                  c.LowFreqFactor,
		"high_freq_factor":                 c.HighFreqFactor,
		"original_max_position_embeddings": c.OriginalPosition}
}

// llama3Divisors is what Llama 3's scaling divides each rotary frequency by: 1 for short
// wavelengths, the factor for long ones, and a value between for those between.
func llama3Divisors(c nn.RotaryConfig) []float32 {
	divisors := make([]float32, c.Dims/2)
	original := float64(c.OriginalPosition)
	for i := range divisors {
		wavelength := 2 * math.Pi * math.Pow(c.Theta, 2*float64(i)/float64(c.Dims))
		switch {
		case wavelength > original/c.LowFreqFactor:
			divisors[i] = float32(c.Factor)
		case wavelength < original/c.HighFreqFactor:
			divisors[i] = 1
		default:
			smooth := (original/wavelength - c.LowFreqFactor) / (c.HighFreqFactor - c.LowFreqFactor)
			divisors[i] = float32(1 / ((1-smooth)/c.Factor + smooth))
		}
	}
	return divisors
}

// merged is config with the keys of more.
func merged(config, more model.Config) model.Config {
	all := config.Clone()
	maps.Copy(all, more)
	return all
}
