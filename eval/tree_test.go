package eval

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Every predicted token of every sequence is a target once, after the tokens before it.
func TestGrow_CoversEachPredictedTokenOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var sequences []sequence
		for i := range 1 + r.IntN(12) {
			tokens := make([]int32, 2+r.IntN(40))
			for k := range tokens {
				tokens[k] = int32(r.IntN(2))
				if r.IntN(4) > 0 {
					tokens[k] = 0 // long common beginnings
				}
			}
			sequences = append(sequences, sequence{i, tokens, 1 + r.IntN(len(tokens)-1)})
		}
		got := make([][]int32, len(sequences))
		read := 0
		var walk func(nodes []*node, before []int32)
		walk = func(nodes []*node, before []int32) {
			for _, n := range nodes {
				path := append(slices.Clone(before), n.tokens...)
				if n.start != len(before) || len(n.tokens) == 0 {
					t.Fatalf("a node of %d tokens begins at %d after %d", len(n.tokens), n.start,
						len(before))
				}
				read += len(n.tokens)
				for _, s := range n.spans {
					whole := sequences[s.request].tokens
					at := n.start + s.first + 1
					if !slices.Equal(whole[:at], path[:at]) {
						t.Fatalf("request %d is predicted after other tokens", s.request)
					}
					got[s.request] = append(got[s.request], s.targets...)
				}
				walk(n.children, path)
			}
		}
		walk(grow(sequences), nil)
		total := 0
		for i, s := range sequences {
			if want := s.tokens[len(s.tokens)-s.predicted:]; !slices.Equal(got[i], want) {
				t.Fatalf("request %d: targets %v, want %v", i, got[i], want)
			}
			total += len(s.tokens) - 1
		}
		if read > total {
			t.Fatalf("%d tokens are read, the sequences have %d", read, total)
		}
	}
}

func TestGrow_ReadsACommonContextOnce(t *testing.T) {
	context := slices.Repeat([]int32{7, 8, 9}, 10)
	var sequences []sequence
	for i := range 4 {
		tokens := append(slices.Clone(context), int32(i), 5, 6)
		sequences = append(sequences, sequence{i, tokens, 3})
	}
	nodes := grow(sequences)
	if len(nodes) != 1 || len(nodes[0].tokens) != 30 || len(nodes[0].children) != 4 {
		t.Fatalf("the trees are %+v", nodes)
	}
	for _, c := range nodes[0].children {
		if len(c.tokens) != 2 {
			t.Errorf("a continuation reads %d tokens, want 2", len(c.tokens))
		}
	}
}
