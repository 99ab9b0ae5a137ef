package checkpoint

import (
	"encoding/json"
	"fmt"
)

// llamaConfig is what Meta's layout and GGUF need of a config.json of the Llama family.
type llamaConfig struct {
	ModelType  string      `json:"model_type"`
	Name       string      `json:"_name_or_path"`
	Width      int         `json:"hidden_size"`
	Inner      int         `json:"intermediate_size"`
	Layers     int         `json:"num_hidden_layers"`
	Heads      int         `json:"num_attention_heads"`
	KVHeads    int         `json:"num_key_value_heads"`
	HeadDim    int         `json:"head_dim"`
	Vocabulary int         `json:"vocab_size"`
	MaxLength  int         `json:"max_position_embeddings"`
	Epsilon    float64     `json:"rms_norm_eps"`
	Theta      float64     `json:"rope_theta"`
	Tied       bool        `json:"tie_word_embeddings"`
	Bias       bool        `json:"attention_bias"`
	MLPBias    bool        `json:"mlp_bias"`
	Window     int         `json:"sliding_window"`
	UseWindow  *bool       `json:"use_sliding_window"`
	Scaling    ropeScaling `json:"rope_scaling"`
	Parameters ropeScaling `json:"rope_parameters"` // theta and scaling together, as transformers 5 writes them

	Biased bool `json:"-"` // some of the layers have biases
}

type ropeScaling struct {
	Type     string  `json:"rope_type"`
	OldType  string  `json:"type"`
	Theta    float64 `json:"rope_theta"`
	Factor   float64 `json:"factor"`
	Low      float64 `json:"low_freq_factor"`
	High     float64 `json:"high_freq_factor"`
	Original float64 `json:"original_max_position_embeddings"`
}

// kind is the scaling's name, "" for none.
func (s ropeScaling) kind() string {
	kind := s.Type
	if kind == "" {
		kind = s.OldType
	}
	if kind == "default" {
		return ""
	}
	return kind
}

// parseLlamaConfig reads a config.json with the defaults that transformers gives what it leaves out.
func parseLlamaConfig(text []byte) (*llamaConfig, error) {
	if text == nil {
		return nil, fmt.Errorf("there is no config.json to say how the model is built")
	}
	c := &llamaConfig{MaxLength: 2048, Epsilon: 1e-6, Theta: 10000}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	switch c.ModelType {
	case "llama", "mistral":
	case "qwen2":
		if c.UseWindow == nil || !*c.UseWindow {
			c.Window = 0
		}
	default:
		return nil, fmt.Errorf("it holds Llama, Mistral and Qwen2 models, this is a %.40q model: use --format hf", c.ModelType)
	}
	if c.KVHeads == 0 {
		c.KVHeads = c.Heads
	}
	if c.HeadDim == 0 && c.Heads > 0 {
		c.HeadDim = c.Width / c.Heads
	}
	if c.Parameters.Theta != 0 || c.Parameters.kind() != "" {
		c.Scaling = c.Parameters
		if c.Scaling.Theta != 0 {
			c.Theta = c.Scaling.Theta
		}
	}
	for name, n := range map[string]int{"hidden_size": c.Width, "intermediate_size": c.Inner, "num_hidden_layers": c.Layers,
		"num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads, "head_dim": c.HeadDim, "vocab_size": c.Vocabulary} {
		if n < 1 || n > 1<<31-1 {
			return nil, fmt.Errorf("%s: %s is %d, expected a positive integer", configFile, name, n)
		}
	}
	c.Biased = c.Bias || c.MLPBias || c.ModelType == "qwen2"
	if kind := c.Scaling.kind(); kind != "" && kind != "linear" && kind != "llama3" {
		return nil, fmt.Errorf("%s: rope_scaling of type %.40q has no place in this format, expected linear or llama3", configFile, kind)
	}
	return c, nil
}
