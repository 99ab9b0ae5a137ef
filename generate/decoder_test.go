package generate_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"

	"conquer/bamba"
	"conquer/generate"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// hybrid returns a random model with state-space and attention layers.
func hybrid(t testing.TB) model.Model {
	t.Helper()
	config, err := model.Variant("bamba", "tiny")
	if err != nil {
		t.Fatal(err)
	}
	config["vocab_size"], config["initializer_range"] = 700.0, 0.4
	m, err := bamba.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return initialized(t, m)
}

// On the CPU, CompileGraph runs the code of a recorded step without recording it.
func TestDecoder_RecordedStepsGiveTheSameTokens(t *testing.T) {
	models := map[string]model.Model{
		"llama": tiny(t, nil), "window": tiny(t, model.Config{"model_type": "mistral",
			"sliding_window": 5.0}), "hybrid": hybrid(t),
	}
	for name, m := range models {
		for _, o := range []generate.Options{
			{}, {RepetitionPenalty: 1.4}, {Temperature: 0.9, Seed: 3}, {Temperature: 1.2, TopK: 30,
				Seed: 4},
			{Temperature: 1, TopP: 0.8, Seed: 5}, {Temperature: 1.5, TopK: 200, TopP: 0.7,
				MinP: 0.02, RepetitionPenalty: 1.2, Seed: 6},
			{Temperature: 1, MinP: 0.1, Seed: 7},
		} {
			o.MaxNewTokens, o.IgnoreEOS, o.Compile = 24, true, generate.CompileNone
			for _, batch := range [][][]int32{prompts, prompts[:1]} {
				want := mustGenerate(t, m, nil, batch, o)
				recorded := o
				recorded.Compile = generate.CompileGraph
				for i, r := range mustGenerate(t, m, nil, batch, recorded) {
					if !slices.Equal(r.Tokens, want[i].Tokens) || r.Finish != want[i].Finish {
						t.Errorf("%s %+v, prompt %d of %d: recorded %v (%s), one by one %v (%s)",
							name, o, i, len(batch), r.Tokens, r.Finish, want[i].Tokens,
							want[i].Finish)
					}
				}
			}
		}
	}
}

func TestDecoder_RecordedStepsEndWithTheText(t *testing.T) {
	m, tok := tiny(t, nil), smollm(t)
	plain := mustGenerate(t, m, tok, prompts, generate.Options{MaxNewTokens: 30, IgnoreEOS: true,
		Compile: generate.CompileNone})
	for _, o := range []generate.Options{
		{MaxNewTokens: 30, EOS: plain[0].Tokens[4:5]}, {MaxNewTokens: 1, IgnoreEOS: true},
		{MaxNewTokens: 2, IgnoreEOS: true},
		{MaxNewTokens: 200, IgnoreEOS: true}, {MaxNewTokens: 30, IgnoreEOS: true,
			Stop: []string{plain[0].Text[3:5]}},
	} {
		o.Compile = generate.CompileNone
		want := mustGenerate(t, m, tok, prompts, o)
		o.Compile = generate.CompileGraph
		for i, r := range mustGenerate(t, m, tok, prompts, o) {
			if fmt.Sprint(r) != fmt.Sprint(want[i]) {
				t.Errorf("%+v, prompt %d: recorded %+v, one by one %+v", o, i, r, want[i])
			}
		}
	}
}

// The cache is one step past the token that ended the last turn.
func TestSession_ContinuesRecordedSteps(t *testing.T) {
	for name, m := range map[string]model.Model{"llama": tiny(t, nil), "hybrid": hybrid(t)} {
		sampled := generate.Options{MaxNewTokens: 12, Temperature: 0.8, Seed: 2, IgnoreEOS: true}
		for _, o := range []generate.Options{
			{MaxNewTokens: 12}, {MaxNewTokens: 9, IgnoreEOS: true}, sampled,
		} {
			run := func(compile generate.Compile) (all [][]int32) {
				s := generate.NewSession(m, nil)
				defer s.Close()
				ids := slices.Clone(prompts[0])
				for turn := range 4 {
					o := o
					o.Compile = compile
					if !o.IgnoreEOS {
						o.EOS = []int32{int32(100 + turn), 511, 3, 17, 42, 68, 99, 210, 305, 404,
							602}
					}
					r, _, err := s.Generate(context.Background(), ids, o, nil)
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, r.Tokens)
					ids = append(append(ids, r.Tokens...), int32(30+turn))
				}
				return all
			}
			want, got := run(generate.CompileNone), run(generate.CompileGraph)
			if fmt.Sprint(want) != fmt.Sprint(got) {
				t.Errorf("%s %+v: recorded %v, one by one %v", name, o, got, want)
			}
		}
	}
}

func TestDecoder_ReportsLogitsThatAreNaN(t *testing.T) {
	m := tiny(t, nil)
	if err := torch.Run(func() error {
		m.Head().Tensor.Copy(torch.Full([]int{1}, math.NaN(), torch.Float32, torch.CPU))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, temperature := range []float64{0, 1} {
		o := generate.Options{MaxNewTokens: 4, Temperature: temperature,
			Compile: generate.CompileGraph}
		_, _, err := generate.Generate(context.Background(), m, nil, prompts, o, nil)
		if err == nil {
			t.Error("NaN logits gave a text")
		}
	}
}

func TestDecoder_KeepsAnInterruptedText(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var tok *tokenizer.Tokenizer = smollm(t)
	pieces := 0
	results, _, err := generate.Generate(ctx, tiny(t, nil), tok, prompts[:1],
		generate.Options{MaxNewTokens: 40, IgnoreEOS: true, Compile: generate.CompileGraph},
		func(int, string) {
			if pieces++; pieces == 5 {
				cancel()
			}
		})
	if err == nil || len(results) != 1 || results[0].Finish != generate.FinishInterrupted ||
		len(results[0].Tokens) < 5 {
		t.Errorf("%v, %+v", err, results)
	}
}

// A cache records why its steps are unfused. On the CPU, Stats do not report it.
func TestStats_SayWhyStepsAreUnfused(t *testing.T) {
	for name, m := range map[string]model.Model{"llama": tiny(t, nil), "hybrid": hybrid(t)} {
		const want = "it takes bfloat16 and float16, not float32"
		for _, rows := range []int{1, 3} {
			err := torch.Run(func() error {
				torch.NoGrad(func() {
					cache := m.NewCache(rows, 8, torch.Float32, torch.CPU)
					defer cache.Free()
					model.LastLogits(m, model.Sequence{IDs: torch.Zeros([]int{rows, 4}, torch.Int64,
						torch.CPU), Cache: cache})
					if cache.Fused || cache.UnfusedReason != "" {
						t.Errorf("%s, %d prompts: a prompt set the reason %q", name, rows,
							cache.UnfusedReason)
					}
					model.LastLogits(m, model.Sequence{IDs: torch.Zeros([]int{rows, 1}, torch.Int64,
						torch.CPU), Cache: cache})
					if cache.Fused || cache.UnfusedReason != want {
						t.Errorf("%s, %d prompts: %q, expected %q", name, rows, cache.UnfusedReason,
							want)
					}
				})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		_, stats, err := generate.Generate(context.Background(), m, nil, prompts,
			generate.Options{MaxNewTokens: 3, IgnoreEOS: true}, nil)
		if err != nil || stats.Fused || stats.UnfusedReason != "" {
			t.Errorf("%s: %v, %+v", name, err, stats)
		}
	}
}
