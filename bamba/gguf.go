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
var mamba2Names = statespace.GGUFNames(checkpoint.Names{
	Blocks: "blk.", Layers: "backbone.layers.",
	Whole: map[string]string{
		"token_embd":  "backbone.embeddings",
		"output_norm": "backbone.norm_f",
		"output":      "lm_head",
	},
	Block: map[string]string{"attn_norm": "norm"},
}, "mixer.")

// mamba2Format is Mamba-2 in GGUF.
var mamba2Format = checkpoint.Family{
	ModelTypes: []string{"mamba2"}, Architectures: []string{"mamba2"},
	FromGGUF: mamba2FromGGUF, ToGGUF: mamba2ToGGUF, Embedding: "backbone.embeddings",
	Adopt: adoptMamba2,
}

func mamba2FromGGUF(g *checkpoint.GGUFFile) (map[string]any, checkpoint.TensorMap, error) {
	width, c := g.Int("embedding_length", 0), statespace.FromGGUF(g)
	inner := c.Heads * c.HeadDim
	if inner%max(width, 1) != 0 {
		g.Fail("mamba2.ssm.inner_size is %d, expected a multiple of the width %d", inner, width)
	}
	eps := g.Number("attention.layer_norm_rms_epsilon", math.NaN())
	config := map[string]any{
		"architectures": []string{"Mamba2ForCausalLM"}, "model_type": "mamba2",
		"hidden_act": "silu",
		"vocab_size": g.Shape("token_embd.weight")[0], "hidden_size": width,
		"num_hidden_layers": g.Int("block_count", 0), "num_heads": c.Heads,
		"head_dim": c.HeadDim, "state_size": c.State,
		"n_groups": c.Groups, "expand": inner / max(width, 1),
		"conv_kernel": c.Taps,
		"chunk_size":  256, "use_bias": false, "use_conv_bias": true, "layer_norm_epsilon": eps,
		"residual_in_fp32": true, "rms_norm": true, "initializer_range": 0.02, "use_cache": true,
		"tie_word_embeddings": !g.Has("output.weight"),
	}
	tensors := func(name string) (checkpoint.Mapped, bool) {
		hf, ok := mamba2Names.HuggingFace(name)
		transform, _ := statespace.MixerGGUF(hf, c.Groups)
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
	g := &checkpoint.GGUFModel{Architecture: "mamba2"}
	layers := make([]int, len(m.Layers))
	for i := range layers {
		layers[i] = i
	}
	if err := c.SetGGUF(g, layers, "use_bias"); err != nil {
		return nil, err
	}
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"vocab_size", m.Head().Shape[0]}, {"context_length", m.MaxLength()},
		{"embedding_length", c.Width}, {"block_count", len(m.Layers)}, {"feed_forward_length", 0},
		{"attention.head_count", 0},
	} {
		g.Set(pair.key, uint32(pair.n))
	}
	g.Set("attention.layer_norm_rms_epsilon", float32(c.Eps))
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
