package dataset

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSplit_IsDisjointCompleteAndRepeatable(t *testing.T) {
	d := numberedSamples(100, 3)
	train, valid, err := d.Split(0.2, 7)
	if err != nil || len(valid.Samples) != 20 || len(train.Samples) != 80 {
		t.Fatalf("%d + %d, %v", len(train.Samples), len(valid.Samples), err)
	}
	seen := map[int32]bool{}
	for _, part := range []*Dataset{train, valid} {
		for _, s := range part.Samples {
			if seen[s.IDs[0]] {
				t.Fatal("a sample is in both parts")
			}
			seen[s.IDs[0]] = true
		}
	}
	_, again, _ := d.Split(20, 7)
	for i := range valid.Samples {
		if valid.Samples[i].IDs[0] != again.Samples[i].IDs[0] {
			t.Fatal("20 % and 20 samples of the same seed differ")
		}
	}
	for _, n := range []float64{0, -1, 100, 1000, 1e300, math.Inf(1), math.NaN()} {
		if _, _, err := d.Split(n, 1); err == nil {
			t.Errorf("Split(%g) of 100 samples gives no error", n)
		}
	}
}

func TestAt_ReadsEvictedRecordsAgain(t *testing.T) {
	dir := t.TempDir()
	var b strings.Builder
	for i := range 300 {
		fmt.Fprintf(&b, "{\"text\":\"record %d\"}\n", i)
	}
	os.WriteFile(filepath.Join(dir, "a.jsonl"), []byte(b.String()), 0o666)
	os.WriteFile(filepath.Join(dir, "b.json"), []byte("[{\"text\":\"x\"},\n {\"text\":\"y\"}]"),
		0o666)
	os.WriteFile(filepath.Join(dir, "c.txt"), []byte("a text"), 0o666)
	lazy, err := Load(dir, chars(t, ""), Options{MaxLength: 6})
	if err != nil {
		t.Fatal(err)
	}
	want := readAll(t, lazy)
	for _, s := range lazy.sources {
		s.(*reader).cache.records, s.(*reader).cache.tokens = nil, maxCached // nothing fits
	}
	sameSamples(t, "read again", readAll(t, lazy), want)
	if len(lazy.sources[0].(*reader).cache.records) > 1 {
		t.Errorf("%d records are cached", len(lazy.sources[0].(*reader).cache.records))
	}

	// Splitting and appending lazy data sets gives the same samples as in memory.
	if lazy, err = Load(dir, chars(t, ""), Options{MaxLength: 60}); err != nil {
		t.Fatal(err)
	}
	want = readAll(t, lazy)
	train, valid, err := lazy.Split(0.3, 1)
	if err != nil {
		t.Fatal(err)
	}
	memTrain, memValid, _ := want.Split(0.3, 1)
	sameSamples(t, "train", readAll(t, train), memTrain)
	sameSamples(t, "validation", readAll(t, valid), memValid)
	if train.Report != memTrain.Report || train.Hash() == valid.Hash() ||
		train.Hash() == lazy.Hash() {
		t.Errorf("split: %s and %s", train.Report, memTrain.Report)
	}
	both := new(Dataset)
	both.Append(lazy)
	both.Append(train)
	want.Append(memTrain)
	sameSamples(t, "both", readAll(t, both), want)
	if both.Report.Samples != both.Len() {
		t.Errorf("%s, but %d samples", both.Report, both.Len())
	}
	if err := lazy.CheckVocabulary(121); err == nil ||
		!strings.Contains(err.Error(), "b.json:2 holds token 121") {
		t.Errorf("vocabulary: %v", err)
	}
	if err := lazy.CheckVocabulary(122); err != nil {
		t.Error(err)
	}
}

func TestAt_TruncatedFileIsAnError(t *testing.T) {
	path := writeTestFile(t, "a.jsonl", strings.Repeat("{\"text\":\"some record\"}\n", 10000))
	d, err := Load(path, chars(t, ""), Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.sources[0].(*reader).cache.records, d.sources[0].(*reader).cache.tokens = nil, maxCached
	b, err := NewBatcher(d, BatchOptions{Rows: 4, Length: 40, InOrder: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	for range 10000 {
		if _, err = b.Next(); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "a.jsonl: byte ") &&
		!strings.Contains(err.Error(), "a.jsonl:1") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

func TestReport_UsesSingularAndPlural(t *testing.T) {
	if got := (Report{Records: 1, Samples: 2, Tokens: 1,
		Skipped: 1}).String(); got != "2 samples from 1 record, 1 token, 0 with loss, 1 "+
		"file skipped (no data)" {
		t.Error(got)
	}
}
