package families_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// quantizedExperts writes a random model with a fixture's config, whose experts have whole blocks,
// as a GGUF file in Q8_0.
func quantizedExperts(t *testing.T, folder string) (path string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config model.Config
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"intermediate_size", "moe_intermediate_size",
		"shared_intermediate_size", "moe_shared_expert_intermediate_size"} {
		if _, ok := config[key]; ok {
			config[key] = 64.0
		}
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	torch.ManualSeed(7)
	model.Initialize(m, torch.Float32, torch.CPU)
	if text, err = json.Marshal(m.Config()); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "m.gguf")
	if err := checkpoint.SaveGGUF(path, model.Weights(m), checkpoint.Options{Config: text,
		Encoding: "Q8_0",
		Metadata: map[string]any{"tokenizer.ggml.model": "no_vocab"}}); err != nil {
		t.Fatal(err)
	}
	return path
}

// results are what a model computes of some tokens.
type results struct{ text, step, loss, grad torch.Tensor }

func resultsOf(t *testing.T, m model.Model) (r results) {
	t.Helper()
	ids := []int64{5, 9, 1, 30, 22, 17, 40, 41, 3, 2, 2, 8}
	all := torch.From(ids, 1, len(ids))
	torch.NoGrad(func() {
		cache := m.NewCache(1, len(ids)+1, torch.Float32, torch.CPU)
		defer cache.Free()
		r.text = model.LastLogits(m, model.Sequence{IDs: all, Cache: cache})
		r.step = model.LastLogits(m,
			model.Sequence{IDs: torch.From([]int64{11}, 1, 1), Cache: cache})
	})
	torch.ManualSeed(3)
	if err := lora.Attach(m, lora.Config{Rank: 2}.Complete()); err != nil {
		t.Fatal(err)
	}
	var downs []torch.Tensor
	for _, a := range lora.Adapters(m) {
		torch.NoGrad(func() { a.B.Tensor.Copy(torch.Ones(a.B.Shape, torch.Float32, torch.CPU)) })
		downs = append(downs, a.A.Tensor.RequireGrad(true))
	}
	torch.WithGrad(func() {
		hidden := model.Hidden(m, model.Sequence{IDs: all}).Squeeze(0)
		r.loss, _ = m.Head().Loss(hidden, torch.From(ids, len(ids)), torch.Loss{})
		r.loss.Backward()
	})
	r.loss = r.loss.Detach()
	var grads []torch.Tensor
	for _, a := range downs {
		if g := a.Grad(); g.Defined() { // of an expert that a token reached
			grads = append(grads, g.View(-1))
		}
	}
	r.grad = torch.Cat(0, grads...)
	return r
}

// Experts of every layout stay in blocks and compute what their values compute: in a pass over a
// text, in a step, and beside adapters that are trained.
func TestExperts_StayInBlocks(t *testing.T) {
	for _, folder := range []string{"mixtral/testdata/plain", "qwen3moe/testdata/plain",
		"granitemoe/testdata/plain", "nemotronh/testdata/experts"} {
		t.Run(folder, func(t *testing.T) {
			inTorch(t, func() {
				c, err := checkpoint.Open(quantizedExperts(t, folder))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				var got [2]results
				for i, source := range []model.TensorSource{model.InBlocks(c), c} {
					m, err := model.Declare(c)
					if err == nil {
						err = model.Load(m, source, torch.Float32, torch.CPU)
					}
					if err != nil {
						t.Fatal(err)
					}
					experts := 0
					nn.Linears(m, func(names []string, l *nn.Linear) {
						if l.Experts > 0 {
							experts++
							if l.Weight.Tensor.InBlocks() != (i == 0) {
								t.Errorf("%s in blocks: %v", names[0], i != 0)
							}
						}
					})
					if experts == 0 {
						t.Fatal("there are no experts")
					}
					got[i] = resultsOf(t, m)
					model.Free(m)
				}
				compare := func(what string, limit float64, a, b torch.Tensor) {
					t.Helper()
					off := torch.Item[float64](a.Sub(b).Abs().Max())
					if most := torch.Item[float64](b.Abs().Max()); !(off <= limit*most) {
						t.Errorf("%s: off by %g of %g", what, off, most)
					}
				}
				compare("a text", 0.05, got[0].text, got[1].text)
				compare("a step", 0.05, got[0].step, got[1].step)
				compare("loss", 1e-5, got[0].loss, got[1].loss)
				compare("gradients", 1e-4, got[0].grad, got[1].grad)
			})
		})
	}
}
