package lora

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/checkpoint"
	_ "conquer/llama"
	"conquer/model"
	"conquer/torch"
)

// tiny makes a Llama of three layers with random weights.
func tiny(t testing.TB) model.Model {
	t.Helper()
	m, err := model.New(model.Config{
		"model_type": "llama", "architectures": []any{"LlamaForCausalLM"}, "vocab_size": 61.0,
		"hidden_size": 32.0, "intermediate_size": 48.0, "num_hidden_layers": 3.0,
		"num_attention_heads": 4.0, "num_key_value_heads": 2.0, "max_position_embeddings": 64.0,
		"rms_norm_eps": 1e-5, "tie_word_embeddings": false, "initializer_range": 0.2,
	})
	if err != nil {
		t.Fatal(err)
	}
	initialize(t, m)
	return m
}

func initialize(t testing.TB, m model.Model) {
	t.Helper()
	if err := torch.Run(func() error {
		torch.ManualSeed(11)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// noLeaks fails the test if it leaves tensors behind.
func noLeaks(t *testing.T) {
	before := torch.LiveTensors()
	t.Cleanup(func() {
		if after := torch.LiveTensors(); after != before {
			t.Errorf("%d tensors are left", after-before)
		}
	})
}

// near fails the test if two lists differ by more than tolerance times the largest element.
func near(t testing.TB, what string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	scale, worst := 1e-12, 0.0
	for i := range want {
		scale = max(scale, math.Abs(float64(want[i])))
		worst = max(worst, math.Abs(float64(got[i]-want[i])))
	}
	if !(worst <= tolerance*scale) {
		t.Errorf("%s differs by %g of %g", what, worst, scale)
	}
}

// logits returns the logits of a fixed input.
func logits(t testing.TB, m model.Model) (values []float32) {
	t.Helper()
	if err := torch.Run(func() error {
		torch.NoGrad(func() {
			ids := torch.From([]int64{1, 5, 9, 2, 33, 60, 0, 7}, 2, 4)
			values = torch.Values[float32](model.Logits(m, model.Sequence{IDs: ids}))
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return values
}

func config() *Config { return &Config{Rank: 4, Alpha: 8, Targets: []string{AllLinear}} }

// adapted makes a tiny model with adapters that change its output.
func adapted(t testing.TB, c Config) model.Model {
	t.Helper()
	m := tiny(t)
	if err := Attach(m, c); err != nil {
		t.Fatal(err)
	}
	torch.Run(func() error {
		for _, a := range Adapters(m) {
			a.B.Normal(0, 0.3)
		}
		return nil
	})
	return m
}

func free(m model.Model) {
	Remove(m)
	model.Free(m)
}

func TestAttach_LeavesLogitsUnchanged(t *testing.T) {
	noLeaks(t)
	m := tiny(t)
	defer free(m)
	want := logits(t, m)
	if err := Attach(m, *config()); err != nil {
		t.Fatal(err)
	}
	near(t, "logits", logits(t, m), want, 0)
	if n := len(Adapters(m)); n != 3*7 {
		t.Errorf("%d layers are adapted, want the seven of each block", n)
	}
	if Attach(m, *config()) == nil {
		t.Error("a second set of adapters was added")
	}
}

func TestOnlyTheNamedLayersAreFold(t *testing.T) {
	noLeaks(t)
	m := tiny(t)
	defer free(m)
	if err := Attach(m,
		Config{Rank: 2, Alpha: 2, Targets: []string{"v_proj", "down_proj"}}); err != nil {
		t.Fatal(err)
	}
	for _, a := range Adapters(m) {
		if !strings.HasSuffix(a.Name, ".v_proj") && !strings.HasSuffix(a.Name, ".down_proj") {
			t.Errorf("%s is adapted", a.Name)
		}
	}
	if n := len(Adapters(m)); n != 6 {
		t.Errorf("%d layers are adapted, want 6", n)
	}
}

func TestMerge_KeepsLogits(t *testing.T) {
	noLeaks(t)
	m := adapted(t, *config())
	defer free(m)
	want := logits(t, m)
	if err := Merge(m); err != nil {
		t.Fatal(err)
	}
	if len(Adapters(m)) != 0 {
		t.Error("adapters are left after merging")
	}
	near(t, "logits", logits(t, m), want, 1e-5)
}

func TestSave_LoadRestoresLogits(t *testing.T) {
	noLeaks(t)
	l := Config{Rank: 4, Alpha: 6, Targets: []string{"q_proj", "up_proj"}}
	m := adapted(t, l)
	defer free(m)
	want := logits(t, m)
	dir := filepath.Join(t.TempDir(), "adapter")
	if err := Save(m, dir, "some/base", l, nil); err != nil {
		t.Fatal(err)
	}
	Remove(m)
	if err := Load(m, dir); err != nil {
		t.Fatal(err)
	}
	near(t, "logits", logits(t, m), want, 0)
}

func TestLoad_RefusesUnsupportedAdapters(t *testing.T) {
	noLeaks(t)
	l := *config()
	m := adapted(t, l)
	defer free(m)
	dir := filepath.Join(t.TempDir(), "adapter")
	if err := Save(m, dir, "base", l, nil); err != nil {
		t.Fatal(err)
	}
	Remove(m)
	config, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string][2]string{
		"use_dora":                            {`"use_dora": false`, `"use_dora": true`},
		"peft_type":                           {`"LORA"`, `"IA3"`},
		"rank 5":                              {`"r": 4`, `"r": 5`},
		"JSON object":                         {"{", "["},
		"r is \"x\", expected a whole number": {`"r": 4`, `"r": "x"`},
		"a field that this program does not know: merge": {`"r": 4`, `"r": 4, "new": true`},
		"rank 8": {`"rank_pattern": {}`, `"rank_pattern": {"q_proj": 8}`},
	} {
		os.WriteFile(filepath.Join(dir, configFile),
			[]byte(strings.Replace(string(config), change[0], change[1], 1)), 0o666)
		if err := Load(m, dir); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want an error about %s", err, want)
		}
		if len(Adapters(m)) != 0 {
			t.Fatal("a refused adapter was left in the model")
		}
	}
	if err := Load(m, t.TempDir()); err == nil {
		t.Error("an empty folder was loaded as an adapter")
	}
}

// Folding an adapter into a checkpoint gives the same bits as merging it into a loaded model.
// Unmerging restores the weights except for rounding.
func TestFold_EqualsMergeAndUnmerges(t *testing.T) {
	noLeaks(t)
	l := Config{Rank: 4, Alpha: 6, Targets: []string{"q_proj", "down_proj"}}
	m := adapted(t, l)
	defer free(m)
	dir := t.TempDir()
	adapter := filepath.Join(dir, "adapter")
	if err := Save(m, adapter, "base", l, nil); err != nil {
		t.Fatal(err)
	}
	save := func(name string, source checkpoint.Source) *checkpoint.Checkpoint {
		path := filepath.Join(dir, name)
		config, err := json.Marshal(m.Config())
		if err == nil {
			err = checkpoint.Save(path, source, checkpoint.Options{Config: config})
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	base := save("base", model.Weights(m))
	through := func(name string, from *checkpoint.Checkpoint, unmerge bool) *checkpoint.Checkpoint {
		s, err := Fold(from, adapter, unmerge)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return save(name, s)
	}
	folded := through("folded", base, false)
	back := through("back", folded, true)
	if err := Merge(m); err != nil {
		t.Fatal(err)
	}
	merged, changed := model.Weights(m), 0
	if err := torch.Run(func() error {
		for _, name := range base.Names() {
			values := func(s checkpoint.Source) []float32 {
				x, err := s.Tensor(name)
				if err != nil {
					t.Fatal(err)
				}
				return torch.Values[float32](x)
			}
			if !slices.Equal(values(folded), values(merged)) {
				t.Errorf("%s differs from the merged model's", name)
			}
			near(t, name, values(back), values(base), 1e-5)
			if !slices.Equal(values(folded), values(base)) {
				changed++
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(m.Blocks()); changed != want {
		t.Errorf("%d weights changed, expected %d", changed, want)
	}
	other := model.Config{
		"model_type":          "llama",
		"vocab_size":          64.0,
		"hidden_size":         8.0,
		"intermediate_size":   8.0,
		"num_hidden_layers":   2.0,
		"num_attention_heads": 2.0,
	}
	stranger, err := model.New(other)
	if err != nil {
		t.Fatal(err)
	}
	defer free(stranger)
	initialize(t, stranger)
	if _, err := Fold(save("stranger", model.Weights(stranger)), adapter, false); err == nil ||
		!strings.Contains(err.Error(), adapter) {
		t.Errorf("error %v", err)
	}
}
