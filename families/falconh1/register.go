package falconh1

import (
	"maps"

	"conquer/checkpoint"
	"conquer/model"
)

func init() {
	model.Register(model.Architecture{
		Name: "falconh1", ModelTypes: []string{"falcon_h1"}, New: New,
		LoRATargets: []string{"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj",
			"gate_proj", "up_proj", "down_proj"},
		Formats: []checkpoint.Family{format},
		Variants: map[string]model.Config{
			"tiny": variant(model.Config{"vocab_size": 49152.0, "hidden_size": 64.0,
				"intermediate_size": 128.0, "num_hidden_layers": 4.0, "num_attention_heads": 4.0,
				"num_key_value_heads": 2.0, "head_dim": 16.0, "mamba_d_ssm": 96.0,
				"mamba_n_heads": 6.0, "mamba_d_head": 16.0, "mamba_d_state": 16.0}),
			// tiiuae/Falcon-H1-0.5B-Base
			"0.5b": variant(model.Config{"vocab_size": 32784.0, "hidden_size": 1024.0,
				"intermediate_size": 2048.0, "num_hidden_layers": 36.0, "num_attention_heads": 8.0,
				"num_key_value_heads": 2.0, "head_dim": 64.0, "mamba_d_ssm": 1536.0,
				"mamba_n_heads": 24.0, "mamba_d_head": 64.0, "mamba_d_state": 128.0,
				"max_position_embeddings": 16384.0, "key_multiplier": 0.390625,
				"lm_head_multiplier": 0.0390625, "ssm_in_multiplier": 1.25,
				"ssm_out_multiplier": 0.23570226039551587,
				"mlp_multipliers":    []any{0.8838834764831844, 0.5859375},
				"ssm_multipliers": []any{0.3535533905932738, 0.25, 0.3535533905932738, 0.5,
					0.3535533905932738}}),
			// the sizes of tiiuae/Falcon-H1-7B-Base, without its multipliers
			"7b": variant(model.Config{"vocab_size": 130048.0, "hidden_size": 3072.0,
				"intermediate_size": 12288.0, "num_hidden_layers": 44.0,
				"num_attention_heads": 12.0, "num_key_value_heads": 2.0, "head_dim": 128.0,
				"mamba_d_ssm": 3072.0, "mamba_n_heads": 24.0, "mamba_d_head": 128.0,
				"mamba_d_state": 256.0, "max_position_embeddings": 262144.0}),
		},
	})
}

// variant is a config.json with the keys of more.
func variant(more model.Config) model.Config {
	config := model.Config{
		"architectures": []any{"FalconH1ForCausalLM"}, "model_type": "falcon_h1",
		"hidden_act": "silu", "max_position_embeddings": 8192.0, "rms_norm_eps": 1e-5,
		"rope_theta": 1e11, "mamba_n_groups": 1.0, "mamba_d_conv": 4.0, "mamba_expand": 2.0,
		"mamba_chunk_size": 128.0, "mamba_conv_bias": true, "mamba_proj_bias": false,
		"projectors_bias": false, "mamba_rms_norm": false, "mamba_norm_before_gate": false,
		"attention_bias": false, "mlp_bias": false, "initializer_range": 0.02,
		"tie_word_embeddings": false,
	}
	maps.Copy(config, more)
	return config
}
