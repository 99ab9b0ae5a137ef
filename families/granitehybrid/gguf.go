package granitehybrid

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/model/statespace"
)

var ggufNames = statespace.HybridNames{FinalNorm: "model.norm", FFNNorm: "post_attention_layernorm",
	Gate: "shared_mlp.input_linear", Up: "shared_mlp.input_linear",
	Down: "shared_mlp.output_linear", Router: "block_sparse_moe.router.layer",
	ExpertsIn: "block_sparse_moe.input_linear", ExpertsOut: "block_sparse_moe.output_linear"}

// format is the family in GGUF. Files of architecture granite are read if they say whether heads
// are rotated, which those of Granite 3 do not.
var format = checkpoint.Family{
	ModelTypes: []string{"granitemoehybrid"}, Architectures: []string{"granitehybrid", "granite"},
	Accepts: func(g *checkpoint.GGUFFile) bool {
		if g.Architecture == "granite" {
			return g.HasKey("rope.scaling.finetuned")
		}
		return statespace.HasMultipliers(g)
	},
	FromGGUF: fromGGUF, ToGGUF: toGGUF,
}

func fromGGUF(g *checkpoint.GGUFFile) (map[string]any, checkpoint.TensorMap, error) {
	h, config := statespace.HybridFromGGUF(g, ggufNames)
	kinds := make([]string, len(h.IsAttention))
	for i := range kinds {
		if kinds[i] = "mamba"; h.IsAttention[i] {
			kinds[i] = "attention"
		}
	}
	scale := g.Number("attention.scale", 0)
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(h.Attention.HeadDim))
	}
	inner := g.Int("feed_forward_length", 0)
	shared, used := inner, 0
	if h.Experts {
		shared, used = g.Int("expert_shared_feed_forward_length", 0), g.Int("expert_used_count", 0)
	}
	maps.Copy(config, map[string]any{
		"architectures": []string{"GraniteMoeHybridForCausalLM"}, "model_type": "granitemoehybrid",
		"layer_types": kinds, "position_embedding_type": nil,
		"num_local_experts": max(g.Natural("expert_count"), 0), "num_experts_per_tok": used,
		"intermediate_size": inner, "shared_intermediate_size": shared,
		"embedding_multiplier": g.Number("embedding_scale", 1), "attention_multiplier": scale,
		"residual_multiplier": g.Number("residual_scale", 1),
		"logits_scaling":      g.Number("logit_scale", 1),
	})
	if !h.Attention.NoRotary {
		config["position_embedding_type"] = "rope"
		if h.Stack.Rotary.Dims != h.Attention.HeadDim {
			g.Fail("%s.rope.dimension_count is %d of a head's %d, but Granite rotates whole heads",
				g.Architecture, h.Stack.Rotary.Dims, h.Attention.HeadDim)
		}
	}
	config["rope_theta"], config["rope_scaling"] = h.Stack.Rotary.Theta, nil
	return config, h.Tensors(), g.Err
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
	g, err := statespace.HybridGGUF{Stack: s.stack, Attention: s.attention, Mixer: s.mixer,
		IsAttention: s.isAttention, Inner: s.inner, ProjBias: "mamba_proj_bias",
		Names: ggufNames, Experts: s.routing.Experts > 0}.Model()
	if err != nil {
		return nil, err
	}
	if s.routing.Experts > 0 {
		g.Set("feed_forward_length", uint32(s.experts))
		g.Set("expert_shared_feed_forward_length", uint32(s.inner))
		g.Set("expert_count", uint32(s.routing.Experts))
		g.Set("expert_used_count", uint32(s.routing.TopK))
	}
	g.Set("embedding_scale", float32(s.stack.EmbeddingScale))
	g.Set("attention.scale", float32(s.attention.Scale))
	g.Set("residual_scale", float32(s.residual))
	g.Set("logit_scale", float32(s.logitsScale))
	return g, nil
}
