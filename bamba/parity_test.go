package bamba_test

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"conquer/checkpoint"
	"conquer/generate"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// The folders that tools/fixtures/bamba.py wrote hold the results of transformers. BAMBA_PARITY
// names other fixtures; each model there is also saved again, in a folder "exported" within its
// own, for transformers to read.
func TestModel_LogitsAndGreedyTextAgreeWithTransformers(t *testing.T) {
	root, export := "testdata", false
	if dir := os.Getenv("BAMBA_PARITY"); dir != "" {
		root, export = dir, true
	}
	files, err := filepath.Glob(filepath.Join(root, "*", "expected.safetensors"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures in %s: %v", root, err)
	}
	for _, file := range files {
		folder := filepath.Dir(file)
		t.Run(filepath.Base(folder), func(t *testing.T) {
			m := open(t, folder)
			compare(t, m, file)
			if export {
				config, err := json.Marshal(m.Config())
				if err == nil {
					err = checkpoint.Save(filepath.Join(folder, "exported"), model.Weights(m),
						checkpoint.Options{Config: config})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func open(t *testing.T, folder string) statespace.Chunked {
	t.Helper()
	m, err := model.Open(folder, torch.Float32, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { model.Free(m) })
	return m.(statespace.Chunked)
}

func fresh(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// cuts divides length tokens at random places, with single tokens among the parts.
func cuts(r *rand.Rand, length int) (parts [][2]int) {
	for start := 0; start < length; {
		size := 1
		if r.IntN(2) == 0 {
			size += r.IntN(length - start)
		}
		parts = append(parts, [2]int{start, size})
		start += size
	}
	return parts
}

func compare(t *testing.T, m statespace.Chunked, expected string) {
	r := fresh(t)
	var prompts [][]int32
	want := map[string]torch.Tensor{}
	var greedy, shortGreedy []int32
	err := torch.Run(func() error {
		c, err := checkpoint.Open(expected)
		if err != nil {
			return err
		}
		defer c.Close()
		for _, name := range []string{"ids", "logits", "greedy", "short_logits", "short_greedy"} {
			if want[name], err = c.Tensor(name); err != nil {
				return err
			}
		}
		ids := want["ids"]
		length, short := ids.Size(1), want["short_logits"].Size(0)
		flat := torch.Values[int32](ids)
		prompts = [][]int32{flat[:length], flat[length:]}
		greedy, shortGreedy = torch.Values[int32](want["greedy"]),
			torch.Values[int32](want["short_greedy"])
		torch.NoGrad(func() {
			for _, optimized := range []bool{true, false} {
				if err := m.SetChunking(statespace.Chunking{Strategy: statespace.Default,
					Optimized: optimized}); err != nil {
					t.Fatal(err)
				}
				near(t, m.Chunking().String()+" at once",
					model.Logits(m, model.Sequence{IDs: ids}), want["logits"])
				for range 3 {
					parts := cuts(r, length)
					near(t, m.Chunking().String()+" in parts", inParts(m, ids, nil, parts),
						want["logits"])
				}
			}
			// The second row begins later. Its result must be as if it were alone, whatever the
			// parts.
			starts := []int{0, length - short}
			for _, parts := range [][][2]int{{{0, length}}, cuts(r, length), cuts(r, length)} {
				got := inParts(m, ids, starts, parts)
				near(t, "the row that is not padded", got.Select(0, 0), want["logits"].Select(0, 0))
				near(t, "the padded row", got.Select(0, 1).Narrow(0, length-short, short),
					want["short_logits"])
			}
			// Both are packed into one row, as in training.
			packed := torch.Cat(0, ids.Select(0, 0),
				ids.Select(0, 1).Narrow(0, length-short, short)).Unsqueeze(0)
			segments, positions := make([]int64, length+short), make([]int64, length+short)
			for i := range segments {
				segments[i], positions[i] = 1, int64(i)
				if i >= length {
					segments[i], positions[i] = 2, int64(i-length)
				}
			}
			got := model.Logits(m, model.Sequence{IDs: packed,
				Segments:  torch.From(segments, 1, len(segments)),
				Positions: torch.From(positions, 1, len(positions)), Limit: length})
			near(t, "packed, first", got.Select(0, 0).Narrow(0, 0, length),
				want["logits"].Select(0, 0))
			near(t, "packed, second", got.Select(0, 0).Narrow(0, length, short),
				want["short_logits"])
		})
		prompts = append(prompts, prompts[1][length-short:])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	count := len(shortGreedy)
	results, _, err := generate.Generate(context.Background(), m, nil, prompts,
		generate.Options{MaxNewTokens: count}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, tokens := range [][]int32{greedy[:count], greedy[count:], shortGreedy} {
		if !slices.Equal(results[i].Tokens, tokens) {
			t.Errorf("greedy tokens of prompt %d: %v, transformers' %v", i, results[i].Tokens,
				tokens)
		}
	}
}

// inParts runs ids [B,L] through a cache part by part and returns all logits [B,L,V].
func inParts(m model.Model, ids torch.Tensor, starts []int, parts [][2]int) torch.Tensor {
	cache := m.NewCache(ids.Size(0), ids.Size(1), torch.Float32, torch.CPU)
	defer cache.Free()
	cache.Starts = starts
	var got []torch.Tensor
	for _, part := range parts {
		got = append(got, model.Logits(m, model.Sequence{IDs: ids.Narrow(1, part[0], part[1]),
			Cache: cache}))
	}
	return torch.Cat(1, got...)
}

// near holds got to want within 1e-4 of the largest logit.
func near(t *testing.T, how string, got, want torch.Tensor) {
	t.Helper()
	if !slices.Equal(got.Shape(), want.Shape()) {
		t.Fatalf("%s: logits %v, want %v", how, got, want)
	}
	a, b := torch.Values[float64](got), torch.Values[float64](want)
	largest, worst := 0.0, 0.0
	for i := range b {
		largest = max(largest, math.Abs(b[i]))
		worst = max(worst, math.Abs(a[i]-b[i]))
	}
	if t.Logf("%s: off by %.1e of the largest logit", how,
		worst/largest); !(worst <= 1e-4*largest) {
		t.Errorf("%s: logits are off by %.1e of the largest", how, worst/largest)
	}
}
