package families_test

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"testing"

	"conquer/model"
	"conquer/torch/nn"
)

// Each number of a config is replaced by numbers of any size, in every family. The config is
// refused, or the model that it declares takes little memory and has weights of a possible size.
func TestConfig_NumbersOfAnySizeAreRefusedOrCostLittle(t *testing.T) {
	scaling := func(more model.Config) map[string]any {
		return more.Or(model.Config{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
			"high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0,
			"rope_theta": 1e4, "partial_rotary_factor": 1.0})
	}
	more := []string{"head_dim", "sliding_window", "max_window_layers", "rope_theta",
		"partial_rotary_factor", "z_loss_coefficient", "no_rope_layer_interval", "n_groups",
		"mamba_n_groups", "time_step_limit", "original_max_position_embeddings"}
	values := []float64{0, -1, -1 << 40, 0.5, 1e-300, 3, 1 << 16, 1 << 20, 1 << 24, 1 << 30,
		1 << 40, 1 << 62, 1e300}
	for _, a := range model.Architectures() {
		kinds := a.Variants
		variant := slices.Sorted(maps.Keys(kinds))[0]
		for _, kind := range a.ModelTypes {
			config := kinds[variant].Clone()
			maps.Copy(config, model.Config{"model_type": kind, "use_sliding_window": true,
				"sliding_window": 64.0, "max_window_layers": 1.0, "num_hidden_layers": 4.0,
				"attn_layer_indices": []any{2.0}})
			if list, ok := config["layer_types"].([]any); ok { // of several kinds
				config["layer_types"] = list[4:8]
			}
			if _, err := model.New(config); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			keys := slices.Clone(more)
			for key, value := range config {
				if _, ok := value.(float64); ok {
					keys = append(keys, key)
				}
			}
			for _, value := range values {
				for _, key := range keys {
					tryConfig(t, fmt.Sprintf("%s with %s %g", kind, key, value),
						model.Config{key: value}.Or(config))
				}
				for key := range scaling(nil) {
					if key == "rope_type" {
						continue
					}
					tryConfig(t, fmt.Sprintf("%s with rope_scaling.%s %g", kind, key, value),
						model.Config{"rope_scaling": scaling(model.Config{key: value})}.Or(config))
				}
			}
			tryConfig(t, kind+" with heads of no dimension", model.Config{"hidden_size": 16.0,
				"num_attention_heads": 32.0, "num_key_value_heads": 32.0,
				"no_rope_layer_interval": 1.0}.Or(config))
		}
	}
}

// tryConfig makes the model of a config.
func tryConfig(t *testing.T, name string, config model.Config) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("%s: %v", name, r)
		}
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, err := model.New(config)
	runtime.ReadMemStats(&after)
	if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 200<<20 {
		t.Errorf("%s: %d MB of memory were taken", name, bytes>>20)
	}
	if err != nil {
		return
	}
	nn.Walk(m, func(p nn.Component) {
		bytes := 8.0
		for _, n := range p.Shape() {
			bytes *= float64(n)
			if n < 1 {
				bytes = -1
			}
		}
		if bytes < 0 || bytes > 1<<50 {
			t.Errorf("%s: %s has shape %v", name, p.Name, p.Shape())
		}
	})
}
