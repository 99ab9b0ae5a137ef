package bamba

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"conquer/model"
)

// settings is a Bamba config, read and checked.
type settings struct {
	stack           model.StackConfig
	attention       model.AttentionConfig
	mixer           MixerConfig
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
			Architecture: "bamba", Config: decimals(config),
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
	s.mixer = MixerConfig{
		Width: width, Heads: r.Int("mamba_n_heads"), Groups: r.Int("mamba_n_groups"),
		State: r.Int("mamba_d_state"), Taps: r.Int("mamba_d_conv"),
		ProjBias: r.BoolOr("mamba_proj_bias", false),
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
	names := MixerNames{Heads: "mamba_n_heads", HeadDim: "mamba_d_head", State: "mamba_d_state",
		Taps: "mamba_d_conv"}
	return s, s.mixer.Check(r, inner, names)
}

// MixerNames are a family's names of the fields of a [MixerConfig] in config.json, for error
// messages.
type MixerNames struct{ Heads, HeadDim, State, Taps string }

// Check reads time_step_limit and reports what the kernels cannot run. inner is the number of
// channels that the config's expansion asks for.
func (c *MixerConfig) Check(r *model.Reader, inner int, names MixerNames) error {
	if r.SiLU(); r.Err != nil {
		return r.Err
	}
	switch {
	case c.Heads*c.HeadDim != inner:
		return fmt.Errorf("config.json: %s %d times %s %d is not the %d channels that the "+
			"expansion asks for", names.Heads,
			c.Heads, names.HeadDim, c.HeadDim, inner)
	case inner > model.Widths:
		return fmt.Errorf("config.json: the expansion asks for %d channels, expected at most %d",
			inner, model.Widths)
	case c.Heads%c.Groups != 0:
		return fmt.Errorf("config.json: %d groups do not divide %s %d", c.Groups, names.Heads,
			c.Heads)
	case c.HeadDim < 16 || c.HeadDim > 128:
		return fmt.Errorf("config.json: %s %d is out of range, expected 16 to 128", names.HeadDim,
			c.HeadDim)
	case c.State < 16 || c.State > 256:
		return fmt.Errorf("config.json: %s %d is out of range, expected 16 to 256", names.State,
			c.State)
	case c.Taps < 2 || c.Taps > 4:
		return fmt.Errorf("config.json: %s %d is out of range, expected 2 to 4", names.Taps, c.Taps)
	}
	c.DTMin, c.DTMax = 0, math.Inf(1)
	if r.Has("time_step_limit") {
		limit, ok := r.Config["time_step_limit"].([]any)
		if !ok || len(limit) != 2 {
			return fmt.Errorf("config.json: time_step_limit is %v, expected two numbers",
				r.Config["time_step_limit"])
		}
		for i, to := range []*float64{&c.DTMin, &c.DTMax} {
			if *to, ok = limitOf(limit[i]); !ok {
				text, _ := json.Marshal(limit[i])
				return fmt.Errorf("config.json: time_step_limit holds %s, expected a number", text)
			}
		}
		if !(c.DTMin <= c.DTMax) {
			return fmt.Errorf("config.json: time_step_limit %v: the lower limit is above the upper",
				limit)
		}
	}
	return r.Err
}

// limitOf reads a number that may be infinite, which transformers 5 writes as {"__float__":
// "Infinity"}. Earlier versions write the bare word, which package checkpoint turns into that.
func limitOf(v any) (float64, bool) {
	if object, ok := v.(map[string]any); ok {
		v = object["__float__"]
	}
	switch v := v.(type) {
	case string:
		switch v {
		case "Infinity":
			return math.Inf(1), true
		case "-Infinity":
			return math.Inf(-1), true
		}
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	case float64:
		return v, true
	}
	return 0, false
}

// decimals returns the config with whole numbers written as 0.0 and so on in the fields where
// transformers demands floats: it refuses [0, 0.5] as a list of floats.
func decimals(config model.Config) model.Config {
	config = config.Clone()
	for _, key := range []string{"time_step_limit", "z_loss_coefficient"} {
		switch v := config[key].(type) {
		case float64:
			config[key] = decimal(v)
		case []any:
			list := make([]any, len(v))
			for i := range v {
				list[i] = decimal(v[i])
			}
			config[key] = list
		}
	}
	return config
}

func decimal(v any) any {
	if f, ok := v.(float64); ok && f == math.Trunc(f) {
		return json.Number(strconv.FormatFloat(f, 'f', 1, 64))
	}
	return v
}
