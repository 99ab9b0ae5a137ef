package llama

import (
	"fmt"
	"strings"

	"conquer/checkpoint"
	"conquer/model"
)

// Family is a model family whose models are a [Decoder].
type Family struct {
	// ModelType is that of config.json, Class that of transformers.
	ModelType, Class string
	// Defaults are the values that keys have in transformers if a config.json lacks them, where
	// they differ from Llama's.
	Defaults model.Config
	// Decoder reads a config.json, to which the defaults are added. Problems are kept in r.
	Decoder func(r *model.Reader) *Decoder
	// GGUF is general.architecture in the files that are written, Read those that are read.
	GGUF string
	Read []string
	// Interleaved says that files of the architecture GGUF hold the rows of q and k interleaved,
	// because it rotates neighbouring rows.
	Interleaved bool
	// Accepts, if not nil, says whether a file of the architectures in Read is of this family.
	Accepts func(g *checkpoint.GGUFFile) bool
	// Parts are GGUF's names of a block's tensors beyond Llama's, and Hugging Face's. Two of GGUF's
	// tensors that have one Hugging Face name hold the first and the second half of its rows, in
	// the order of their names. Stacks are tensors that hold one matrix for each of the experts;
	// see [checkpoint.Names].
	Parts, Stacks map[string]string
	// LoRATargets are the linear layers of a block, if they differ from [LoRATargets].
	LoRATargets []string
	// FromGGUF, if not nil, adds to the config what the family has beyond Llama; ToGGUF is its
	// inverse.
	FromGGUF func(g *checkpoint.GGUFFile, config map[string]any)
	ToGGUF   func(r *model.Reader, d *Decoder, m *checkpoint.GGUFModel) error
	// Meta says that the family's models are also written in Meta's layout.
	Meta bool
}

// New makes a model without weights from a Hugging Face config. It fails if the config asks for
// something that the family does not have.
func (f Family) New(config model.Config) (model.Model, error) {
	r, d := f.read(config)
	return d.New(r)
}

// defaults are the values of LlamaConfig. Families differ in few of them.
var defaults = model.Config{
	"vocab_size": 32000.0, "hidden_size": 4096.0, "intermediate_size": 11008.0,
	"num_hidden_layers": 32.0, "num_attention_heads": 32.0, "max_position_embeddings": 2048.0,
	"rms_norm_eps": 1e-6, "tie_word_embeddings": false,
}

// read reads a config.json with the family's defaults.
func (f Family) read(config model.Config) (*model.Reader, *Decoder) {
	r := &model.Reader{Config: config.Or(f.Defaults.Or(defaults))}
	d := f.Decoder(r)
	d.Config = config
	return r, d
}

// Format is the family's translation to other formats.
func (f Family) Format() checkpoint.Family {
	c := checkpoint.Family{ModelTypes: []string{f.ModelType}, Architectures: f.Read,
		Accepts: f.Accepts, FromGGUF: f.fromGGUF, ToGGUF: f.toGGUF}
	c.Tied, _ = f.Defaults["tie_word_embeddings"].(bool)
	if f.Meta {
		c.Meta = &checkpoint.MetaFamily{Names: metaNames, Split: metaSplit, Read: readParams,
			Write: f.paramsFor}
	}
	return c
}

// Register adds families of one architecture to the registry, with variants for training from fresh
// weights.
func Register(name string, variants map[string]model.Config, list ...Family) {
	a := model.Architecture{Name: name, Variants: variants, LoRATargets: LoRATargets}
	byType := map[string]Family{}
	for _, f := range list {
		if f.LoRATargets != nil {
			a.LoRATargets = f.LoRATargets
		}
		a.ModelTypes = append(a.ModelTypes, f.ModelType)
		a.Formats = append(a.Formats, f.Format())
		byType[f.ModelType] = f
	}
	a.New = func(config model.Config) (model.Model, error) {
		kind, _ := config["model_type"].(string)
		f, ok := byType[kind]
		if !ok {
			return nil, fmt.Errorf("config.json: model_type %q is none of %s", kind,
				strings.Join(a.ModelTypes, ", "))
		}
		return f.New(config)
	}
	model.Register(a)
}

// LoRATargets are the linear layers of a decoder's block, in the order of the forward pass.
var LoRATargets = []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
	"down_proj"}

// component is the last part of a tensor's name before .weight or .bias, e.g. q_proj.
func component(name string) string {
	stem := name[:max(strings.LastIndexByte(name, '.'), 0)]
	return stem[strings.LastIndexByte(stem, '.')+1:]
}

// Sizes are the numbers by which variants of a family differ.
type Sizes struct{ Vocabulary, Width, Inner, Layers, Heads, KeyHeads, Positions int }

// Variant returns the config.json of a fresh model of the given sizes. The fields of more are added
// to it or replace its own.
func (f Family) Variant(s Sizes, more model.Config) model.Config {
	return merged(model.Config{
		"architectures": []any{f.Class}, "model_type": f.ModelType, "hidden_act": "silu",
		"vocab_size": float64(s.Vocabulary), "hidden_size": float64(s.Width),
		"intermediate_size": float64(s.Inner),
		"num_hidden_layers": float64(s.Layers), "num_attention_heads": float64(s.Heads),
		"num_key_value_heads": float64(s.KeyHeads), "max_position_embeddings": float64(s.Positions),
		"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.02,
		"tie_word_embeddings": false,
		"attention_bias":      false, "mlp_bias": false,
	}, more)
}
