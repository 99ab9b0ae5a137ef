package families_test

import (
	"fmt"
	"strings"
	"testing"

	"conquer/llama"
	"conquer/model"
)

// attentionOf describes the attention of a decoder's layers: heads, key heads, the size of a head,
// biases, window, and whether positions are rotated.
func attentionOf(t *testing.T, config model.Config) []model.AttentionConfig {
	t.Helper()
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	var list []model.AttentionConfig
	for _, block := range m.Blocks() {
		list = append(list, block.(*llama.Block).Attention.Config())
	}
	return list
}

// sized is a config of 4 layers of width 64 with 4 heads, and the keys of more.
func sized(modelType string, more model.Config) model.Config {
	return more.Or(model.Config{"model_type": modelType, "vocab_size": 96.0, "hidden_size": 64.0,
		"intermediate_size": 32.0, "num_hidden_layers": 4.0, "num_attention_heads": 4.0})
}

// The values are those of the config classes of transformers 5.24, which tools/parity compares.
func TestConfig_MissingKeysHaveTheFamilysDefaults(t *testing.T) {
	for _, c := range []struct {
		modelType                  string
		more                       model.Config
		keyHeads, headDim, windows int
	}{
		{"llama", nil, 4, 16, 0},
		{"llama", model.Config{"num_key_value_heads": nil, "head_dim": nil}, 4, 16, 0},
		{"mistral", model.Config{"num_attention_heads": 8.0}, 8, 8, 4096},
		{"mistral", model.Config{"num_key_value_heads": 2.0, "sliding_window": nil}, 2, 16, 0},
		{"mistral", model.Config{"num_key_value_heads": nil}, 4, 16, 4096},
		{"qwen2", model.Config{"num_attention_heads": 32.0}, 32, 2, 0},
		{"qwen2", model.Config{"num_key_value_heads": nil}, 4, 16, 0},
		{"qwen3", model.Config{"num_key_value_heads": 2.0}, 2, 128, 0},
		{"granite", nil, 4, 16, 0},
		{"smollm3", nil, 4, 16, 0},
		{"smollm3", model.Config{"num_key_value_heads": nil, "num_attention_heads": 2.0}, 2, 32, 0},
	} {
		for _, a := range attentionOf(t, sized(c.modelType, c.more)) {
			if a.KeyHeads != c.keyHeads || a.HeadDim != c.headDim || a.Window != c.windows {
				t.Errorf("%s with %v: %d key heads of %d, window %d; expected %d of %d, window %d",
					c.modelType, c.more, a.KeyHeads, a.HeadDim, a.Window, c.keyHeads, c.headDim,
					c.windows)
			}
		}
	}
}

func TestConfig_WindowsAreThoseOfTheLayers(t *testing.T) {
	types := func(s string) []any { // f for full_attention, s for sliding_attention
		var list []any
		for _, c := range s {
			list = append(list, map[rune]any{'f': "full_attention", 'a': "attention",
				's': "sliding_attention"}[c])
		}
		return list
	}
	for _, c := range []struct {
		modelType string
		more      model.Config
		want      string
	}{
		{"qwen2", model.Config{"use_sliding_window": true, "sliding_window": 6.0,
			"max_window_layers": 2.0}, "0 0 6 6"},
		{"qwen2", model.Config{"use_sliding_window": true, "max_window_layers": 0.0},
			"4096 4096 4096 4096"},
		{"qwen2", model.Config{"use_sliding_window": true}, "0 0 0 0"},
		{"qwen2", model.Config{"use_sliding_window": true, "sliding_window": nil,
			"max_window_layers": 0.0}, "0 0 0 0"},
		{"qwen2", model.Config{"sliding_window": 6.0, "max_window_layers": 0.0}, "0 0 0 0"},
		{"qwen2", model.Config{"use_sliding_window": true, "sliding_window": 6.0,
			"layer_types": types("sfas")}, "6 0 0 6"},
		{"qwen3", model.Config{"use_sliding_window": true, "sliding_window": 6.0,
			"max_window_layers": 3.0}, "0 0 0 6"},
		{"qwen3", model.Config{"layer_types": types("ffff"), "use_sliding_window": true,
			"sliding_window": 6.0, "max_window_layers": 0.0}, "0 0 0 0"},
		{"smollm3", model.Config{"use_sliding_window": true, "sliding_window": 6.0,
			"no_rope_layer_interval": 2.0}, "0 6 0 6"},
		{"smollm3", model.Config{"use_sliding_window": true, "no_rope_layer_interval": 2.0},
			"0 0 0 0"},
		{"smollm3", model.Config{"use_sliding_window": true, "sliding_window": 6.0,
			"no_rope_layers": []any{0.0, 1.0, 1.0, 1.0, 0.0, 0.0}}, "6 0 0 0"},
		{"smollm3", model.Config{"sliding_window": 6.0, "layer_types": types("sfff")}, "6 0 0 0"},
		// Llama ignores layer_types. AutoModel makes a Ministral of a Mistral that has them.
		{"llama", model.Config{"sliding_window": 6.0, "layer_types": types("ssss")}, "0 0 0 0"},
		{"mistral", model.Config{"sliding_window": 6.0, "layer_types": nil}, "6 6 6 6"},
		{"mistral", model.Config{"sliding_window": 6.0, "layer_types": types("fsaf")}, "0 6 0 0"},
		{"mistral", model.Config{"layer_types": types("sfff")}, "4096 0 0 0"},
	} {
		if c.more["num_key_value_heads"] == nil {
			c.more["num_key_value_heads"] = 4.0
		}
		var got []string
		for _, a := range attentionOf(t, sized(c.modelType, c.more)) {
			got = append(got, fmt.Sprint(a.Window))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s with %v: windows %v, expected %s", c.modelType, c.more, got, c.want)
		}
	}
}

