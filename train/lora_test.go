package train

import (
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

// logits of a fixed input.
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

func lora() *LoRA { return &LoRA{Rank: 4, Alpha: 8, Targets: []string{AllLinear}} }

// adapted makes a tiny model with adapters that do something.
func adapted(t testing.TB, l LoRA) model.Model {
	t.Helper()
	m := tiny(t, false, torch.Float32)
	if err := AddAdapters(m, l); err != nil {
		t.Fatal(err)
	}
	torch.Run(func() error {
		for _, a := range adapters(m) {
			a.B.Normal(0, 0.3)
		}
		return nil
	})
	return m
}

func free(m model.Model) {
	RemoveAdapter(m)
	model.Free(m)
}

func TestFreshAdaptersChangeNothing(t *testing.T) {
	noLeaks(t)
	m := tiny(t, false, torch.Float32)
	defer free(m)
	want := logits(t, m)
	if err := AddAdapters(m, *lora()); err != nil {
		t.Fatal(err)
	}
	near(t, "logits", logits(t, m), want, 0)
	if n := len(adapters(m)); n != 3*7 {
		t.Errorf("%d layers are adapted, want the seven of each block", n)
	}
	if AddAdapters(m, *lora()) == nil {
		t.Error("a second set of adapters was added")
	}
}

func TestOnlyTheNamedLayersAreAdapted(t *testing.T) {
	noLeaks(t)
	m := tiny(t, false, torch.Float32)
	defer free(m)
	if err := AddAdapters(m, LoRA{Rank: 2, Alpha: 2, Targets: []string{"v_proj", "down_proj"}}); err != nil {
		t.Fatal(err)
	}
	for _, a := range adapters(m) {
		if !strings.HasSuffix(a.Name, ".v_proj") && !strings.HasSuffix(a.Name, ".down_proj") {
			t.Errorf("%s is adapted", a.Name)
		}
	}
	if n := len(adapters(m)); n != 6 {
		t.Errorf("%d layers are adapted, want 6", n)
	}
}

func TestTuningAdaptersLeavesTheWeightsBelowAsTheyAre(t *testing.T) {
	noLeaks(t)
	m := tiny(t, true, torch.Float32)
	before := map[*nn.Param][]float32{}
	torch.Run(func() error {
		for _, p := range nn.Params(m) {
			before[p] = torch.Values[float32](p.Tensor)
		}
		return nil
	})
	o := options()
	o.LoRA = lora()
	o.LoRA.Dropout = 0.2
	train(t, m, samples(16, 1), nil, o, func(tr *Trainer) {
		for _, p := range nn.Params(m) {
			near(t, "a weight", torch.Values[float32](p.Tensor), before[p], 0)
			if p.Grad().Defined() {
				t.Error("a frozen weight has a gradient")
			}
		}
	})
}

func TestRecomputedBlocksDropTheSameInputsAgain(t *testing.T) {
	noLeaks(t)
	var losses [2][]float64
	for i, recompute := range []Recompute{RecomputeNone, RecomputeBlock} {
		o := options()
		o.LoRA, o.Recompute = lora(), recompute
		o.LoRA.Dropout = 0.5
		losses[i] = train(t, tiny(t, true, torch.Float32), samples(16, 1), nil, o, nil).losses()
	}
	for i := range losses[0] {
		if losses[0][i] != losses[1][i] {
			t.Fatalf("losses %v with recomputation, %v without", losses[1], losses[0])
		}
	}
}

func TestAMergedModelGivesTheAdaptedModelsLogits(t *testing.T) {
	noLeaks(t)
	m := adapted(t, *lora())
	defer free(m)
	want := logits(t, m)
	if err := MergeAdapter(m); err != nil {
		t.Fatal(err)
	}
	if len(adapters(m)) != 0 {
		t.Error("adapters are left after merging")
	}
	near(t, "logits", logits(t, m), want, 1e-5)
}

func TestTheMergedModelOfARunIsTheAdapterOnItsBase(t *testing.T) {
	noLeaks(t)
	o := options()
	o.LoRA, o.Rate = lora(), 1e-2
	dir := t.TempDir()
	adapter, merged := filepath.Join(dir, "adapter"), filepath.Join(dir, "merged")
	train(t, tiny(t, true, torch.Float32), samples(16, 1), nil, o, func(tr *Trainer) {
		if err := tr.Export(adapter); err != nil {
			t.Fatal(err)
		}
		if err := tr.ExportMerged(merged); err != nil {
			t.Fatal(err)
		}
	})
	base := tiny(t, true, torch.Float32)
	defer free(base)
	before := logits(t, base)
	if err := LoadAdapter(base, adapter); err != nil {
		t.Fatal(err)
	}
	m, err := model.Open(merged, torch.Float32, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer free(m)
	near(t, "logits", logits(t, m), logits(t, base), 1e-5)
	if slices.Equal(before, logits(t, base)) {
		t.Error("the adapter does nothing")
	}
}

func TestAnAdapterComesBackFromItsFolder(t *testing.T) {
	noLeaks(t)
	l := LoRA{Rank: 4, Alpha: 6, Targets: []string{"q_proj", "up_proj"}}
	m := adapted(t, l)
	defer free(m)
	want := logits(t, m)
	dir := filepath.Join(t.TempDir(), "adapter")
	if err := SaveAdapter(m, dir, "some/base", l, nil); err != nil {
		t.Fatal(err)
	}
	RemoveAdapter(m)
	if err := LoadAdapter(m, dir); err != nil {
		t.Fatal(err)
	}
	near(t, "logits", logits(t, m), want, 0)
}

func TestAnAdapterThatIsNotForTheModelIsRefused(t *testing.T) {
	noLeaks(t)
	l := *lora()
	m := adapted(t, l)
	defer free(m)
	dir := filepath.Join(t.TempDir(), "adapter")
	if err := SaveAdapter(m, dir, "base", l, nil); err != nil {
		t.Fatal(err)
	}
	RemoveAdapter(m)
	config, err := os.ReadFile(filepath.Join(dir, adapterConfig))
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string][2]string{
		"use_dora":     {`"use_dora": false`, `"use_dora": true`},
		"peft_type":    {`"LORA"`, `"IA3"`},
		"bias":         {`"none"`, `"all"`},
		"rank 5":       {`"r": 4`, `"r": 5`},
		"JSON object":  {"{", "["},
		"rank_pattern": {`"rank_pattern": {}`, `"rank_pattern": {"q_proj": 8}`},
	} {
		os.WriteFile(filepath.Join(dir, adapterConfig), []byte(strings.Replace(string(config), change[0], change[1], 1)), 0o666)
		if err := LoadAdapter(m, dir); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want an error about %s", err, want)
		}
		if len(adapters(m)) != 0 {
			t.Fatal("a refused adapter was left in the model")
		}
	}
	if err := LoadAdapter(m, t.TempDir()); err == nil {
		t.Error("an empty folder is no adapter")
	}
}

