package eval

import (
	"math"
	"strings"
	"testing"
)

// The fact is at its depth, once, and the text is as long as it may be.
func TestProbe_TextsHaveTheirLengthAndDepth(t *testing.T) {
	lm := newLM(t, "llama")
	lm.MaxLength = 4000
	for _, kind := range Kinds {
		p := Probe{Kind: kind, Seed: 1}
		facts := map[string]bool{}
		for repeat := range 5 {
			text := p.text(repeat)
			facts[text.fact] = true
			for _, length := range []int{500, 2000} {
				for _, depth := range []float64{0, 30, 100} {
					pair, err := lm.hide(p, text, length, depth)
					if err != nil {
						t.Fatal(err)
					}
					before, after, err := lm.split(pair)
					if err != nil {
						t.Fatal(err)
					}
					if n := len(before) + len(after); n > length || n < length-120 {
						t.Errorf("%s: %d tokens, want %d", kind, n, length)
					}
					body := strings.TrimSuffix(pair.Context, text.question)
					at := strings.Index(body, text.fact)
					place := 100 * float64(at) / float64(len(body)-len(text.fact))
					if strings.Count(pair.Context, text.fact) != 1 || math.Abs(place-depth) > 9 {
						t.Errorf("%s of %d tokens: the fact is at %.0f %%, want %.0f", kind, length,
							place, depth)
					}
				}
			}
		}
		if len(facts) < 4 {
			t.Errorf("%s: five repeats have %d facts", kind, len(facts))
		}
	}
}

func TestProbe_CountsWhatIsAsked(t *testing.T) {
	lm := newLM(t, "bamba")
	asked := 0
	recalls, err := lm.Probe(t.Context(), Probe{Kind: "passkey", Lengths: []int{200, 260},
		Depths: []float64{0, 50, 100}, Repeats: 2}, func(n, total int) { asked = n })
	if err != nil {
		t.Fatal(err)
	}
	if len(recalls) != 6 || asked != 12 {
		t.Errorf("%d cells, %d questions", len(recalls), asked)
	}
	for _, r := range recalls {
		if r.Asked != 2 || r.Found > 2 || !(r.LogLikelihood < 0) {
			t.Errorf("got %+v", r)
		}
	}
	for _, p := range []Probe{{Kind: "thread"}, {Kind: "needle", Lengths: []int{1 << 20}},
		{Kind: "needle", Lengths: []int{5}, Depths: []float64{0}, Repeats: 1},
		{Kind: "needle", Lengths: []int{200}, Depths: []float64{101}, Repeats: 1}} {
		if _, err := lm.Probe(t.Context(), p, nil); err == nil {
			t.Errorf("%+v: no error", p)
		}
	}
}
