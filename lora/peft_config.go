package lora

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"conquer/internal/wrongfile"
)

// Info says which model an adapter belongs to.
type Info struct {
	Base     string // name on the Hugging Face Hub, or path; "" if it is not known
	Revision string // of the base model on the Hub; "" if it is not known
}

// IsAdapter reports whether dir is an adapter folder: it holds an adapter_config.json.
func IsAdapter(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, configFile))
	return err == nil && info.Mode().IsRegular()
}

// ReadInfo reads which model the adapter in the folder dir belongs to. It fails if the adapter
// cannot be applied exactly.
func ReadInfo(dir string) (Info, error) {
	c, err := readConfig(dir)
	return Info{c.base, c.revision}, err
}

// adapterConfig is what adapter_config.json says about the adapter's tensors. Which layers are
// adapted follows from the names of the tensors.
type adapterConfig struct {
	Config
	path, bias     string
	base, revision string
	tokens         tokenIndices
	tie            bool // a tied head stays the embedding
}

// tokenIndices are the tokens whose rows are trained, by the name of a layer; "" is the embedding.
type tokenIndices map[string][]int

func (t *tokenIndices) UnmarshalJSON(text []byte) error {
	list := []int{}
	if json.Unmarshal(text, &list) == nil {
		if *t = nil; len(list) > 0 {
			*t = tokenIndices{"": list}
		}
	} else if err := json.Unmarshal(text, (*map[string][]int)(t)); err != nil {
		return err
	}
	for _, ids := range *t {
		seen := map[int]bool{}
		for _, id := range ids {
			if id < 0 || id > maxToken || seen[id] {
				return fmt.Errorf("token %d: expected different numbers from 0 to %d", id, maxToken)
			}
			seen[id] = true
		}
	}
	return nil
}

// maxToken is the largest id of a token: the vocabularies of common models are smaller.
const maxToken = 1<<24 - 1

// of returns the tokens whose rows of a layer are trained.
func (t tokenIndices) of(layer, embedding string) []int {
	for name, ids := range t {
		if name == "" && layer+".weight" == embedding ||
			name != "" && named([]string{name}, layer) {
			return ids
		}
	}
	return nil
}

// field says what a field of adapter_config.json means for the logits of an adapted model.
type field struct {
	// into returns where the value is decoded to, or is nil for a field that is not needed.
	into func(c *adapterConfig) any
	// values lists the values that are supported, as JSON. Empty means every value.
	values []string
	// why says what another value does and what to do about it.
	why string
}

var (
	// off lists the values of a feature that is not used.
	off = []string{"null", "false", "[]", "{}", `""`}

	unmergeable = "which is not supported: merge the adapter with PEFT (merge_and_unload) and " +
		"give the merged model"
	unknownField = "that this program does not know: merge the adapter with PEFT " +
		"(merge_and_unload) and give the merged model"
	changesBase = "so PEFT changes the base's weights when it loads the adapter, which is not " +
		"supported: save the adapter again with " +
		"save_pretrained(…, path_initial_model_for_weight_conversion=…), or merge it with " +
		"PEFT (merge_and_unload)"
	noHead = "so the adapter belongs to a model with another head, which is not supported: " +
		"expected CAUSAL_LM, for models that generate text"
)

