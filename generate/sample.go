package generate

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"unsafe"

	"conquer/text/grammar"
	"conquer/torch"
)

var errNotANumber = errors.New("the model's output is not a number: its weights are damaged, " +
	"or their values do not fit float16; try dtype bfloat16 or float32")

// leastTemperature is the lowest temperature that divides logits. A lower one would overflow
// float32, and its limit is the most likely token.
const leastTemperature = 1e-30

// mostLikely reports whether each token is the most likely one after the penalties.
func (o Options) mostLikely() bool { return o.Temperature < leastTemperature }

// greedy reports whether each token is the argmax of the model's logits.
func (o Options) greedy() bool {
	return o.mostLikely() && (o.RepetitionPenalty == 0 || o.RepetitionPenalty == 1) &&
		!o.needsHost()
}

// Repeats returns, for each prompt, the number of equal prompts before it.
func Repeats(prompts [][]int32) []int {
	seen := map[string]int{}
	repeats := make([]int, len(prompts))
	for i, prompt := range prompts {
		key := string(bytesOf(prompt))
		repeats[i] = seen[key]
		seen[key]++
	}
	return repeats
}

// bytesOf returns the ids in little-endian order.
func bytesOf(ids []int32) []byte {
	data, _ := binary.Append(nil, binary.LittleEndian, ids)
	return data
}

// newRandom returns the random numbers of a row. They depend on the seed, the number of the
// sample and the tokens of the prompt.
func newRandom(seed uint64, sample int, prompt []int32) *rand.Rand {
	key := binary.LittleEndian.AppendUint64(nil, seed)
	key = binary.LittleEndian.AppendUint64(key, uint64(sample))
	return rand.New(rand.NewChaCha8(sha256.Sum256(append(key, bytesOf(prompt)...))))
}

// sampler chooses the tokens of one row.
type sampler struct {
	options Options
	prompt  int // tokens of the prompt
	random  *rand.Rand
	known   []bool        // by id: the token is in seen
	seen    []int32       // distinct tokens so far, for a repetition penalty
	counts  map[int32]int // new tokens, for the other penalties
	kept    []candidate
	state   *grammar.State // of Options.Grammar
}

// candidate is a token that passed the filters, with its probability.
type candidate struct {
	id int32
	p  float32
}

func newSampler(o Options, sample, vocabulary int, prompt []int32) sampler {
	s := sampler{options: o, prompt: len(prompt), random: newRandom(o.Seed, sample, prompt)}
	if o.Grammar != nil {
		s.state = o.Grammar.Start()
	}
	if o.RepetitionPenalty != 0 && o.RepetitionPenalty != 1 {
		s.known = make([]bool, vocabulary)
		for _, id := range prompt {
			s.saw(id)
		}
	}
	return s
}

// made records a new token for the penalties.
func (s *sampler) made(id int32) {
	s.saw(id)
	if s.options.PresencePenalty != 0 || s.options.FrequencyPenalty != 0 {
		if s.counts == nil {
			s.counts = map[int32]int{}
		}
		s.counts[id]++
	}
}

// follow moves the grammar's state behind a new token.
func (s *sampler) follow(id int32) error {
	if s.state == nil {
		return nil
	}
	next, err := s.options.Grammar.Next(s.state, id)
	if err == nil && next == nil {
		err = errAllForbidden
	}
	s.state = next
	return err
}

// permit forbids the tokens that the grammar does not allow.
func (s *sampler) permit(values []float32) error {
	allowed, err := s.options.Grammar.Allowed(s.state)
	if err != nil {
		return err
	}
	none := float32(math.Inf(-1))
	var ends []float32
	for _, id := range s.options.EOS {
		if int(id) < len(values) {
			ends = append(ends, values[id])
		}
	}
	for i := range values {
		if allowed[i/64]&(1<<(i%64)) == 0 {
			values[i] = none
		}
	}
	k := 0
	for _, id := range s.options.EOS {
		if int(id) < len(values) {
			if values[id] = none; s.state.Accepts() {
				values[id] = ends[k]
			}
			k++
		}
	}
	return nil
}

