package bamba

import "conquer/model"

func init() {
	model.Register(model.Architecture{
		Name: "bamba", ModelTypes: []string{"bamba"}, New: New,
		LoRATargets: []string{"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj",
			"gate_proj", "up_proj",
			"down_proj"},
		Variants: map[string]model.Config{
			"tiny": bambaVariant(49152, 64, 128, 4, 4, 2, []any{2.0}, 8, 16, 16, 32,
				model.Config{"tie_word_embeddings": true}),
			// For char_tokenizer: it learns within minutes on a CPU. Without attention layers, a
			// chunk knows earlier ones through the states only; short chunks and few layers make
			// that matter.
			"bytes": bambaVariant(256, 192, 384, 2, 6, 2, []any{}, 12, 32, 64, 16,
				model.Config{"tie_word_embeddings": true}),
			"small": bambaVariant(49152, 256, 704, 8, 8, 2, []any{5.0}, 16, 32, 64, 64,
				model.Config{"tie_word_embeddings": true}),
			// of Llama-3.2-1B's size
			"1b": bambaVariant(128256, 2048, 5632, 16, 32, 8, []any{8.0}, 64, 64, 128, 256,
				model.Config{"tie_word_embeddings": true}),
			// ibm-ai-platform/Bamba-9B
			"9b": bambaVariant(128256, 4096, 14336, 32, 32, 8, []any{9.0, 18.0, 27.0}, 128, 64,
				128, 256, model.Config{
					"bos_token_id": 128000.0, "eos_token_id": 128001.0, "pad_token_id": 0.0}),
		},
	})
	model.Register(model.Architecture{
		Name: "mamba2", ModelTypes: []string{"mamba2"}, New: NewMamba2,
		LoRATargets: []string{"in_proj", "out_proj"},
		Variants: map[string]model.Config{
			"tiny": mamba2Variant(49152, 64, 4, 16, 16, 32),
			// state-spaces/mamba2-*
			"130m": mamba2Variant(50288, 768, 24, 64, 128, 256),
			"370m": mamba2Variant(50288, 1024, 48, 64, 128, 256),
			"780m": mamba2Variant(50288, 1536, 36, 64, 128, 256),
			"1.3b": mamba2Variant(50288, 2048, 48, 64, 128, 256),
			"2.7b": mamba2Variant(50288, 2560, 64, 64, 128, 256),
		},
	})
}

func bambaVariant(vocabulary, width, inner, layers, heads, keyHeads int, attention []any,
	stateHeads, headDim, state, chunk int, more model.Config) model.Config {
	config := model.Config{
		"architectures": []any{"BambaForCausalLM"}, "model_type": "bamba", "hidden_act": "silu",
		"vocab_size": float64(vocabulary), "hidden_size": float64(width),
		"intermediate_size": float64(inner),
		"num_hidden_layers": float64(layers), "num_attention_heads": float64(heads),
		"num_key_value_heads": float64(keyHeads),
		"attn_layer_indices":  attention, "max_position_embeddings": 262144.0, "rms_norm_eps": 1e-5,
		"rope_theta":    10000.0,
		"mamba_n_heads": float64(stateHeads), "mamba_d_head": float64(headDim),
		"mamba_d_state":  float64(state),
		"mamba_n_groups": 1.0, "mamba_d_conv": 4.0, "mamba_expand": 2.0,
		"mamba_chunk_size": float64(chunk),
		"mamba_conv_bias":  true, "mamba_proj_bias": false, "attention_bias": false,
		"mlp_bias":          false,
		"initializer_range": 0.02, "tie_word_embeddings": false,
	}
	for key, value := range more {
		config[key] = value
	}
	return config
}

func mamba2Variant(vocabulary, width, layers, headDim, state, chunk int) model.Config {
	return model.Config{
		"architectures": []any{"Mamba2ForCausalLM"}, "model_type": "mamba2", "hidden_act": "silu",
		"vocab_size": float64(vocabulary), "hidden_size": float64(width),
		"num_hidden_layers": float64(layers),
		"num_heads":         float64(2 * width / headDim), "head_dim": float64(headDim),
		"state_size": float64(state), "n_groups": 1.0,
		"expand": 2.0, "conv_kernel": 4.0, "chunk_size": float64(chunk), "use_bias": false,
		"use_conv_bias":      true,
		"layer_norm_epsilon": 1e-5, "residual_in_fp32": true, "initializer_range": 0.02,
		"tie_word_embeddings": true,
	}
}
