package generate_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"conquer/generate"
)

func TestRules_HoldInEveryStep(t *testing.T) {
	m := tiny(t, nil)
	plain := mustGenerate(t, m, nil, prompts, generate.Options{MaxNewTokens: 24, IgnoreEOS: true})
	first := plain[0].Tokens
	o := generate.Options{MaxNewTokens: 24, EOS: []int32{first[2]}}
	if early := mustGenerate(t, m, nil, prompts[:1], o)[0]; len(early.Tokens) > 3 {
		t.Fatalf("%d tokens before the end", len(early.Tokens))
	}
	o.Rules = generate.Rules{MinNewTokens: 9}
	for _, compile := range []generate.Compile{generate.CompileNone, generate.CompileGraph} {
		for _, noCache := range []bool{false, true} {
			o := o
			o.Compile, o.NoCache = compile, noCache
			late := mustGenerate(t, m, nil, prompts[:1], o)[0]
			if at := slices.Index(late.Tokens, first[2]); at >= 0 && at < 9 {
				t.Errorf("%s: token %d ends the text", compile, at)
			}
			o.Rules = generate.Rules{NoRepeatNGram: 2, Suppress: first[:1],
				BeginSuppress: first[1:2], BadWords: [][]int32{{first[3]}}}
			for i, r := range mustGenerate(t, m, nil, prompts, o) {
				ids := slices.Concat(prompts[i], r.Tokens)
				seen := map[[2]int32]int{}
				for j := range ids[1:] {
					pair := [2]int32{ids[j], ids[j+1]}
					if seen[pair]++; seen[pair] > 1 && j+1 >= len(prompts[i]) {
						t.Errorf("prompt %d: %v occurs twice in %v", i, pair, ids)
					}
				}
				if slices.Contains(r.Tokens, first[0]) || r.Tokens[0] == first[1] ||
					slices.Contains(r.Tokens, first[3]) {
					t.Errorf("prompt %d: a suppressed token is in %v", i, r.Tokens)
				}
			}
		}
	}
}

func TestRules_RefuseWhatCannotHold(t *testing.T) {
	m := tiny(t, nil)
	all := make([]int32, 700)
	for i := range all {
		all[i] = int32(i)
	}
	for want, rules := range map[string]generate.Rules{
		"0 to 699":           {BadWords: [][]int32{{700}}},
		"is empty":           {BadWords: [][]int32{{}}},
		"0 or more":          {MinLength: -1},
		"the token id -1":    {Suppress: []int32{-1}},
		"forbid every token": {Suppress: all},
	} {
		for _, temperature := range []float64{0, 1} {
			_, _, err := generate.Generate(context.Background(), m, nil, prompts[:1],
				generate.Options{MaxNewTokens: 2, Temperature: temperature, Rules: rules}, nil)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: error %v", rules, err)
			}
		}
	}
	mustGenerate(t, m, nil, prompts[:1], generate.Options{MaxNewTokens: 2,
		Rules: generate.Rules{Suppress: []int32{9999}}})
}
