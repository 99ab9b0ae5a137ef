// Package mixtral is the Mixtral family (Jiang et al., arXiv 2401.04088): Mistral with a mixture of
// experts in place of each feed-forward layer.
package mixtral

import (
	"fmt"

	"conquer/checkpoint"
	"conquer/llama"
	"conquer/model"
	"conquer/torch/nn"
)

var family = llama.Family{
	ModelType: "mixtral", Class: "MixtralForCausalLM", GGUF: "llama", Read: []string{"llama"},
	Interleaved: true,
	Defaults: model.Config{"intermediate_size": 14336.0, "num_key_value_heads": 8.0,
		"max_position_embeddings": 131072.0, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
		"num_local_experts": 8.0, "num_experts_per_tok": 2.0, "router_jitter_noise": 0.0},
	Decoder: decoder,
	// GGUF calls Mixtral llama
	Accepts: func(g *checkpoint.GGUFFile) bool { return g.Natural("expert_count") > 0 },
	Parts:   map[string]string{"ffn_gate_inp": "block_sparse_moe.gate"},
	Stacks: map[string]string{
		"ffn_gate_exps": "block_sparse_moe.experts.*.w1",
		"ffn_up_exps":   "block_sparse_moe.experts.*.w3",
		"ffn_down_exps": "block_sparse_moe.experts.*.w2",
	},
	FromGGUF: func(g *checkpoint.GGUFFile, config map[string]any) {
		delete(config, "attention_bias")
		delete(config, "mlp_bias")
		config["sliding_window"] = nil
		config["num_local_experts"] = g.Int("expert_count", 0)
		config["num_experts_per_tok"] = g.Int("expert_used_count", 0)
	},
	ToGGUF: func(r *model.Reader, d *llama.Decoder, m *checkpoint.GGUFModel) error {
		if d.Attention.Window > 0 {
			return fmt.Errorf("config.json: the sliding_window of a mixture of experts has no " +
				"form in GGUF: use --format hf")
		}
		m.Set("expert_count", uint32(d.Experts))
		m.Set("expert_used_count", uint32(r.Int("num_experts_per_tok")))
		return nil
	},
	LoRATargets: []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w3", "w2"},
}

func decoder(r *model.Reader) *llama.Decoder {
	d := llama.Read(r, "mixtral")
	d.Attention.QKVBias, d.Attention.OutputBias, d.MLPBias = false, false, false
	d.Attention.Window = r.IntOr("sliding_window", 0)
	if noise := r.FloatOr("router_jitter_noise", 0); noise != 0 {
		r.Fail(fmt.Errorf("config.json: router_jitter_noise is %g, expected 0: noise in the "+
			"router's input is not supported", noise))
	}
	routing := nn.Routing{Experts: r.IntUpTo("num_local_experts", model.Experts),
		TopK: r.Int("num_experts_per_tok"), Renormalize: true}
	r.Fail(routing.Check())
	d.Experts, d.MLPName = routing.Experts, "block_sparse_moe"
	d.FeedForward = func(int) nn.FeedForward {
		experts := nn.NewExperts(routing, d.Width, d.Inner,
			nn.ExpertNames{Gate: "w1", Up: "w3", Down: "w2"}, nil)
		return nn.NewMoE(d.Width, routing, experts, nn.MoENames{Router: "gate", Experts: "experts"})
	}
	return d
}

func init() {
	variant := func(s llama.Sizes, experts, used int) model.Config {
		c := family.Variant(s, model.Config{"rope_theta": 1e6, "sliding_window": nil,
			"num_local_experts": float64(experts), "num_experts_per_tok": float64(used)})
		delete(c, "attention_bias")
		delete(c, "mlp_bias")
		return c
	}
	llama.Register("mixtral", map[string]model.Config{
		"tiny": variant(llama.Sizes{Vocabulary: 32000, Width: 256, Inner: 448, Layers: 4, Heads: 8,
			KeyHeads: 2, Positions: 4096}, 8, 2),
		// mistralai/Mixtral-8x7B-v0.1 and Mixtral-8x22B-v0.1
		"8x7b": variant(llama.Sizes{Vocabulary: 32000, Width: 4096, Inner: 14336, Layers: 32,
			Heads: 32, KeyHeads: 8, Positions: 32768}, 8, 2),
		"8x22b": variant(llama.Sizes{Vocabulary: 32768, Width: 6144, Inner: 16384, Layers: 56,
			Heads: 48, KeyHeads: 8, Positions: 65536}, 8, 2),
	}, family)
}
