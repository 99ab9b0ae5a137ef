package dataset

import (
	"slices"

	"conquer/text/tokenizer"
)

// endSamples is the number of samples in which [Dataset.TurnEnds] looks.
const endSamples = 1000

// TurnEnds returns the special tokens with which the answers of d end, in the order in which they
// are found: a model that is trained on d ends its turns with them. It looks at up to 1,000
// samples, evenly spread. Texts, which are learned from their first token on, and answers that are
// cut have no end.
func (d *Dataset) TurnEnds(tok *tokenizer.Tokenizer) (ends []int32, err error) {
	special := func(id int32) bool {
		one := []int32{id}
		return tok.Decode(one, true) == "" && tok.Decode(one, false) != ""
	}
	for i := 0; i < d.Len(); i += 1 + d.Len()/endSamples {
		s, err := d.At(i)
		if err != nil {
			return nil, err
		}
		for j := 1; j < len(s.IDs); j++ {
			last := j+1 == len(s.IDs) || s.Labels[j+1] == IgnoreLabel
			if id := s.Labels[j]; id != IgnoreLabel && last && answers(s, j) && special(id) &&
				!slices.Contains(ends, id) {
				ends = append(ends, id)
			}
		}
	}
	return ends, nil
}

// answers reports whether the labels up to token j belong to an answer: tokens without loss precede
// them.
func answers(s Sample, j int) bool {
	for j >= 0 && s.Labels[j] != IgnoreLabel {
		j--
	}
	return j >= 0
}
