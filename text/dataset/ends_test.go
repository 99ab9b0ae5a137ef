package dataset

import (
	"slices"
	"testing"

	"conquer/text/tokenizer"
)

// The special token that ends an answer is found; content, texts and cut answers have none.
func TestTurnEnds_AreTheSpecialTokensThatEndAnswers(t *testing.T) {
	tok, err := tokenizer.Open("../tokenizer/testdata/smollm")
	if err != nil {
		t.Fatal(err)
	}
	const start, end = int32(1), int32(2)
	word := tok.Encode("there", false)[0]
	sample := func(second int, ids ...int32) Sample { // labels are negative ids
		s := Sample{Second: second}
		for _, id := range ids {
			label := int32(IgnoreLabel)
			if id < 0 {
				id = -id
				label = id
			}
			s.IDs, s.Labels = append(s.IDs, id), append(s.Labels, label)
		}
		return s
	}
	for name, c := range map[string]struct {
		s    Sample
		want []int32
	}{
		"answer":         {sample(0, start, word, -word, -end, word), []int32{end}},
		"last token":     {sample(0, start, word, -word, -end), []int32{end}},
		"cut answer":     {sample(0, start, word, -word, -word), nil},
		"two answers":    {sample(0, word, -word, -start, word, -word, -end), []int32{start, end}},
		"text":           {sample(0, -word, -word, -end), nil},
		"inside content": {sample(0, word, -word, -end, -word), nil},
		"pair":           {sample(3, word, -word, -end, word, -word, -start), []int32{end, start}},
	} {
		got, err := (&Dataset{Samples: []Sample{c.s}}).TurnEnds(tok)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
}