// fields lists every field that PEFT 0.21 and its predecessors write for LoRA. Three kinds exist:
// fields that are decoded, fields that must be unused because they change the computation, and
// fields that do not change it. Which layers are adapted follows from the names of the tensors.
var fields = map[string]field{
	"peft_type": {values: []string{`"LORA"`}, why: "expected LORA: other methods are not " +
		"supported; if PEFT can merge this one (merge_and_unload), give the merged model"},
	"task_type":               {values: []string{"null", `"CAUSAL_LM"`}, why: noHead},
	"base_model_name_or_path": {into: func(c *adapterConfig) any { return &c.base }},
	"revision":                {into: func(c *adapterConfig) any { return &c.revision }},
	"r":                       {into: func(c *adapterConfig) any { return &c.Rank }},
	"lora_alpha":              {into: func(c *adapterConfig) any { return &c.Alpha }},
	"lora_dropout":            {into: func(c *adapterConfig) any { return &c.Dropout }},
	"use_rslora":              {into: func(c *adapterConfig) any { return &c.RSLoRA }},
	"rank_pattern":            {into: func(c *adapterConfig) any { return &c.RankPattern }},
	"alpha_pattern":           {into: func(c *adapterConfig) any { return &c.AlphaPattern }},
	// Trained biases are tensors of the file. A model without biases has none.
	"bias": {into: func(c *adapterConfig) any { return &c.bias },
		values: []string{`"none"`, `"all"`, `"lora_only"`}, why: unmergeable},
	// The other values of init_lora_weights set tensors that the file replaces.
	"init_lora_weights": {values: []string{"true", "false", "null", `"gaussian"`, `"eva"`,
		`"orthogonal"`, `"mica"`}, why: changesBase},

	"use_dora":                {into: func(c *adapterConfig) any { return &c.DoRA }},
	"lora_bias":               {values: off, why: unmergeable},
	"modules_to_save":         {into: func(c *adapterConfig) any { return &c.Save }},
	"trainable_token_indices": {into: func(c *adapterConfig) any { return &c.tokens }},
	"ensure_weight_tying":     {into: func(c *adapterConfig) any { return &c.tie }},
	"target_parameters":       {values: off, why: unmergeable},
	"layer_replication":       {values: off, why: unmergeable},
	"use_qalora":              {values: off, why: unmergeable},
	"use_bdlora":              {values: off, why: unmergeable},
	"megatron_config":         {values: off, why: unmergeable},
	"alora_invocation_tokens": {values: []string{"null"}, why: "so the adapter acts only after " +
		"these tokens, which is not supported: run it with PEFT, which cannot merge it either"},
	"arrow_config": {values: off, why: "so an adapter is chosen for each token, which is not " +
		"supported: run it with PEFT, or give one of its adapters alone"},
	"kasa_config":       {values: off, why: unmergeable},
	"velora_config":     {values: off, why: unmergeable},
	"monteclora_config": {values: off, why: unmergeable},
	"enable_lora":       {values: off, why: unmergeable}, // of PEFT before 0.3

	// The names of the tensors say which layers are adapted.
	"target_modules": {}, "exclude_modules": {}, "layers_to_transform": {}, "layers_pattern": {},
	// PEFT ignores it for linear layers, and the models here have no others.
	"fan_in_fan_out": {},
	// They act only while PEFT makes new adapters, or with a field above.
	"eva_config": {}, "corda_config": {}, "lora_ga_config": {}, "loftq_config": {},
	"qalora_group_size": {}, "megatron_core": {},
	"runtime_config": {},
	// They describe the file.
	"inference_mode": {}, "auto_mapping": {}, "peft_version": {}, "merge_weights": {},
}

// readConfig reads the config of the adapter in the folder dir. It fails if a field makes PEFT
// compute something other than W + scale·B·A.
func readConfig(dir string) (adapterConfig, error) {
	path := filepath.Join(dir, configFile)
	c := defaults(path)
	text, err := wrongfile.Read(path, 4<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%s is not an adapter folder: it holds no %s", dir, configFile)
	} else if err != nil {
		return c, err
	}
	return c.parse(text)
}

// defaults returns PEFT's defaults.
func defaults(path string) adapterConfig {
	return adapterConfig{Config: Config{Rank: 8, Alpha: 8}, path: path, bias: "none"}
}

// parse reads the text of the config over the defaults in c.
func (c adapterConfig) parse(text []byte) (adapterConfig, error) {
	path := c.path
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return c, fmt.Errorf("%s: expected a JSON object: %w", path, err)
	}
	if raw["peft_type"] == nil {
		return c, fmt.Errorf("%s: the field peft_type is missing: expected \"LORA\"", path)
	}
	for _, name := range inOrder(raw) {
		if err := c.read(name, raw[name]); err != nil {
			return c, fmt.Errorf("%s: %w", path, err)
		}
	}
	if c.Rank < 1 {
		return c, fmt.Errorf("%s: r is %d, expected 1 or more", path, c.Rank)
	}
	for _, p := range c.RankPattern {
		if p.Value < 1 || p.Value > math.MaxInt32 || p.Value != math.Trunc(p.Value) {
			return c, fmt.Errorf("%s: rank_pattern gives %.80q the rank %g: expected a whole "+
				"number of at least 1", path, p.Key, p.Value)
		}
	}
	return c, nil
}