// Folding an adapter in while a checkpoint is copied gives the bits that merging it in a loaded model gives, and taking it
// out brings the weights back but for rounding.
func TestAnAdapterIsFoldedIntoACheckpointAndTakenOut(t *testing.T) {
	noLeaks(t)
	l := LoRA{Rank: 4, Alpha: 6, Targets: []string{"q_proj", "down_proj"}}
	m := adapted(t, l)
	defer free(m)
	dir := t.TempDir()
	adapter := filepath.Join(dir, "adapter")
	if err := SaveAdapter(m, adapter, "base", l, nil); err != nil {
		t.Fatal(err)
	}
	save := func(name string, source checkpoint.Source) *checkpoint.Checkpoint {
		path := filepath.Join(dir, name)
		if err := checkpoint.Save(path, source, checkpoint.Options{}); err != nil {
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
		s, err := Adapted(from, adapter, unmerge)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return save(name, s)
	}
	folded := through("folded", base, false)
	back := through("back", folded, true)
	if err := MergeAdapter(m); err != nil {
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
	other := model.Config{"model_type": "llama", "vocab_size": 64.0, "hidden_size": 8.0, "intermediate_size": 8.0, "num_hidden_layers": 2.0, "num_attention_heads": 2.0}
	stranger, err := model.New(other)
	if err != nil {
		t.Fatal(err)
	}
	defer free(stranger)
	torch.Run(func() error { model.Initialize(stranger, torch.Float32, torch.CPU); return nil })
	if _, err := Adapted(save("stranger", model.Weights(stranger)), adapter, false); err == nil || !strings.Contains(err.Error(), adapter) {
		t.Errorf("error %v", err)
	}
}
