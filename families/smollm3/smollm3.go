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
	Defaults: model.Config{"vocab_size": 128256.0, "hidden_size": 2048.0,
		"num_hidden_layers": 36.0, "num_attention_heads": 16.0, "num_key_value_heads": 4.0,
		"max_position_embeddings": 32768.0, "rope_theta": 2e6, "tie_word_embeddings": true,
		"use_sliding_window": false, "no_rope_layer_interval": float64(interval)},
	Decoder: decoder,
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
	every := r.Int("no_rope_layer_interval")
	rotates := func(i int) bool { return (i+1)%every != 0 }
	// no_rope_layers has 1 for a layer with rotary embedding; it may be longer than needed.
	if list, ok := r.Config["no_rope_layers"].([]any); ok && len(list) >= d.Layers {
		rotated := r.Ints("no_rope_layers", len(list))
		rotates = func(i int) bool { return rotated[i] != 0 }
	} else if r.Has("no_rope_layers") {
		r.Fail(fmt.Errorf("config.json: no_rope_layers is %.60v, expected a number for each of "+
			"%d layers", r.Config["no_rope_layers"], d.Layers))
	}
	d.Layer = func(i int, c *model.AttentionConfig) { c.NoRotary = !rotates(i) }
	// Layers without rotary embedding have the window, unless layer_types says otherwise.
	window := r.IntOr("sliding_window", 0)
	uses := r.Bool("use_sliding_window")
	d.SetWindows(r, window, func(i int) bool { return uses && !rotates(i) })
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
