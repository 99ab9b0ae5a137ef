package falconh1

import (
	"fmt"
	"math"
	"slices"

	"conquer/model"
	"conquer/model/statespace"
)

// settings is a config, read and checked.
type settings struct {
	stack                model.StackConfig
	attention            model.AttentionConfig
	mixer                statespace.MixerConfig
	multipliers          multipliers
	key                  float64 // multiplier of the keys, part of attention.Scale
	layers, inner, chunk int
	mlpBias              bool
}

// defaults are the values of FalconH1Config.
var defaults = model.Config{
	"vocab_size": 128000.0, "hidden_size": 4096.0, "intermediate_size": 14336.0,
	"num_hidden_layers": 32.0, "num_attention_heads": 32.0, "num_key_value_heads": 8.0,
	"max_position_embeddings": 8192.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
	"mamba_d_ssm": 1024.0, "mamba_n_heads": 128.0, "mamba_d_head": "auto", "mamba_n_groups": 1.0,
	"mamba_d_state": 256.0, "mamba_d_conv": 4.0, "mamba_expand": 2.0, "mamba_chunk_size": 256.0,
	"mamba_conv_bias": true, "mamba_proj_bias": false, "projectors_bias": false,
	"mamba_norm_before_gate": true, "mamba_rms_norm": false, "lm_head_multiplier": 1.0,
	"embedding_multiplier": 1.0, "key_multiplier": 1.0, "attention_out_multiplier": 1.0,
	"attention_in_multiplier": 1.0, "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
	"attention_bias": false, "mlp_bias": false,
}

func read(config model.Config) (settings, error) {
	r := &model.Reader{Config: config.Or(defaults)}
	r.Refuse("per_layer_config")
	s := settings{
		stack: model.StackConfig{
			Architecture: "falconh1", Config: statespace.Decimals(config),
			Vocabulary:     r.IntUpTo("vocab_size", model.Vocabulary),
			Width:          r.IntUpTo("hidden_size", model.Widths),
			MaxLength:      r.Int("max_position_embeddings"),
			Eps:            r.Eps("rms_norm_eps"),
			Tied:           r.Bool("tie_word_embeddings"),
			EmbeddingScale: r.Multiplier("embedding_multiplier"),
			LogitsScale:    r.Multiplier("lm_head_multiplier"),
			Names: model.StackNames{Embedding: "model.embed_tokens", Layers: "model.layers",
				FinalNorm: "model.final_layernorm"},
		},
		multipliers: multipliers{
			SSMIn: r.Multiplier("ssm_in_multiplier"), SSMOut: r.Multiplier("ssm_out_multiplier"),
			AttentionIn:  r.Multiplier("attention_in_multiplier"),
			AttentionOut: r.Multiplier("attention_out_multiplier"),
		},
		key:     r.Multiplier("key_multiplier"),
		layers:  r.IntUpTo("num_hidden_layers", model.Layers),
		inner:   r.IntUpTo("intermediate_size", model.Widths),
		chunk:   r.IntUpTo("mamba_chunk_size", model.Chunk),
		mlpBias: r.Bool("mlp_bias"),
	}
	copy(s.multipliers.SSM[:], factors(r, "ssm_multipliers", 5))
	mlp := factors(r, "mlp_multipliers", 2)
	s.multipliers.Gate, s.multipliers.Down = mlp[0], mlp[1]
	width := s.stack.Width
	heads, bias := r.Int("num_attention_heads"), r.Bool("attention_bias")
	s.attention = model.AttentionConfig{
		Width: width, Heads: heads, KeyHeads: r.IntOr("num_key_value_heads", heads),
		HeadDim: min(width/heads, model.HeadDims), QKVBias: bias, OutputBias: bias,
	}
	if r.Has("head_dim") {
		s.attention.HeadDim = r.IntUpTo("head_dim", model.HeadDims)
	}
	// The keys' multiplier is one of the scores.
	s.attention.Scale = s.key / math.Sqrt(float64(max(s.attention.HeadDim, 1)))
	rotary := r.Rotary(s.attention.HeadDim, 0)
	s.stack.Rotary = &rotary
	inner := r.Int("mamba_expand") * width
	if r.Has("mamba_d_ssm") {
		inner = r.IntUpTo("mamba_d_ssm", model.Widths)
	}
	s.mixer = statespace.MixerConfig{
		Width: width, Heads: r.Int("mamba_n_heads"), Groups: r.Int("mamba_n_groups"),
		State: r.Int("mamba_d_state"), Taps: r.Int("mamba_d_conv"),
		InBias: r.Bool("mamba_proj_bias"), OutBias: r.Bool("projectors_bias"),
		ConvBias: r.Bool("mamba_conv_bias"), Eps: s.stack.Eps,
		NoNorm:    !r.Bool("mamba_rms_norm"),
		NormFirst: r.Bool("mamba_norm_before_gate"),
	}
	if s.mixer.HeadDim = inner / s.mixer.Heads; r.Config["mamba_d_head"] != "auto" {
		s.mixer.HeadDim = r.Int("mamba_d_head")
	}
	if r.Err != nil {
		return s, r.Err
	}
	return s, s.mixer.Check(r, inner, statespace.MixerNames{Heads: "mamba_n_heads",
		HeadDim: "mamba_d_head", State: "mamba_d_state", Taps: "mamba_d_conv"})
}

// factors reads a list of n multipliers; ones if it is absent or null.
func factors(r *model.Reader, key string, n int) []float64 {
	list := slices.Repeat([]float64{1}, n)
	if !r.Has(key) {
		return list
	}
	values, _ := r.Config[key].([]any)
	for i, v := range values {
		f, ok := v.(float64)
		if len(values) != n || !ok || f == 0 {
			r.Fail(fmt.Errorf("config.json: %s is %.100v, expected %d numbers other than 0", key,
				r.Config[key], n))
			return list
		}
		list[i] = f
	}
	if len(values) != n {
		r.Fail(fmt.Errorf("config.json: %s is %.100v, expected %d numbers other than 0", key,
			r.Config[key], n))
	}
	return list
}
