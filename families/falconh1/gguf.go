package falconh1

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

var ggufNames = statespace.GGUFNames(checkpoint.Names{
	Blocks: "blk.", Layers: "model.layers.",
	Whole: map[string]string{
		"token_embd":  "model.embed_tokens",
		"output_norm": "model.final_layernorm",
		"output":      "lm_head",
	},
	Block: map[string]string{
		"attn_norm":   "input_layernorm",
		"attn_q":      "self_attn.q_proj",
		"attn_k":      "self_attn.k_proj",
		"attn_v":      "self_attn.v_proj",
		"attn_output": "self_attn.o_proj",
		"ffn_gate":    "feed_forward.gate_proj",
		"ffn_up":      "feed_forward.up_proj",
		"ffn_down":    "feed_forward.down_proj",
	},
	Exact: map[string]string{"ffn_norm": "pre_ff_layernorm.weight"},
}, "mamba.")

// format is the family in GGUF, which has no multipliers: the weights are multiplied by them, and a
// file that is read is a model whose multipliers are 1.
var format = checkpoint.Family{
	ModelTypes: []string{"falcon_h1"}, Architectures: []string{"falcon-h1"},
	FromGGUF: fromGGUF, ToGGUF: toGGUF,
}

func fromGGUF(g *checkpoint.GGUFFile) (map[string]any, checkpoint.TensorMap, error) {
	c, width, heads := statespace.FromGGUF(g), g.Int("embedding_length", 0),
		g.Int("attention.head_count", 0)
	headDim := g.Int("attention.key_length", max(width/max(heads, 1), 1))
	if n := g.Int("attention.value_length", headDim); n != headDim {
		g.Fail("falcon-h1.attention.value_length is %d, expected the keys' %d", n, headDim)
	}
	if n := g.Int("rope.dimension_count", headDim); n != headDim {
		g.Fail("falcon-h1.rope.dimension_count is %d of a head's %d: partial rotation is not "+
			"supported", n, headDim)
	}
	if kind := g.Text("rope.scaling.type"); kind != "" && kind != "none" {
		g.Fail("falcon-h1.rope.scaling.type is %.40q, expected none", kind)
	}
	config := map[string]any{
		"architectures": []string{"FalconH1ForCausalLM"}, "model_type": "falcon_h1",
		"hidden_act": "silu", "vocab_size": g.Shape("token_embd.weight")[0], "hidden_size": width,
		"intermediate_size": g.Int("feed_forward_length", 0),
		"num_hidden_layers": g.Int("block_count", 0), "num_attention_heads": heads,
		"num_key_value_heads": g.Int("attention.head_count_kv", heads), "head_dim": headDim,
		"max_position_embeddings": g.Int("context_length", 0),
		"rms_norm_eps":            g.Number("attention.layer_norm_rms_epsilon", math.NaN()),
		"rope_theta":              g.Number("rope.freq_base", 10000), "rope_scaling": nil,
		"tie_word_embeddings": !g.Has("output.weight"), "mamba_d_ssm": c.Heads * c.HeadDim,
		"mamba_n_heads": c.Heads, "mamba_d_head": c.HeadDim, "mamba_n_groups": c.Groups,
		"mamba_d_state": c.State, "mamba_d_conv": c.Taps, "mamba_expand": 2,
		"mamba_chunk_size": 256, "mamba_conv_bias": true, "mamba_proj_bias": false,
		"projectors_bias": false, "mamba_rms_norm": g.Has("blk.0.ssm_norm.weight"),
		"mamba_norm_before_gate": false, "attention_bias": g.Has("blk.0.attn_q.bias"),
		"mlp_bias": g.Has("blk.0.ffn_gate.bias"), "attention_dropout": 0.0,
		"initializer_range": 0.02, "use_cache": true,
	}
	tensors := func(name string) (checkpoint.Mapped, bool) {
		hf, ok := ggufNames.HuggingFace(name)
		transform, _ := statespace.MixerGGUF(hf, c.Groups)
		return checkpoint.Mapped{Name: hf, Transform: transform}, ok
	}
	return config, tensors, g.Err
}

