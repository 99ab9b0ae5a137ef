package dataset

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// longTexts are texts of random lengths, cut into samples of length tokens.
func longTexts(r *rand.Rand, texts, length int) *Dataset {
	d := &Dataset{}
	next := int32(0)
	for range texts {
		ids := make([]int32, 2+r.IntN(4*length))
		for i := range ids {
			ids[i] = next
			next++
		}
		d.Samples = append(d.Samples, splitText(ids, length)...)
	}
	return d
}

// With any number of rows, ranks and passes, every sample is read once, and a row that continues
// begins with the token that the same row of the batch before ended with.
func TestBatcher_StreamsGoOnInTheNextRow(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 1))
	for range 40 {
		length := 5 + r.IntN(12)
		d := longTexts(r, 1+r.IntN(20), length)
		o := BatchOptions{Rows: 1 + r.IntN(3), World: 1 + r.IntN(3), Passes: 1 + r.IntN(2),
			Length: length, Streams: true, Pack: r.IntN(2) == 0, InOrder: r.IntN(3) == 0,
			Seed: r.Uint64()}
		seen := map[uint32]bool{}
		continued, wanted := 0, 0
		for _, s := range d.Samples {
			if s.Continues {
				wanted++
			}
		}
		for o.Rank = range o.World {
			b, err := NewBatcher(d, o)
			if err != nil {
				t.Fatal(err)
			}
			last := make([][]int32, o.Passes*o.Rows) // last token of each row
			for n := range b.Batches(0) {
				batch, err := b.Next()
				if err != nil {
					t.Fatal(err)
				}
				pass := n % o.Passes
				for row := range o.Rows {
					ids := batch.IDs[row*length : (row+1)*length]
					if batch.Continues[row] {
						continued++
						if before := last[pass*o.Rows+row]; before[length-1] != ids[0] {
							t.Fatalf("%+v: a row begins with %d after %v", o, ids[0], before)
						}
					}
					last[pass*o.Rows+row] = slices.Clone(ids)
					for _, s := range batch.Sources[row] {
						if seen[s] {
							t.Fatalf("%+v: sample %d was read twice", o, s)
						}
						seen[s] = true
					}
				}
			}
		}
		if len(seen) != d.Len() || continued != wanted {
			t.Fatalf("%+v: %d of %d samples, %d of %d continued", o, len(seen), d.Len(), continued,
				wanted)
		}
	}
}

func TestBatcher_StreamsRefuseOtherLengths(t *testing.T) {
	d := longTexts(rand.New(rand.NewPCG(1, 2)), 9, 8)
	_, err := NewBatcher(d, BatchOptions{Rows: 1, Length: 9, Streams: true})
	if err == nil || !strings.Contains(err.Error(), "load the data set with MaxLength 9") {
		t.Errorf("samples of 8 tokens in rows of 9: %v", err)
	}
	d.parts = []part{{samples: d.Len(), weight: 1}}
	_, err = NewBatcher(d, BatchOptions{Rows: 1, Length: 8, Streams: true})
	if err == nil || !strings.Contains(err.Error(), "weights") {
		t.Errorf("a mixture: %v", err)
	}
}
