package bamba

import (
	"maps"

	"conquer/checkpoint"
	"conquer/model"
)

func init() {
	tied := model.Config{"tie_word_embeddings": true}
	released := func(width, layers int) model.Config {
		return mamba2Sizes{vocabulary: 50288, width: width, layers: layers, headDim: 64, state: 128,
			chunk: 256}.config()
	}
	model.Register(model.Architecture{
		Name: "bamba", ModelTypes: []string{"bamba"}, New: New,
		Formats: []checkpoint.Family{bambaFormat},
		Unread: map[string]string{"hf": "vLLM has no Bamba since 0.24: serve the folder with " +
			"conquer serve or transformers, or write it with --format gguf for llama.cpp"},
		LoRATargets: []string{"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj",
			"gate_proj", "up_proj", "down_proj"},
		Variants: map[string]model.Config{
			"tiny": bambaSizes{vocabulary: 49152, width: 64, inner: 128, layers: 4, heads: 4,
				keyHeads: 2, attention: []any{2.0}, stateHeads: 8, headDim: 16, state: 16,
				chunk: 32}.config(tied),
			// For char_tokenizer: it learns within minutes on a CPU. Without attention layers only
			// the states carry information from earlier chunks, and with short chunks and few
			// layers this matters.
			"bytes": bambaSizes{vocabulary: 256, width: 192, inner: 384, layers: 2, heads: 6,
				keyHeads: 2, attention: []any{}, stateHeads: 12, headDim: 32, state: 64,
				chunk: 16}.config(tied),
			"small": bambaSizes{vocabulary: 49152, width: 256, inner: 704, layers: 8, heads: 8,
				keyHeads: 2, attention: []any{5.0}, stateHeads: 16, headDim: 32, state: 64,
				chunk: 64}.config(tied),
			// of the size of Llama-3.2-1B
			"1b": bambaSizes{vocabulary: 128256, width: 2048, inner: 5632, layers: 16, heads: 32,
				keyHeads: 8, attention: []any{8.0}, stateHeads: 64, headDim: 64, state: 128,
				chunk: 256}.config(tied),
			// ibm-ai-platform/Bamba-9B
			"9b": bambaSizes{vocabulary: 128256, width: 4096, inner: 14336, layers: 32, heads: 32,
				keyHeads: 8, attention: []any{9.0, 18.0, 27.0}, stateHeads: 128, headDim: 64,
				state: 128, chunk: 256}.config(model.Config{"bos_token_id": 128000.0,
				"eos_token_id": 128001.0, "pad_token_id": 0.0}),
		},
	})
	model.Register(model.Architecture{
		Name: "mamba2", ModelTypes: []string{"mamba2"}, New: NewMamba2,
		LoRATargets: []string{"in_proj", "out_proj"}, Formats: []checkpoint.Family{mamba2Format},
		Variants: map[string]model.Config{
			"tiny": mamba2Sizes{vocabulary: 49152, width: 64, layers: 4, headDim: 16, state: 16,
				chunk: 32}.config(),
			// state-spaces/mamba2-*
			"130m": released(768, 24),
			"370m": released(1024, 48),
			"780m": released(1536, 36),
			"1.3b": released(2048, 48),
			"2.7b": released(2560, 64),
		},
	})
}

// bambaSizes are the numbers by which variants of Bamba differ.
type bambaSizes struct {
	vocabulary, width, inner, layers, heads, keyHeads int
	attention                                         []any // the attention layers
	stateHeads, headDim, state, chunk                 int
}

// config is the config.json of a variant, with the keys of more.
func (s bambaSizes) config(more model.Config) model.Config {
	config := model.Config{
		"architectures": []any{"BambaForCausalLM"}, "model_type": "bamba", "hidden_act": "silu",
		"vocab_size": float64(s.vocabulary), "hidden_size": float64(s.width),
		"intermediate_size": float64(s.inner), "num_hidden_layers": float64(s.layers),
		"num_attention_heads": float64(s.heads), "num_key_value_heads": float64(s.keyHeads),
		"attn_layer_indices": s.attention, "max_position_embeddings": 262144.0,
		"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "mamba_n_heads": float64(s.stateHeads),
		"mamba_d_head": float64(s.headDim), "mamba_d_state": float64(s.state),
		"mamba_n_groups": 1.0,
		"mamba_d_conv":   4.0, "mamba_expand": 2.0, "mamba_chunk_size": float64(s.chunk),
		"mamba_conv_bias": true, "mamba_proj_bias": false, "attention_bias": false,
		"mlp_bias":          false,
		"initializer_range": 0.02, "tie_word_embeddings": false,
	}
	maps.Copy(config, more)
	return config
}

// mamba2Sizes are the numbers by which variants of Mamba-2 differ.
type mamba2Sizes struct{ vocabulary, width, layers, headDim, state, chunk int }

// config is the config.json of a variant.
func (s mamba2Sizes) config() model.Config {
	return model.Config{
		"architectures": []any{"Mamba2ForCausalLM"}, "model_type": "mamba2", "hidden_act": "silu",
		"vocab_size": float64(s.vocabulary), "hidden_size": float64(s.width),
		"num_hidden_layers": float64(s.layers), "num_heads": float64(2 * s.width / s.headDim),
		"head_dim": float64(s.headDim), "state_size": float64(s.state), "n_groups": 1.0,
		"expand": 2.0, "conv_kernel": 4.0, "chunk_size": float64(s.chunk), "use_bias": false,
		"use_conv_bias": true, "layer_norm_epsilon": 1e-5, "residual_in_fp32": true,
		"initializer_range": 0.02, "tie_word_embeddings": true,
	}
}