func TestConfig_WhatIsNotSupportedIsNamed(t *testing.T) {
	for _, c := range []struct {
		modelType string
		more      model.Config
		want      string
	}{
		{"llama", model.Config{"rope_parameters": map[string]any{"rope_type": "proportional"}},
			`"rope_parameters" has the type "proportional"`},
		{"llama", model.Config{"rope_scaling": map[string]any{"type": "su", "factor": 2.0}},
			`"rope_scaling" has the type "su"`},
		{"llama", model.Config{"rope_scaling": map[string]any{"type": "yarn"}},
			`"rope_scaling.factor" is missing`},
		{"llama", model.Config{"rope_scaling": map[string]any{"type": "linear"}},
			`"rope_scaling.factor" is missing`},
		{"qwen3", model.Config{"rope_parameters": map[string]any{
			"full_attention": map[string]any{"rope_theta": 1e4}}}, "by the type of layer"},
		{"llama", model.Config{"rope_scaling": map[string]any{"type": "linear", "factor": 2.0},
			"partial_rotary_factor": 0.5}, "partial_rotary_factor"},
		{"llama", model.Config{"rope_theta": map[string]any{"__float__": "Infinity"}},
			`"rope_theta" is {"__float__":"Infinity"}`},
		{"llama", model.Config{"per_layer_config": map[string]any{"0": map[string]any{}}},
			"per_layer_config"},
		{"llama", model.Config{"hidden_act": "gelu"}, "hidden_act"},
		{"llama", model.Config{"rms_norm_eps": nil}, "rms_norm_eps"},
		{"qwen3", model.Config{"layer_types": []any{"full_attention"}}, "layer_types"},
		{"qwen3", model.Config{"layer_types": []any{"conv", "conv", "conv", "conv"}}, "conv"},
		{"qwen2", model.Config{"layer_types": []any{"sliding_attention", "full_attention",
			"full_attention", "full_attention"}}, "sliding_window"},
		{"smollm3", model.Config{"no_rope_layers": []any{1.0}}, "no_rope_layers"},
		// Numbers for which there is no memory.
		{"llama", model.Config{"num_hidden_layers": 1e6}, "num_hidden_layers"},
		{"llama", model.Config{"hidden_size": float64(1 << 40)}, "hidden_size"},
		{"llama", model.Config{"head_dim": float64(1 << 30)}, "head_dim"},
		{"llama", model.Config{"hidden_size": float64(1 << 30)}, "hidden_size"},
		{"bamba", model.Config{"num_hidden_layers": 1e6}, "num_hidden_layers"},
		{"mamba2", model.Config{"num_hidden_layers": 1e6}, "num_hidden_layers"},
	} {
		if _, err := model.New(sized(c.modelType, c.more)); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %v: %v, expected an error with %s", c.modelType, c.more, err, c.want)
		}
	}
}
