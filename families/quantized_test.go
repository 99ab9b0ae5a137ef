package families_test

import (
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

func TestModel_QuantizedWeightsAreRefusedByMethod(t *testing.T) {
	q := func(method string) map[string]any { return map[string]any{"quant_method": method} }
	for _, c := range []struct {
		key    string
		value  map[string]any
		tensor string // an integer tensor in place of a weight
		want   string
	}{
		{"quantization_config", q("gptq"), "", "quantized by gptq"},
		{"quantization_config", q("gptq"), "", "hold no tensors of such weights"},
		{"quantization_config", map[string]any{"quant_method": "gptq", "bits": 5.0}, "", "5 bits"},
		{"quantization_config", map[string]any{"quant_method": "gptq",
			"checkpoint_format": "marlin"}, "", `"marlin"`},
		{"quantization_config", q("gptq"), "model.layers.0.self_attn.q_proj.qweight",
			"scales"},
		{"quantization_config", q("awq"), "", "quantized by awq"},
		{"quantization_config", map[string]any{"quant_method": "awq", "version": "gemv"}, "",
			`"gemv"`},
		{"quantization_config", q("awq"), "model.layers.0.self_attn.q_proj.qweight", "group_size"},
		{"quantization_config", q("fp8"), "", "quantized by fp8"},
		{"quantization_config", q("compressed-tensors"), "", "quantized by compressed-tensors"},
		{"quantization_config", q("mxfp4"), "", "quantized by mxfp4"},
		{"quantization_config", map[string]any{"load_in_4bit": true}, "", "by bitsandbytes"},
		{"compression_config", map[string]any{"format": "int"}, "", "by compressed-tensors"},
		{"quantization", map[string]any{"group_size": 64.0, "bits": 4.0}, "", "by MLX"},
		{"quantization_config", map[string]any{"x": 1.0}, "", "a method that it does not name"},
		{"", nil, "model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"},
		{"", nil, "model.layers.0.self_attn.q_proj.weight.absmax", "bitsandbytes"},
		{"", nil, "model.layers.0.self_attn.q_proj.weight", "stored as"},
	} {
		inTorch(t, func() {
			const replaced = "model.layers.0.self_attn.q_proj.weight"
			dir := rewritten(t, "../llama/testdata/llama", func(name string) string { return name },
				func(config map[string]any, s tensors) {
					if c.key != "" {
						config[c.key] = c.value
					}
					if c.tensor != "" {
						s[c.tensor] = torch.Zeros(s[replaced].Shape(), torch.Int32, torch.CPU)
						if c.tensor != replaced {
							delete(s, replaced)
						}
					}
				})
			_, err := model.Open(dir, torch.Float32, torch.CPU)
			if err == nil || !strings.Contains(err.Error(), c.want) ||
				!strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s %v %s: %v, expected %q", c.key, c.value, c.tensor, err, c.want)
			}
			if c.tensor != replaced {
				return
			}
			opened, err := checkpoint.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer opened.Close()
			if _, err := opened.TensorAs(replaced, torch.Float32); err == nil ||
				!strings.Contains(err.Error(), replaced) || !strings.Contains(err.Error(), "I32") {
				t.Errorf("integers as numbers: %v", err)
			}
		})
	}
}

func TestModel_ConfigsWithoutATypeAreNamed(t *testing.T) {
	for want, config := range map[string]model.Config{
		"state-spaces": {"d_model": 768.0, "n_layer": 24.0, "ssm_cfg": map[string]any{}},
		"diffusers":    {"_class_name": "UNet2DConditionModel"},
		"LlamaForCau":  {"architectures": []any{"LlamaForCausalLM"}},
		"bert":         {"model_type": "bert"},
		"model_type":   {},
	} {
		if _, err := model.New(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, expected %q", config, err, want)
		}
	}
}
