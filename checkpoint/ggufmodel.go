package checkpoint

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// ggufNames maps GGUF's names of whole-model tensors, and of a block's behind "blk.N.", to those of Hugging Face.
var ggufNames = map[string]string{
	"token_embd":  "model.embed_tokens",
	"output_norm": "model.norm",
	"output":      "lm_head",

	"attn_norm":   "input_layernorm",
	"attn_q":      "self_attn.q_proj",
	"attn_k":      "self_attn.k_proj",
	"attn_v":      "self_attn.v_proj",
	"attn_output": "self_attn.o_proj",
	"ffn_norm":    "post_attention_layernorm",
	"ffn_gate":    "mlp.gate_proj",
	"ffn_up":      "mlp.up_proj",
	"ffn_down":    "mlp.down_proj",
}

// hfName gives the Hugging Face name of another layout's tensor: names maps stems, those of a block behind the prefix
// blocks and the block's number.
func hfName(name, blocks string, names map[string]string) (string, bool) {
	stem, kind, ok := cutLast(name, ".")
	if !ok || kind != "weight" && kind != "bias" {
		return "", false
	}
	prefix := ""
	if rest, ok := strings.CutPrefix(stem, blocks); ok {
		layer, part, ok := strings.Cut(rest, ".")
		if n, err := strconv.Atoi(layer); !ok || err != nil || n < 0 || strconv.Itoa(n) != layer {
			return "", false
		}
		prefix, stem = "model.layers."+layer+".", part
	}
	mapped, ok := names[stem]
	whole := strings.HasPrefix(mapped, "model.") || mapped == "lm_head"
	if !ok || whole != (prefix == "") {
		return "", false
	}
	return prefix + mapped + "." + kind, true
}

