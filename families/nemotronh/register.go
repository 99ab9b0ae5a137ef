package nemotronh

import (
	"maps"

	"conquer/checkpoint"
	"conquer/model"
)

func init() {
	model.Register(model.Architecture{
		Name: "nemotronh", ModelTypes: []string{"nemotron_h"}, New: New,
		LoRATargets: []string{"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj",
			"up_proj", "down_proj", "gate"},
		Formats: []checkpoint.Family{format},
		Variants: map[string]model.Config{
			"tiny": variant("M-M*", model.Config{"vocab_size": 49152.0, "hidden_size": 64.0,
				"intermediate_size": 128.0, "num_attention_heads": 4.0, "num_key_value_heads": 2.0,
				"head_dim": 16.0, "mamba_num_heads": 8.0, "mamba_head_dim": 16.0, "n_groups": 2.0,
				"ssm_state_size": 16.0, "chunk_size": 32.0}),
			// nvidia/Nemotron-H-8B-Base-8K
			"8b": variant("M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-", model.Config{
				"hidden_size": 4096.0, "intermediate_size": 21504.0, "num_attention_heads": 32.0,
				"max_position_embeddings": 8192.0}),
			// nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B
			"3-nano-30b": variant("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
				model.Config{"hidden_size": 2688.0, "intermediate_size": 1856.0,
					"num_attention_heads": 32.0, "num_key_value_heads": 2.0,
					"mamba_num_heads": 64.0, "n_routed_experts": 128.0,
					"num_experts_per_tok": 6.0, "n_shared_experts": 1.0,
					"moe_intermediate_size":               1856.0,
					"moe_shared_expert_intermediate_size": 3712.0,
					"routed_scaling_factor":               2.5, "norm_topk_prob": true,
					"n_group": 1.0, "topk_group": 1.0,
					"max_position_embeddings": 262144.0}),
			// nvidia/NVIDIA-Nemotron-Nano-9B-v2
			"nano-9b-v2": variant("M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
				model.Config{"hidden_size": 4480.0, "intermediate_size": 15680.0,
					"num_attention_heads": 40.0, "mamba_head_dim": 80.0,
					"max_position_embeddings": 131072.0}),
		},
	})
}

// variant is the config.json of the layers of a pattern, with the keys of more.
func variant(pattern string, more model.Config) model.Config {
	config := model.Config{
		"architectures": []any{"NemotronHForCausalLM"}, "model_type": "nemotron_h",
		"hybrid_override_pattern": pattern, "num_hidden_layers": float64(len(pattern)),
		"vocab_size": 131072.0, "num_key_value_heads": 8.0, "head_dim": 128.0,
		"mamba_num_heads": 128.0, "mamba_head_dim": 64.0, "ssm_state_size": 128.0,
		"n_groups": 8.0, "conv_kernel": 4.0, "expand": 2.0, "chunk_size": 128.0,
		"use_conv_bias": true, "use_bias": false, "mamba_hidden_act": "silu",
		"mlp_hidden_act": "relu2", "mlp_bias": false, "attention_bias": false,
		"layer_norm_epsilon": 1e-5, "time_step_min": 0.001, "residual_in_fp32": false,
		"initializer_range": 0.02, "tie_word_embeddings": false,
	}
	maps.Copy(config, more)
	return config
}
