package bamba

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/model/statespace"
)

var bambaNames = statespace.HybridNames{FinalNorm: "model.final_layernorm",
	FFNNorm: "pre_ff_layernorm", Gate: "feed_forward.gate_proj", Up: "feed_forward.up_proj",
	Down: "feed_forward.down_proj"}

// bambaFormat is Bamba in GGUF: the architecture granitehybrid without Granite's multipliers.
var bambaFormat = checkpoint.Family{
	ModelTypes: []string{"bamba"}, Architectures: []string{"granitehybrid"},
	Accepts:  func(g *checkpoint.GGUFFile) bool { return !statespace.HasMultipliers(g) },
	FromGGUF: bambaFromGGUF, ToGGUF: bambaToGGUF,
}

func bambaFromGGUF(g *checkpoint.GGUFFile) (map[string]any, checkpoint.TensorMap, error) {
	h, config := statespace.HybridFromGGUF(g, bambaNames)
	layers := []int{}
	for i, attention := range h.IsAttention {
		if attention {
			layers = append(layers, i)
		}
	}
	if h.Attention.NoRotary {
		g.Fail("%s.rope.scaling.finetuned is false, but Bamba rotates heads", g.Architecture)
	}
	// The product with the size of a head, rounded down, must be the number of dimensions.
	part := float64(h.Stack.Rotary.Dims) / float64(h.Attention.HeadDim)
	if int(part*float64(h.Attention.HeadDim)) < h.Stack.Rotary.Dims {
		part = math.Nextafter(part, 1)
	}
	maps.Copy(config, map[string]any{
		"architectures": []string{"BambaForCausalLM"}, "model_type": "bamba",
		"attn_layer_indices": layers, "intermediate_size": g.Int("feed_forward_length", 0),
		"mlp_bias": g.Has("blk.0.ffn_gate.bias"), "z_loss_coefficient": 0.0,
		"rope_parameters": map[string]any{"rope_type": "default",
			"rope_theta": h.Stack.Rotary.Theta, "partial_rotary_factor": part},
	})
	return config, h.Tensors(), g.Err
}

func bambaToGGUF(text []byte) (*checkpoint.GGUFModel, error) {
	var config model.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	s, err := read(config)
	if err != nil {
		return nil, err
	}
	attention := make([]bool, s.layers)
	for i := range attention {
		attention[i] = slices.Contains(s.attentionLayers, i)
	}
	return statespace.HybridGGUF{Stack: s.stack, Attention: s.attention, Mixer: s.mixer,
		IsAttention: attention, Inner: s.inner, ProjBias: "mamba_proj_bias",
		Names: bambaNames}.Model()
}
