package bamba

import (
	"encoding/json"
	"fmt"
	"math"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/model/statespace"
)

// mamba2Names are GGUF's names of a Mamba-2 model's tensors.
var mamba2Names = checkpoint.Names{
	Blocks: "blk.", Layers: "backbone.layers.",
	Whole: map[string]string{
		"token_embd":  "backbone.embeddings",
		"output_norm": "backbone.norm_f",
		"output":      "lm_head",
	},
	Block: map[string]string{
		"attn_norm":  "norm",
		"ssm_in":     "mixer.in_proj",
		"ssm_conv1d": "mixer.conv1d",
		"ssm_norm":   "mixer.norm",
		"ssm_out":    "mixer.out_proj",
	},
	Exact: map[string]string{
		"ssm_a":       "mixer.A_log",
		"ssm_d":       "mixer.D",
		"ssm_dt.bias": "mixer.dt_bias",
	},
}

// mamba2Format is Mamba-2 in GGUF.
var mamba2Format = checkpoint.Family{
	ModelTypes: []string{"mamba2"}, Architectures: []string{"mamba2"},
	FromGGUF: mamba2FromGGUF, ToGGUF: mamba2ToGGUF, Embedding: "backbone.embeddings",
}

func mamba2FromGGUF(g *checkpoint.GGUFFile) (map[string]any, checkpoint.TensorMap, error) {
	width, inner, heads := g.Int("embedding_length", 0), g.Int("ssm.inner_size", 0),
		g.Int("ssm.time_step_rank", 0)
	groups := g.Int("ssm.group_count", 1)
	if inner%max(width, 1) != 0 || inner%max(heads, 1) != 0 {
		g.Fail("mamba2.ssm.inner_size is %d, expected a multiple of the width %d and of the %d "+
			"heads", inner, width, heads)
	}
	eps := g.Number("attention.layer_norm_rms_epsilon", math.NaN())
	config := map[string]any{
		"architectures": []string{"Mamba2ForCausalLM"}, "model_type": "mamba2",
		"hidden_act": "silu",
		"vocab_size": g.Shape("token_embd.weight")[0], "hidden_size": width,
		"num_hidden_layers": g.Int("block_count", 0), "num_heads": heads,
		"head_dim": inner / max(heads, 1), "state_size": g.Int("ssm.state_size", 0),
		"n_groups": groups, "expand": inner / max(width, 1),
		"conv_kernel": g.Int("ssm.conv_kernel", 0),
		"chunk_size":  256, "use_bias": false, "use_conv_bias": true, "layer_norm_epsilon": eps,
		"residual_in_fp32": true, "rms_norm": true, "initializer_range": 0.02, "use_cache": true,
		"tie_word_embeddings": !g.Has("output.weight"),
	}
	tensors := func(name string) (checkpoint.Mapped, bool) {
		hf, ok := mamba2Names.HuggingFace(name)
		transform, _ := statespace.MixerGGUF(hf, groups)
		return checkpoint.Mapped{Name: hf, Transform: transform}, ok
	}
	return config, tensors, g.Err
}

func mamba2ToGGUF(text []byte) (*checkpoint.GGUFModel, error) {
	var config model.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	declared, err := NewMamba2(config)
	if err != nil {
		return nil, err
	}
	m := declared.(*statespace.Model)
	c := m.Layers[0].(*Mamba2Block).Mixer.Config()
	switch {
	case c.ProjBias:
		return nil, fmt.Errorf("config.json: use_bias has no form in GGUF")
	case c.DTMin > 0 || !math.IsInf(c.DTMax, 1):
		return nil, fmt.Errorf("config.json: time_step_limit has no form in GGUF")
	}
	g := &checkpoint.GGUFModel{Architecture: "mamba2", Tensors: map[string][]float32{}}
	inner := c.Heads * c.HeadDim
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"vocab_size", m.Head().Shape[0]}, {"context_length", m.MaxLength()},
		{"embedding_length", c.Width}, {"block_count", len(m.Layers)}, {"feed_forward_length", 0},
		{"attention.head_count", 0}, {"ssm.conv_kernel", c.Taps}, {"ssm.inner_size", inner},
		{"ssm.state_size", c.State}, {"ssm.group_count", c.Groups}, {"ssm.time_step_rank", c.Heads},
	} {
		g.Set(pair.key, uint32(pair.n))
	}
	g.Set("attention.layer_norm_rms_epsilon", float32(c.Eps))
	if !c.ConvBias { // llama.cpp demands one
		for i := range m.Layers {
			g.Tensors[fmt.Sprintf("blk.%d.ssm_conv1d.bias", i)] = make([]float32,
				inner+2*c.Groups*c.State)
		}
	}
	g.Tensor = func(name string) (checkpoint.Mapped, bool) {
		if m.Output == nil && name == "lm_head.weight" {
			return checkpoint.Mapped{}, true
		}
		foreign, ok := mamba2Names.Foreign(name)
		transform, float := statespace.MixerGGUF(name, c.Groups)
		return checkpoint.Mapped{Name: foreign, Transform: transform, Float32: float}, ok
	}
	return g, nil
}
