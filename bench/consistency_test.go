package bench

import (
	"context"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	_ "conquer/bamba"
	_ "conquer/llama"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// randomModel makes a small model with large random weights, whose logits differ by position.
func randomModel(t *testing.T, architecture, variant string, dtype torch.DType) model.Model {
	t.Helper()
	config, err := model.Variant(architecture, variant)
	if err != nil {
		t.Fatal(err)
	}
	config["vocab_size"], config["initializer_range"] = 300.0, 0.2
	if architecture == "llama" {
		config["initializer_range"] = 0.05
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { model.Free(m) })
	err = torch.Run(func() error {
		torch.ManualSeed(7)
		model.Initialize(m, dtype, torch.CPU)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func randomIDs(n int) []int32 {
	random := rand.New(rand.NewPCG(5, 6))
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = random.Int32N(300)
	}
	return ids
}

func consistency(t *testing.T, o ConsistencyOptions) (rows []ConsistencyRow) {
	t.Helper()
	err := RunConsistency(context.Background(), o, func(row ConsistencyRow, _ int) {
		rows = append(rows, row)
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// What float32 and bfloat16 may differ by from float64, in every way that computes the same: the
// largest difference of a logit over the logits' standard deviation, and the mean KL in nats.
func TestConsistency_EveryWayAgreesWithFloat64(t *testing.T) {
	for dtype, bound := range map[torch.DType]struct{ logit, kl float64 }{
		torch.Float32:  {1e-4, 1e-10},
		torch.BFloat16: {0.25, 2e-3},
	} {
		for _, kind := range [][2]string{{"bamba", "tiny"}, {"mamba2", "tiny"},
			{"llama", "micro"}} {
			o := ConsistencyOptions{Model: randomModel(t, kind[0], kind[1], dtype),
				IDs: randomIDs(150), Pieces: []int{1, 7, 64, 149}, Before: 9, Batches: []int{1, 3},
				States: []torch.DType{torch.Float32, torch.BFloat16}, Chunks: []int{16, 128},
				Strategies: strategies(t, "independent-optimized", "windowed:9")}
			rows := consistency(t, o)
			ways := map[string]bool{}
			for _, r := range rows {
				ways[r.Way] = true
				relative := r.LogitMax / r.LogitScale
				t.Logf("%s %v %s %d %s %d state %s: %.1e of the scale, KL %.1e, %d differ", kind[0],
					dtype, r.Way, r.Piece, r.Strategy, r.ChunkSize, r.State, relative, r.KLMean,
					r.Differing)
				if r.Failed != "" || r.Length != 150 || len(r.Curve) < 10 ||
					r.Curve[len(r.Curve)-1].Position != 149 {
					t.Errorf("%+v", r)
				}
				switch {
				case strings.HasPrefix(r.Strategy, statespace.Independent):
					if !(r.KLMean > 1e-4) {
						t.Errorf("independent differs by a KL of %g only", r.KLMean)
					}
				case r.State == "bfloat16" && dtype == torch.Float32:
					if !(relative > bound.logit && relative < 0.1 && r.KLMean < 1e-3) {
						t.Errorf("%s with 16-bit states: %g of the scale, KL %g", r.Way, relative,
							r.KLMean)
					}
				case !(relative > 0 && relative < bound.logit && r.KLMean < bound.kl):
					t.Errorf("%s %v %s: %g of the scale, KL %g", kind[0], dtype, r.Way, relative,
						r.KLMean)
				}
			}
			if len(ways) != 6 {
				t.Errorf("%s was run in the ways %v", kind[0], ways)
			}
		}
	}
}

func TestConsistencyRow_SummarizesPositions(t *testing.T) {
	kl, logit := make([]float64, 100), make([]float64, 100)
	kl[40], kl[41], logit[99], kl[7] = 4, 2, 3, -1e-18
	var r ConsistencyRow
	r.summarize(kl, logit)
	if math.Abs(r.KLMean-0.06) > 1e-12 || r.KLMax != 4 || r.KLMaxAt != 40 || r.LogitMax != 3 ||
		r.LogitMaxAt != 99 {
		t.Errorf("%+v", r)
	}
	last, sum := -1, 0.0
	for _, p := range r.Curve {
		sum += p.KL * float64(p.Position-last)
		last = p.Position
	}
	if last != 99 || math.Abs(sum-6) > 1e-9 {
		t.Errorf("the curve %v", r.Curve)
	}
	kl[3] = math.NaN()
	if r.summarize(kl, logit); !strings.Contains(r.Failed, "position 3") {
		t.Errorf("NaN: %+v", r)
	}
}

func TestConsistencyOptions_Check(t *testing.T) {
	m := randomModel(t, "bamba", "tiny", torch.Float32)
	good := ConsistencyOptions{Model: m, IDs: randomIDs(10), Before: 1}
	for want, change := range map[string]func(*ConsistencyOptions){
		"fewer than two":  func(o *ConsistencyOptions) { o.IDs = o.IDs[:1] },
		"decode is 10":    func(o *ConsistencyOptions) { o.Decoded = 10 },
		"padding is 0":    func(o *ConsistencyOptions) { o.Before = 0 },
		"a piece is 0":    func(o *ConsistencyOptions) { o.Pieces = []int{4, 0} },
		"chunk size 15":   func(o *ConsistencyOptions) { o.Chunks = []int{15} },
		"must hold 99999": func(o *ConsistencyOptions) { o.Before = 999999 },
		"is 300, but":     func(o *ConsistencyOptions) { o.IDs = []int32{1, 300} },
	} {
		o := good
		change(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
	}
}
