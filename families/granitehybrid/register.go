package granitehybrid

import (
	"maps"
	"slices"

	"conquer/checkpoint"
	"conquer/model"
)

func init() {
	model.Register(model.Architecture{
		Name: "granitehybrid", ModelTypes: []string{"granitemoehybrid"}, New: New,
		LoRATargets: []string{"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj",
			"input_linear", "output_linear", "layer"},
		Formats: []checkpoint.Family{format},
		Variants: map[string]model.Config{
			"tiny": sizes{vocabulary: 49152, width: 64, inner: 128, layers: 4, attention: []int{2},
				heads: 4, keyHeads: 2, stateHeads: 8, headDim: 16, state: 16, embedding: 12,
				scale: 0.0625, residual: 0.22, logits: 8}.config(),
			// ibm-granite/granite-4.0-h-micro
			"4.0-h-micro": sizes{vocabulary: 100352, width: 2048, inner: 8192, layers: 40,
				attention: []int{5, 15, 25, 35}, heads: 32, keyHeads: 8, stateHeads: 64,
				headDim: 64, state: 128, embedding: 12, scale: 0.015625, residual: 0.22,
				logits: 8}.config(),
			// ibm-granite/granite-4.0-h-tiny and -small
			"4.0-h-tiny": sizes{vocabulary: 100352, width: 1536, inner: 1024, layers: 40,
				attention: []int{5, 15, 25, 35}, heads: 12, keyHeads: 4, stateHeads: 48,
				headDim: 64, state: 128, embedding: 12, scale: 0.0078125, residual: 0.22,
				logits: 6, experts: 64, used: 6, expert: 512}.config(),
			"4.0-h-small": sizes{vocabulary: 100352, width: 4096, inner: 1536, layers: 40,
				attention: []int{5, 15, 25, 35}, heads: 32, keyHeads: 8, stateHeads: 128,
				headDim: 64, state: 128, embedding: 12, scale: 0.0078125, residual: 0.22,
				logits: 16, experts: 72, used: 10, expert: 768}.config(),
		},
	})
}

// sizes are the numbers by which variants differ.
type sizes struct {
	vocabulary, width, inner, layers int
	attention                        []int // the attention layers
	heads, keyHeads                  int
	stateHeads, headDim, state       int
	// multipliers
	embedding, scale, residual, logits float64
	// of a mixture: the experts, how many of them a token passes through, and the width of one
	experts, used, expert int
}

// config is the config.json of a variant.
func (s sizes) config() model.Config {
	kinds := make([]any, s.layers)
	for i := range kinds {
		if kinds[i] = "mamba"; slices.Contains(s.attention, i) {
			kinds[i] = "attention"
		}
	}
	config := model.Config{
		"architectures": []any{"GraniteMoeHybridForCausalLM"}, "model_type": "granitemoehybrid",
		"hidden_act": "silu", "layer_types": kinds, "position_embedding_type": nil,
		"max_position_embeddings": 131072.0, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
		"attention_bias": false,
		"mamba_n_groups": 1.0, "mamba_d_conv": 4.0, "mamba_expand": 2.0, "mamba_chunk_size": 256.0,
		"mamba_conv_bias": true, "mamba_proj_bias": false, "initializer_range": 0.1,
		"tie_word_embeddings": true,
	}
	maps.Copy(config, model.Config{
		"vocab_size": float64(s.vocabulary), "hidden_size": float64(s.width),
		"intermediate_size": float64(s.inner), "shared_intermediate_size": float64(s.inner),
		"num_local_experts": float64(s.experts), "num_experts_per_tok": float64(s.used),
		"num_hidden_layers": float64(s.layers), "num_attention_heads": float64(s.heads),
		"num_key_value_heads": float64(s.keyHeads), "mamba_n_heads": float64(s.stateHeads),
		"mamba_d_head": float64(s.headDim), "mamba_d_state": float64(s.state),
		"embedding_multiplier": s.embedding, "attention_multiplier": s.scale,
		"residual_multiplier": s.residual, "logits_scaling": s.logits,
	})
	if s.experts > 0 {
		config["intermediate_size"] = float64(s.expert)
	}
	return config
}
