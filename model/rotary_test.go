package model_test

import (
	"math"
	"reflect"
	"testing"

	"conquer/model"
	"conquer/torch/nn"
)

// The values are what transformers 5.24 makes of the same keys.
func TestRotary_FollowsTransformers(t *testing.T) {
	llama3 := map[string]any{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
		"high_freq_factor": 4.0}
	linear := map[string]any{"type": "linear", "factor": 2.0}
	plain := map[string]any{"rope_type": "default", "rope_theta": 500.0}
	wide := nn.RotaryConfig{Dims: 16, Theta: 10000, Scaling: "linear", Factor: 2}
	for name, c := range map[string]struct {
		config model.Config
		share  float64
		want   nn.RotaryConfig
	}{
		"nothing": {nil, 0, nn.RotaryConfig{Dims: 16, Theta: 10000, Scaling: "default"}},
		"rope_parameters": {model.Config{"rope_parameters": plain, "rope_theta": 7.0}, 0,
			nn.RotaryConfig{Dims: 16, Theta: 500, Scaling: "default"}},
		"rope_scaling wins, theta is 10000": {model.Config{"rope_parameters": plain,
			"rope_scaling": linear}, 0, wide},
		"rope_scaling wins, theta from the top level": {model.Config{"rope_parameters": plain,
			"rope_scaling": linear, "rope_theta": 7.0}, 0,
			nn.RotaryConfig{Dims: 16, Theta: 7, Scaling: "linear", Factor: 2}},
		"an empty rope_scaling does not": {model.Config{"rope_parameters": plain,
			"rope_scaling": map[string]any{}}, 0,
			nn.RotaryConfig{Dims: 16, Theta: 500, Scaling: "default"}},
		"positions of llama3 are max_position_embeddings": {model.Config{"rope_scaling": llama3,
			"max_position_embeddings": 64.0}, 0, nn.RotaryConfig{Dims: 16, Theta: 10000,
			Scaling: "llama3", Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4,
			OriginalPosition: 64}},
		"or those of the top level": {model.Config{"rope_scaling": llama3,
			"max_position_embeddings": 64.0, "original_max_position_embeddings": 32.0}, 0,
			nn.RotaryConfig{Dims: 16, Theta: 10000, Scaling: "llama3", Factor: 8,
				LowFreqFactor: 1, HighFreqFactor: 4, OriginalPosition: 32}},
		"whole heads stay whole": {model.Config{"partial_rotary_factor": 0.25,
			"rope_parameters": map[string]any{"partial_rotary_factor": 0.5}}, 0,
			nn.RotaryConfig{Dims: 16, Theta: 10000, Scaling: "default"}},
		"Bamba rotates half": {model.Config{"partial_rotary_factor": 0.25}, 0.5,
			nn.RotaryConfig{Dims: 8, Theta: 10000, Scaling: "default"}},
		"or what rope_parameters says": {model.Config{
			"rope_parameters": map[string]any{"partial_rotary_factor": 0.25}}, 0.5,
			nn.RotaryConfig{Dims: 4, Theta: 10000, Scaling: "default"}},
		"YaRN": {model.Config{"rope_scaling": map[string]any{"rope_type": "yarn", "factor": 4.0},
			"max_position_embeddings": 64.0}, 0, nn.RotaryConfig{Dims: 16, Theta: 10000,
			Scaling: "yarn", Factor: 4, OriginalPosition: 64, BetaFast: 32, BetaSlow: 1,
			AttentionFactor: 0.1*math.Log(4) + 1}},
		"YaRN's factor is the ratio of the lengths if it is null": {model.Config{
			"rope_scaling": map[string]any{"rope_type": "yarn", "factor": nil, "truncate": false,
				"original_max_position_embeddings": 32.0, "beta_fast": 0.0, "beta_slow": 2.0,
				"attention_factor": 1.5}, "max_position_embeddings": 64.0}, 0,
			nn.RotaryConfig{Dims: 16, Theta: 10000, Scaling: "yarn", Factor: 2,
				OriginalPosition: 32, BetaFast: 32, BetaSlow: 2, Fractional: true,
				AttentionFactor: 1.5}},
		"dynamic": {model.Config{"rope_scaling": map[string]any{"type": "dynamic", "factor": 3.0},
			"max_position_embeddings": 64.0}, 0, nn.RotaryConfig{Dims: 16, Theta: 10000,
			Scaling: "dynamic", Factor: 3, MaxPosition: 64}},
		"longrope": {model.Config{"rope_scaling": map[string]any{"type": "longrope",
			"partial_rotary_factor": 0.25,
			"short_factor":          []any{1.0, 2.0}, "long_factor": []any{3.0, 4.0}},
			"max_position_embeddings": 64.0, "original_max_position_embeddings": 16.0}, 0.5,
			nn.RotaryConfig{Dims: 4, Theta: 10000, Scaling: "longrope", OriginalPosition: 16,
				ShortFactors: []float64{1, 2}, LongFactors: []float64{3, 4},
				AttentionFactor: math.Sqrt(1 + math.Log(4)/math.Log(16))}},
	} {
		r := &model.Reader{Config: c.config}
		if got := r.Rotary(16, c.share); r.Err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v, expected %+v", name, got, r.Err, c.want)
		}
	}
}

func TestRotary_ScalingThatIsIncompleteIsRefused(t *testing.T) {
	long := []any{1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}
	for _, scaling := range []map[string]any{{"type": "yarn", "factor": 0.0},
		{"type": "yarn", "factor": 2.0, "attention_factor": -1.0},
		{"type": "yarn", "factor": 2.0, "beta_slow": -1.0}, {"type": "dynamic"},
		{"type": "longrope", "short_factor": long},
		{"type": "longrope", "short_factor": long, "long_factor": long[1:]},
		{"type": "longrope", "short_factor": long,
			"long_factor": append([]any{0.0}, long[1:]...)}, {"type": "su"}} {
		r := &model.Reader{Config: model.Config{"rope_scaling": scaling,
			"max_position_embeddings": 64.0}}
		c := r.Rotary(16, 0)
		if r.Err == nil {
			if _, err := nn.NewRotary(c); err == nil {
				t.Errorf("%v is accepted", scaling)
			}
		}
	}
}
