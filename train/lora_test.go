package train

import (
	"path/filepath"
	"slices"
	"testing"

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
