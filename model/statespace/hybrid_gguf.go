package statespace

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// HybridGGUF is a model as GGUF's architecture granitehybrid describes it: state-space layers and
// attention, each followed by a feed-forward layer. Bamba and Granite 4.0 are written in it.
type HybridGGUF struct {
	Stack       model.StackConfig
	Attention   model.AttentionConfig
	Mixer       MixerConfig
	IsAttention []bool // of each layer
	Inner       int    // F
	ProjBias    string // the name of Mixer.InBias and OutBias in config.json
	Names       HybridNames
	Experts     bool // a mixture of experts beside each feed-forward layer
}

// HybridNames are the Hugging Face names of a hybrid model's tensors, without .weight and .bias.
type HybridNames struct {
	FinalNorm, FFNNorm string
	// Gate, Up and Down are the feed-forward layers. Gate and Up are the same for a family that
	// holds them in one tensor, gate first.
	Gate, Up, Down string
	// Router, ExpertsIn and ExpertsOut are those of a mixture of experts: stacks of matrices, those
	// of ExpertsIn with the gate first. They are empty for a family without experts.
	Router, ExpertsIn, ExpertsOut string
}

func (n HybridNames) table(experts bool) checkpoint.Names {
	names := GGUFNames(checkpoint.Names{
		Blocks: "blk.", Layers: "model.layers.",
		Whole: map[string]string{
			"token_embd":  "model.embed_tokens",
			"output_norm": n.FinalNorm,
			"output":      "lm_head",
		},
		Block: map[string]string{
			"attn_norm":   "input_layernorm",
			"attn_q":      "self_attn.q_proj",
			"attn_k":      "self_attn.k_proj",
			"attn_v":      "self_attn.v_proj",
			"attn_output": "self_attn.o_proj",
			"ffn_norm":    n.FFNNorm,
		},
	}, "mamba.")
	suffix := ""
	if experts {
		suffix = "_shexp"
		names.Block["ffn_gate_inp"], names.Block["ffn_down_exps"] = n.Router, n.ExpertsOut
		names.Block["ffn_gate_exps"], names.Block["ffn_up_exps"] = n.ExpertsIn, n.ExpertsIn
	}
	names.Block["ffn_gate"+suffix], names.Block["ffn_up"+suffix] = n.Gate, n.Up
	names.Block["ffn_down"+suffix] = n.Down
	return names
}

// split gives the names of gate and up, by either's name in GGUF, if they are one tensor in Hugging
// Face's form.
func (n HybridNames) split(foreign string) []string {
	for _, kind := range []string{".", "_shexp.", "_exps."} {
		for _, part := range []string{".ffn_gate", ".ffn_up"} {
			before, after, ok := strings.Cut(foreign, part+kind)
			if ok && (n.Gate == n.Up || kind == "_exps.") {
				return []string{before + ".ffn_gate" + kind + after,
					before + ".ffn_up" + kind + after}
			}
		}
	}
	return nil
}

