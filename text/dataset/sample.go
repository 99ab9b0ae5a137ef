package dataset

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// IgnoreLabel is the label of a token without loss, as in Hugging Face.
const IgnoreLabel int32 = -100

// Sample is one training example. Labels has the length of IDs and is aligned
// with it, not shifted: Labels[i] is IDs[i], or IgnoreLabel if token i has no
// loss. The loss compares the prediction at position i with Labels[i+1].
//
// A preference pair is one sample of two texts: the chosen one, then, from
// Second on, the rejected one.
type Sample struct {
	IDs    []int32
	Labels []int32
	Second int // start of the second text of a pair; 0 for a sample of one text
	Rating Rating
	// Continues says that the sample goes on with the text of the sample before it in the data set,
	// whose last token is its first.
	Continues bool
}

// Rating says what is known of an answer, beside its text.
type Rating int8

const (
	Desirable   Rating = 1
	Unrated     Rating = 0
	Undesirable Rating = -1
)

// rated returns both texts of a pair as rated answers.
func (s Sample) rated() []Sample {
	return []Sample{
		{IDs: s.IDs[:s.Second], Labels: s.Labels[:s.Second], Rating: Desirable},
		{IDs: s.IDs[s.Second:], Labels: s.Labels[s.Second:], Rating: Undesirable},
	}
}

// Ends returns the end of each text of the sample.
func (s Sample) Ends() []int {
	if s.Second > 0 {
		return []int{s.Second, len(s.IDs)}
	}
	return []int{len(s.IDs)}
}

// targets counts the labels with loss. The first label of a text never has
// loss, because no token precedes it. A pair has no targets if its texts are
// equal or if one of them has no label.
func (s Sample) targets() (n int) {
	if s.Second > 0 {
		first := Sample{IDs: s.IDs[:s.Second], Labels: s.Labels[:s.Second]}
		second := Sample{IDs: s.IDs[s.Second:], Labels: s.Labels[s.Second:]}
		a, b := first.targets(), second.targets()
		if a > 0 && b > 0 && !slices.Equal(first.IDs, second.IDs) {
			return a + b
		}
		return 0
	}
	for i, l := range s.Labels {
		if i > 0 && l != IgnoreLabel {
			n++
		}
	}
	return n
}

// hashSamples returns a hash of every token and label.
func hashSamples(samples []Sample) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, s := range samples {
		var length [8]byte
		binary.LittleEndian.PutUint64(length[:], uint64(len(s.IDs)))
		h.Write(length[:])
		binary.Write(h, binary.LittleEndian, s.IDs)
		binary.Write(h, binary.LittleEndian, s.Labels)
		if s.Second > 0 {
			binary.Write(h, binary.LittleEndian, int64(s.Second))
		}
		if s.Rating != Unrated {
			binary.Write(h, binary.LittleEndian, s.Rating)
		}
	}
	h.Sum(sum[:0])
	return sum
}
