package train

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

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

func adapterConfig() *lora.Config {
	return &lora.Config{Rank: 4, Alpha: 8, Targets: []string{lora.AllLinear}}
}

func TestLoRA_KeepsBaseWeights(t *testing.T) {
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
	o.LoRA = adapterConfig()
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

func TestLoRA_RecomputeRepeatsDropout(t *testing.T) {
	noLeaks(t)
	var losses [2][]float64
	for i, recompute := range []Recompute{RecomputeNone, RecomputeBlock} {
		o := options()
		o.LoRA, o.Recompute = adapterConfig(), recompute
		o.LoRA.Dropout = 0.5
		losses[i] = train(t, tiny(t, true, torch.Float32), samples(16, 1), nil, o, nil).losses()
	}
	for i := range losses[0] {
		if losses[0][i] != losses[1][i] {
			t.Fatalf("losses %v with recomputation, %v without", losses[1], losses[0])
		}
	}
}

func TestLoRA_MergedExportEqualsAdapterOnBase(t *testing.T) {
	noLeaks(t)
	o := options()
	o.LoRA, o.Rate = adapterConfig(), 1e-2
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
	if err := lora.Load(base, adapter); err != nil {
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

func free(m model.Model) {
	lora.Remove(m)
	model.Free(m)
}

// Beside an adapter, whole embeddings or the rows of some tokens are trained and nothing else. The
// exported adapter on the base gives the trained model's logits.
func TestLoRA_TrainsEmbeddingsAndTokens(t *testing.T) {
	noLeaks(t)
	for name, change := range map[string]func(*lora.Config){
		"tokens": func(c *lora.Config) { c.Tokens = []int{3, 7} },
		"tokens of the embedding": func(c *lora.Config) {
			c.Tokens, c.TokenLayers = []int{3, 7}, []string{"embed_tokens"}
		},
		"embedding": func(c *lora.Config) { c.Save = []string{"embed_tokens"} },
		"head":      func(c *lora.Config) { c.Save = []string{"lm_head"} },
		"both":      func(c *lora.Config) { c.Save = []string{"lm_head", "embed_tokens"} },
	} {
		for _, tied := range []bool{true, false} {
			m := tiny(t, tied, torch.Float32)
			before := weightsOf(t, m)
			dir := t.TempDir()
			base, adapter := filepath.Join(dir, "base"), filepath.Join(dir, "adapter")
			saveModel(t, m, base)
			o := options()
			o.LoRA, o.Rate, o.Decay, o.Accumulate = adapterConfig(), 1e-2, 0.1, 2
			change(o.LoRA)
			var want []float32
			train(t, m, samples(16, 1), nil, o, func(tr *Trainer) {
				want = logits(t, m)
				trained := map[string]bool{
					"model.embed_tokens.weight": name != "head" || tied,
					"lm_head.weight": !tied && name != "embedding" &&
						name != "tokens of the embedding",
				}
				for weight, values := range weightsOf(t, m) {
					changed := map[int]bool{} // rows
					for i, v := range values {
						changed[i/32] = changed[i/32] || v != before[weight][i]
					}
					for row, is := range changed {
						want := trained[weight]
						some := strings.HasPrefix(name, "tokens")
						if some {
							want = want && (row == 3 || row == 7)
						}
						if is && !want || !is && want && some {
							t.Errorf("%s, tied %v: row %d of %s: changed %v", name, tied, row,
								weight, is)
						}
					}
					if any := slices.Contains(slices.Collect(maps.Values(changed)),
						true); any != trained[weight] {
						t.Errorf("%s, tied %v: %s changed: %v", name, tied, weight, any)
					}
				}
				if err := tr.Export(adapter); err != nil {
					t.Fatal(err)
				}
			})
			source, err := checkpoint.Open(base)
			if err != nil {
				t.Fatal(err)
			}
			folded, err := lora.Fold(source, adapter, false)
			if err != nil {
				t.Fatalf("%s, tied %v: %v", name, tied, err)
			}
			back, err := folded.Declare()
			if err == nil {
				err = torch.Run(func() error {
					return model.Load(back, folded, torch.Float32, torch.CPU)
				})
			}
			if err != nil {
				t.Fatal(err)
			}
			near(t, name+": logits of the adapter on the base", logits(t, back), want, 1e-4)
			model.Free(back)
			folded.Close()
			source.Close()
		}
	}
}

// weightsOf returns the values of m's weights by name.
func weightsOf(t testing.TB, m model.Model) map[string][]float32 {
	t.Helper()
	all := map[string][]float32{}
	source := model.Weights(m)
	if err := torch.Run(func() error {
		for _, name := range source.Names() {
			x, err := source.Tensor(name)
			if err != nil {
				return err
			}
			all[name] = torch.Values[float32](x)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// saveModel writes m in Hugging Face's format.
func saveModel(t testing.TB, m model.Model, dir string) {
	t.Helper()
	config, err := json.Marshal(m.Config())
	if err == nil {
		err = checkpoint.Save(dir, model.Weights(m), checkpoint.Options{Config: config})
	}
	if err != nil {
		t.Fatal(err)
	}
}