// inOrder returns the keys of raw in alphabetical order, the field that says the adapter's type
// first.
func inOrder(raw map[string]json.RawMessage) []string {
	var names []string
	for name := range raw {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if first := "peft_type"; a == first || b == first {
			return map[bool]int{true: -1, false: 1}[a == first]
		}
		return strings.Compare(a, b)
	})
	return names
}

// read decodes a field, or checks that its value is one of those that the table allows.
func (c *adapterConfig) read(name string, value json.RawMessage) error {
	var compact bytes.Buffer
	if err := json.Compact(&compact, value); err != nil {
		return err
	}
	f, known := fields[name]
	if !known {
		// A number or a text alone switches nothing on.
		if on := compact.String(); on == "true" || on[0] == '{' && on != "{}" ||
			on[0] == '[' && on != "[]" {
			return fmt.Errorf("%s is %.80s, a field %s", name, on, unknownField)
		}
		return nil
	}
	if f.values != nil && !slices.Contains(f.values, compact.String()) {
		return fmt.Errorf("%s is %.80s, %s", name, compact.String(), f.why)
	}
	if f.into == nil {
		return nil
	}
	if number := name == "r" || name == "lora_alpha"; number && compact.String() == "null" {
		return fmt.Errorf("%s is null: expected a number", name)
	}
	err := json.Unmarshal(value, f.into(c))
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s is %.80s, expected %s", name, compact.String(), kindOf(wrong.Type))
	} else if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// kindOf describes the JSON values that are decoded into a type of the table.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}

// part is a part of an adapter: a matrix, the lengths of DoRA, or what takes the place of a weight
// or of some of its rows.
type part int

const (
	partA part = iota
	partB
	partM
	partTokens
	partWhole
)

// suffixes are those of the parts' names.
var suffixes = []string{suffixA, suffixB, suffixM, suffixTokens, ".weight"}

// split splits a tensor name into the layer's name and the part. It fails if the tensor is none.
func (c *adapterConfig) split(tensor string) (layer string, p part, err error) {
	name, prefixed := strings.CutPrefix(tensor, adapterPrefix)
	known := false
	for i, suffix := range suffixes {
		if !known {
			layer, known = strings.CutSuffix(name, suffix)
			p = part(i)
		}
	}
	has := func(part string) bool { return strings.Contains(name, part) }
	switch {
	case known && !prefixed:
		err = fmt.Errorf("tensor %q: PEFT ignores names that do not begin with %s", tensor,
			adapterPrefix)
	case known && p == partWhole && has(".lora_"):
	case known && p == partTokens && len(c.tokens) == 0:
		err = fmt.Errorf("tensor %q holds trained tokens, but trainable_token_indices names none: "+
			"list their ids there", tensor)
	case known && (p != partM || c.DoRA):
		return layer, p, nil
	case has("lora_magnitude_vector"):
		err = fmt.Errorf("tensor %q belongs to DoRA, but use_dora is false: set use_dora to true",
			tensor)
	case has("lora_embedding_"):
		err = fmt.Errorf("tensor %q adapts an embedding, %s", tensor, unmergeable)
	case has("lora_A.bias") || has("lora_B.bias"):
		err = fmt.Errorf("tensor %q is a bias of an adapter (lora_bias), %s", tensor, unmergeable)
	case strings.HasSuffix(name, ".bias"):
		err = fmt.Errorf("tensor %q replaces a bias of the base model (bias is %q), %s", tensor,
			c.bias, unmergeable)
	}
	if err == nil {
		err = fmt.Errorf("tensor %q is a part of an adapter %s", tensor, unknownField)
	}
	return "", 0, err
}
