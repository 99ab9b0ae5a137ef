package generate

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// filtered applies the filters in the way of transformers' logits processors. It
// returns which tokens are left.
func filtered(p []float32, o Options) []bool {
	type token struct {
		id int
		p  float64
	}
	order := make([]token, len(p))
	for i, v := range p {
		order[i] = token{i, float64(v)}
	}
	slices.SortStableFunc(order, func(a, b token) int {
		switch {
		case a.p > b.p:
			return -1
		case a.p < b.p:
			return 1
		}
		return 0
	})
	keep := make([]bool, len(p))
	for i := range keep {
		keep[i] = true
	}
	drop := func(f func(rank int, t token) bool) {
		for rank, t := range order {
			if keep[t.id] && f(rank, t) {
				keep[t.id] = false
			}
		}
	}
	if o.TopK > 0 {
		kth := order[min(o.TopK, len(p))-1].p
		drop(func(_ int, t token) bool { return t.p < kth })
	}
	if o.TopP > 0 && o.TopP < 1 {
		total, before := 0.0, 0.0
		for _, t := range order {
			if keep[t.id] {
				total += t.p
			}
		}
		drop(func(rank int, t token) bool {
			out := rank > 0 && before >= o.TopP*total
			before += t.p
			return out
		})
	}
	if o.MinP > 0 {
		drop(func(rank int, t token) bool {
			return rank > 0 &&
				float32(t.p) < float32(o.MinP)*float32(order[0].p)
		})
	}
	return keep
}

func TestSampler_FiltersMatchTheirDefinition(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for trial := range 400 {
		p := make([]float32, 1+random.IntN(3000))
		sharp, sum := 12*random.Float64(), 0.0
		for i := range p {
			p[i] = float32(math.Exp(sharp * random.NormFloat64()))
			if trial%3 == 0 { // many ties, as with bfloat16 logits
				p[i] = float32(math.Exp(math.Round(2 * random.NormFloat64())))
			}
			sum += float64(p[i])
		}
		for i := range p {
			p[i] = float32(float64(p[i]) / sum)
		}
		o := Options{Temperature: 1, TopP: random.Float64(), MinP: random.Float64() / 10,
			TopK: random.IntN(len(p) + 2)}
		switch trial % 4 {
		case 0:
			o.TopP = 0
		case 1:
			o.TopK = 0
		case 2:
			o.MinP = 0
		}
		if o.TopK == 0 && o.TopP == 0 && o.MinP == 0 {
			continue
		}
		s := newSampler(o, 0, len(p), nil)
		_, most := argmax(p)
		s.keep(p, most)
		want := filtered(p, o)
		if trial%3 == 0 && o.TopP > 0 { // which of equally likely tokens are kept is not defined
			n := 0
			for _, k := range want {
				if k {
					n++
				}
			}
			if len(s.kept) != n {
				t.Fatalf("trial %d, %+v: kept %d, want %d", trial, o, len(s.kept), n)
			}
			continue
		}
		got := make([]bool, len(p))
		for _, c := range s.kept {
			got[c.id] = true
		}
		if !slices.Equal(got, want) {
			t.Fatalf("trial %d, %+v: kept %v", trial, o, s.kept)
		}
	}
}

func TestSampler_DrawsFollowTheProbabilities(t *testing.T) {
	p := []float32{0.5, 0, 0.25, 0.125, 0.125}
	for name, o := range map[string]Options{"all": {Temperature: 1}, "filtered": {Temperature: 1,
		TopK: 5}, "top-p": {Temperature: 1, TopP: 0.7}} {
		s := newSampler(o, 0, len(p), nil)
		counts := make([]float64, len(p))
		const draws = 40000
		for range draws {
			id, err := s.draw(p)
			if err != nil {
				t.Fatal(err)
			}
			counts[id]++
		}
		want := []float64{0.5, 0, 0.25, 0.125, 0.125}
		if o.TopP > 0 {
			want = []float64{2.0 / 3, 0, 1.0 / 3, 0, 0}
		}
		for i := range want {
			if math.Abs(counts[i]/draws-want[i]) > 0.01 {
				t.Errorf("%s: token %d came up in %.4f of the draws, want %.4f", name, i,
					counts[i]/draws, want[i])
			}
		}
	}
}

func TestStream_FindsStopStringsAcrossPieces(t *testing.T) {
	whole := "one two <stop> three"
	for cut := range len(whole) {
		for second := cut; second < len(whole); second++ {
			shown := ""
			s := &stream{stops: []string{"<stop>", "p>x"},
				emit: func(piece string) { shown += piece }}
			stopped := false
			for _, piece := range []string{whole[:cut], whole[cut:second], whole[second:]} {
				if stopped = s.take(piece); stopped {
					break
				}
			}
			if !stopped || shown != "one two " || s.text.String() != "one two " {
				t.Fatalf("cut at %d and %d: %q, stopped %v", cut, second, shown, stopped)
			}
		}
	}
}
