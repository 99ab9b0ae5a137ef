// Package qwen3 is the dense models of the Qwen3 family (Yang et al., arXiv 2505.09388): Llama with
// normalized queries and keys, and heads whose size is independent of the width.
package qwen3

import (
	"conquer/checkpoint"
	"conquer/llama"
	"conquer/model"
)

var family = llama.Family{
	ModelType: "qwen3", Class: "Qwen3ForCausalLM", GGUF: "qwen3", Read: []string{"qwen3"},
	Defaults: llama.QwenDefaults.Or(model.Config{"head_dim": 128.0}),
	Decoder: func(r *model.Reader) *llama.Decoder {
		d := llama.Read(r, "qwen3")
		d.Attention.QKNorm, d.MLPBias = true, false
		d.QwenWindows(r)
		return d
	},
	FromGGUF: func(_ *checkpoint.GGUFFile, config map[string]any) {
		delete(config, "mlp_bias")
		config["use_sliding_window"], config["sliding_window"] = false, nil
	},
	ToGGUF: llama.RefuseBias,
}

func init() {
	variant := func(width, inner, layers, heads int, tied bool) model.Config {
		return family.Variant(llama.Sizes{Vocabulary: 151936, Width: width, Inner: inner,
			Layers: layers, Heads: heads,
			KeyHeads: 8, Positions: 40960}, model.Config{"head_dim": 128.0, "rms_norm_eps": 1e-6,
			"rope_theta":          1e6,
			"tie_word_embeddings": tied, "use_sliding_window": false})
	}
	llama.Register("qwen3", map[string]model.Config{
		"0.6b": variant(1024, 3072, 28, 16, true),
		"1.7b": variant(2048, 6144, 28, 16, true),
		"4b":   variant(2560, 9728, 36, 32, true),
		"8b":   variant(4096, 12288, 36, 32, false),
		"14b":  variant(5120, 17408, 40, 40, false),
		"32b":  variant(5120, 25600, 64, 64, false),
	}, family)
}
