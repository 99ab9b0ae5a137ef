package llama

import (
	"fmt"

	"conquer/checkpoint"
	"conquer/model"
)

// QwenDefaults are the defaults of Qwen2Config and Qwen3Config.
var QwenDefaults = model.Config{"vocab_size": 151936.0, "intermediate_size": 22016.0,
	"num_key_value_heads": 32.0, "max_position_embeddings": 32768.0, "use_sliding_window": false,
	"sliding_window": 4096.0, "max_window_layers": 28.0}

// The members of the Llama family.
var (
	base = Family{
		ModelType: "llama", Class: "LlamaForCausalLM", GGUF: "llama", Read: []string{"llama"},
		Interleaved: true,
		Meta:        true,
		Decoder:     func(r *model.Reader) *Decoder { return Read(r, "llama") },
		FromGGUF: func(g *checkpoint.GGUFFile, config map[string]any) {
			config["pretraining_tp"] = 1
			// only Mistral has one, and GGUF calls Mistral llama
			if g.Natural("attention.sliding_window") > 0 {
				config["architectures"], config["model_type"] = []string{mistral.Class},
					mistral.ModelType
				config["sliding_window"] = g.Natural("attention.sliding_window")
			}
		},
	}
	mistral = Family{
		ModelType: "mistral", Class: "MistralForCausalLM", GGUF: "llama",
		Read: []string{"mistral"}, Interleaved: true,
		Meta: true,
		Defaults: model.Config{"intermediate_size": 14336.0, "num_key_value_heads": 8.0,
			"max_position_embeddings": 131072.0, "sliding_window": 4096.0},
		Decoder: func(r *model.Reader) *Decoder {
			d := Read(r, "llama")
			d.Attention.QKVBias, d.Attention.OutputBias, d.MLPBias = false, false, false
			d.Attention.Window = r.IntOr("sliding_window", 0)
			if r.Has("layer_types") { // transformers then makes it a Ministral
				d.SetWindows(r, d.Attention.Window, nil)
			}
			return d
		},
		FromGGUF: func(g *checkpoint.GGUFFile, config map[string]any) {
			delete(config, "attention_bias")
			delete(config, "mlp_bias")
			config["sliding_window"] = nil
			if window := g.Natural("attention.sliding_window"); window > 0 {
				config["sliding_window"] = window
			}
		},
	}
	qwen2 = Family{
		ModelType: "qwen2", Class: "Qwen2ForCausalLM", GGUF: "qwen2", Read: []string{"qwen2"},
		Meta:     true,
		Defaults: QwenDefaults,
		Decoder: func(r *model.Reader) *Decoder {
			d := Read(r, "llama")
			d.Attention.QKVBias, d.Attention.OutputBias, d.MLPBias = true, false, false
			d.QwenWindows(r)
			return d
		},
		FromGGUF: func(_ *checkpoint.GGUFFile, config map[string]any) {
			delete(config, "attention_bias")
			delete(config, "mlp_bias")
			config["use_sliding_window"], config["sliding_window"] = false, nil
		},
	}
)

// New makes a model of this family without weights from a Hugging Face config. It fails if the
// config asks for something that the family does not have.
func New(config model.Config) (model.Model, error) {
	r := &model.Reader{Config: config}
	for _, f := range []Family{base, mistral, qwen2} {
		if r.StringOr("model_type", "llama") == f.ModelType {
			return f.New(config)
		}
	}
	return nil, fmt.Errorf("config.json: model_type %q is not of the Llama family (llama, "+
		"mistral, qwen2)",
		config["model_type"])
}

func init() {
	variants := map[string]model.Config{
		"micro": base.Variant(Sizes{Vocabulary: 32000, Width: 256, Inner: 688, Layers: 4, Heads: 8,
			KeyHeads: 8, Positions: 2048}, nil),
		"smollm2-135m": base.Variant(Sizes{Vocabulary: 49152, Width: 576, Inner: 1536, Layers: 30,
			Heads: 9, KeyHeads: 3, Positions: 8192}, model.Config{"rope_theta": 100000.0,
			"tie_word_embeddings": true}),
		"7b": base.Variant(Sizes{Vocabulary: 32000, Width: 4096, Inner: 11008, Layers: 32,
			Heads: 32, KeyHeads: 32, Positions: 4096}, nil),
		"13b": base.Variant(Sizes{Vocabulary: 32000, Width: 5120, Inner: 13824, Layers: 40,
			Heads: 40, KeyHeads: 40, Positions: 4096}, nil),
		"70b": base.Variant(Sizes{Vocabulary: 32000, Width: 8192, Inner: 28672, Layers: 80,
			Heads: 64, KeyHeads: 8, Positions: 4096}, nil),
		"3-8b": base.Variant(Sizes{Vocabulary: 128256, Width: 4096, Inner: 14336, Layers: 32,
			Heads: 32, KeyHeads: 8, Positions: 8192}, model.Config{"rope_theta": 500000.0}),
		"3.2-1b": base.Variant(Sizes{Vocabulary: 128256, Width: 2048, Inner: 8192, Layers: 16,
			Heads: 32, KeyHeads: 8, Positions: 131072}, model.Config{
			"rope_theta": 500000.0, "tie_word_embeddings": true, "head_dim": 64.0,
			"rope_scaling": map[string]any{"rope_type": "llama3", "factor": 32.0,
				"low_freq_factor":  1.0,
				"high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0},
		}),
	}
	for _, size := range []string{"7b", "13b", "70b"} { // of Llama 2
		variants["2-"+size] = variants[size]
	}
	Register("llama", variants, base, mistral, qwen2)
}
