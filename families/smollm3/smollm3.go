// Package smollm3 is the SmolLM3 family: Llama without rotary embedding in every fourth layer (Yang
// et al., arXiv 2501.18795).
package smollm3

import (
	"fmt"

	"conquer/checkpoint"
	"conquer/llama"
	"conquer/model"
)

const interval = 4 // default of no_rope_layer_interval; in GGUF it is fixed

var family = llama.Family{
	ModelType: "smollm3", Class: "SmolLM3ForCausalLM", GGUF: "smollm3", Read: []string{"smollm3"},
	Interleaved: true,
	Decoder:     decoder,
	FromGGUF: func(_ *checkpoint.GGUFFile, config map[string]any) {
		config["no_rope_layer_interval"], config["use_sliding_window"] = interval, false
	},
	ToGGUF: func(r *model.Reader, d *llama.Decoder, m *checkpoint.GGUFModel) error {
		for i := range d.Layers {
			if d.AttentionOf(i).NoRotary != ((i+1)%interval == 0) {
				return fmt.Errorf("config.json: no_rope_layers other than every fourth have no " +
					"form in GGUF")
			}
		}
		if d.Rotary.Scaling == "llama3" {
			return fmt.Errorf("config.json: llama3's rope_scaling has no form in GGUF's " +
				"architecture smollm3")
		}
		return llama.RefuseBias(r, d, m)
	},
}

func decoder(r *model.Reader) *llama.Decoder {
	d := llama.Read(r, "smollm3")
	d.Tied = r.BoolOr("tie_word_embeddings", true)
	if !r.Has("rope_parameters") && !r.Has("rope_theta") {
		d.Rotary.Theta = 2e6
	}
	rotated := r.Ints("no_rope_layers", d.Layers) // 1 for a layer with rotary embedding
	every := r.IntOr("no_rope_layer_interval", interval)
	d.Layer = func(i int, c *model.AttentionConfig) {
		if c.NoRotary = (i+1)%every == 0; rotated != nil {
			c.NoRotary = rotated[i] == 0
		}
	}
	if r.BoolOr("use_sliding_window", false) {
		d.ReadWindows(r)
	}
	return d
}

func init() {
	variant := func(vocabulary, width, inner, layers, heads, keyHeads int) model.Config {
		return family.Variant(llama.Sizes{Vocabulary: vocabulary, Width: width, Inner: inner,
			Layers: layers,
			Heads:  heads, KeyHeads: keyHeads, Positions: 65536},
			model.Config{"rms_norm_eps": 1e-6, "rope_theta": 5e6,
				"tie_word_embeddings": true, "no_rope_layer_interval": float64(interval),
				"use_sliding_window": false})
	}
	llama.Register("smollm3", map[string]model.Config{
		"tiny": variant(49152, 256, 704, 8, 8, 2),
		"3b":   variant(128256, 2048, 11008, 36, 16, 4), // HuggingFaceTB/SmolLM3-3B
	}, family)
}
