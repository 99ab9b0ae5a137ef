package lora

import (
	"math"
	"strings"
	"testing"
)

// A config that is accepted must give every layer a rank and a factor that can be used.
func FuzzAdapterConfig(f *testing.F) {
	f.Add([]byte(`{"peft_type":"LORA","r":4,"lora_alpha":8,"bias":"none","use_rslora":true,`+
		`"rank_pattern":{"q_proj":2},"alpha_pattern":{"layers.[01].*":3.5}}`),
		"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
	f.Add([]byte(`{"peft_type":"LORA","r":1,"use_dora":false,"task_type":"CAUSAL_LM",`+
		`"base_model_name_or_path":"a/b","revision":null,"more":[1]}`),
		"base_model.model.lm_head.lora_B.bias")
	for _, rank := range []string{"0", "-1", "2.5"} {
		f.Add([]byte(`{"peft_type":"LORA","r":4,"rank_pattern":{"q_proj":`+rank+`}}`),
			"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
	}
	f.Fuzz(func(t *testing.T, text []byte, tensor string) {
		c, err := defaults("adapter_config.json").parse(text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "adapter_config.json: ") {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		layer, _, err := c.split(tensor)
		if err != nil {
			return
		}
		rank, scale := c.of(layer)
		if rank < 1 || math.IsInf(scale, 0) || math.IsNaN(scale) {
			t.Errorf("layer %q has rank %d and factor %g", layer, rank, scale)
		}
	})
}
