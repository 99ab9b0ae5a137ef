package nemotronh

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/model/statespace"
)

var ggufNames = statespace.GGUFNames(checkpoint.Names{
	Blocks: "blk.", Layers: "backbone.layers.",
	Whole: map[string]string{
		"token_embd":  "backbone.embeddings",
		"output_norm": "backbone.norm_f",
		"output":      "lm_head",
	},
	Block: map[string]string{
		"attn_norm":   "norm",
		"attn_q":      "mixer.q_proj",
		"attn_k":      "mixer.k_proj",
		"attn_v":      "mixer.v_proj",
		"attn_output": "mixer.o_proj",
		"ffn_up":      "mixer.up_proj",
		"ffn_down":    "mixer.down_proj",

		"ffn_gate_inp":   "mixer.gate",
		"ffn_up_shexp":   "mixer.shared_experts.up_proj",
		"ffn_down_shexp": "mixer.shared_experts.down_proj",
	},
	Exact: map[string]string{"exp_probs_b.bias": "mixer.gate.e_score_correction_bias"},
	Stacks: map[string]string{
		"ffn_up_exps":   "mixer.experts.*.up_proj",
		"ffn_down_exps": "mixer.experts.*.down_proj",
	},
}, "mixer.")

// The architectures of models without and with experts.
const dense, mixture = "nemotron_h", "nemotron_h_moe"

// format is the family in GGUF.
var format = checkpoint.Family{
	ModelTypes: []string{"nemotron_h"}, Architectures: []string{dense, mixture},
	FromGGUF: fromGGUF, ToGGUF: toGGUF, Embedding: "backbone.embeddings",
}

// noLimit is the largest lower limit of time steps that may be left out: llama.cpp has none, and
// this is transformers' default.
const noLimit = 0.001

// limitKey holds the limit for this program; llama.cpp ignores the key.
const limitKey = "ssm.time_step_min"

func fromGGUF(g *checkpoint.GGUFFile) (map[string]any, checkpoint.TensorMap, error) {
	layers, width, heads := g.Int("block_count", 0), g.Int("embedding_length", 0),
		g.Int("attention.head_count", 0)
	if layers > model.Layers { // before memory is taken for all of them
		g.Fail("nemotron_h.block_count is %d, expected at most %d", layers, model.Layers)
		layers = 0
	}
	kv, ffn := g.Ints("attention.head_count_kv", layers), g.Ints("feed_forward_length", layers)
	if g.Err == nil && (kv == nil || ffn == nil) {
		g.Fail("the metadata lacks nemotron_h.attention.head_count_kv or " +
			"nemotron_h.feed_forward_length, which say what each layer is")
	}
	if g.Err != nil {
		return nil, nil, g.Err
	}
	c := statespace.FromGGUF(g)
	pattern, keyHeads, inner, bias := "", 0, 0, false
	for i := range layers {
		letter, one := mamba, 0
		switch {
		case kv[i] > 0:
			letter, one = attention, kv[i]
			if keyHeads == 0 {
				keyHeads = one
			}
		case ffn[i] > 0:
			if letter, one = mlp, ffn[i]; g.Architecture == mixture {
				letter = moe
			}
			if inner == 0 {
				inner, bias = one, g.Has(fmt.Sprintf("blk.%d.ffn_up.bias", i))
			}
		}
		if letter == attention && one != keyHeads || letter != mamba && letter != attention &&
			one != inner {
			g.Fail("layers of %s have %v key/value heads and feed-forward widths %v, expected one "+
				"number beside 0", g.Architecture, kv, ffn)
		}
		pattern += string(letter)
	}
	headDim := g.Int("attention.key_length", max(width/max(heads, 1), 1))
	eps := g.Number("attention.layer_norm_rms_epsilon",
		g.Number("attention.layer_norm_epsilon", 1e-5))
	config := map[string]any{
		"architectures": []string{"NemotronHForCausalLM"}, "model_type": "nemotron_h",
		"vocab_size": g.Shape("token_embd.weight")[0], "hidden_size": width,
		"num_hidden_layers": layers, "hybrid_override_pattern": pattern,
		"num_attention_heads": heads, "num_key_value_heads": max(keyHeads, 1),
		"head_dim": headDim, "max_position_embeddings": g.Int("context_length", 0),
		"intermediate_size": max(inner, 1), "mlp_bias": bias, "mlp_hidden_act": "relu2",
		"mamba_hidden_act": "silu", "mamba_num_heads": c.Heads, "mamba_head_dim": c.HeadDim,
		"n_groups": c.Groups, "ssm_state_size": c.State, "conv_kernel": c.Taps, "expand": 2,
		"use_conv_bias": true, "use_bias": false, "chunk_size": 128, "layer_norm_epsilon": eps,
		"time_step_min": g.Number(limitKey, noLimit), "attention_bias": false,
		"residual_in_fp32": false, "initializer_range": 0.02, "use_cache": true,
		"tie_word_embeddings": false,
	}
	names := ggufNames
	if g.Architecture == mixture {
		names.Experts = expertsFromGGUF(g, config)
	}
	tensors := func(name string) (checkpoint.Mapped, bool) {
		if m, ok := names.Stacked(name); ok {
			return m, true
		}
		hf, ok := ggufNames.HuggingFace(name)
		transform, _ := statespace.MixerGGUF(hf, c.Groups)
		return checkpoint.Mapped{Name: hf, Transform: transform}, ok
	}
	return config, tensors, g.Err
}

