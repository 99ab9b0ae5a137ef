package bamba

import (
	"fmt"
	"math"

	"conquer/model"
	"conquer/model/statespace"
)

// settings is a Bamba config, read and checked.
type settings struct {
	stack           model.StackConfig
	attention       model.AttentionConfig
	mixer           statespace.MixerConfig
	layers, inner   int
	chunk           int
	mlpBias         bool
	attentionLayers []int
}

// defaults are the values of BambaConfig.
var defaults = model.Config{
	"vocab_size": 128000.0, "hidden_size": 4096.0, "intermediate_size": 14336.0,
	"num_hidden_layers": 32.0, "num_attention_heads": 32.0, "num_key_value_heads": 8.0,
	"max_position_embeddings": 262144.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
	"mamba_n_heads": 128.0, "mamba_d_head": "auto", "mamba_n_groups": 1.0, "mamba_d_state": 256.0,
	"mamba_d_conv": 4.0, "mamba_expand": 2.0, "mamba_chunk_size": 256.0, "mamba_conv_bias": true,
	"mamba_proj_bias": false,
}

func read(config model.Config) (settings, error) {
	r := &model.Reader{Config: config.Or(defaults)}
	r.Refuse("per_layer_config")
	s := settings{
		stack: model.StackConfig{
			Architecture: "bamba", Config: statespace.Decimals(config),
			Vocabulary: r.IntUpTo("vocab_size", model.Vocabulary),
			Width:      r.IntUpTo("hidden_size", model.Widths),
			MaxLength:  r.Int("max_position_embeddings"),
			Eps:        r.Eps("rms_norm_eps"),
			Tied:       r.Bool("tie_word_embeddings"),
			ZLoss:      max(r.FloatOr("z_loss_coefficient", 0), 0),
			Names: model.StackNames{Embedding: "model.embed_tokens", Layers: "model.layers",
				FinalNorm: "model.final_layernorm"},
		},
		layers:  r.IntUpTo("num_hidden_layers", model.Layers),
		inner:   r.IntUpTo("intermediate_size", model.Widths),
		mlpBias: r.BoolOr("mlp_bias", false),
		chunk:   r.IntUpTo("mamba_chunk_size", model.Chunk),
	}
	width := s.stack.Width
	s.mixer = statespace.MixerConfig{
		Width: width, Heads: r.Int("mamba_n_heads"), Groups: r.Int("mamba_n_groups"),
		State: r.Int("mamba_d_state"), Taps: r.Int("mamba_d_conv"),
		InBias: r.BoolOr("mamba_proj_bias", false), OutBias: r.BoolOr("mamba_proj_bias", false),
		ConvBias: r.BoolOr("mamba_conv_bias", false),
		Eps:      s.stack.Eps,
	}
	heads, bias := r.Int("num_attention_heads"), r.BoolOr("attention_bias", false)
	s.attention = model.AttentionConfig{
		Width: width, Heads: heads, KeyHeads: r.IntOr("num_key_value_heads", heads),
		HeadDim: min(width/heads, model.HeadDims), QKVBias: bias, OutputBias: bias,
	}
	if r.Has("head_dim") {
		s.attention.HeadDim = r.IntUpTo("head_dim", model.HeadDims)
	}
	inner := r.Int("mamba_expand") * width
	if r.Config["mamba_d_head"] == "auto" {
		s.mixer.HeadDim = inner / s.mixer.Heads
	} else {
		s.mixer.HeadDim = r.Int("mamba_d_head")
	}
	// Half of a head is rotated unless rope_parameters says otherwise. transformers ignores the
	// fields partial_rotary_factor and attn_rotary_emb of older files, too.
	rotary := r.Rotary(s.attention.HeadDim, 0.5)
	s.stack.Rotary = &rotary
	switch list, ok := config["attn_layer_indices"].([]any); {
	case len(list) > s.layers:
		return s, fmt.Errorf("config.json: attn_layer_indices has %d entries for %d layers",
			len(list), s.layers)
	case ok:
		for _, v := range list {
			i, ok := v.(float64)
			if !ok || i != math.Trunc(i) || i < 0 || int(i) >= s.layers {
				return s, fmt.Errorf("config.json: attn_layer_indices holds %v, expected layers "+
					"from 0 to %d", v, s.layers-1)
			}
			s.attentionLayers = append(s.attentionLayers, int(i))
		}
	case r.Has("attn_layer_indices"):
		return s, fmt.Errorf("config.json: attn_layer_indices is %v, expected a list of layers",
			config["attn_layer_indices"])
	}
	if r.Err != nil {
		return s, r.Err
	}
	names := statespace.MixerNames{Heads: "mamba_n_heads", HeadDim: "mamba_d_head",
		State: "mamba_d_state", Taps: "mamba_d_conv"}
	return s, s.mixer.Check(r, inner, names)
}
