package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/torch"
)

// llamaKinds are the config values by which models of the family differ, besides their sizes.
var llamaKinds = map[string]map[string]any{
	"llama":  {"rms_norm_eps": 1e-5},
	"llama2": {"num_key_value_heads": 4, "rope_theta": 10000.0},
	"tied":   {"tie_word_embeddings": true, "rope_theta": 100000.0},
	"llama3": {"rope_theta": 500000.0, "rope_scaling": map[string]any{"rope_type": "llama3",
		"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
		"original_max_position_embeddings": 8192}},
	"short3": {"rope_scaling": map[string]any{"rope_type": "llama3", "factor": 8.0,
		"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 96}},
	"linear": {"rope_parameters": map[string]any{"rope_type": "linear", "factor": 4.0,
		"rope_theta": 5000.0}},
	"head_dim": {"head_dim": 12, "num_key_value_heads": 4},
	"bias":     {"attention_bias": true, "mlp_bias": true},
	"mistral":  {"model_type": "mistral", "sliding_window": 7},
	"qwen2":    {"model_type": "qwen2", "use_sliding_window": false},
}

// randomLlama draws a model of a kind: its config.json and its weights.
func randomLlama(t testing.TB, kind string, dtype torch.DType, seed uint64) (*memory, []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	headDim, heads, kv, vocabulary, inner, layers := 8, 4, 2, 8*(2+r.IntN(20)), 8*(1+r.IntN(9)),
		1+r.IntN(3)
	config := map[string]any{"architectures": []any{"X"}, "model_type": "llama",
		"hidden_act": "silu", "hidden_size": heads * headDim,
		"intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
		"num_key_value_heads": kv,
		"vocab_size":          vocabulary, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
		"tie_word_embeddings": false}
	maps.Copy(config, llamaKinds[kind])
	width := heads * headDim
	kv = config["num_key_value_heads"].(int)
	if d, ok := config["head_dim"]; ok {
		headDim = d.(int)
	}
	m := newMemory()
	add := func(name string, shape ...int) {
		count := 1
		for _, n := range shape {
			count *= n
		}
		values := make([]float32, count)
		for i := range values {
			values[i] = float32(r.NormFloat64())
		}
		var data []byte
		inTorch(t, func() { data = bytes.Clone(torch.From(values, shape...).To(dtype).Data()) })
		m.names = append(m.names, name)
		m.tensors[name], m.infos[name] = data, Info{DType: dtype, Shape: shape, Bytes: len(data)}
	}
	biased := func(yes bool, name string, rows, columns int) {
		add(name+".weight", rows, columns)
		if yes {
			add(name+".bias", rows)
		}
	}
	attention, mlp := config["attention_bias"] == true, config["mlp_bias"] == true
	qkv := attention || kind == "qwen2"
	add("model.embed_tokens.weight", vocabulary, width)
	for l := range layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		add(p+"input_layernorm.weight", width)
		biased(qkv, p+"self_attn.q_proj", heads*headDim, width)
		biased(qkv, p+"self_attn.k_proj", kv*headDim, width)
		biased(qkv, p+"self_attn.v_proj", kv*headDim, width)
		biased(attention, p+"self_attn.o_proj", width, heads*headDim)
		add(p+"post_attention_layernorm.weight", width)
		biased(mlp, p+"mlp.gate_proj", inner, width)
		biased(mlp, p+"mlp.up_proj", inner, width)
		biased(mlp, p+"mlp.down_proj", width, inner)
	}
	add("model.norm.weight", width)
	if config["tie_word_embeddings"] != true {
		add("lm_head.weight", vocabulary, width)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return m, text
}

func TestMeta_RoundTripChangesNoBit(t *testing.T) {
	for kind := range llamaKinds {
		for _, parts := range []int{1, 2} {
			dtype := []torch.DType{torch.Float32, torch.BFloat16, torch.Float16}[rand.IntN(3)]
			seed := rand.Uint64()
			source, config := randomLlama(t, kind, dtype, seed)
			dir := filepath.Join(t.TempDir(), "m")
			live := torch.LiveTensors()
			if err := SaveMeta(dir, source, Options{Config: config,
				GenerationConfig: []byte(`{"eos_token_id":2}`), Parts: parts}); err != nil {
				t.Fatalf("%s in %d, seed %d: %v", kind, parts, seed, err)
			}
			if torch.LiveTensors() != live {
				t.Errorf("%d tensors are left over", torch.LiveTensors()-live)
			}
			c := mustOpen(t, dir)
			wantSame(t, c, source)
			if c.Format != Meta || len(c.Files()) != parts ||
				c.GenerationConfig()["eos_token_id"] != 2. {
				t.Errorf("%s: format %s, files %v", kind, c.Format, c.Files())
			}
			wantSame(t, mustOpen(t, filepath.Join(dir, "consolidated.00.pth")), source)
			// params.json alone describes what Meta's code can run.
			os.Remove(filepath.Join(dir, configFile))
			alone, err := Open(dir)
			switch kind {
			case "linear", "head_dim", "bias", "qwen2", "short3":
				wantError(t, err, paramsFile, "config.json")
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(alone.Close)
			var want map[string]any
			json.Unmarshal(config, &want)
			got := alone.Config()
			for key, value := range want {
				switch {
				case key == "architectures" || key == "max_position_embeddings":
				case key == "tie_word_embeddings" && parts > 1: // two slices, no longer one storage
				case fmt.Sprint(got[key]) != fmt.Sprint(value):
					t.Errorf("%s in %d: config %s is %v, expected %v", kind, parts, key, got[key],
						value)
				}
			}
		}
	}
}

func TestMeta_BadFoldersAreNamed(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.Float32, 3)
	other, otherConfig := randomLlama(t, "llama", torch.Float32, 3)
	clear(other.tensors["model.norm.weight"])
	larger, largerConfig := randomLlama(t, "bias", torch.Float32, 3)
	good, second, third := t.TempDir(), t.TempDir(), t.TempDir()
	for dir, m := range map[string]*memory{good: source, second: other, third: larger} {
		text := map[string][]byte{good: config, second: otherConfig, third: largerConfig}[dir]
		if err := SaveMeta(dir, m, Options{Config: text, Parts: 2}); err != nil {
			t.Fatal(err)
		}
	}
	part := func(dir string, n int) string {
		data, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("consolidated.%02d.pth", n)))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	params, _ := os.ReadFile(filepath.Join(good, paramsFile))
	p, a, b := string(params), part(good, 0), part(good, 1)
	for name, test := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"no parts": {map[string]string{paramsFile: p},
			[]string{"no consolidated.00.pth"}},
		"the last missing": {map[string]string{paramsFile: p, "consolidated.00.pth": a},
			[]string{"consolidated.00.pth", "wq", "missing"}},
		"the first missing": {map[string]string{paramsFile: p, "consolidated.01.pth": b},
			[]string{"consolidated.00.pth", "missing"}},
		"another model's": {map[string]string{paramsFile: p, "consolidated.00.pth": a,
			"consolidated.01.pth": part(second, 1)},
			[]string{"consolidated.01.pth", `"norm.weight"`, "another model"}},
		"another kind's": {map[string]string{paramsFile: p, "consolidated.00.pth": a,
			"consolidated.01.pth": part(third, 1)},
			[]string{"consolidated.01.pth", "another model"}},
		"truncated": {map[string]string{paramsFile: p, "consolidated.00.pth": a,
			"consolidated.01.pth": b[:len(b)/2]}, []string{"consolidated.01.pth", "truncated"}},
		"params are no JSON": {map[string]string{paramsFile: "{", "consolidated.00.pth": a},
			[]string{paramsFile}},
		"params are short": {map[string]string{paramsFile: "{}", "consolidated.00.pth": a},
			[]string{paramsFile, "expected a positive integer"}},
		"params of another": {map[string]string{paramsFile: strings.Replace(p, `"n_heads": 4`,
			`"n_heads": 8`, 1), "consolidated.00.pth": a, "consolidated.01.pth": b},
			[]string{"wk", "2 heads"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range test.files {
				os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644)
			}
			_, err := Open(dir)
			wantError(t, err, append(test.want, dir)...)
		})
	}
}

func TestSaveMeta_NamesWhatTheLayoutCannotHold(t *testing.T) {
	source, config := randomLlama(t, "llama", torch.Float32, 1)
	for _, test := range []struct {
		config string
		parts  int
		want   string
	}{
		{`{"model_type":"bamba"}`, 1, "bamba"},
		{string(config), 3, "equal parts"},
		{strings.Replace(string(config), `"num_hidden_layers":`, `"num_hidden_layers":-`, 1), 1,
			"num_hidden_layers"},
	} {
		dir := filepath.Join(t.TempDir(), "m")
		wantError(t, SaveMeta(dir, source, Options{Config: []byte(test.config),
			Parts: test.parts}), dir, test.want)
		if left := entries(t, filepath.Dir(dir)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	wantError(t, SaveMeta(filepath.Join(t.TempDir(), "m"),
		source.add("model.layers.0.odd.weight", torch.Float32, 1), Options{Config: config}), "odd")
}
