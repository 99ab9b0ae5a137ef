package llama

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"conquer/checkpoint"
)

// metaNames are Meta's names of a decoder's tensors.
var metaNames = checkpoint.Names{
	Blocks: "layers.", Layers: "model.layers.",
	Whole: map[string]string{
		"tok_embeddings": "model.embed_tokens",
		"norm":           "model.norm",
		"output":         "lm_head",
	},
	Block: map[string]string{
		"attention_norm":  "input_layernorm",
		"attention.wq":    "self_attn.q_proj",
		"attention.wk":    "self_attn.k_proj",
		"attention.wv":    "self_attn.v_proj",
		"attention.wo":    "self_attn.o_proj",
		"ffn_norm":        "post_attention_layernorm",
		"feed_forward.w1": "mlp.gate_proj",
		"feed_forward.w3": "mlp.up_proj",
		"feed_forward.w2": "mlp.down_proj",
	},
}

// metaSplit is the dimension along which the parts of Meta's layout hold slices of a tensor. Llama
// 1 and 2 cut the embedding by columns, Llama 3 by rows.
func metaSplit(name string, shape []int, width int) int {
	switch component(name) {
	case "wq", "wk", "wv", "w1", "w3", "output":
		return 0
	case "wo", "w2":
		if strings.HasSuffix(name, ".weight") && len(shape) == 2 {
			return 1
		}
	case "tok_embeddings":
		if len(shape) == 2 && shape[1] != width {
			return 1
		}
		return 0
	}
	return checkpoint.Replicated
}

// metaParams is params.json. Meta's programs take no other keys; ModelType is written for models
// that they cannot run, so that they say so.
type metaParams struct {
	Width         int      `json:"dim"`
	Layers        int      `json:"n_layers"`
	Heads         int      `json:"n_heads"`
	KVHeads       int      `json:"n_kv_heads,omitempty"`
	Vocabulary    int      `json:"vocab_size"`
	MultipleOf    int      `json:"multiple_of,omitempty"`
	FFNMultiplier *float64 `json:"ffn_dim_multiplier,omitempty"`
	Epsilon       float64  `json:"norm_eps"`
	Theta         float64  `json:"rope_theta,omitempty"`
	ScaledRope    bool     `json:"use_scaled_rope,omitempty"`
	ScaleFactor   float64  `json:"rope_scaling_factor,omitempty"`
	HeadDim       int      `json:"head_dim,omitempty"`       // Mistral's
	Inner         int      `json:"hidden_dim,omitempty"`     // Mistral's
	Window        int      `json:"sliding_window,omitempty"` // Mistral's
	ModelType     string   `json:"model_type,omitempty"`
}

func (p *metaParams) kvHeads() int {
	if p.KVHeads > 0 {
		return p.KVHeads
	}
	return p.Heads
}

func (p *metaParams) headDim() int {
	if p.HeadDim > 0 {
		return p.HeadDim
	}
	return p.Width / p.Heads
}

// readParams reads params.json.
func readParams(text []byte) (*checkpoint.MetaModel, error) {
	p := &metaParams{Epsilon: 1e-5}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("expected a JSON object: %w", err)
	}
	for name, n := range map[string]int{"dim": p.Width, "n_layers": p.Layers, "n_heads": p.Heads,
		"n_kv_heads": p.kvHeads()} {
		if n < 1 || n > 1<<30 {
			return nil, fmt.Errorf("%s is %d or missing, expected a positive integer", name, n)
		}
	}
	return &checkpoint.MetaModel{Width: p.Width, Heads: p.Heads, KeyHeads: p.kvHeads(),
		HeadDim: p.headDim(),
		Config:  p.config}, nil
}

