// Package qwen3moe is the models of the Qwen3 family with mixtures of experts (Yang et al., arXiv
// 2505.09388): Qwen3 whose feed-forward layers, all or some of them, are mixtures of many small
// experts.
package qwen3moe

import (
	"fmt"
	"slices"

	"conquer/checkpoint"
	"conquer/llama"
	"conquer/model"
	"conquer/torch/nn"
)

var family = llama.Family{
	ModelType: "qwen3_moe", Class: "Qwen3MoeForCausalLM", GGUF: "qwen3moe",
	Read: []string{"qwen3moe"},
	Defaults: model.Config{"vocab_size": 151936.0, "hidden_size": 2048.0,
		"intermediate_size": 6144.0, "num_hidden_layers": 24.0, "num_key_value_heads": 4.0,
		"max_position_embeddings": 32768.0, "use_sliding_window": false, "sliding_window": 4096.0,
		"moe_intermediate_size": 768.0, "num_experts": 128.0, "num_experts_per_tok": 8.0,
		"norm_topk_prob": false, "decoder_sparse_step": 1.0},
	Decoder: decoder,
	Parts:   map[string]string{"ffn_gate_inp": "mlp.gate"},
	Stacks: map[string]string{
		"ffn_gate_exps": "mlp.experts.*.gate_proj",
		"ffn_up_exps":   "mlp.experts.*.up_proj",
		"ffn_down_exps": "mlp.experts.*.down_proj",
	},
	FromGGUF: func(g *checkpoint.GGUFFile, config map[string]any) {
		delete(config, "mlp_bias")
		config["use_sliding_window"], config["sliding_window"] = false, nil
		used := g.Int("expert_used_count", 0)
		config["num_experts"], config["num_experts_per_tok"] = g.Int("expert_count", 0), used
		config["moe_intermediate_size"] = g.Int("expert_feed_forward_length",
			max(1, config["intermediate_size"].(int)/max(used, 1)))
		config["norm_topk_prob"], config["decoder_sparse_step"] = true, 1
		config["mlp_only_layers"] = []int{}
	},
	ToGGUF: toGGUF,
	LoRATargets: []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate", "gate_proj", "up_proj",
		"down_proj"},
}

func toGGUF(r *model.Reader, d *llama.Decoder, m *checkpoint.GGUFModel) error {
	for i := range d.Layers {
		if d.Experts == 0 || d.FeedForward(i) == nil {
			return fmt.Errorf("config.json: layer %d has no experts (mlp_only_layers, "+
				"decoder_sparse_step or num_experts), which has no form in GGUF's architecture "+
				"qwen3moe: use --format hf", i)
		}
	}
	switch {
	case !r.Bool("norm_topk_prob"):
		return fmt.Errorf("config.json: norm_topk_prob is false, which has no form in GGUF's " +
			"architecture qwen3moe: use --format hf")
	case d.Attention.Window > 0:
		return fmt.Errorf("config.json: the sliding_window of a mixture of experts has no form " +
			"in GGUF: use --format hf")
	}
	m.Set("expert_count", uint32(d.Experts))
	m.Set("expert_used_count", uint32(r.Int("num_experts_per_tok")))
	m.Set("expert_feed_forward_length", uint32(r.Int("moe_intermediate_size")))
	return llama.RefuseBias(r, d, m)
}

func decoder(r *model.Reader) *llama.Decoder {
	d := llama.Read(r, "qwen3_moe")
	d.Attention.QKNorm, d.MLPBias = true, false
	if r.Bool("use_sliding_window") {
		d.Attention.Window = r.IntOr("sliding_window", 0)
	}
	key := "num_experts"
	if r.Has("num_local_experts") { // transformers 5 writes this name
		key = "num_local_experts"
	}
	if r.Natural(key) == 0 {
		return d
	}
	inner := r.IntUpTo("moe_intermediate_size", model.Widths)
	routing := nn.Routing{Experts: r.IntUpTo(key, model.Experts),
		TopK: r.Int("num_experts_per_tok"), Renormalize: r.Bool("norm_topk_prob")}
	r.Fail(routing.Check())
	step := r.Int("decoder_sparse_step")
	var dense []int
	if list, ok := r.Config["mlp_only_layers"].([]any); ok {
		dense = r.Ints("mlp_only_layers", len(list))
	}
	d.Experts = routing.Experts
	d.FeedForward = func(i int) nn.FeedForward {
		if slices.Contains(dense, i) || (i+1)%step != 0 {
			return nil
		}
		experts := nn.NewExperts(routing, d.Width, inner,
			nn.ExpertNames{Gate: "gate_proj", Up: "up_proj", Down: "down_proj"}, nil)
		return nn.NewMoE(d.Width, routing, experts, nn.MoENames{Router: "gate", Experts: "experts"})
	}
	return d
}

func init() {
	variant := func(s llama.Sizes, inner, experts, used int) model.Config {
		s.Vocabulary, s.Positions = 151936, 40960
		return family.Variant(s, model.Config{"head_dim": 128.0, "rms_norm_eps": 1e-6,
			"rope_theta": 1e6, "use_sliding_window": false, "norm_topk_prob": true,
			"moe_intermediate_size": float64(inner), "num_experts": float64(experts),
			"num_experts_per_tok": float64(used), "decoder_sparse_step": 1.0,
			"mlp_only_layers": []any{}})
	}
	tiny := variant(llama.Sizes{Width: 256, Inner: 768, Layers: 4, Heads: 8, KeyHeads: 2}, 96, 16,
		4)
	tiny["vocab_size"], tiny["head_dim"] = 32000.0, 32.0
	llama.Register("qwen3_moe", map[string]model.Config{
		"tiny": tiny,
		// Qwen/Qwen3-30B-A3B and Qwen/Qwen3-235B-A22B
		"30b-a3b": variant(llama.Sizes{Width: 2048, Inner: 6144, Layers: 48, Heads: 32,
			KeyHeads: 4}, 768, 128, 8),
		"235b-a22b": variant(llama.Sizes{Width: 4096, Inner: 12288, Layers: 94, Heads: 64,
			KeyHeads: 4}, 1536, 128, 8),
	}, family)
}
