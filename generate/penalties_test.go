package generate_test

import (
	"math"
	"slices"
	"testing"

	"conquer/generate"
	"conquer/model"
	"conquer/torch"
)

// Each token is the argmax of the model's logits after the penalties and biases, which are computed
// here from a pass over the whole text, and the log-probabilities are those of the same pass before
// them. All ways to run the model agree.
func TestGenerate_PenaltiesBiasesAndLogprobs(t *testing.T) {
	m := tiny(t, nil)
	o := generate.Options{MaxNewTokens: 30, IgnoreEOS: true, PresencePenalty: 1.5,
		FrequencyPenalty: 0.75, LogitBias: map[int32]float64{7: 3, 300: -100, 12: 2.5},
		Logprobs: true, TopLogprobs: 3}
	results := mustGenerate(t, m, nil, prompts, o)
	for i, r := range results {
		text := slices.Concat(prompts[i], r.Tokens)
		logits := make([][]float32, len(text))
		if err := torch.Run(func() error {
			ids := torch.From(text, 1, len(text)).To(torch.Int64)
			all := model.Logits(m, model.Sequence{IDs: ids})
			for k := range text {
				logits[k] = torch.Values[float32](all.Select(1, k))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		counts := map[int32]float64{}
		for k, id := range r.Tokens {
			before := logits[len(prompts[i])+k-1]
			best, most, sum := -1, math.Inf(-1), 0.0
			for v, x := range before {
				sum += math.Exp(float64(x))
				score := float64(x) + o.LogitBias[int32(v)] - 0.75*counts[int32(v)]
				if counts[int32(v)] > 0 {
					score -= 1.5
				}
				if score > most {
					best, most = v, score
				}
			}
			if int32(best) != id {
				t.Fatalf("prompt %d, token %d is %d, expected %d", i, k, id, best)
			}
			counts[id]++
			p := r.Logprobs[k]
			want := float64(before[id]) - math.Log(sum)
			if p.ID != id || math.Abs(p.Logprob-want) > 1e-4 || len(p.Top) != 3 ||
				p.Top[0].Logprob < p.Logprob || p.Top[1].Logprob > p.Top[0].Logprob {
				t.Fatalf("prompt %d, token %d: %+v, expected %v", i, k, p, want)
			}
		}
	}
	for _, more := range []generate.Options{{NoCache: true}, {Compile: generate.CompileGraph}} {
		o.NoCache, o.Compile = more.NoCache, more.Compile
		for i, r := range mustGenerate(t, m, nil, prompts, o) {
			if !slices.Equal(r.Tokens, results[i].Tokens) {
				t.Errorf("%+v: %v, expected %v", more, r.Tokens, results[i].Tokens)
			}
		}
	}
}