// Model describes the model for a file. It fails for what the architecture cannot hold. A model
// without state-space layers is written in the architecture granite, which has the same keys.
func (h HybridGGUF) Model() (*checkpoint.GGUFModel, error) {
	g := &checkpoint.GGUFModel{Architecture: "granitehybrid"}
	a, layers := h.Attention, len(h.IsAttention)
	var mixers []int
	for i, attention := range h.IsAttention {
		if !attention {
			mixers = append(mixers, i)
		}
	}
	switch {
	case len(mixers) == layers:
		return nil, fmt.Errorf("config.json: a model without attention layers has no form in " +
			"GGUF's architecture granitehybrid")
	case len(mixers) == 0:
		g.Architecture = "granite"
	case h.Mixer.Heads*h.Mixer.HeadDim != 2*h.Stack.Width:
		return nil, fmt.Errorf("config.json: mamba_expand other than 2 has no form in GGUF's " +
			"architecture granitehybrid")
	}
	if r := h.Stack.Rotary; r != nil && r.Scaling != "" && r.Scaling != "default" {
		return nil, fmt.Errorf("config.json: rope_parameters of type %.40q have no form in GGUF's "+
			"architecture %s", r.Scaling, g.Architecture)
	}
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"vocab_size", h.Stack.Vocabulary}, {"context_length", h.Stack.MaxLength},
		{"embedding_length", h.Stack.Width}, {"block_count", layers},
		{"feed_forward_length", h.Inner}, {"attention.head_count", a.Heads},
		{"attention.key_length", a.HeadDim}, {"attention.value_length", a.HeadDim},
		{"rope.dimension_count", h.rotated()},
	} {
		g.Set(pair.key, uint32(pair.n))
	}
	kv := make([]uint32, layers)
	for i := range kv {
		if h.IsAttention[i] {
			kv[i] = uint32(a.KeyHeads)
		}
	}
	g.Set("attention.head_count_kv", kv)
	g.Set("attention.layer_norm_rms_epsilon", float32(h.Stack.Eps))
	g.Set("rope.scaling.finetuned", !a.NoRotary)
	if !a.NoRotary {
		g.Set("rope.freq_base", float32(h.Stack.Rotary.Theta))
	}
	if len(mixers) > 0 {
		if err := h.Mixer.SetGGUF(g, mixers, h.ProjBias); err != nil {
			return nil, err
		}
	}
	names := h.Names.table(h.Experts)
	g.Tensor = func(name string) (checkpoint.Mapped, bool) {
		if h.Stack.Tied && name == "lm_head.weight" {
			return checkpoint.Mapped{}, true
		}
		foreign, ok := names.Foreign(name)
		m := h.mapped(name)
		m.Name, m.Split = foreign, h.Names.split(foreign)
		return m, ok
	}
	return g, nil
}

// rotated is the number of a head's dimensions that are rotated; all of them without rotation,
// where it does not matter.
func (h HybridGGUF) rotated() int {
	if h.Attention.NoRotary {
		return h.Attention.HeadDim
	}
	return h.Stack.Rotary.Dims
}

// mapped is the form of a tensor in GGUF, by its Hugging Face name.
func (h HybridGGUF) mapped(name string) (m checkpoint.Mapped) {
	m.Transform, m.Float32 = MixerGGUF(name, h.Mixer.Groups)
	heads := 0
	switch {
	case strings.Contains(name, ".q_proj."):
		heads = h.Attention.Heads
	case strings.Contains(name, ".k_proj."):
		heads = h.Attention.KeyHeads
	}
	switch {
	case heads == 0 || h.Attention.NoRotary:
	case h.rotated() == h.Attention.HeadDim:
		m.Heads = heads
	default:
		m.Transform = partlyInterleaved(heads, h.rotated())
	}
	return m
}

// partlyInterleaved relates rows of heads of which only the first dims are rotated: the two halves
// of those are interleaved in GGUF, and the others stay.
func partlyInterleaved(heads, dims int) *checkpoint.Transform {
	same := func(shape []int) []int { return shape }
	// reorder transposes the rotated rows of each head as a matrix of n rows.
	reorder := func(n int) func(t torch.Tensor) torch.Tensor {
		return func(t torch.Tensor) torch.Tensor {
			shape := t.Shape()
			t = t.Reshape(heads, shape[0]/heads, -1)
			first := t.Narrow(1, 0, dims).Reshape(heads, n, dims/n, -1).Transpose(1,
				2).Reshape(heads, dims, -1)
			rest := t.Narrow(1, dims, shape[0]/heads-dims)
			return torch.Cat(1, first, rest).Reshape(shape...)
		}
	}
	return &checkpoint.Transform{Shape: same,
		Back: func(shape []int) []int {
			if len(shape) == 0 || shape[0]%heads != 0 || shape[0]/heads < dims {
				return nil
			}
			return shape
		},
		To: reorder(2), From: reorder(dims / 2)}
}

// hybridScales are the keys of multipliers, which every Granite has and Bamba has not.
var hybridScales = []string{"embedding_scale", "attention.scale", "residual_scale", "logit_scale"}

// HasMultipliers reports whether a file of architecture granitehybrid or granite has Granite's
// multipliers or experts.
func HasMultipliers(g *checkpoint.GGUFFile) bool {
	return g.HasKey("expert_count") || slices.ContainsFunc(hybridScales, g.HasKey)
}

