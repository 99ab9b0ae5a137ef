package bamba

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// ssmKeys are the fields of ssm_cfg that mamba_ssm's Mamba2 takes, with its defaults and the names
// in Mamba2Config.
var ssmKeys = map[string]struct {
	standard any
	name     string
}{
	"d_state": {128.0, "state_size"}, "d_conv": {4.0, "conv_kernel"}, "expand": {2.0, "expand"},
	"headdim": {64.0, "head_dim"}, "ngroups": {1.0, "n_groups"},
	"chunk_size": {256.0, "chunk_size"},
	"bias":       {false, "use_bias"}, "conv_bias": {true, "use_conv_bias"},
	"dt_limit": {nil, "time_step_limit"},
}

// ssmFixed are fields of which one value alone has a form in Mamba2Config.
var ssmFixed = map[string]any{"layer": "Mamba2", "rmsnorm": true, "norm_before_gate": false,
	"D_has_hdim": false, "d_ssm": nil}

// ssmTraining are fields that fresh weights depend on, and the choice of kernels.
var ssmTraining = []string{"A_init_range", "conv_init", "dt_min", "dt_max", "dt_init_floor",
	"use_mem_eff_path"}

// adoptMamba2 takes the config.json of state-spaces' own library, mamba_ssm, such as that of
// state-spaces/mamba2-2.7b: d_model, n_layer and ssm_cfg. It refuses what is no Mamba-2 stack.
func adoptMamba2(config map[string]any) (map[string]any, func(string) string, error) {
	width, isWidth := config["d_model"].(float64)
	layers, isLayers := config["n_layer"].(float64)
	if !isWidth || !isLayers {
		return nil, nil, nil
	}
	ssm, _ := config["ssm_cfg"].(map[string]any)
	if layer, _ := ssm["layer"].(string); layer != "Mamba2" {
		return nil, nil, fmt.Errorf("ssm_cfg.layer is %q: the model is of Mamba-1 layers, which "+
			"are not supported, expected Mamba2", layer)
	}
	if list, _ := config["attn_layer_idx"].([]any); len(list) > 0 {
		return nil, nil, fmt.Errorf("attn_layer_idx is %v: mamba_ssm's attention layers are not "+
			"supported", list)
	}
	if inner, _ := config["d_intermediate"].(float64); inner != 0 {
		return nil, nil, fmt.Errorf("d_intermediate is %g: mamba_ssm's feed-forward layers are "+
			"not supported", inner)
	}
	if rms, ok := config["rms_norm"].(bool); ok && !rms {
		return nil, nil, fmt.Errorf("rms_norm is false: layer normalization is not supported")
	}
	adopted := map[string]any{
		"architectures": []string{"Mamba2ForCausalLM"}, "model_type": "mamba2",
		"hidden_act": "silu", "hidden_size": width, "num_hidden_layers": layers,
		"layer_norm_epsilon": 1e-5, "residual_in_fp32": true, "initializer_range": 0.02,
		"rms_norm": true, "use_cache": true, "tie_word_embeddings": true,
	}
	for key, field := range ssmKeys {
		if field.standard != nil {
			adopted[field.name] = field.standard
		}
		if value, ok := ssm[key]; ok {
			adopted[field.name] = value
		}
	}
	for _, key := range slices.Sorted(maps.Keys(ssm)) {
		_, known := ssmKeys[key]
		fixed, isFixed := ssmFixed[key]
		if isFixed && ssm[key] != fixed || !known && !isFixed &&
			!slices.Contains(ssmTraining, key) {
			return nil, nil, fmt.Errorf("ssm_cfg.%s is %.60v, which is not supported", key,
				ssm[key])
		}
	}
	if wide, ok := config["residual_in_fp32"].(bool); ok {
		adopted["residual_in_fp32"] = wide
	}
	if tied, ok := config["tie_embeddings"].(bool); ok {
		adopted["tie_word_embeddings"] = tied
	}
	// The rows of the embedding are padded to a multiple.
	vocabulary, _ := config["vocab_size"].(float64)
	multiple, ok := config["pad_vocab_size_multiple"].(float64)
	if !ok {
		multiple = 8
	}
	if multiple >= 1 {
		vocabulary = math.Ceil(vocabulary/multiple) * multiple
	}
	adopted["vocab_size"] = vocabulary
	expand, _ := adopted["expand"].(float64)
	headDim, _ := adopted["head_dim"].(float64)
	if !(headDim >= 1) || expand*width != math.Trunc(expand*width/headDim)*headDim {
		return nil, nil, fmt.Errorf("ssm_cfg.headdim %v does not divide expand %v times d_model %g",
			adopted["head_dim"], adopted["expand"], width)
	}
	adopted["num_heads"] = expand * width / headDim
	return adopted, func(name string) string {
		return strings.Replace(name, "backbone.embedding.", "backbone.embeddings.", 1)
	}, nil
}
