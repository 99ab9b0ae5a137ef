package generate

import (
	"errors"
	"math/rand/v2"
	"slices"
	"unsafe"

	"conquer/torch"
)

var errNotANumber = errors.New("the model's output is not a number: its weights are damaged, or their values do not fit " +
	"float16; try dtype bfloat16 or float32")

// plain reports whether the likeliest token is always taken as it is.
func (o Options) plain() bool {
	return o.Temperature == 0 && (o.RepetitionPenalty == 0 || o.RepetitionPenalty == 1)
}

// sampler chooses one row's tokens.
type sampler struct {
	options Options
	random  *rand.Rand
	known   []bool  // by id: is in seen
	seen    []int32 // the distinct tokens so far, kept where there is a repetition penalty
	kept    []candidate
}

type candidate struct {
	id int32
	p  float32
}

func newSampler(o Options, stream uint64, vocabulary int, prompt []int32) sampler {
	s := sampler{options: o, random: rand.New(rand.NewPCG(o.Seed, stream))}
	if o.RepetitionPenalty != 0 && o.RepetitionPenalty != 1 {
		s.known = make([]bool, vocabulary)
		for _, id := range prompt {
			s.saw(id)
		}
	}
	return s
}

// saw remembers a token for the repetition penalty.
func (s *sampler) saw(id int32) {
	if s.known != nil && !s.known[id] {
		s.known[id] = true
		s.seen = append(s.seen, id)
	}
}

// choose picks a token from logits [V], float32 on the CPU, which it changes.
func (s *sampler) choose(logits torch.Tensor) (int32, error) {
	values := floats(logits)
	penalty := float32(s.options.RepetitionPenalty)
	for _, id := range s.seen {
		if values[id] > 0 {
			values[id] /= penalty
		} else {
			values[id] *= penalty
		}
	}
	if s.options.Temperature == 0 {
		best, most := likeliest(values)
		if best < 0 || most != most {
			return 0, errNotANumber
		}
		return int32(best), nil
	}
	return s.draw(floats(logits.MulScalar(1 / s.options.Temperature).Softmax(-1)))
}

// floats is the memory of a contiguous float32 tensor on the CPU.
func floats(t torch.Tensor) []float32 {
	data := t.Data()
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(data))), len(data)/4)
}

// likeliest returns the index and value of the first largest value. A NaN in the list is returned instead.
func likeliest(values []float32) (int, float32) {
	best, most := -1, float32(0)
	for i, v := range values {
		if v != v {
			return i, v
		}
		if best < 0 || v > most {
			best, most = i, v
		}
	}
	return best, most
}

// draw picks an index with the probabilities p, which sum to 1, after the filters.
func (s *sampler) draw(p []float32) (int32, error) {
	_, most := likeliest(p)
	if !(most > 0) {
		return 0, errNotANumber
	}
	o := s.options
	if o.TopK == 0 && (o.TopP == 0 || o.TopP == 1) && o.MinP == 0 {
		return s.drawAny(p), nil
	}
	s.keep(p, most)
	total := 0.0
	for _, c := range s.kept {
		total += float64(c.p)
	}
	u := s.random.Float64() * total
	for _, c := range s.kept {
		if u -= float64(c.p); u < 0 {
			return c.id, nil
		}
	}
	return s.kept[len(s.kept)-1].id, nil
}

// drawAny draws from all of p. Sums over blocks find the block to look into.
func (s *sampler) drawAny(p []float32) int32 {
	const block = 1024
	sums := make([]float64, 0, len(p)/block+1)
	total := 0.0
	for part := range slices.Chunk(p, block) {
		var a, b, c, d float64
		for len(part) >= 4 {
			a, b, c, d = a+float64(part[0]), b+float64(part[1]), c+float64(part[2]), d+float64(part[3])
			part = part[4:]
		}
		for _, v := range part {
			a += float64(v)
		}
		sums = append(sums, a+b+c+d)
		total += a + b + c + d
	}
	u := s.random.Float64() * total
	last := 0
	for i, sum := range sums {
		if u >= sum && i < len(sums)-1 {
			u -= sum
			continue
		}
		for j, v := range p[i*block : min((i+1)*block, len(p))] {
			if v == 0 {
				continue
			}
			last = i*block + j
			if u -= float64(v); u < 0 {
				return int32(last)
			}
		}
	}
	return int32(last)
}

// keep puts into s.kept the tokens that pass top-k, top-p and min-p, likeliest first. Few tokens matter as a rule, so it
// looks at those above a threshold and lowers that until it is certain that no other can pass.
func (s *sampler) keep(p []float32, most float32) {
	o := s.options
	topP := o.TopP > 0 && o.TopP < 1
	for threshold := most / 1024; ; threshold /= 64 {
		if o.TopK == 0 && !topP {
			threshold = most * float32(o.MinP)
		}
		if threshold < 1e-30 {
			threshold = 0
		}
		s.kept = s.kept[:0]
		sum := 0.0
		for i, v := range p {
			if v >= threshold {
				s.kept = append(s.kept, candidate{int32(i), v})
				sum += float64(v)
			}
		}
		enough := true
		if o.TopK > 0 {
			enough = len(s.kept) >= o.TopK
		} else if topP {
			enough = sum >= o.TopP
		}
		if enough || threshold == 0 {
			break
		}
	}
	slices.SortFunc(s.kept, func(a, b candidate) int {
		switch {
		case a.p > b.p:
			return -1
		case a.p < b.p:
			return 1
		}
		return int(a.id) - int(b.id)
	})
	total := 1.0
	if o.TopK > 0 {
		n := min(o.TopK, len(s.kept))
		for n < len(s.kept) && s.kept[n].p == s.kept[n-1].p {
			n++
		}
		s.kept = s.kept[:n]
		total = 0
		for _, c := range s.kept {
			total += float64(c.p)
		}
	}
	if topP {
		before, n := 0.0, 0
		for n < len(s.kept) && before < o.TopP*total {
			before += float64(s.kept[n].p)
			n++
		}
		s.kept = s.kept[:n]
	}
	if o.MinP > 0 {
		n := len(s.kept)
		for n > 1 && s.kept[n-1].p < most*float32(o.MinP) {
			n--
		}
		s.kept = s.kept[:n]
	}
}
