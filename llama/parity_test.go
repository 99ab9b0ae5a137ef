package llama_test

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"testing"

	"conquer/checkpoint"
	"conquer/generate"
	_ "conquer/llama"
	"conquer/model"
	"conquer/torch"
)

// The folders that tools/fixtures/llama.py wrote hold what transformers computed. LLAMA_PARITY names another place to look.
func TestLogitsAndGreedyTextAgreeWithTransformers(t *testing.T) {
	root := "testdata"
	if dir := os.Getenv("LLAMA_PARITY"); dir != "" {
		root = dir
	}
	folders, err := filepath.Glob(filepath.Join(root, "*", "expected.safetensors"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("no fixtures in %s: %v", root, err)
	}
	for _, file := range folders {
		folder := filepath.Dir(file)
		t.Run(filepath.Base(folder), func(t *testing.T) { compare(t, folder, file) })
	}
}

func compare(t *testing.T, folder, expected string) {
	m, err := model.Open(folder, torch.Float32, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	var ids, greedy []int32
	err = torch.Run(func() error {
		c, err := checkpoint.Open(expected)
		if err != nil {
			return err
		}
		defer c.Close()
		tensors := map[string]torch.Tensor{}
		for _, name := range []string{"ids", "logits", "greedy"} {
			if tensors[name], err = c.Tensor(name); err != nil {
				return err
			}
		}
		ids, greedy = torch.Values[int32](tensors["ids"]), torch.Values[int32](tensors["greedy"])
		torch.NoGrad(func() {
			want := torch.Values[float32](tensors["logits"])
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			near(t, "at once", torch.Values[float32](model.Logits(m, model.Sequence{IDs: input})), want)

			cache := m.NewCache(1, len(ids), torch.Float32, torch.CPU)
			defer cache.Free()
			var got []float32
			for _, part := range [][2]int{{0, 9}, {9, 1}, {10, 6}, {16, 1}, {17, 1}, {18, 2}} {
				piece := input.Narrow(1, part[0], part[1])
				got = append(got, torch.Values[float32](model.Logits(m, model.Sequence{IDs: piece, Cache: cache}))...)
			}
			near(t, "piece by piece through the cache", got, want)
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	results, _, err := generate.Generate(context.Background(), m, nil, [][]int32{ids, ids[3:]}, generate.Options{MaxNewTokens: len(greedy)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range greedy {
		if results[0].Tokens[i] != id {
			t.Fatalf("greedy tokens %v, transformers' %v", results[0].Tokens, greedy)
		}
	}
}

// near holds got to want within 1e-4 of the largest logit.
func near(t *testing.T, how string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d logits, want %d", how, len(got), len(want))
	}
	largest, worst := 0.0, 0.0
	for i := range want {
		largest = math.Max(largest, math.Abs(float64(want[i])))
		if d := math.Abs(float64(got[i] - want[i])); !(d <= worst) {
			worst = d
		}
	}
	if !(worst <= 1e-4*largest) {
		t.Errorf("%s: logits are off by %.3g of the largest", how, worst/largest)
	}
}
