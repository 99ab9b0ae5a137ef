package dataset

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func mustNext(t testing.TB, b *Batcher) Batch {
	t.Helper()
	batch, err := b.Next()
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

// numberedSamples returns n samples of 2 to max tokens; the first token is the number of
// the sample.
func numberedSamples(n, max int) *Dataset {
	d := new(Dataset)
	for i := range n {
		ids := []int32{int32(i), 1}
		for len(ids) < 2+i%(max-1) {
			ids = append(ids, int32(len(ids)))
		}
		d.Samples = append(d.Samples, Sample{IDs: ids, Labels: slices.Clone(ids)})
	}
	return d
}

func TestBatcher_EpochsCoverEverySample(t *testing.T) {
	d := numberedSamples(203, 17)
	for _, pack := range []bool{false, true} {
		b, err := NewBatcher(d, BatchOptions{Rows: 4, Length: 32, Pack: pack, Pad: 9, Seed: 5})
		if err != nil {
			t.Fatal(err)
		}
		var orders [2][]int32
		for epoch := range orders {
			for n := 1; ; n++ {
				batch := mustNext(t, b)
				if batch.Epoch != epoch {
					t.Fatalf("batch of epoch %d in epoch %d", batch.Epoch, epoch)
				}
				for i, segment := range batch.Segments {
					first := segment > 0 && batch.Positions[i] == 0
					switch {
					case first:
						orders[epoch] = append(orders[epoch], batch.IDs[i])
						want := int32(1)
						if i%32 > 0 {
							want = batch.Segments[i-1] + 1
						}
						if segment != want {
							t.Fatalf("segment %d follows %d", segment, want-1)
						}
					case segment > 0 && (batch.Positions[i] != batch.Positions[i-1]+1 ||
						segment != batch.Segments[i-1]):
						t.Fatal("positions do not count up in a segment")
					}
					if ignored := batch.Labels[i] == IgnoreLabel; ignored != (first ||
						segment == 0) || !ignored && batch.Labels[i] != batch.IDs[i] {
						t.Fatalf("label %d of id %d in segment %d at position %d", batch.Labels[i],
							batch.IDs[i], segment, batch.Positions[i])
					}
					if segment == 0 && batch.IDs[i] != 9 {
						t.Fatal("padding is not the pad id")
					}
				}
				if batch.Last {
					if n != b.Batches(epoch) {
						t.Errorf("%d batches, Batches says %d", n, b.Batches(epoch))
					}
					break
				}
			}
		}
		if slices.Equal(orders[0], orders[1]) {
			t.Error("both epochs have the same order")
		}
		for _, order := range orders {
			slices.Sort(order)
			if len(order) != 203 || len(slices.Compact(order)) != 203 {
				t.Errorf("pack %t: an epoch handed out %d samples, want each of 203 once", pack,
					len(order))
			}
		}
	}
}

func TestBatcher_PackingFillsRows(t *testing.T) {
	b, err := NewBatcher(numberedSamples(2000, 200), BatchOptions{Rows: 1, Length: 512, Pack: true})
	if err != nil {
		t.Fatal(err)
	}
	tokens := 0
	for range b.Batches(0) {
		tokens += mustNext(t, b).Tokens
	}
	if fill := float64(tokens) / float64(512*b.Batches(0)); fill < 0.97 {
		t.Errorf("rows are %.1f %% full", 100*fill)
	}
}

func TestBatcher_RestoreContinuesTheSequence(t *testing.T) {
	d := numberedSamples(50, 9)
	opts := BatchOptions{Rows: 3, Length: 16, Pack: true, Seed: 3}
	a, _ := NewBatcher(d, opts)
	for range a.Batches(0) + 2 {
		mustNext(t, a)
	}
	state := a.State()
	b, _ := NewBatcher(d, opts)
	if err := b.Restore(state); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if x, y := mustNext(t, a), mustNext(t, b); !slices.Equal(x.IDs, y.IDs) ||
			x.Epoch != y.Epoch {
			t.Fatal("batches differ after Restore")
		}
	}
	if err := b.Restore(State{Epoch: 0, Index: 1000}); err == nil {
		t.Error("a position past the end is accepted")
	}
}

func TestBatcher_RanksTogetherGiveTheBatchesOfOne(t *testing.T) {
	d := numberedSamples(37, 9)
	one, _ := NewBatcher(d, BatchOptions{Rows: 4, Length: 16, Seed: 1})
	a, _ := NewBatcher(d, BatchOptions{Rows: 2, Length: 16, Seed: 1, Rank: 0, World: 2})
	b, _ := NewBatcher(d, BatchOptions{Rows: 2, Length: 16, Seed: 1, Rank: 1, World: 2})
	for range 30 {
		x, y, z := mustNext(t, one), mustNext(t, a), mustNext(t, b)
		if !slices.Equal(x.IDs, append(y.IDs, z.IDs...)) || x.Last != y.Last || y.Last != z.Last ||
			one.State() != b.State() {
			t.Fatal("the ranks' batches differ from the single one")
		}
	}
}

func TestNewBatcher_RefusesSamplesLongerThanARow(t *testing.T) {
	_, err := NewBatcher(numberedSamples(20, 17), BatchOptions{Rows: 1, Length: 8})
	if err == nil || !strings.Contains(err.Error(), "MaxLength 8") {
		t.Errorf("error %v", err)
	}
}

func TestNewBatcher_RefusesStepsThatDoNotFit(t *testing.T) {
	for _, o := range []BatchOptions{{Rows: 1 << 40, Length: 8}, {Rows: math.MaxInt, Length: 8},
		{Rows: 1 << 20, Length: 1 << 20}, {Rows: 4, Length: math.MaxInt},
		{Rows: 4, Length: 8, Passes: math.MaxInt}} {
		_, err := NewBatcher(numberedSamples(20, 7), o)
		if err == nil || !strings.Contains(err.Error(), "expected at most") {
			t.Errorf("%+v: error %v", o, err)
		}
	}
}

// A step has the same samples however its rows are divided among ranks and
// passes, at the end of an epoch too.
func TestBatcher_StepsHaveTheSameSamplesForEveryWorld(t *testing.T) {
	seed := rand.Uint64()
	d := numberedSamples(int(20+seed%40), 9)
	steps := func(opts BatchOptions) (list [][]int32) {
		opts.Length, opts.Seed, opts.Pad = 16, seed, -1
		ranks := make([]*Batcher, opts.World)
		for r := range ranks {
			opts.Rank = r
			var err error
			if ranks[r], err = NewBatcher(d, opts); err != nil {
				t.Fatal(err)
			}
		}
		for range 30 {
			var ids []int32
			for range opts.Passes {
				for _, b := range ranks {
					ids = append(ids, mustNext(t, b).IDs...)
				}
			}
			list = append(list, ids)
			for _, b := range ranks {
				if b.State() != ranks[0].State() {
					t.Fatal("ranks are at different positions")
				}
			}
		}
		return list
	}
	for _, pack := range []bool{false, true} {
		want := steps(BatchOptions{Rows: 8, World: 1, Passes: 1, Pack: pack})
		for _, c := range [][3]int{{4, 2, 1}, {4, 1, 2}, {1, 4, 2}, {2, 2, 2}, {1, 8, 1}} {
			got := steps(BatchOptions{Rows: c[0], World: c[1], Passes: c[2], Pack: pack})
			for i := range want {
				if !slices.Equal(got[i], want[i]) {
					t.Fatalf("seed %d, pack %t, %d rows on %d ranks in %d passes: step %d differs",
						seed, pack, c[0], c[1], c[2], i)
				}
			}
		}
	}
}