// config is what config.json would say. What params.json leaves to the weights is read off their
// shapes.
func (p *metaParams) config(info func(string) (checkpoint.Info, bool), tied bool) (map[string]any,
	error) {
	if p.ModelType != "" && p.ModelType != "mistral" {
		return nil, fmt.Errorf("the config.json of this %.40q model is missing: params.json "+
			"alone does not describe it", p.ModelType)
	}
	embedding, _ := info("model.embed_tokens.weight")
	gate, _ := info("model.layers.0.mlp.gate_proj.weight")
	if len(embedding.Shape) != 2 || len(gate.Shape) != 2 {
		return nil, fmt.Errorf("the model has no tensor \"tok_embeddings.weight\" or " +
			"\"layers.0.feed_forward.w1.weight\"")
	}
	theta := p.Theta
	if theta == 0 {
		theta = 10000
	}
	dtype := gate.DType.String()
	length := 4096
	var scaling any
	if p.ScaledRope {
		factor := p.ScaleFactor
		if factor == 0 {
			factor = 8
		}
		length = 131072
		scaling = map[string]any{"rope_type": "llama3",
			"factor":          json.Number(strconv.FormatFloat(factor, 'f', 1, 64)),
			"low_freq_factor": json.Number("1.0"), "high_freq_factor": json.Number("4.0"),
			"original_max_position_embeddings": 8192}
	} else if theta == 500000 {
		length = 8192
	}
	config := map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_act": "silu",
		"hidden_size":       p.Width,
		"intermediate_size": gate.Shape[0], "num_hidden_layers": p.Layers,
		"num_attention_heads": p.Heads,
		"num_key_value_heads": p.kvHeads(), "head_dim": p.headDim(),
		"max_position_embeddings": length, "rms_norm_eps": p.Epsilon,
		"rope_theta": theta, "rope_scaling": scaling, "vocab_size": embedding.Shape[0],
		"tie_word_embeddings": tied,
		"attention_bias":      false, "mlp_bias": false, "initializer_range": 0.02,
		"torch_dtype": dtype,
	}
	if p.Window > 0 || p.ModelType == "mistral" {
		config["architectures"], config["model_type"] = []string{"MistralForCausalLM"}, "mistral"
		config["sliding_window"] = nil
		if p.Window > 0 {
			config["sliding_window"] = p.Window
		}
	}
	return config, nil
}

// paramsFor is the inverse of config.
func (f Family) paramsFor(text []byte) (*checkpoint.MetaModel, error) {
	config, err := configOf(text)
	if err != nil {
		return nil, err
	}
	kind := f.ModelType
	r, d := f.read(config)
	if r.Err != nil {
		return nil, r.Err
	}
	a, s := d.Attention, d.Rotary
	p := &metaParams{Width: d.Width, Layers: d.Layers, Heads: a.Heads, Vocabulary: d.Vocabulary,
		Epsilon: d.Eps}
	m := &checkpoint.MetaModel{Width: d.Width, Heads: a.Heads, KeyHeads: a.KeyHeads,
		HeadDim:    a.HeadDim,
		Vocabulary: d.Vocabulary, Tied: d.Tied, Params: p}
	if d.Vocabulary < 100_000 {
		m.SplitEmbedding = 1 // as Llama 1 and 2 have it
	}
	if a.KeyHeads != a.Heads {
		p.KVHeads = a.KeyHeads
	}
	if s.Theta != 10000 {
		p.Theta = s.Theta
	}
	biased := a.QKVBias || a.OutputBias || d.MLPBias
	plain := kind == "llama" && !biased && a.HeadDim*a.Heads == d.Width
	switch {
	case s.Scaling == "" || s.Scaling == "default":
	case s.Scaling == "llama3" && s.LowFreqFactor == 1 && s.HighFreqFactor == 4 &&
		s.OriginalPosition == 8192:
		p.ScaledRope = true
		if s.Factor != 8 {
			p.ScaleFactor = s.Factor
		}
	case s.Scaling == "llama3" || s.Scaling == "linear":
		plain = false
	default:
		return nil, fmt.Errorf("config.json: rope_scaling of type %.40q has no form in Meta's "+
			"layout, expected linear or llama3", s.Scaling)
	}
	if kind == "mistral" && !biased {
		p.HeadDim, p.Inner, p.Window = a.HeadDim, d.Inner, a.Window
		return m, nil
	}
	if !plain {
		p.ModelType, p.HeadDim, p.Inner = kind, a.HeadDim, d.Inner
		return m, nil
	}
	p.MultipleOf, p.FFNMultiplier = ffnSize(d.Width, d.Inner)
	return m, nil
}

// ffnSize finds the numbers from which Meta's code computes the size of the feed-forward layer: two
// thirds of 4·width, times an optional multiplier, rounded up to a multiple.
func ffnSize(width, inner int) (multiple int, multiplier *float64) {
	base := 2 * 4 * width / 3
	up := func(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }
	for _, multiple := range []int{256, 1024, 4096, 128, 64, 32} {
		if up(base, multiple) == inner {
			return multiple, nil
		}
	}
	for _, multiple := range []int{4096, 1024, 256, 64, 1} {
		if inner%multiple != 0 {
			continue
		}
		for _, digits := range []float64{10, 100, 1000, 1e4, 1e6, 1e9} {
			m := math.Floor((float64(inner)-0.5)/float64(base)*digits) / digits
			if m > 0 && up(int(m*float64(base)), multiple) == inner {
				return multiple, &m
			}
			if m += 1 / digits; up(int(m*float64(base)), multiple) == inner {
				return multiple, &m
			}
		}
	}
	m := (float64(inner) + 0.5) / float64(base)
	return 1, &m
}
