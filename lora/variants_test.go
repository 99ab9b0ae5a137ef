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
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// perturb gives the parts of m's adapters other values.
func perturb(t testing.TB, m model.Model) {
	t.Helper()
	if err := torch.Run(func() error {
		torch.NoGrad(func() {
			for _, a := range Adapters(m) {
				for _, p := range a.Params() {
					change := torch.Randn(p.Shape, torch.Float32, torch.CPU).MulScalar(0.2)
					p.Tensor.AddTo(change)
				}
			}
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// rowLengths returns the norms of a weight's rows.
func rowLengths(t testing.TB, m model.Model, name string) (list []float32) {
	t.Helper()
	weights := values(t, model.Weights(m), name)
	shape, _ := model.Weights(m).Info(name)
	width := shape.Shape[1]
	for row := range slices.Chunk(weights, width) {
		sum := 0.0
		for _, x := range row {
			sum += float64(x) * float64(x)
		}
		list = append(list, float32(math.Sqrt(sum)))
	}
	return list
}

func values(t testing.TB, s checkpoint.Source, name string) (list []float32) {
	t.Helper()
	if err := torch.Run(func() error {
		x, err := s.Tensor(name)
		if err == nil {
			list = torch.Values[float32](x)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// DoRA begins without effect. Then the rows of merged weights have the trained lengths, whether the
// adapter is applied, merged, folded, or saved and loaded.
func TestDoRA_SetsLengthsOfRows(t *testing.T) {
	noLeaks(t)
	for _, targets := range [][]string{nil, {"v_proj", "down_proj"}} {
		m := tiny(t)
		defer free(m)
		before := logits(t, m)
		c := Config{Rank: 3, Alpha: 5, DoRA: true, Targets: targets}
		if err := Attach(m, c); err != nil {
			t.Fatal(err)
		}
		near(t, "logits before training", logits(t, m), before, 1e-5)
		perturb(t, m)
		want := logits(t, m)
		dir := t.TempDir()
		adapter, base := filepath.Join(dir, "adapter"), filepath.Join(dir, "base")
		if err := Save(m, adapter, "base", c, nil); err != nil {
			t.Fatal(err)
		}
		const name = "model.layers.1.self_attn.v_proj"
		var length []float32
		for _, a := range Adapters(m) {
			if a.Name == name {
				length = torch.Values[float32](a.M.Tensor)
			}
		}
		source := saveBase(t, m, base)
		if err := Merge(m); err != nil {
			t.Fatal(err)
		}
		near(t, "merged logits", logits(t, m), want, 1e-5)
		for i, x := range rowLengths(t, m, name+".weight") {
			if math.Abs(float64(x)-math.Abs(float64(length[i]))) > 1e-5 {
				t.Errorf("row %d has length %g, want %g", i, x, length[i])
			}
		}
		folded, err := Fold(source, adapter, false)
		if err != nil {
			t.Fatal(err)
		}
		defer folded.Close()
		for _, weight := range folded.Names() {
			if !slices.Equal(values(t, folded, weight), values(t, model.Weights(m), weight)) {
				t.Errorf("%s differs from the merged model's", weight)
			}
		}
		if _, err := Fold(source, adapter, true); err == nil ||
			!strings.Contains(err.Error(), "use_dora") {
			t.Errorf("unmerging: error %v", err)
		}
		original := tiny(t)
		defer free(original)
		if err := Load(original, adapter); err != nil {
			t.Fatal(err)
		}
		near(t, "loaded logits", logits(t, original), want, 0)
	}
}

// DoRA's parts are all required, and none is taken without use_dora.
func TestDoRA_NeedsEveryPart(t *testing.T) {
	noLeaks(t)
	m, dir, _ := saved(t, Config{Rank: 2, DoRA: true, Targets: []string{"q_proj"}})
	defer free(m)
	rewrite(t, dir, map[string]any{"use_dora": false})
	if err := Load(m, dir); err == nil || !strings.Contains(err.Error(), "use_dora is false") {
		t.Errorf("error %v", err)
	}
	plain, other, _ := saved(t, Config{Rank: 2, Targets: []string{"q_proj"}})
	defer free(plain)
	rewrite(t, other, map[string]any{"use_dora": true})
	if err := Load(m, other); err == nil ||
		!strings.Contains(err.Error(), `lora_magnitude_vector" is missing`) {
		t.Errorf("error %v", err)
	}
	if n := len(Adapters(m)); n != 0 {
		t.Errorf("%d adapters are left", n)
	}
}

// With dropout, the layer's share of what DoRA adds is computed from the dropped input too.
func TestDoRA_DropsInputsOfTheDifferenceAlone(t *testing.T) {
	noLeaks(t)
	if err := torch.Run(func() error {
		l := nn.NewLinear(6, true, 5)
		l.Weight.Tensor = torch.Randn([]int{5, 6}, torch.Float32, torch.CPU)
		l.Bias.Tensor = torch.Randn([]int{5}, torch.Float32, torch.CPU)
		a := Layer{Linear: l}.newAdapter(Config{Rank: 2, Alpha: 4, Dropout: 0.5, DoRA: true})
		for _, p := range a.Params() {
			p.Tensor = torch.Randn(p.Shape, torch.Float32, torch.CPU)
		}
		l.LoRA = []*nn.LoRA{a}
		x := torch.Randn([]int{3, 6}, torch.Float32, torch.CPU)
		torch.ManualSeed(4)
		got := l.Forward(x)
		torch.ManualSeed(4)
		dropped := x.Dropout(0.5)
		plain := torch.Linear(x, l.Weight.Tensor, l.Bias.Tensor)
		added := dropped.Matmul(a.Merge(l.Weight.Tensor).Sub(l.Weight.Tensor).Transpose(0, 1))
		near(t, "output", torch.Values[float32](got), torch.Values[float32](plain.Add(added)), 1e-5)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// PiSSA begins without effect, takes the largest singular values, and is saved as an adapter of
// twice the rank for the base as it was.
func TestPiSSA_IsSavedForTheOriginalBase(t *testing.T) {
	noLeaks(t)
	pattern, err := NewPattern("q_proj", 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{
		{Rank: 4, Alpha: 6, Init: InitPiSSA},
		{Rank: 2, Init: InitPiSSA, RSLoRA: true, RankPattern: Patterns{pattern},
			AlphaPattern: Patterns{pattern}, Targets: []string{"q_proj", "up_proj"}},
		{Rank: 40, Init: InitPiSSA, DoRA: true}, // beyond the rank of the weights
	} {
		m := tiny(t)
		defer free(m)
		before := logits(t, m)
		if err := Attach(m, c); err != nil {
			t.Fatal(err)
		}
		near(t, "logits before training", logits(t, m), before, 1e-4)
		perturb(t, m)
		want := logits(t, m)
		dir := filepath.Join(t.TempDir(), "adapter")
		if err := Save(m, dir, "base", c, nil); err != nil {
			t.Fatal(err)
		}
		original := tiny(t)
		defer free(original)
		if err := Load(original, dir); err != nil {
			t.Fatal(err)
		}
		near(t, "logits of the saved adapter", logits(t, original), want, 1e-4)
		text, err := os.ReadFile(filepath.Join(dir, configFile))
		if err != nil || strings.Contains(string(text), "pissa") {
			t.Errorf("error %v: %s", err, text)
		}
		// A run that goes on from its checkpoint finds its own matrices.
		Remove(original)
		if err := Attach(original, c); err != nil {
			t.Fatal(err)
		}
		if err := Restore(original, dir, c); err != nil {
			t.Fatal(err)
		}
		near(t, "restored logits", logits(t, original), want, 1e-4)
	}
}

// The product of the first matrices is the best approximation of its rank.
func TestPiSSA_TakesTheLargestSingularValues(t *testing.T) {
	noLeaks(t)
	if err := torch.Run(func() error {
		u, _, v := torch.Randn([]int{5, 5}, torch.Float32, torch.CPU).SVD()
		sizes := torch.From([]float32{0.1, 9, 0.2, 4, 1}, 5)
		weight := u.Mul(sizes).Matmul(v.Transpose(0, 1))
		a := &nn.LoRA{Scale: 2, A: nn.NewParam(nn.Normal, 2, 5), B: nn.NewParam(nn.Zeros, 5, 2)}
		principal(a, weight)
		defer a.Free()
		_, rest, _ := weight.Sub(a.Delta()).SVD()
		near(t, "what is left", torch.Values[float32](rest), []float32{1, 0.2, 0.1, 0, 0}, 1e-5)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// saveBase writes m as a model that an adapter is folded into.
func saveBase(t testing.TB, m model.Model, dir string) *checkpoint.Checkpoint {
	t.Helper()
	config, err := json.Marshal(m.Config())
	if err == nil {
		err = checkpoint.Save(dir, model.Weights(m), checkpoint.Options{Config: config})
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// tinyTied is tiny with a head that is the embedding.
func tinyTied(t testing.TB) model.Model {
	t.Helper()
	m := tiny(t)
	config := m.Config().Clone()
	model.Free(m)
	config["tie_word_embeddings"] = true
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	initialize(t, m)
	return m
}

// Tensors of an adapter replace weights and rows of its base as in PEFT: of a tied model, the
// embedding alone leaves the head as it was, and tokens change in both.
func TestFold_ReplacesWeightsAndRows(t *testing.T) {
	noLeaks(t)
	const embedding, head = "model.embed_tokens", "lm_head"
	delta := ".token_adapter.trainable_tokens_delta"
	for _, c := range []struct {
		name    string
		tied    bool
		fields  map[string]any
		tensors map[string][]int // shapes; filled with one number each, in order
		want    string           // which values the embedding and the head then have, or an error
		rows    int
	}{
		{"embedding", false, map[string]any{"modules_to_save": []string{"embed_tokens"}},
			map[string][]int{embedding + ".weight": {61, 32}}, "new old", 61},
		{"embedding of a tied model", true,
			map[string]any{"modules_to_save": []string{"embed_tokens"}},
			map[string][]int{embedding + ".weight": {61, 32}}, "new old", 61},
		{"tied on", true, map[string]any{"modules_to_save": []string{"embed_tokens"},
			"ensure_weight_tying": true},
			map[string][]int{embedding + ".weight": {61, 32}}, "new", 61},
		{"head of a tied model", true, map[string]any{"modules_to_save": []string{"lm_head"}},
			map[string][]int{head + ".weight": {61, 32}}, "old new", 61},
		{"equal embedding and head", true,
			map[string]any{"modules_to_save": []string{"lm_head", "embed_tokens"}},
			map[string][]int{head + ".weight": {61, 32}, embedding + ".weight": {61, 32}}, "new",
			61},
		{"longer embedding", true, nil,
			map[string][]int{embedding + ".weight": {64, 32}}, "new", 64},
		{"tokens", false, map[string]any{"trainable_token_indices": []int{5, 1}},
			map[string][]int{embedding + delta: {2, 32}}, "rows old", 61},
		{"tokens of a tied model", true, map[string]any{"trainable_token_indices": []int{5, 1}},
			map[string][]int{embedding + delta: {2, 32}}, "rows", 61},
		{"tokens of the head", false,
			map[string]any{"trainable_token_indices": map[string]any{"lm_head": []int{5, 1}}},
			map[string][]int{head + delta: {2, 32}}, "old rows", 61},
		{"new tokens", true, map[string]any{"trainable_token_indices": []int{5, 1, 62, 61}},
			map[string][]int{embedding + delta: {4, 32}}, "rows", 63},
		{"new token after a gap", true, map[string]any{"trainable_token_indices": []int{5, 1, 62}},
			map[string][]int{embedding + delta: {3, 32}}, "leaves out token 61", 0},
		{"new tokens of the embedding alone", false,
			map[string]any{"trainable_token_indices": []int{61}},
			map[string][]int{embedding + delta: {1, 32}}, "62 rows and the head 61", 0},
		{"no rows", true, map[string]any{"trainable_token_indices": []int{5, 1}}, nil,
			"no tensor", 0},
		{"fewer rows", true, map[string]any{"trainable_token_indices": []int{5, 1}},
			map[string][]int{embedding + delta: {1, 32}}, "has shape [1 32]", 0},
		{"rows without tokens", true, nil, map[string][]int{embedding + delta: {1, 32}},
			"trainable_token_indices names none", 0},
		{"a layer that is not there", true, map[string]any{"modules_to_save": []string{"score"}},
			nil, `names "score"`, 0},
		{"another width", true, map[string]any{"modules_to_save": []string{"lm_head"}},
			map[string][]int{head + ".weight": {61, 31}}, "has shape [61 31]", 0},
	} {
		m := tiny(t)
		if c.tied {
			free(m)
			m = tinyTied(t)
		}
		config := Config{Rank: 2, Targets: []string{"q_proj"}}
		if err := Attach(m, config); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		adapter := filepath.Join(dir, "adapter")
		if err := Save(m, adapter, "base", config, nil); err != nil {
			t.Fatal(err)
		}
		Remove(m)
		rewrite(t, adapter, c.fields)
		addTensors(t, adapter, c.tensors)
		source := saveBase(t, m, filepath.Join(dir, "base"))
		folded, err := Fold(source, adapter, false)
		if err != nil {
			if c.rows > 0 || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			free(m)
			continue
		}
		if c.rows == 0 {
			t.Errorf("%s: no error", c.name)
		}
		old := values(t, model.Weights(m), embedding+".weight")
		oldHead := old
		if !c.tied {
			oldHead = values(t, model.Weights(m), head+".weight")
		}
		back, err := folded.Declare()
		if err == nil {
			err = torch.Run(func() error {
				return model.Load(back, folded, torch.Float32, torch.CPU)
			})
		}
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		kinds := ""
		for _, weight := range []string{embedding, head} {
			if weight == head && isTied(back) {
				continue
			}
			before := map[string][]float32{embedding: old, head: oldHead}[weight]
			got := values(t, model.Weights(back), weight+".weight")
			kind := "rows"
			if slices.Equal(got, before) {
				kind = "old"
			} else if !slices.ContainsFunc(got, func(x float32) bool { return x != got[0] }) {
				kind = "new"
			} else if got[5*32] != 1000 || got[1*32] != 1000 || got[0] != before[0] {
				kind = "other"
			}
			kinds += " " + kind
		}
		if len(c.tensors) == 1 && strings.Contains(c.want, "rows") {
			opened, err := Open(adapter)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, w := range opened.Weights(back) {
				names = append(names, layerOf(w.Name))
			}
			if _, ok := c.tensors[strings.Join(names, " ")+delta]; !ok {
				t.Errorf("%s: trained further are the rows of %v", c.name, names)
			}
		}
		if kinds != " "+c.want || back.Head().Shape[0] != c.rows {
			t.Errorf("%s: %s and %d rows, want %s and %d", c.name, kinds,
				back.Head().Shape[0], c.want, c.rows)
		}
		if _, err := Fold(source, adapter, true); err == nil {
			t.Errorf("%s: replaced weights were subtracted", c.name)
		}
		if err := Load(m, adapter); err == nil ||
			!strings.Contains(err.Error(), "modules_to_save") {
			t.Errorf("%s: loading into the base: error %v", c.name, err)
		}
		model.Free(back)
		folded.Close()
		free(m)
	}
}

// addTensors adds tensors of the given shapes to an adapter, filled with 1000.
func addTensors(t testing.TB, dir string, shapes map[string][]int) {
	t.Helper()
	stage := t.TempDir()
	if err := torch.Run(func() error {
		c, err := checkpoint.Open(filepath.Join(dir, weightsFile))
		if err != nil {
			return err
		}
		defer c.Close()
		all := &checkpoint.Tensors{}
		for _, name := range c.Names() {
			x, err := c.Tensor(name)
			if err != nil {
				return err
			}
			all.Add(name, x)
		}
		for name, shape := range shapes {
			all.Add(adapterPrefix+name, torch.Full(shape, 1000, torch.Float32, torch.CPU))
		}
		return checkpoint.Save(stage, all, checkpoint.Options{})
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(stage, "model.safetensors"),
		filepath.Join(dir, weightsFile)); err != nil {
		t.Fatal(err)
	}
}