// foreignName is the inverse of hfName.
func foreignName(name, blocks string, names map[string]string) (string, bool) {
	stem, kind, ok := cutLast(name, ".")
	if !ok || kind != "weight" && kind != "bias" {
		return "", false
	}
	prefix := ""
	if rest, ok := strings.CutPrefix(stem, "model.layers."); ok {
		layer, part, ok := strings.Cut(rest, ".")
		if n, err := strconv.Atoi(layer); !ok || err != nil || n < 0 || strconv.Itoa(n) != layer {
			return "", false
		}
		prefix, stem = blocks+layer+".", part
	}
	for foreign, hf := range names {
		if hf == stem {
			return prefix + foreign + "." + kind, true
		}
	}
	return "", false
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// permutedHeads gives the number of heads whose rows a llama-type GGUF file holds interleaved, or 0. Such files keep the
// two halves of each head's rotary dimensions as pairs (row 2i and 2i+1), where Hugging Face has them apart (i and i+P/2).
func permutedHeads(architecture, name string, heads, kvHeads int) int {
	if architecture != "llama" {
		return 0
	}
	switch {
	case strings.Contains(name, ".attn_q."):
		return heads
	case strings.Contains(name, ".attn_k."):
		return kvHeads
	}
	return 0
}

// unpermute gives, for a row in Hugging Face's order, the row of the GGUF tensor that holds it; size is the rows per head.
func unpermute(size int) func(row int) int {
	return func(row int) int {
		head, at := row/size, row%size
		return head*size + at%(size/2)*2 + at/(size/2)
	}
}

// copyRows copies rows of equal size, row r of the result from row source(r).
func copyRows(dst, src []byte, rows int, source func(int) int) {
	size := len(src) / max(rows, 1)
	for r := range rows {
		from := source(r) * size
		copy(dst[r*size:(r+1)*size], src[from:from+size])
	}
}

// hyperparameters reads a GGUF file's metadata below its architecture's prefix, remembering the first failure.
type hyperparameters struct {
	metadata map[string]any
	prefix   string
	err      error
}

// integer reads a positive integer, or a list whose entries are all the same; a missing key gives the fallback, 0 fails.
func (h *hyperparameters) integer(key string, fallback int) int {
	value, ok := h.metadata[h.prefix+key]
	if !ok {
		if fallback == 0 && h.err == nil {
			h.err = fmt.Errorf("the metadata lacks %s%s", h.prefix, key)
		}
		return fallback
	}
	list, ok := integers(value)
	for _, n := range list {
		ok = ok && n == list[0] && n > 0
	}
	if !ok || len(list) == 0 {
		if h.err == nil {
			h.err = fmt.Errorf("%s%s is %.80s, expected one positive integer for all layers", h.prefix, key, fmt.Sprint(value))
		}
		return fallback
	}
	return list[0]
}

// natural reads one integer by its full key; -1 if there is none, or it is negative.
func (h *hyperparameters) natural(key string) int {
	if list, ok := integers(h.metadata[key]); ok && len(list) == 1 && list[0] >= 0 {
		return list[0]
	}
	return -1
}

// number reads a finite number in its shortest decimal form, so that a float32 1e-5 is 1e-5 again.
func (h *hyperparameters) number(key string, fallback float64) float64 {
	value, ok := h.metadata[h.prefix+key]
	if !ok {
		if math.IsNaN(fallback) && h.err == nil {
			h.err = fmt.Errorf("the metadata lacks %s%s", h.prefix, key)
		}
		return fallback
	}
	var f float64
	switch v := value.(type) {
	case float32:
		f, _ = strconv.ParseFloat(strconv.FormatFloat(float64(v), 'g', -1, 32), 64)
	case float64:
		f = v
	default:
		f = math.NaN()
	}
	if (math.IsNaN(f) || math.IsInf(f, 0)) && h.err == nil {
		h.err = fmt.Errorf("%s%s is %.80s, expected a finite number", h.prefix, key, fmt.Sprint(value))
	}
	return f
}

// integers gives a metadata value of any integer type, or list of them, as ints.
func integers(value any) ([]int, bool) {
	switch v := value.(type) {
	case uint32:
		return []int{int(v)}, true
	case int32:
		return []int{int(v)}, true
	case uint64:
		return []int{int(v)}, v <= math.MaxInt64
	case int64:
		return []int{int(v)}, true
	case uint16:
		return []int{int(v)}, true
	case int16:
		return []int{int(v)}, true
	case uint8:
		return []int{int(v)}, true
	case int8:
		return []int{int(v)}, true
	case []uint32:
		return widen(v), true
	case []int32:
		return widen(v), true
	}
	return nil, false
}

func widen[T uint32 | int32](list []T) []int {
	wide := make([]int, len(list))
	for i, n := range list {
		wide[i] = int(n)
	}
	return wide
}

// config translates the metadata to what config.json would say of the model, and generation_config.json of its tokens.
// ropeFactors holds the file's rope_freqs.weight, if it has one.
func (f *ggufFile) config(ropeFactors []float32) (config, generation map[string]any, err error) {
	architecture, _ := f.metadata["general.architecture"].(string)
	class, ok := map[string]string{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}[architecture]
	if !ok {
		return nil, nil, fmt.Errorf("general.architecture is %.40q, expected llama, mistral or qwen2", architecture)
	}
	h := &hyperparameters{metadata: f.metadata, prefix: architecture + "."}
	if n := h.natural("split.count"); n > 1 {
		return nil, nil, fmt.Errorf("the file is one of %d that a model was split into: merge them first (llama-gguf-split --merge)", n)
	}
	has := map[string]bool{}
	vocabulary, dtypes := 0, map[string]int{}
	for _, r := range f.records {
		has[r.name] = true
		if r.name == "token_embd.weight" && len(r.shape) == 2 {
			vocabulary = r.shape[0]
		}
		if len(r.shape) == 2 {
			dtypes[r.dtype] += r.bytes
		}
	}
	if vocabulary == 0 {
		return nil, nil, fmt.Errorf("tensor \"token_embd.weight\" is missing or not a matrix")
	}
	hidden, heads := h.integer("embedding_length", 0), h.integer("attention.head_count", 0)
	headDim := h.integer("attention.key_length", max(hidden/max(heads, 1), 1))
	config = map[string]any{
		"architectures":           []string{class},
		"model_type":              architecture,
		"hidden_act":              "silu",
		"hidden_size":             hidden,
		"intermediate_size":       h.integer("feed_forward_length", 0),
		"num_hidden_layers":       h.integer("block_count", 0),
		"num_attention_heads":     heads,
		"num_key_value_heads":     h.integer("attention.head_count_kv", heads),
		"head_dim":                headDim,
		"max_position_embeddings": h.integer("context_length", 0),
		"rms_norm_eps":            h.number("attention.layer_norm_rms_epsilon", math.NaN()),
		"rope_theta":              h.number("rope.freq_base", 10000),
		"vocab_size":              vocabulary,
		"tie_word_embeddings":     !has["output.weight"],
		"initializer_range":       0.02,
		"attention_dropout":       0.0,
		"use_cache":               true,
		"torch_dtype":             ggufDtype(dtypes),
	}
	if n := h.integer("rope.dimension_count", headDim); n != headDim && h.err == nil {
		h.err = fmt.Errorf("%srope.dimension_count is %d of a head's %d: partial rotation is not supported", h.prefix, n, headDim)
	}
	if n := h.integer("attention.value_length", headDim); n != headDim && h.err == nil {
		h.err = fmt.Errorf("%sattention.value_length is %d, expected the keys' %d", h.prefix, n, headDim)
	}
	if last := fmt.Sprintf("blk.%d.attn_norm.weight", h.integer("block_count", 0)-1); h.err == nil && !has[last] {
		h.err = fmt.Errorf("tensor %q is missing: %sblock_count is %v", last, h.prefix, config["num_hidden_layers"])
	}
	scaling := h.ropeScaling(config, ropeFactors)
	config["rope_scaling"] = nil
	if scaling != nil {
		config["rope_scaling"] = scaling
	}
	if h.err != nil {
		return nil, nil, h.err
	}
	switch architecture {
	case "llama":
		config["attention_bias"] = has["blk.0.attn_q.bias"]
		config["mlp_bias"] = has["blk.0.ffn_gate.bias"]
		config["pretraining_tp"] = 1
		if window := h.natural("llama.attention.sliding_window"); window > 0 {
			// Only Mistral has one, and GGUF calls Mistral llama.
			config["architectures"], config["model_type"] = []string{"MistralForCausalLM"}, "mistral"
			config["sliding_window"] = window
		}
	case "mistral":
		config["sliding_window"] = nil
		if window := h.natural("mistral.attention.sliding_window"); window > 0 {
			config["sliding_window"] = window
		}
	case "qwen2":
		config["use_sliding_window"], config["sliding_window"] = false, nil
	}
	generation = map[string]any{"_from_model_config": true}
	for key, to := range map[string]string{"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"} {
		if id := h.natural("tokenizer.ggml." + key + "_token_id"); id >= 0 && id < vocabulary {
			config[to], generation[to] = id, id
		}
	}
	// A chat ends at another token than a text does.
	eos, hasEOS := config["eos_token_id"].(int)
	if id := h.natural("tokenizer.ggml.eot_token_id"); hasEOS && id >= 0 && id < vocabulary && id != eos {
		generation["eos_token_id"] = []int{eos, id}
	}
	asDecimals(config)
	if scaling != nil {
		asDecimals(scaling)
	}
	return config, generation, nil
}

// asDecimals turns an object's fractions into text that stays a fraction for Python's readers: 100000.0, 1e-05.
func asDecimals(object map[string]any) {
	for key, value := range object {
		if f, ok := value.(float64); ok {
			text := strconv.FormatFloat(f, 'g', -1, 64)
			if !strings.ContainsAny(text, ".e") {
				text += ".0"
			}
			object[key] = json.Number(text)
		}
	}
}

// ggufDtype is the dtype that most of a file's matrix bytes turn into, by PyTorch's name.
func ggufDtype(bytes map[string]int) string {
	best, most := "", -1
	for _, name := range slices.Sorted(maps.Keys(bytes)) {
		if bytes[name] > most {
			best, most = name, bytes[name]
		}
	}
	switch best {
	case "F16":
		return "float16"
	case "BF16":
		return "bfloat16"
	}
	return "float32"
}

// ropeScaling gives config.json's rope_scaling, or nil. GGUF names linear and yarn scaling in its metadata; Llama 3's it
// holds as a tensor of one divisor per frequency.
func (h *hyperparameters) ropeScaling(config map[string]any, factors []float32) map[string]any {
	kind, _ := h.metadata[h.prefix+"rope.scaling.type"].(string)
	original := h.integer("rope.scaling.original_context_length", config["max_position_embeddings"].(int))
	switch {
	case len(factors) > 0:
		return h.llama3Scaling(config, factors)
	case kind == "" || kind == "none":
		// Files from before rope.scaling.type say only how much.
		if factor := h.number("rope.scale_linear", 1); factor != 1 && factor != 0 {
			return map[string]any{"rope_type": "linear", "factor": factor}
		}
		return nil
	case kind == "linear":
		return map[string]any{"rope_type": "linear", "factor": h.number("rope.scaling.factor", math.NaN())}
	case kind == "yarn":
		return map[string]any{"rope_type": "yarn", "factor": h.number("rope.scaling.factor", math.NaN()),
			"original_max_position_embeddings": original}
	}
	if h.err == nil {
		h.err = fmt.Errorf("%srope.scaling.type is %.40q, expected none, linear or yarn", h.prefix, kind)
	}
	return nil
}

// llama3Scaling finds the parameters that give the divisors in factors. Llama 3.1 and 3.2 use the same ones but for the
// factor; files of this package name others; they are not guessed.
func (h *hyperparameters) llama3Scaling(config map[string]any, factors []float32) map[string]any {
	low, high := h.number("rope.scaling.low_freq_factor", 1), h.number("rope.scaling.high_freq_factor", 4)
	original := h.integer("rope.scaling.original_context_length", 8192)
	base, headDim := config["rope_theta"].(float64), config["head_dim"].(int)
	if len(factors) != headDim/2 {
		h.err = cmp.Or(h.err, fmt.Errorf("tensor \"rope_freqs.weight\" has %d numbers, expected half a head's %d", len(factors), headDim))
		return nil
	}
	// Factors in use are whole or nearly so; float32 division has blurred the last digits.
	factor := math.Round(float64(slices.Max(factors))*1e4) / 1e4
	for i, stored := range factors {
		expected := llama3Divisor(base, headDim, i, factor, low, high, float64(original))
		if !(math.Abs(float64(stored)-expected) <= 1e-3*expected) {
			h.err = cmp.Or(h.err, fmt.Errorf("tensor \"rope_freqs.weight\" holds %v at %d, but Llama 3's scaling by %v gives %v",
				stored, i, factor, expected))
			return nil
		}
	}
	if factor == 1 {
		return nil
	}
	return map[string]any{"rope_type": "llama3", "factor": factor, "low_freq_factor": low,
		"high_freq_factor": high, "original_max_position_embeddings": original}
}

// jsonText lays a value out as Hugging Face's JSON files are.
func jsonText(value any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(value)
	return []byte(b.String()), err
}