// expertsFromGGUF adds what a config says of mixtures of experts, and returns their number.
func expertsFromGGUF(g *checkpoint.GGUFFile, config map[string]any) int {
	experts, used := g.Int("expert_count", 0), g.Int("expert_used_count", 0)
	if experts > model.Experts {
		g.Fail("%s.expert_count is %d, expected at most %d", g.Architecture, experts,
			model.Experts)
	}
	scale := g.Number("expert_weights_scale", 0)
	if scale == 0 {
		scale = 1
	}
	maps.Copy(config, map[string]any{
		"n_routed_experts": experts, "num_experts_per_tok": used,
		"moe_intermediate_size": g.Int("expert_feed_forward_length",
			max(1, config["intermediate_size"].(int)/max(used, 1))),
		"moe_shared_expert_intermediate_size": g.Int("expert_shared_feed_forward_length", 0),
		"n_shared_experts":                    1,
		"norm_topk_prob":                      g.Flag("expert_weights_norm", false),
		"routed_scaling_factor":               scale, "moe_latent_size": nil,
		"n_group":    g.Int("expert_group_count", 1),
		"topk_group": g.Int("expert_group_used_count", 1),
	})
	return experts
}

// setExperts writes the keys that expertsFromGGUF reads.
func (s settings) setExperts(g *checkpoint.GGUFModel) {
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"expert_count", s.routing.Experts}, {"expert_used_count", s.routing.TopK},
		{"expert_feed_forward_length", s.experts},
		{"expert_shared_feed_forward_length", s.shared},
		{"expert_group_count", s.routing.Groups}, {"expert_group_used_count", s.routing.TopGroups},
	} {
		g.Set(pair.key, uint32(pair.n))
	}
	g.Set("expert_weights_norm", s.routing.Renormalize)
	g.Set("expert_weights_scale", float32(s.routing.Scale))
}

func toGGUF(text []byte) (*checkpoint.GGUFModel, error) {
	var config model.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	s, err := read(config)
	if err != nil {
		return nil, err
	}
	g := &checkpoint.GGUFModel{Architecture: dense}
	names, experts := ggufNames, slices.Contains(s.layers, moe)
	if experts {
		g.Architecture, names.Experts = mixture, s.routing.Experts
	}
	var mixers []int
	kv, ffn := make([]uint32, len(s.layers)), make([]uint32, len(s.layers))
	for i, kind := range s.layers {
		switch kind {
		case mamba:
			mixers = append(mixers, i)
		case attention:
			kv[i] = uint32(s.attention.KeyHeads)
		case mlp:
			ffn[i] = uint32(s.inner)
		case moe:
			ffn[i] = uint32(s.experts)
		}
	}
	c := s.mixer
	switch {
	case c.DTMin > noLimit:
		return nil, fmt.Errorf("config.json: time_step_min %g has no form in GGUF: llama.cpp does "+
			"not limit time steps", c.DTMin)
	case experts && slices.Contains(s.layers, mlp):
		return nil, fmt.Errorf("config.json: a model with both moe and mlp layers has no form in " +
			"GGUF")
	case experts && s.mlpBias:
		return nil, fmt.Errorf("config.json: mlp_bias has no form in GGUF's architecture %s",
			mixture)
	case !slices.Contains(s.layers, attention) || len(mixers) == 0:
		return nil, fmt.Errorf("config.json: a model without attention layers or without " +
			"state-space layers has no form in GGUF's architecture nemotron_h")
	}
	c.DTMin = 0
	if err := c.SetGGUF(g, mixers, "use_bias"); err != nil {
		return nil, err
	}
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"vocab_size", s.stack.Vocabulary}, {"context_length", s.stack.MaxLength},
		{"embedding_length", s.stack.Width}, {"block_count", len(s.layers)},
		{"attention.head_count", s.attention.Heads},
		{"attention.key_length", s.attention.HeadDim},
		{"attention.value_length", s.attention.HeadDim},
	} {
		g.Set(pair.key, uint32(pair.n))
	}
	if experts {
		s.setExperts(g)
	}
	g.Set("attention.head_count_kv", kv)
	g.Set("feed_forward_length", ffn)
	g.Set("attention.layer_norm_epsilon", float32(s.stack.Eps))
	g.Set(limitKey, float32(math.Max(s.mixer.DTMin, 0)))
	g.Tensor = func(name string) (checkpoint.Mapped, bool) {
		if m, ok := names.Stacker(name); ok {
			return m, true
		}
		foreign, ok := names.Foreign(name)
		transform, float := statespace.MixerGGUF(name, c.Groups)
		return checkpoint.Mapped{Name: foreign, Transform: transform, Float32: float}, ok
	}
	return g, nil
}
