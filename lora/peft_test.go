package lora

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "conquer/bamba"
	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// saved writes an adapter of the tiny model and returns the model without it, the folder, and the
// adapted model's logits.
func saved(t *testing.T, c Config) (m model.Model, dir string, want []float32) {
	t.Helper()
	m = adapted(t, c)
	want = logits(t, m)
	dir = filepath.Join(t.TempDir(), "adapter")
	if err := Save(m, dir, "base", c, nil); err != nil {
		t.Fatal(err)
	}
	Remove(m)
	return m, dir, want
}

// rewrite changes fields of an adapter's config. A nil value removes the field.
func rewrite(t *testing.T, dir string, changes map[string]any) {
	t.Helper()
	path := filepath.Join(dir, configFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for name, value := range changes {
		if fields[name] = value; value == nil {
			delete(fields, name)
		}
	}
	if text, err = json.Marshal(fields); err == nil {
		err = os.WriteFile(path, text, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Each field of PEFT's config that changes the computation is refused by its name and value. The
// others do not change the logits.
func TestLoad_DecidesEveryFieldOfPEFT(t *testing.T) {
	noLeaks(t)
	m, dir, want := saved(t, *config())
	defer free(m)
	on := map[string]any{
		"peft_type": "IA3", "task_type": "SEQ_CLS", "use_dora": true, "lora_bias": true,
		"modules_to_save": "lm_head", "trainable_token_indices": []int{1, 1},
		"ensure_weight_tying": "yes",
		"target_parameters":   []string{"experts.up"}, "layer_replication": [][]int{{0, 2}, {1, 3}},
		"use_qalora": true, "use_bdlora": map[string]any{"nblocks": 2},
		"megatron_config": map[string]any{"a": 1}, "alora_invocation_tokens": []int{5},
		"arrow_config": map[string]any{"top_k": 3}, "kasa_config": map[string]any{"beta": 1},
		"velora_config": map[string]any{"scale": 1}, "enable_lora": []bool{true},
		"monteclora_config": map[string]any{"num_samples": 8}, "init_lora_weights": "pissa",
		"r": 0, "lora_alpha": json.RawMessage("null"), "rank_pattern": map[string]int{"(": 3},
		"alpha_pattern": map[string]int{"q_(?!p)": 3}, "bias": "some", "a_new_variant": true,
		"another": map[string]any{"on": 1},
	}
	harmless := map[string]any{
		"base_model_name_or_path": "x/y", "revision": "main", "lora_dropout": 0.5,
		"use_rslora": false, "target_modules": ".*proj", "exclude_modules": []string{"k"},
		"layers_to_transform": []int{0, 1, 2}, "layers_pattern": "layers", "fan_in_fan_out": true,
		"eva_config": map[string]any{"rho": 2.0}, "corda_config": map[string]any{"x": 1},
		"lora_ga_config": map[string]any{"x": 1}, "loftq_config": map[string]any{"x": 1},
		"qalora_group_size": 16, "megatron_core": "megatron.core",
		"runtime_config": map[string]any{"x": true}, "inference_mode": false,
		"auto_mapping": map[string]any{"base_model_class": "LlamaForCausalLM"},
		"peft_version": "0.21.2", "merge_weights": true, "a_new_number": 16, "a_new_text": "x",
	}
	for name := range fields {
		if on[name] == nil && harmless[name] == nil {
			t.Errorf("field %s is not tested", name)
		}
	}
	original, _ := os.ReadFile(filepath.Join(dir, configFile))
	try := func(name string, value any) error {
		rewrite(t, dir, map[string]any{name: value})
		err := Load(m, dir)
		os.WriteFile(filepath.Join(dir, configFile), original, 0o666)
		return err
	}
	for name, value := range on {
		err := try(name, value)
		shown, _ := json.Marshal(value)
		if err == nil || !strings.Contains(err.Error(), name) ||
			!strings.Contains(err.Error(), dir) || len(Adapters(m)) != 0 {
			t.Errorf("%s %s: error %v, adapters %d", name, shown, err, len(Adapters(m)))
		}
		Remove(m)
	}
	for name, value := range harmless {
		if err := try(name, value); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		near(t, name, logits(t, m), want, 0)
		Remove(m)
	}
	for value, plain := range map[any]bool{
		true: true, false: true, "gaussian": true, "eva": true, "orthogonal": true, "mica": true,
		"pissa": false, "pissa_niter_4": false, "olora": false, "OLoRA": false, "corda": false,
		"loftq": false, "lora_ga": false,
	} {
		err := try("init_lora_weights", value)
		named := err != nil && strings.Contains(err.Error(), fmt.Sprint(value))
		if named == plain || (err == nil) != plain {
			t.Errorf("init_lora_weights %v: %v", value, err)
		}
		Remove(m)
	}
	if err := try("peft_type", nil); err == nil {
		t.Error("a config without peft_type was read")
	}
}

// Patterns choose a layer's rank and alpha by PEFT's rules: the first that matches the end of the
// name, or all of it.
func TestLoad_AppliesPatternsAndDefaults(t *testing.T) {
	noLeaks(t)
	m, dir, _ := saved(t, *config())
	defer free(m)
	for _, c := range []struct {
		changes map[string]any
		layer   string
		scale   float64
	}{
		{map[string]any{"alpha_pattern": json.RawMessage(`{"q_proj": 1, "layers.1.*q_proj": 2}`)},
			"model.layers.1.self_attn.q_proj", 0.25},
		{map[string]any{"alpha_pattern": json.RawMessage(`{"layers.1.*q_proj": 6, "q_proj": 1}`)},
			"model.layers.1.self_attn.q_proj", 1.5},
		{map[string]any{"alpha_pattern": json.RawMessage(`{"q_pro": 1, "proj": 2, "^q_proj": 3}`)},
			"model.layers.0.self_attn.q_proj", 2},
		{map[string]any{"alpha_pattern": map[string]any{"^model.layers.2.mlp.(up|down)_proj": 10}},
			"model.layers.2.mlp.down_proj", 2.5},
		{map[string]any{"r": 8, "rank_pattern": map[string]any{".*": 4}, "use_rslora": true},
			"model.layers.0.mlp.up_proj", 4},
		{map[string]any{"lora_alpha": nil}, "model.layers.0.mlp.up_proj", 2}, // 8, as in PEFT
	} {
		rewrite(t, dir, map[string]any{"alpha_pattern": nil, "use_rslora": nil, "r": 4})
		rewrite(t, dir, c.changes)
		if err := Load(m, dir); err != nil {
			t.Errorf("%v: %v", c.changes, err)
			continue
		}
		for _, a := range Adapters(m) {
			if a.Name == c.layer && a.Scale != c.scale {
				t.Errorf("%v: the scale of %s is %g, want %g", c.changes, a.Name, a.Scale, c.scale)
			}
		}
		Remove(m)
	}
	rewrite(t, dir, map[string]any{"r": nil, "rank_pattern": nil}) // 8 in PEFT, and the file has 4
	if err := Load(m, dir); err == nil || !strings.Contains(err.Error(), "rank 8") {
		t.Errorf("error %v", err)
	}
}

// Tensors that are not A or B of a linear layer are named with the feature that they belong to.
func TestLoad_NamesTensorsOfOtherFeatures(t *testing.T) {
	noLeaks(t)
	m, dir, _ := saved(t, Config{Rank: 2, Targets: []string{"q_proj"}})
	defer free(m)
	const prefix = "base_model.model."
	const layer = prefix + "model.layers.0.self_attn.q_proj."
	for tensor, want := range map[string]string{
		prefix + "model.embed_tokens.weight":                     "save_embedding_layers",
		prefix + "lm_head.weight":                                "modules_to_save",
		prefix + "model.embed_tokens" + suffixTokens:             "trainable_token_indices",
		prefix + "model.embed_tokens.lora_embedding_A":           "embedding",
		layer + "lora_magnitude_vector":                          "use_dora",
		layer + "lora_B.bias":                                    "lora_bias",
		layer + "bias":                                           "bias",
		layer + "lora_A.default.weight":                          "lora_A.default",
		layer + "lora_velora_embed":                              "lora_velora",
		prefix + "lm_head.lora_A.weight":                         "lm_head",
		prefix + "model.layers.9.self_attn.k_proj.lora_A.weight": "layers.9",
		"model.layers.0.self_attn.k_proj.lora_A.weight":          prefix,
	} {
		weights := &checkpoint.Tensors{}
		if err := torch.Run(func() error {
			weights.Add(tensor, torch.Zeros([]int{2, 2}, torch.Float32, torch.CPU))
			stage := t.TempDir()
			if err := checkpoint.Save(stage, weights, checkpoint.Options{}); err != nil {
				return err
			}
			return os.Rename(filepath.Join(stage, "model.safetensors"),
				filepath.Join(dir, weightsFile))
		}); err != nil {
			t.Fatal(err)
		}
		err := Load(m, dir)
		if err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), tensor) {
			t.Errorf("%s: error %v", tensor, err)
		}
		Remove(m)
	}
	os.Remove(filepath.Join(dir, weightsFile))
	if err := Load(m, dir); err == nil || !strings.Contains(err.Error(), pickleFile) {
		t.Errorf("error %v", err)
	}
}

// Each field chooses layers, ranks and scales as PEFT does, and is written under PEFT's name.
func TestConfig_ChoosesLayersRanksAndScales(t *testing.T) {
	noLeaks(t)
	pattern := func(key string, value float64) Pattern {
		p, err := NewPattern(key, value)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	c := Config{Rank: 4, Alpha: 8, RSLoRA: true, Layers: []int{0, 2},
		Targets:      []string{"q_proj", "self_attn.v_proj", "down_proj"},
		Exclude:      []string{"layers.0.mlp.down_proj"},
		RankPattern:  Patterns{pattern(`layers\.2\..*`, 9), pattern("q_proj", 1)},
		AlphaPattern: Patterns{pattern("(q|v)_proj", 6)}}
	m, dir, want := saved(t, c)
	defer free(m)
	if err := Load(m, dir); err != nil {
		t.Fatal(err)
	}
	near(t, "logits", logits(t, m), want, 0)
	var got []string
	for _, a := range Adapters(m) {
		got = append(got, fmt.Sprintf("%s %d %.3f", strings.TrimPrefix(a.Name, "model.layers."),
			a.A.Shape[0], a.Scale))
	}
	if list := strings.Join(got, "\n"); list != `0.self_attn.q_proj 1 6.000
0.self_attn.v_proj 4 3.000
2.self_attn.q_proj 9 2.000
2.self_attn.v_proj 9 2.000
2.mlp.down_proj 9 2.667` {
		t.Errorf("the adapters are\n%s", list)
	}
	text, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{`"r":4`, `"lora_alpha":8`, `"use_rslora":true`,
		`"target_modules":["q_proj","self_attn.v_proj","down_proj"]`,
		`"exclude_modules":["layers.0.mlp.down_proj"]`, `"layers_to_transform":[0,2]`,
		`"rank_pattern":{"layers\\.2\\..*":9,"q_proj":1}`, `"alpha_pattern":{"(q|v)_proj":6}`} {
		if !strings.Contains(compact.String(), field+",") {
			t.Errorf("%s does not contain %s", compact.String(), field)
		}
	}
}

// An adapter is opened with its layers, ranks and scales, and written again as it was.
func TestOpen_GoesOnFromAnAdapter(t *testing.T) {
	noLeaks(t)
	pattern, err := NewPattern("q_proj", 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{
		{Rank: 4, RSLoRA: true, Dropout: 0.25, RankPattern: Patterns{pattern}},
		{Rank: 3, Alpha: 2, Targets: []string{"q_proj", "up_proj"}, Layers: []int{1}},
	} {
		m, dir, want := saved(t, c)
		opened, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := Attach(m, opened); err != nil {
			t.Fatal(err)
		}
		near(t, "logits", logits(t, m), want, 0)
		if a := Adapters(m)[0]; a.Dropout != c.Dropout {
			t.Errorf("dropout is %g, want %g", a.Dropout, c.Dropout)
		}
		again := filepath.Join(t.TempDir(), "again")
		if err := Save(m, again, "base", opened, nil); err != nil {
			t.Fatal(err)
		}
		Remove(m)
		if err := Load(m, again); err != nil {
			t.Fatal(err)
		}
		near(t, "logits", logits(t, m), want, 0)
		text, err := os.ReadFile(filepath.Join(again, configFile))
		whole := strings.Contains(string(text), `"model.layers.1.self_attn.q_proj"`)
		if err != nil || whole != (c.Layers != nil) {
			t.Errorf("the targets of %+v are %s", c, text)
		}
		free(m)
	}
	m, dir, _ := saved(t, *config())
	defer free(m)
	rewrite(t, dir, map[string]any{"lora_alpha": 0})
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "lora_alpha") {
		t.Errorf("error %v", err)
	}
}

// A part of the configuration that has no effect is an error.
func TestAttach_NamesWhatFitsNoLayer(t *testing.T) {
	noLeaks(t)
	m := tiny(t)
	defer free(m)
	pattern, err := NewPattern("k_proj", 2)
	if err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Config{
		`target "qproj"`:    {Targets: []string{"q_proj", "qproj"}},
		`exclusion "k_pro"`: {Exclude: []string{"k_pro"}},
		"no block 3":        {Layers: []int{0, 3}},
		"adapts no layer":   {Targets: []string{"q_proj"}, Exclude: []string{"self_attn.q_proj"}},
		"lora_rank_pattern": {Targets: []string{"q_proj"}, RankPattern: Patterns{pattern}},
		"--lora_alpha":      {Exclude: []string{"k_proj"}, AlphaPattern: Patterns{pattern}},
	} {
		if err := Attach(m, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error about %s", err, want)
		}
		Remove(m)
	}
}

// The zero Config is complete.
func TestConfig_HasDefaults(t *testing.T) {
	noLeaks(t)
	m := tiny(t)
	defer free(m)
	if err := Attach(m, Config{}); err != nil {
		t.Fatal(err)
	}
	list := Adapters(m)
	if len(list) != 3*7 || list[0].A.Shape[0] != 16 || list[0].Scale != 2 {
		t.Errorf("%d adapters of rank %d, scale %g", len(list), list[0].A.Shape[0], list[0].Scale)
	}
	for _, rank := range []int{-1, 1<<16 + 1, 1 << 62} {
		if err := (Config{Rank: rank}).Check(); err == nil {
			t.Errorf("a rank of %d is allowed", rank)
		}
	}
}

// PEFT loads no adapter on out_proj of Mamba-2, so it has one only if it is named. Bamba's is
// loaded.
func TestAttach_LeavesOutWhatPEFTRefuses(t *testing.T) {
	noLeaks(t)
	names := func(kind string, targets ...string) string {
		config := model.Config{
			"model_type": kind, "vocab_size": 61.0, "hidden_size": 32.0, "num_hidden_layers": 1.0,
			"state_size": 16.0, "num_heads": 4.0, "head_dim": 16.0, "n_groups": 1.0, "expand": 2.0,
			"mamba_n_heads": 4.0, "mamba_d_head": 16.0, "mamba_d_state": 16.0, "mamba_expand": 2.0,
			"mamba_n_groups": 1.0, "num_attention_heads": 4.0, "intermediate_size": 48.0,
			"num_key_value_heads": 2.0,
		}
		m, err := model.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer free(m)
		initialize(t, m)
		if err := Attach(m, Config{Targets: targets}); err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, a := range Adapters(m) {
			list = append(list, lastComponent(a.Name))
		}
		return strings.Join(list, " ")
	}
	for _, c := range [][2]string{
		{names("mamba2"), "in_proj"},
		{names("mamba2", "all-linear", "out_proj"), "in_proj out_proj"},
		{names("mamba2", "out_proj"), "out_proj"},
	} {
		if c[0] != c[1] {
			t.Errorf("adapted %s, want %s", c[0], c[1])
		}
	}
	if got := names("bamba"); !strings.Contains(got, "out_proj") {
		t.Errorf("adapted %s", got)
	}
}

// Each pattern is compared with the name of each layer.
func TestPEFT_PatternsAreBounded(t *testing.T) {
	for n, want := range map[int]bool{1024: true, 1025: false} {
		var p Patterns
		text := "{" + strings.TrimSuffix(strings.Repeat(`"q_proj": 4,`, n), ",") + "}"
		if err := json.Unmarshal([]byte(text), &p); (err == nil) != want {
			t.Errorf("%d patterns: %v", n, err)
		}
	}
}
