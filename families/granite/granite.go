// Package granite is the dense models of IBM's Granite 3 family: Llama with multipliers of the
// embedding, the attention scores, the residual branches and the logits.
package granite

import (
	"math"

	"conquer/checkpoint"
	"conquer/llama"
	"conquer/model"
)

var family = llama.Family{
	ModelType: "granite", Class: "GraniteForCausalLM", GGUF: "granite", Read: []string{"granite"},
	Interleaved: true,
	Defaults: model.Config{"embedding_multiplier": 1.0, "attention_multiplier": 1.0,
		"residual_multiplier": 1.0, "logits_scaling": 1.0},
	Decoder: func(r *model.Reader) *llama.Decoder {
		d := llama.Read(r, "granite")
		d.EmbeddingScale = r.Multiplier("embedding_multiplier")
		d.Attention.Scale = r.Multiplier("attention_multiplier")
		d.ResidualScale = r.Multiplier("residual_multiplier")
		d.LogitsScale = 1 / r.Multiplier("logits_scaling")
		return d
	},
	FromGGUF: func(g *checkpoint.GGUFFile, config map[string]any) {
		size := config["head_dim"].(int)
		if size*config["num_attention_heads"].(int) == config["hidden_size"].(int) {
			delete(config, "head_dim") // GraniteConfig has no field for it
		}
		config["embedding_multiplier"] = g.Number("embedding_scale", 1)
		config["attention_multiplier"] = g.Number("attention.scale", 1/math.Sqrt(float64(size)))
		config["residual_multiplier"] = g.Number("residual_scale", 1)
		config["logits_scaling"] = g.Number("logit_scale", math.NaN())
	},
	ToGGUF: func(r *model.Reader, d *llama.Decoder, m *checkpoint.GGUFModel) error {
		m.Set("embedding_scale", float32(d.EmbeddingScale))
		m.Set("attention.scale", float32(d.Attention.Scale))
		m.Set("residual_scale", float32(d.ResidualScale))
		m.Set("logit_scale", float32(r.Float("logits_scaling")))
		return nil
	},
}

func init() {
	variant := func(width, inner, heads int, attention, logits float64, tied bool) model.Config {
		return family.Variant(llama.Sizes{Vocabulary: 49155, Width: width, Inner: inner,
			Layers: 40, Heads: heads,
			KeyHeads: 8, Positions: 131072}, model.Config{"rope_theta": 1e7,
			"tie_word_embeddings":  tied,
			"embedding_multiplier": 12.0, "attention_multiplier": attention,
			"residual_multiplier": 0.22,
			"logits_scaling":      logits})
	}
	llama.Register("granite", map[string]model.Config{ // ibm-granite/granite-3.3-*
		"3.3-2b": variant(2048, 8192, 32, 0.015625, 8, true),
		"3.3-8b": variant(4096, 12800, 32, 0.0078125, 16, true),
	}, family)
}
