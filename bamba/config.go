package bamba

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"conquer/model"
	"conquer/torch/nn"
)

// settings is what a Bamba config says, read and checked.
type settings struct {
	config                           model.Config
	vocabulary, width, inner, layers int
	heads, keyHeads, headDim         int
	maxLength, chunk                 int
	eps                              float64
	tied, attentionBias, mlpBias     bool
	attentionLayers                  []int
	rotary                           nn.RotaryConfig
	mixer                            mixerConfig
}

func read(config model.Config) (settings, error) {
	r := &model.Reader{Config: config}
	h := settings{
		config:     decimals(config),
		vocabulary: r.Int("vocab_size"), width: r.Int("hidden_size"), inner: r.Int("intermediate_size"),
		layers: r.Int("num_hidden_layers"), heads: r.Int("num_attention_heads"),
		maxLength: r.IntOr("max_position_embeddings", 262144), eps: r.FloatOr("rms_norm_eps", 1e-5),
		tied: r.BoolOr("tie_word_embeddings", false), attentionBias: r.BoolOr("attention_bias", false),
		mlpBias: r.BoolOr("mlp_bias", false), chunk: nearestChunk(r.IntOr("mamba_chunk_size", 256)),
		mixer: mixerConfig{
			heads: r.IntOr("mamba_n_heads", 128), groups: r.IntOr("mamba_n_groups", 1), state: r.IntOr("mamba_d_state", 256),
			taps: r.IntOr("mamba_d_conv", 4), projBias: r.BoolOr("mamba_proj_bias", false),
			convBias: r.BoolOr("mamba_conv_bias", true),
		},
	}
	h.keyHeads = r.IntOr("num_key_value_heads", h.heads)
	h.headDim = r.IntOr("head_dim", h.width/h.heads)
	h.mixer.eps = h.eps
	inner := r.IntOr("mamba_expand", 2) * h.width
	if config["mamba_d_head"] == "auto" || !r.Has("mamba_d_head") {
		h.mixer.headDim = inner / h.mixer.heads
	} else {
		h.mixer.headDim = r.Int("mamba_d_head")
	}
	// Half of a head is turned unless rope_parameters says otherwise. transformers' Bamba goes by nothing else either, whatever
	// partial_rotary_factor or attn_rotary_emb older files carry beside it.
	h.rotary = r.Rotary(h.headDim, 0.5)
	switch list, ok := config["attn_layer_indices"].([]any); {
	case ok:
		for _, v := range list {
			i, ok := v.(float64)
			if !ok || i != math.Trunc(i) || i < 0 || int(i) >= h.layers {
				return h, fmt.Errorf("config.json: attn_layer_indices holds %v, expected layers from 0 to %d", v, h.layers-1)
			}
			h.attentionLayers = append(h.attentionLayers, int(i))
		}
	case r.Has("attn_layer_indices"):
		return h, fmt.Errorf("config.json: attn_layer_indices is %v, expected a list of layers", config["attn_layer_indices"])
	}
	if r.Err != nil {
		return h, r.Err
	}
	if len(h.attentionLayers) > 0 && h.heads%h.keyHeads != 0 {
		return h, fmt.Errorf("config.json: num_key_value_heads %d does not divide num_attention_heads %d", h.keyHeads, h.heads)
	}
	return h, h.mixer.check(r, inner, [4]string{"mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_d_conv"})
}

// check finishes reading the Mamba-2 layers' part of a config and says what the kernels could not run; names are the
// config's for heads, head dimension, state and convolution.
func (c *mixerConfig) check(r *model.Reader, inner int, names [4]string) error {
	if act := r.StringOr("hidden_act", "silu"); act != "silu" {
		return fmt.Errorf("config.json: hidden_act %q is not supported, expected silu", act)
	}
	switch {
	case c.heads*c.headDim != inner:
		return fmt.Errorf("config.json: %s %d times %s %d is not the %d channels that the expansion asks for", names[0], c.heads, names[1], c.headDim, inner)
	case c.heads%c.groups != 0:
		return fmt.Errorf("config.json: %d groups do not divide %s %d", c.groups, names[0], c.heads)
	case c.headDim < 16 || c.headDim > 128:
		return fmt.Errorf("config.json: %s %d is out of range, expected 16 to 128", names[1], c.headDim)
	case c.state < 16 || c.state > 256:
		return fmt.Errorf("config.json: %s %d is out of range, expected 16 to 256", names[2], c.state)
	case c.taps < 2 || c.taps > 4:
		return fmt.Errorf("config.json: %s %d is out of range, expected 2 to 4", names[3], c.taps)
	}
	c.dtMin, c.dtMax = 0, math.Inf(1)
	if r.Has("time_step_limit") {
		limit, ok := r.Config["time_step_limit"].([]any)
		if !ok || len(limit) != 2 {
			return fmt.Errorf("config.json: time_step_limit is %v, expected two numbers", r.Config["time_step_limit"])
		}
		for i, to := range []*float64{&c.dtMin, &c.dtMax} {
			if *to, ok = limitOf(limit[i]); !ok {
				return fmt.Errorf("config.json: time_step_limit holds %v, expected a number", limit[i])
			}
		}
		if !(c.dtMin <= c.dtMax) {
			return fmt.Errorf("config.json: time_step_limit %v: the lower limit is above the upper", limit)
		}
	}
	return r.Err
}

// limitOf reads a number that may be infinite: JSON has no word for that, so transformers writes {"__float__": "Infinity"}.
func limitOf(v any) (float64, bool) {
	if object, ok := v.(map[string]any); ok {
		v = object["__float__"]
	}
	switch v := v.(type) {
	case string:
		return math.Inf(1), v == "Infinity"
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	case float64:
		return v, true
	}
	return 0, false
}

// decimals returns the config with 0 spelled 0.0 and so on in the fields where transformers insists on it: saved again and
// read there, [0, 0.5] is no list of floats.
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

// nearestChunk brings a config's chunk size, which under the default strategy is a matter of speed alone, to one that the
// kernels have.
func nearestChunk(size int) int {
	chunk := 16
	for chunk < 256 && 2*chunk <= size {
		chunk *= 2
	}
	return chunk
}
