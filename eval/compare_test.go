package eval

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/model/statespace"
)

func TestMcNemar_IsTheExactBinomialTest(t *testing.T) {
	// Twice the sum of the binomial coefficients up to the smaller count, over 2^(sum of both).
	for _, c := range []struct {
		better, worse int
		p             float64
	}{{0, 0, 1}, {1, 1, 1}, {5, 0, 0.0625}, {2, 10, 0.03857421875},
		{30, 14, 0.022628841205914796}} {
		if p := mcNemar(c.better, c.worse); math.Abs(p-c.p) > 1e-9 {
			t.Errorf("%d better and %d worse: p is %v, want %v", c.better, c.worse, p, c.p)
		}
	}
}

// runOf returns the results of a case.
func runOf(t *testing.T, name string) *Results {
	t.Helper()
	for _, c := range readCases(t) {
		if c.Name == name {
			return c.run(t)
		}
	}
	t.Fatalf("there is no case %s", name)
	return nil
}

// Results that were written and read compare as those in memory.
func TestCompare_ReadsWhatWasWritten(t *testing.T) {
	for _, name := range []string{"animals", "gsm8k", "wikitext"} {
		results := runOf(t, name)
		data, err := json.Marshal(results)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "r.json")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		read, err := ReadResults(path)
		if err != nil {
			t.Fatal(err)
		}
		list, err := Compare(read, results)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.Difference != 0 || c.Low != 0 || c.High != 0 || c.Better+c.Worse != 0 || c.P != 1 {
				t.Errorf("the same results differ: %+v", c)
			}
		}
		if len(list) == 0 {
			t.Errorf("%s: nothing is compared", name)
		}
	}
}

func TestCompare_CountsDocuments(t *testing.T) {
	key := column{"t", "none", "acc"}
	a, b := make([]score, 40), make([]score, 40)
	for i := range a {
		a[i].value = number(i < 20)
		b[i].value = number(i >= 4 && i < 34)
	}
	c := compareScores(key, a, b)
	if c.Better != 14 || c.Worse != 4 || c.Before != 0.5 || c.After != 0.75 ||
		c.Difference != 0.25 {
		t.Errorf("got %+v", c)
	}
	if c.P != mcNemar(14, 4) || !(c.Low < 0.25 && c.High > 0.25 && c.Low > 0 && c.High < 0.5) {
		t.Errorf("got %+v", c)
	}
}

func TestCompare_RefusesOtherDocuments(t *testing.T) {
	a, b := runOf(t, "animals"), runOf(t, "animals")
	b.documents["animals"] = append([]document{}, b.documents["animals"][1:]...)
	if _, err := Compare(a, b); err == nil || !strings.Contains(err.Error(), "document 0") {
		t.Errorf("the error is %v", err)
	}
	if _, err := Compare(a, runOf(t, "piqa")); err == nil {
		t.Error("runs without a common task are compared")
	}
}

// Under a strategy of chunking, texts that are read together have the results of texts alone.
func TestLM_StrategiesReadWholeTexts(t *testing.T) {
	lm := newLM(t, "bamba")
	m := lm.model.(statespace.Chunked)
	list := pairs()
	byDefault, err := lm.Likelihoods(t.Context(), list, nil)
	if err != nil {
		t.Fatal(err)
	}
	lm.Whole = true
	chunking, err := statespace.ParseChunking("independent-optimized")
	if err != nil {
		t.Fatal(err)
	}
	chunking.ChunkSize = 16
	if err := m.SetChunking(chunking); err != nil {
		t.Fatal(err)
	}
	together, err := lm.Likelihoods(t.Context(), list, nil)
	if err != nil {
		t.Fatal(err)
	}
	lm.BatchTokens = 1
	alone, err := lm.Likelihoods(t.Context(), list, nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := false
	for i := range list {
		if math.Abs(together[i].Sum-alone[i].Sum) > -1e-5*alone[i].Sum {
			t.Errorf("%q: %v together, %v alone", list[i], together[i], alone[i])
		}
		changed = changed || math.Abs(alone[i].Sum-byDefault[i].Sum) > 0.01
	}
	if !changed {
		t.Error("the strategy changes nothing")
	}
}
