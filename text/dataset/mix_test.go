package dataset

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mixture has 30, 6 and 10 samples with the tokens 0…29, 30…35 and 36…45.
func mixture(t testing.TB, weights ...float64) *Dataset {
	t.Helper()
	sets := make([]*Dataset, 3)
	id := int32(0)
	for i, n := range []int{30, 6, 10} {
		sets[i] = new(Dataset)
		for range n {
			ids := []int32{id, id}
			sets[i].Samples = append(sets[i].Samples, Sample{IDs: ids, Labels: ids})
			id++
		}
	}
	d, err := Mix(sets, weights)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// epochOf returns the samples of an epoch as one rank gets them.
func epochOf(t testing.TB, d *Dataset, o BatchOptions, epoch int) (ids []int32) {
	t.Helper()
	b, err := NewBatcher(d, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(State{Epoch: epoch}); err != nil {
		t.Fatal(err)
	}
	for {
		batch, err := b.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range batch.Sources {
			for _, s := range row {
				ids = append(ids, int32(s))
			}
		}
		if batch.Last {
			return ids
		}
	}
}

func TestMix_EpochsHaveTheSharesAndUseSamplesEqually(t *testing.T) {
	d := mixture(t, 0.5, 1, 0.5)
	counts := make([]int, d.Len())
	for epoch := range 9 {
		ids := epochOf(t, d, BatchOptions{Rows: 2, Length: 2, Seed: 3}, epoch)
		var shares [3]int
		for _, id := range ids {
			counts[id]++
			shares[map[bool]int{true: 1}[id >= 30]+map[bool]int{true: 1}[id >= 36]]++
		}
		if shares != [3]int{12, 23, 11} && shares != [3]int{11, 23, 12} {
			t.Fatalf("epoch %d takes %v", epoch, shares)
		}
	}
	for _, p := range [][]int{counts[:30], counts[30:36], counts[36:]} {
		if slices.Max(p)-slices.Min(p) > 1 {
			t.Errorf("samples are used %v times", p)
		}
	}
	// A share of each data set is in each part of an epoch.
	ids := epochOf(t, d, BatchOptions{Rows: 2, Length: 2, Seed: 3}, 0)
	if half := slices.Sorted(slices.Values(ids[:23])); half[0] >= 30 || half[22] < 36 {
		t.Errorf("the first half of an epoch is %v", half)
	}
}

func TestMix_OrderDependsOnTheSeedAlone(t *testing.T) {
	o := BatchOptions{Rows: 2, Length: 4, Pack: true, Seed: 3}
	first := epochOf(t, mixture(t, 1, 1, 1), o, 2)
	if again := epochOf(t, mixture(t, 1, 1, 1), o, 2); !slices.Equal(first, again) {
		t.Errorf("%v, then %v", first, again)
	}
	o.Seed = 4
	if other := epochOf(t, mixture(t, 1, 1, 1), o, 2); slices.Equal(first, other) {
		t.Error("another seed gives the same order")
	}
	// Two ranks together get the samples of one.
	o = BatchOptions{Rows: 1, Length: 2, Seed: 3, World: 2}
	both := epochOf(t, mixture(t, 1, 1, 1), o, 1)
	o.Rank = 1
	both = append(both, epochOf(t, mixture(t, 1, 1, 1), o, 1)...)
	one := epochOf(t, mixture(t, 1, 1, 1), BatchOptions{Rows: 2, Length: 2, Seed: 3}, 1)
	slices.Sort(both)
	slices.Sort(one)
	if !slices.Equal(both, one) {
		t.Errorf("%v, want %v", both, one)
	}
	// In order, each sample is read once.
	inOrder := epochOf(t, mixture(t, 9, 1, 1), BatchOptions{Rows: 2, Length: 2, InOrder: true}, 0)
	if len(inOrder) != 46 || !slices.IsSorted(inOrder) {
		t.Errorf("%v", inOrder)
	}
}

// A Batcher that is restored in the middle of an epoch goes on exactly.
func TestMix_RestoreContinuesTheSequence(t *testing.T) {
	o := BatchOptions{Rows: 3, Length: 2, Seed: 5}
	whole, err := NewBatcher(mixture(t, 3, 1, 1), o)
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		state := whole.State()
		want, err := whole.Next()
		if err != nil {
			t.Fatal(err)
		}
		b, _ := NewBatcher(mixture(t, 3, 1, 1), o)
		if err := b.Restore(state); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Next(); err != nil || !slices.Equal(got.IDs, want.IDs) {
			t.Fatalf("at %+v: %v, want %v, %v", state, got.IDs, want.IDs, err)
		}
	}
}

func TestMix_WeightsChangeTheHashAndPartsStayApart(t *testing.T) {
	a, b := mixture(t, 1, 1, 1), mixture(t, 2, 1, 1)
	if a.Hash() == b.Hash() || a.Hash() != mixture(t, 1, 1, 1).Hash() {
		t.Error("the hash does not tell mixtures apart")
	}
	train, valid, err := a.Split(0.2, 1)
	if err != nil || train.Len() != 37 || valid.Len() != 9 {
		t.Fatal(train.Len(), valid.Len(), err)
	}
	if other, _, _ := b.Split(0.2, 1); other.Hash() == train.Hash() {
		t.Error("the hash of a part does not tell mixtures apart")
	}
	var shares [3]int
	for _, i := range epochOf(t, train, BatchOptions{Rows: 1, Length: 2}, 0) {
		id := train.Samples[i].IDs[0]
		shares[map[bool]int{true: 1}[id >= 30]+map[bool]int{true: 1}[id >= 36]]++
	}
	if slices.Max(shares[:])-slices.Min(shares[:]) > 1 {
		t.Errorf("after a split an epoch takes %v", shares)
	}
}

func TestMix_OfFilesHasTheSharesOfTokens(t *testing.T) {
	dir := t.TempDir()
	var sets []*Dataset
	for i, text := range []string{"123456789", "1"} {
		path := filepath.Join(dir, fmt.Sprint(i, ".jsonl"))
		if err := os.WriteFile(path, []byte(strings.Repeat(`{"text":"`+text+`"}`+"\n", 10*(i+1))),
			0o666); err != nil {
			t.Fatal(err)
		}
		d, err := Load(path, chars(t, ""), Options{})
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, d)
	}
	d, err := Mix(sets, []float64{1, 1})
	if err != nil {
		t.Fatal(err)
	}
	got := d.Shares()
	want := []Share{{0.5, 11.0 / 14, 1.5}, {0.5, 3.0 / 14, 0.75}}
	for i, w := range want {
		if g := got[i]; math.Abs(g.Samples-w.Samples)+math.Abs(g.Tokens-w.Tokens)+
			math.Abs(g.Passes-w.Passes) > 1e-9 {
			t.Errorf("%+v, want %+v", g, w)
		}
	}
	if _, _, err := d.Split(0.5, 1); err != nil {
		t.Error(err)
	}
}

func TestMix_RefusesWeightsThatDoNotFit(t *testing.T) {
	set := func() *Dataset { return numberedSamples(10, 3) }
	for _, c := range []struct {
		weights []float64
		want    string
	}{
		{[]float64{1}, "1 weight for 2 data sets"},
		{[]float64{1, 0}, "above 0"},
		{[]float64{1, -1}, "above 0"},
		{[]float64{math.NaN(), 1}, "above 0"},
		{[]float64{1, math.Inf(1)}, "above 0"},
		{[]float64{1, 1e-9}, "0 of the 20 samples"},
	} {
		if _, err := Mix([]*Dataset{set(), set()}, c.weights); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.weights, err, c.want)
		}
	}
}
