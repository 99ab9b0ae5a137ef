package eval

import (
	"context"
	"math"
	"strings"
	"testing"

	_ "conquer/families"
	"conquer/generate"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// newLM makes a small random model over characters.
func newLM(t *testing.T, architecture string) *LM {
	t.Helper()
	config := model.Config{"model_type": "llama", "hidden_size": 48.0, "intermediate_size": 96.0,
		"num_hidden_layers": 2.0, "num_attention_heads": 6.0, "num_key_value_heads": 2.0,
		"max_position_embeddings": 512.0}
	if architecture == "bamba" {
		var err error
		if config, err = model.Variant("bamba", "tiny"); err != nil {
			t.Fatal(err)
		}
	}
	config["vocab_size"], config["initializer_range"] = 256.0, 0.3
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	err = torch.Run(func() error {
		torch.ManualSeed(3)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { model.Free(m) })
	tok, err := tokenizer.Open(tokenizer.CharTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	lm, err := NewLM(m, tok)
	if err != nil {
		t.Fatal(err)
	}
	lm.MaxLength = min(lm.MaxLength, 300)
	return lm
}

// pairs are questions behind shared examples, with choices that begin alike, repeat, or have one
// token.
func pairs() (list []Pair) {
	examples := strings.Repeat("What is two plus two? It is four. ", 3)
	for _, question := range []string{"Why is the sky blue?", "What do cows drink in summer?",
		"Who?", "What do cows eat?"} {
		for _, before := range []string{examples, ""} {
			for _, choice := range []string{" x", " because of the light", " because of the sea",
				" water", " water", " because"} {
				list = append(list, Pair{before + question, choice})
			}
		}
	}
	return append(list, Pair{"", "alone"}, Pair{strings.Repeat("long ", 90), "er"})
}

// Reading what requests share once, in batches, gives what one request at a time does, and what
// generate.Score computes.
func TestLM_SharedBeginningsChangeNothing(t *testing.T) {
	for _, architecture := range []string{"llama", "bamba"} {
		t.Run(architecture, func(t *testing.T) {
			lm := newLM(t, architecture)
			list := pairs()
			counted := 0
			shared, err := lm.Likelihoods(t.Context(), list, func(n int) { counted += n })
			if err != nil {
				t.Fatal(err)
			}
			if counted != len(list) {
				t.Errorf("%d of %d requests were reported", counted, len(list))
			}
			lm.Whole = true
			whole, err := lm.Likelihoods(t.Context(), list, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range list {
				if d := math.Abs(shared[i].Sum-whole[i].Sum) / -whole[i].Sum; !(d < 1e-5) ||
					shared[i].Greedy != whole[i].Greedy {
					t.Errorf("%q: %v, read as a whole %v", p, shared[i], whole[i])
				}
			}
			before, after, err := lm.split(list[1])
			if err != nil {
				t.Fatal(err)
			}
			scores, err := generate.Score(t.Context(), lm.model, append(before, after...))
			if err != nil {
				t.Fatal(err)
			}
			want := 0.0
			for _, nll := range scores.TokenNLL[len(scores.TokenNLL)-len(after):] {
				want -= nll
			}
			if math.Abs(shared[1].Sum-want) > -1e-5*want {
				t.Errorf("the sum is %v, generate.Score says %v", shared[1].Sum, want)
			}
			if shared[3] != shared[4] {
				t.Errorf("equal choices have %v and %v", shared[3], shared[4])
			}
		})
	}
}

// A small budget makes many passes of few texts; the results stay.
func TestLM_BatchesChangeNothing(t *testing.T) {
	lm := newLM(t, "llama")
	want, err := lm.Likelihoods(t.Context(), pairs(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tokens := range []int{1, 100, 1 << 20} {
		lm.BatchTokens = tokens
		got, err := lm.Likelihoods(t.Context(), pairs(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if math.Abs(got[i].Sum-want[i].Sum) > -1e-5*want[i].Sum {
				t.Errorf("with %d tokens request %d has %v, want %v", tokens, i, got[i], want[i])
			}
		}
	}
}

// A text is the sum of its windows, whose tokens are predicted once each.
func TestLM_RollingAddsUpWindows(t *testing.T) {
	lm := newLM(t, "llama")
	lm.MaxLength = 20
	text := "The keeper of the lighthouse counts the ships and writes down their names."
	sums, err := lm.Rolling(t.Context(), []string{text}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, predicted := 0.0, 0
	tokens := lm.encode(text)
	for _, w := range rollingWindows(tokens, lm.prefix, lm.MaxLength) {
		ids := append(append([]int32{}, w.before...), w.after...)
		if len(ids) > lm.MaxLength+1 {
			t.Fatalf("a window has %d tokens", len(ids))
		}
		s, err := generate.Score(t.Context(), lm.model, ids)
		if err != nil {
			t.Fatal(err)
		}
		for _, nll := range s.TokenNLL[len(ids)-1-len(w.after):] {
			want -= nll
			predicted++
		}
	}
	if predicted != len(tokens) || math.Abs(sums[0]-want) > -1e-5*want {
		t.Errorf("%v, want %v; %d of %d tokens are predicted", sums, want, predicted,
			len(tokens))
	}
}

// Generated texts end before the first stop string, and equal those of one prompt at a time.
func TestLM_GeneratesUntil(t *testing.T) {
	lm := newLM(t, "llama")
	prompts := []Prompt{{Text: "One short", MaxTokens: 12}, {Text: "Another prompt", MaxTokens: 12},
		{Text: "Third", MaxTokens: 9}}
	texts, err := lm.Generate(t.Context(), prompts, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range prompts {
		alone, err := lm.Generate(t.Context(), []Prompt{p}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if alone[0] != texts[i] {
			t.Errorf("%q in company, %q alone", texts[i], alone[0])
		}
		runes := []rune(alone[0])
		if len(runes) < 4 {
			continue
		}
		p.Until = []string{string(runes[2:4])}
		stopped, err := lm.Generate(t.Context(), []Prompt{p}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if want, _, _ := strings.Cut(alone[0], p.Until[0]); stopped[0] != want {
			t.Errorf("until %q the text is %q, want %q", p.Until[0], stopped[0], want)
		}
	}
}

func TestLM_ErrorsNameTheRequest(t *testing.T) {
	lm := newLM(t, "llama")
	for _, p := range []Pair{{"a context", ""}, {"a", strings.Repeat("x", 400)}} {
		if _, err := lm.Likelihoods(t.Context(), []Pair{p}, nil); err == nil {
			t.Errorf("%.20q: no error", p.Continuation)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lm.Likelihoods(ctx, pairs(), nil); err != context.Canceled {
		t.Errorf("after an interrupt the error is %v", err)
	}
}
