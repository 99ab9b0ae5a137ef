// Package granitemoe is the Granite 3 models with mixtures of experts: Granite's multipliers around
// attention, and experts whose weights checkpoints hold as one stack.
package granitemoe

import (
	"math"

	"conquer/checkpoint"
	"conquer/llama"
	"conquer/model"
	"conquer/torch/nn"
)

var family = llama.Family{
	ModelType: "granitemoe", Class: "GraniteMoeForCausalLM", GGUF: "granitemoe",
	Read: []string{"granitemoe"}, Interleaved: true,
	Defaults: model.Config{"embedding_multiplier": 1.0, "attention_multiplier": 1.0,
		"residual_multiplier": 1.0, "logits_scaling": 1.0, "num_local_experts": 8.0,
		"num_experts_per_tok": 2.0},
	Decoder: decoder,
	Parts: map[string]string{
		"ffn_gate_inp":  "block_sparse_moe.router.layer",
		"ffn_gate_exps": "block_sparse_moe.input_linear",
		"ffn_up_exps":   "block_sparse_moe.input_linear",
		"ffn_down_exps": "block_sparse_moe.output_linear",
	},
	FromGGUF: func(g *checkpoint.GGUFFile, config map[string]any) {
		size := config["head_dim"].(int)
		if size*config["num_attention_heads"].(int) == config["hidden_size"].(int) {
			delete(config, "head_dim") // GraniteMoeConfig has no field for it
		}
		delete(config, "mlp_bias")
		config["embedding_multiplier"] = g.Number("embedding_scale", 1)
		config["attention_multiplier"] = g.Number("attention.scale", 1/math.Sqrt(float64(size)))
		config["residual_multiplier"] = g.Number("residual_scale", 1)
		config["logits_scaling"] = g.Number("logit_scale", math.NaN())
		config["num_local_experts"] = g.Int("expert_count", 0)
		config["num_experts_per_tok"] = g.Int("expert_used_count", 0)
		if g.Natural("expert_shared_feed_forward_length") > 0 {
			g.Fail("%s.expert_shared_feed_forward_length: shared experts are not supported "+
				"(granitemoeshared)", g.Architecture)
		}
	},
	ToGGUF: func(r *model.Reader, d *llama.Decoder, m *checkpoint.GGUFModel) error {
		m.Set("embedding_scale", float32(d.EmbeddingScale))
		m.Set("attention.scale", float32(d.Attention.Scale))
		m.Set("residual_scale", float32(d.ResidualScale))
		m.Set("logit_scale", float32(r.Float("logits_scaling")))
		m.Set("expert_count", uint32(d.Experts))
		m.Set("expert_used_count", uint32(r.Int("num_experts_per_tok")))
		return nil
	},
	LoRATargets: []string{"q_proj", "k_proj", "v_proj", "o_proj", "layer", "input_linear",
		"output_linear"},
}

func decoder(r *model.Reader) *llama.Decoder {
	d := llama.Read(r, "granitemoe")
	d.MLPBias = false
	d.EmbeddingScale = r.Multiplier("embedding_multiplier")
	d.Attention.Scale = r.Multiplier("attention_multiplier")
	d.ResidualScale = r.Multiplier("residual_multiplier")
	d.LogitsScale = 1 / r.Multiplier("logits_scaling")
	routing := nn.Routing{Experts: r.IntUpTo("num_local_experts", model.Experts),
		TopK: r.Int("num_experts_per_tok"), Renormalize: true}
	r.Fail(routing.Check())
	d.Experts, d.MLPName = routing.Experts, "block_sparse_moe"
	d.FeedForward = func(int) nn.FeedForward {
		experts := nn.NewExperts(routing, d.Width, d.Inner, nn.ExpertNames{Up: "input_linear",
			Down: "output_linear", Stacked: true}, nil)
		return nn.NewMoE(d.Width, routing, experts, nn.MoENames{Router: "router.layer"})
	}
	return d
}

func init() {
	variant := func(width, inner, layers, heads, experts, used int) model.Config {
		c := family.Variant(llama.Sizes{Vocabulary: 49155, Width: width, Inner: inner,
			Layers: layers, Heads: heads, KeyHeads: 8, Positions: 131072}, model.Config{
			"rope_theta": 1e7, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
			"embedding_multiplier": 12.0, "attention_multiplier": 0.015625,
			"residual_multiplier": 0.22, "logits_scaling": 6.0,
			"num_local_experts": float64(experts), "num_experts_per_tok": float64(used)})
		delete(c, "mlp_bias")
		return c
	}
	llama.Register("granitemoe", map[string]model.Config{
		"tiny": variant(256, 96, 4, 8, 16, 4),
		// ibm-granite/granite-3.1-1b-a400m and 3b-a800m
		"3.1-1b-a400m": variant(1024, 512, 24, 16, 32, 8),
		"3.1-3b-a800m": variant(1536, 512, 32, 24, 40, 8),
	}, family)
}