// HybridFromGGUF reads a file of architecture granitehybrid, or granite without state-space layers.
// It returns the fields of config.json that Bamba and Granite have in common. Problems are kept in
// g.
func HybridFromGGUF(g *checkpoint.GGUFFile, names HybridNames) (h HybridGGUF,
	config map[string]any) {
	layers := g.Int("block_count", 0)
	width, heads := g.Int("embedding_length", 0), g.Int("attention.head_count", 0)
	if layers > model.Layers { // before memory is taken for all of them
		g.Fail("%s.block_count is %d, expected at most %d", g.Architecture, layers, model.Layers)
		layers = 0
	}
	kv := g.Ints("attention.head_count_kv", layers)
	h = HybridGGUF{Names: names, IsAttention: make([]bool, layers),
		Experts: names.Router != "" && g.Natural("expert_count") > 0}
	h.Attention.Heads, h.Attention.KeyHeads = heads, heads
	attention := -1 // the first such layer
	for i := range h.IsAttention {
		if kv != nil && kv[i] == 0 {
			continue
		}
		if h.IsAttention[i] = true; attention < 0 {
			if attention = i; kv != nil {
				h.Attention.KeyHeads = kv[i]
			}
		}
		if kv != nil && kv[i] != h.Attention.KeyHeads {
			g.Fail("%s.attention.head_count_kv is %v, expected one number beside 0",
				g.Architecture, kv)
		}
	}
	h.Attention.HeadDim = g.Int("attention.key_length", max(width/max(heads, 1), 1))
	h.Attention.NoRotary = !g.Flag("rope.scaling.finetuned", true)
	rotated := g.Int("rope.dimension_count", h.Attention.HeadDim)
	if n := g.Int("attention.value_length", h.Attention.HeadDim); n != h.Attention.HeadDim {
		g.Fail("%s.attention.value_length is %d, expected the keys' %d", g.Architecture, n,
			h.Attention.HeadDim)
	}
	if rotated > h.Attention.HeadDim || rotated%2 != 0 {
		g.Fail("%s.rope.dimension_count is %d, expected an even number up to %d", g.Architecture,
			rotated, h.Attention.HeadDim)
	}
	h.Stack.Rotary = &nn.RotaryConfig{Dims: rotated, Theta: g.Number("rope.freq_base", 10000)}
	config = map[string]any{
		"hidden_act": "silu", "vocab_size": g.Shape("token_embd.weight")[0], "hidden_size": width,
		"num_hidden_layers": layers, "num_attention_heads": heads,
		"num_key_value_heads":     h.Attention.KeyHeads,
		"max_position_embeddings": g.Int("context_length", 0),
		"rms_norm_eps":            g.Number("attention.layer_norm_rms_epsilon", math.NaN()),
		"tie_word_embeddings":     !g.Has("output.weight"),
		"attention_bias":          g.Has(fmt.Sprintf("blk.%d.attn_q.bias", attention)),
		"attention_dropout":       0.0, "initializer_range": 0.02, "use_cache": true,
		"mamba_expand": 2, "mamba_chunk_size": 256, "mamba_conv_bias": true,
		"mamba_proj_bias": false,
	}
	if h.Attention.HeadDim != width/max(heads, 1) {
		config["head_dim"] = h.Attention.HeadDim
	}
	if slices.Contains(h.IsAttention, false) {
		h.Mixer = FromGGUF(g)
		if n := h.Mixer.Heads * h.Mixer.HeadDim; n != 2*width {
			g.Fail("%s.ssm.inner_size is %d, expected twice the width %d", g.Architecture, n, width)
		}
		maps.Copy(config, map[string]any{"mamba_n_heads": h.Mixer.Heads,
			"mamba_d_head": h.Mixer.HeadDim, "mamba_n_groups": h.Mixer.Groups,
			"mamba_d_state": h.Mixer.State, "mamba_d_conv": h.Mixer.Taps})
	} else { // transformers demands that heads of state-space layers fit the width
		maps.Copy(config, map[string]any{"mamba_n_heads": 1, "mamba_d_head": 2 * width,
			"mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4})
	}
	return h, config
}

// Tensors maps the names of the file's tensors.
func (h HybridGGUF) Tensors() checkpoint.TensorMap {
	names := h.Names.table(h.Experts)
	return func(name string) (checkpoint.Mapped, bool) {
		hf, ok := names.HuggingFace(name)
		m := h.mapped(hf)
		m.Name, m.Split = hf, h.Names.split(name)
		return m, ok
	}
}