func toGGUF(text []byte) (*checkpoint.GGUFModel, error) {
	var config model.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	s, err := read(config)
	if err != nil {
		return nil, err
	}
	const none = "has no form in GGUF's architecture falcon-h1"
	switch {
	case s.mixer.OutBias:
		return nil, fmt.Errorf("config.json: projectors_bias %s", none)
	case s.attention.OutputBias:
		return nil, fmt.Errorf("config.json: attention_bias %s: llama.cpp does not use that of "+
			"o_proj", none)
	case !s.mixer.NoNorm && s.mixer.NormFirst:
		return nil, fmt.Errorf("config.json: mamba_norm_before_gate %s", none)
	case s.stack.Rotary.Scaling != "" && s.stack.Rotary.Scaling != "default":
		return nil, fmt.Errorf("config.json: rope_scaling of type %.40q %s", s.stack.Rotary.Scaling,
			none)
	}
	g := &checkpoint.GGUFModel{Architecture: "falcon-h1"}
	layers := make([]int, s.layers)
	for i := range layers {
		layers[i] = i
	}
	if err := s.mixer.SetGGUF(g, layers, "mamba_proj_bias"); err != nil {
		return nil, err
	}
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"vocab_size", s.stack.Vocabulary}, {"context_length", s.stack.MaxLength},
		{"embedding_length", s.stack.Width}, {"block_count", s.layers},
		{"feed_forward_length", s.inner}, {"attention.head_count", s.attention.Heads},
		{"attention.head_count_kv", s.attention.KeyHeads},
		{"attention.key_length", s.attention.HeadDim},
		{"attention.value_length", s.attention.HeadDim},
		{"rope.dimension_count", s.attention.HeadDim},
	} {
		g.Set(pair.key, uint32(pair.n))
	}
	g.Set("attention.layer_norm_rms_epsilon", float32(s.stack.Eps))
	g.Set("rope.freq_base", float32(s.stack.Rotary.Theta))
	g.Tensor = func(name string) (checkpoint.Mapped, bool) {
		foreign, ok := ggufNames.Foreign(name)
		transform, float := statespace.MixerGGUF(name, s.mixer.Groups)
		m := checkpoint.Mapped{Name: foreign, Transform: transform, Float32: float}
		if fold := s.fold(name); fold != nil {
			m.Transform = fold
		}
		head := scaling(s.stack.LogitsScale)
		switch {
		case !s.stack.Tied:
		case name == "lm_head.weight":
			return checkpoint.Mapped{}, true
		case name == "model.embed_tokens.weight" &&
			s.stack.LogitsScale != s.stack.EmbeddingScale: // two multiples of one tensor
			m.Also = []checkpoint.Mapped{{Name: "output.weight", Transform: head}}
		}
		return m, ok
	}
	return g, nil
}

// fold multiplies a tensor by what the model multiplies its input and its result by; nil for one
// without multipliers. A bias is not part of the input.
func (s settings) fold(name string) *checkpoint.Transform {
	f := s.multipliers
	component := name[:max(strings.LastIndexByte(name, '.'), 0)]
	component = component[strings.LastIndexByte(component, '.')+1:]
	by := 1.0
	switch component {
	case "embed_tokens":
		by = s.stack.EmbeddingScale
	case "lm_head":
		by = s.stack.LogitsScale
	case "in_proj":
		return s.rows()
	case "out_proj":
		by = f.SSMOut
	case "q_proj", "v_proj":
		by = f.AttentionIn
	case "k_proj":
		by = f.AttentionIn * s.key
	case "o_proj":
		by = f.AttentionOut
	case "gate_proj": // its bias, too
		by = f.Gate
	case "down_proj":
		by = f.Down
	}
	if by == 1 {
		return nil
	}
	return scaling(by)
}

// scaling multiplies a tensor in float32.
func scaling(by float64) *checkpoint.Transform {
	return multiplied(func(t torch.Tensor) torch.Tensor { return t.MulScalar(by) })
}

// rows multiplies the rows of the input projection.
func (s settings) rows() *checkpoint.Transform {
	inner, shared := s.mixer.Heads*s.mixer.HeadDim, s.mixer.Groups*s.mixer.State
	sizes := []int{inner, inner, shared, shared, s.mixer.Heads}
	return multiplied(func(t torch.Tensor) torch.Tensor {
		var parts []torch.Tensor
		for i, part := range t.Split(0, sizes...) {
			parts = append(parts, part.MulScalar(s.multipliers.SSM[i]*s.multipliers.SSMIn))
		}
		return torch.Cat(0, parts...)
	})
}

// multiplied applies f to a tensor as float32.
func multiplied(f func(torch.Tensor) torch.Tensor) *checkpoint.Transform {
	return &checkpoint.Transform{
		Shape: slices.Clone[[]int],
		To: func(t torch.Tensor) torch.Tensor {
			return f(t.To(torch.Float32)).To(t.DType())
		},
	}
}
