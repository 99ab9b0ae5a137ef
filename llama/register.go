package llama

import "conquer/model"

func init() {
	model.Register(model.Architecture{
		Name: "llama", ModelTypes: []string{"llama", "mistral", "qwen2"}, New: New,
		Variants: map[string]model.Config{
			"micro":        variant(32000, 256, 688, 4, 8, 8, 2048, nil),
			"smollm2-135m": variant(49152, 576, 1536, 30, 9, 3, 8192, model.Config{"rope_theta": 100000.0, "tie_word_embeddings": true}),
			"7b":           variant(32000, 4096, 11008, 32, 32, 32, 4096, nil),
			"13b":          variant(32000, 5120, 13824, 40, 40, 40, 4096, nil),
			"70b":          variant(32000, 8192, 28672, 80, 64, 8, 4096, nil),
			"3-8b":         variant(128256, 4096, 14336, 32, 32, 8, 8192, model.Config{"rope_theta": 500000.0}),
			"3.2-1b": variant(128256, 2048, 8192, 16, 32, 8, 131072, model.Config{
				"rope_theta": 500000.0, "tie_word_embeddings": true, "head_dim": 64.0,
				"rope_scaling": map[string]any{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
					"high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0},
			}),
		},
	})
}

func variant(vocabulary, width, inner, layers, heads, keyHeads, positions int, more model.Config) model.Config {
	config := model.Config{
		"architectures": []any{"LlamaForCausalLM"}, "model_type": "llama", "hidden_act": "silu",
		"vocab_size": float64(vocabulary), "hidden_size": float64(width), "intermediate_size": float64(inner),
		"num_hidden_layers": float64(layers), "num_attention_heads": float64(heads), "num_key_value_heads": float64(keyHeads),
		"max_position_embeddings": float64(positions), "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
		"initializer_range": 0.02, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
	}
	for key, value := range more {
		config[key] = value
	}
	return config
}