// saw records a token for the repetition penalty.
func (s *sampler) saw(id int32) {
	if s.known != nil && !s.known[id] {
		s.known[id] = true
		s.seen = append(s.seen, id)
	}
}

// choose picks the token after ids from logits [V], float32 on the CPU. It overwrites them.
func (s *sampler) choose(logits torch.Tensor, ids []int32) (int32, error) {
	values := floats(logits)
	if err := s.weigh(values, ids); err != nil {
		return 0, err
	}
	if s.options.mostLikely() {
		best, most := argmax(values)
		if best < 0 || most != most {
			return 0, errNotANumber
		}
		return int32(best), nil
	}
	return s.draw(floats(logits.MulScalar(1 / s.options.Temperature).Softmax(-1)))
}

// weigh applies the penalties, the biases and the rules to the logits of the token after ids.
func (s *sampler) weigh(values []float32, ids []int32) error {
	penalty := float32(s.options.RepetitionPenalty)
	for _, id := range s.seen {
		if values[id] > 0 {
			values[id] /= penalty
		} else {
			values[id] *= penalty
		}
	}
	for id, n := range s.counts {
		values[id] -= float32(s.options.PresencePenalty + float64(n)*s.options.FrequencyPenalty)
	}
	for id, bias := range s.options.LogitBias {
		values[id] += float32(bias)
	}
	rules := s.options.Rules
	if s.state != nil {
		if err := s.permit(values); err != nil {
			return err
		}
	}
	if !rules.none() {
		rules.forbid(values, ids, s.prompt, s.options.EOS)
	}
	if !rules.none() || s.state != nil {
		if _, most := argmax(values); math.IsInf(float64(most), -1) {
			return errAllForbidden
		}
	}
	return nil
}

// floats returns the memory of a contiguous float32 tensor on the CPU.
func floats(t torch.Tensor) []float32 {
	data := t.Data()
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(data))), len(data)/4)
}

// argmax returns the index and value of the first largest value, or of the first NaN
// if there is one.
func argmax(values []float32) (int, float32) {
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

// draw samples an index from the probabilities p, which sum to 1, after the filters.
func (s *sampler) draw(p []float32) (int32, error) {
	_, most := argmax(p)
	if !(most > 0) {
		return 0, errNotANumber
	}
	if !s.options.filters() {
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

// drawAny samples from all of p. It sums p by blocks to find the block of the index.
func (s *sampler) drawAny(p []float32) int32 {
	const block = 1024
	sums := make([]float64, 0, len(p)/block+1)
	total := 0.0
	for part := range slices.Chunk(p, block) {
		var a, b, c, d float64
		for len(part) >= 4 {
			a, b, c, d = a+float64(part[0]), b+float64(part[1]), c+float64(part[2]),
				d+float64(part[3])
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

// keep puts the tokens that pass top-k, top-p and min-p into s.kept, most likely
// first. most is the largest probability.
func (s *sampler) keep(p []float32, most float32) {
	s.keepAbove(p, most)
	slices.SortFunc(s.kept, func(a, b candidate) int {
		switch {
		case a.p > b.p:
			return -1
		case a.p < b.p:
			return 1
		}
		return int(a.id) - int(b.id)
	})
	o := s.options
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
	if o.filtersTopP() {
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

// filters reports whether some tokens are dropped before sampling.
func (o Options) filters() bool { return o.TopK > 0 || o.filtersTopP() || o.MinP > 0 }

func (o Options) filtersTopP() bool { return o.TopP > 0 && o.TopP < 1 }

// keepAbove puts all tokens above a threshold into s.kept, in the order of their ids.
// Few tokens pass the filters as a rule, so it starts with a high threshold and lowers
// it until no other token can pass.
func (s *sampler) keepAbove(p []float32, most float32) {
	o := s.options
	for threshold := most / 1024; ; threshold /= 64 {
		if o.TopK == 0 && !o.filtersTopP() {
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
		} else if o.filtersTopP() {
			enough = sum >= o.TopP
		}
		if enough || threshold == 0 {
			return
		}
	}
}
