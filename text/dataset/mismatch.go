package dataset

import (
	"errors"
	"slices"
)

// Mismatched pairs each prompt of a data set of rated answers with an answer to another prompt:
// that of the nearest sample before it that has another prompt. The first samples take it from the
// end of the data set. The log-probabilities of these texts tell how far a model is from another
// one in general, not in what it has learned.
type Mismatched struct {
	data      *Dataset
	maxLength int
	other     []uint32 // the sample whose answer follows the prompt of each sample
	desirable int
}

// NewMismatched reads the samples of d. Texts are cut at maxLength tokens. It fails if all samples
// have the same prompt.
func NewMismatched(d *Dataset, maxLength int) (*Mismatched, error) {
	m := &Mismatched{data: d, maxLength: maxLength, other: make([]uint32, d.Len())}
	var first, before []int32
	unknown := uint32(len(m.other))
	for i := range m.other {
		s, err := d.At(i)
		if err != nil {
			return nil, err
		}
		if s.Rating == Desirable {
			m.desirable++
		}
		prompt := s.IDs[:s.answer()]
		switch {
		case i == 0:
			first, m.other[i] = slices.Clone(prompt), unknown
		case slices.Equal(prompt, before):
			m.other[i] = m.other[i-1]
		default:
			m.other[i] = uint32(i - 1)
		}
		before = slices.Clone(prompt)
	}
	last := len(m.other) - 1
	if last < 0 {
		return m, nil
	}
	around := uint32(last)
	if slices.Equal(first, before) {
		around = m.other[last]
	}
	if around == unknown {
		return nil, errors.New("data set: all answers have the same prompt, " +
			"and an estimate needs answers to other prompts")
	}
	for i := 0; i <= last && m.other[i] == unknown; i++ {
		m.other[i] = around
	}
	return m, nil
}

// answer returns where the answer of a sample of one text starts: at the first label.
func (s Sample) answer() int {
	return max(0, slices.IndexFunc(s.Labels, func(l int32) bool { return l != IgnoreLabel }))
}

// Desirable is the number of samples that are desirable.
func (m *Mismatched) Desirable() int { return m.desirable }

// At returns the prompt of sample i with another sample's answer.
func (m *Mismatched) At(i int) (s Sample, err error) {
	prompt, err := m.data.At(i)
	if err != nil {
		return s, err
	}
	other, err := m.data.At(int(m.other[i]))
	if err != nil {
		return s, err
	}
	at, from := prompt.answer(), other.answer()
	s.IDs = slices.Concat(prompt.IDs[:at], other.IDs[from:])
	s.Labels = slices.Concat(prompt.Labels[:at], other.Labels[from:])
	s.truncate(m.maxLength)
	return s, nil
}

// Batch returns the mismatched texts of the samples in b, packed if pack is set.
func (m *Mismatched) Batch(b Batch, pack bool) (Batch, error) {
	sources := slices.Concat(b.Sources...)
	texts := &Dataset{}
	for _, i := range sources {
		s, err := m.At(int(i))
		if err != nil {
			return Batch{}, err
		}
		texts.Samples = append(texts.Samples, s)
	}
	layout := &Batcher{data: texts, opts: BatchOptions{
		Length: m.maxLength, Pack: pack, InOrder: true, World: 1, Passes: 1,
	}}
	layout.opts.Rows = max(1, layout.plan(0).rows())
	out, err := layout.batch(State{})
	for _, row := range out.Sources {
		for k, i := range row {
			row[k] = sources[i]
		}
	}
	return out, err
}
