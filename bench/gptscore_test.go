package bench

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"conquer/generate"
	"conquer/text/tokenizer"
)

func TestPredictions_RoundTrip(t *testing.T) {
	list := []Prediction{
		{0, "plain", "text", "here"}, {7, "tabs\tand\nlines\r\n", `back\slash \n \t \\`, ""},
		{-3, "ünï 漢 🜁", "\\", "\\\\t\t"},
	}
	path := filepath.Join(t.TempDir(), "p.tsv")
	if err := WritePredictions(path, list); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadPredictions(path); err != nil || !reflect.DeepEqual(got, list) {
		t.Errorf("%+v %v", got, err)
	}
	for _, name := range []string{"default", "windowed:12-optimized", "independent-optimized"} {
		if got := strategyOf("/x/" + PredictionsName(name)); got != name {
			t.Errorf("%s comes back as %q", name, got)
		}
	}
	if got := strategyOf("mine.tsv"); got != "" {
		t.Errorf("a file of one's own has the strategy %q", got)
	}
}

func TestReadPredictions_ErrorsNameTheLine(t *testing.T) {
	for text, words := range map[string]string{
		"":                       ":1: there are no predictions",
		predictionsHeader + "\n": ":1: there are no predictions",
		predictionsHeader + "\n1\ta\tb\tc\n1\ta\tb": ":3: 3 columns",
		"1\ta\tb\tc\td\n":            ":1: 5 columns",
		"1\ta\tb\tc\n\n1\ta\tb\tc\n": ":2: 1 columns",
		"one\ta\tb\tc\n":             `:1: the id is "one"`,
	} {
		path := filepath.Join(t.TempDir(), "p.tsv")
		os.WriteFile(path, []byte(text), 0o644)
		if list, err := ReadPredictions(path); err == nil ||
			!strings.Contains(err.Error(), path+words) {
			t.Errorf("%q: %v %v, want %q", text, list, err, words)
		}
	}
}

func FuzzReadPredictions(f *testing.F) {
	f.Add([]byte(predictionsHeader + "\n1\ta\\tb\tc\\\\\td\n"))
	f.Add([]byte("1\t\t\t\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, line, err := parsePredictions(data)
		if err != nil {
			if line < 1 {
				t.Fatalf("line %d: %v", line, err)
			}
			return
		}
		var b bytes.Buffer
		if err := writePredictions(&b, list); err != nil {
			t.Fatal(err)
		}
		again, _, err := parsePredictions(b.Bytes())
		if err != nil || !reflect.DeepEqual(again, list) {
			t.Fatalf("%q was read as %+v and, written again, as %+v (%v)", data, list, again, err)
		}
	})
}

// A tokenizer that adds a space before a text must not add one before the scored text.
func TestRunGPTScore_AddsNoSecondSpace(t *testing.T) {
	tok, err := tokenizer.Open("../text/tokenizer/testdata/llama2")
	if err != nil {
		t.Fatal(err)
	}
	m := smallOf(t, "mamba2", 1024)
	score := func(given, target string) float64 {
		ids, front := tok.Encode(given+target, true), len(tok.Encode(given, true))
		s, err := generate.Score(context.Background(), m, ids)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for _, nll := range s.TokenNLL[front-1:] {
			sum += nll
		}
		return sum / float64(len(ids)-front)
	}
	near := func(got, want float64) bool { return math.Abs(got-want) < 1e-4*math.Abs(want) }

	path := filepath.Join(t.TempDir(), "p.tsv")
	list := []Prediction{{1, "p", "the lamp is lit", "a lamp"}}
	if err := WritePredictions(path, list); err != nil {
		t.Fatal(err)
	}
	aspects, _ := ParseAspects([]string{"none"})
	err = RunGPTScore(context.Background(), m, tok, []string{path}, aspects,
		func(row GPTScoreRow, total int) {
			forth := -score("the lamp is lit In other words,", " a lamp")
			back := -score("a lamp In other words,", " the lamp is lit")
			if !near(row.HypoGivenRef, forth) || !near(row.RefGivenHypo, back) {
				t.Errorf("%+v, want %g and %g", row, forth, back)
			}
		})
	if err != nil {
		t.Fatal(err)
	}
	s := Subject{Model: m, Tokenizer: tok, Strategies: strategies(t, "default"),
		Prompts: []Prompt{{Prompt: "the lamp is", Answer: " lit", TokenLen: 4, NumChunks: 1}}}
	err = RunAccuracy(context.Background(), s, func(row AccuracyRow, total int) {
		if want := score("the lamp is", " lit"); !near(row.NLL, want) ||
			row.ReferenceTokens != len(tok.Encode("the lamp is lit", true))-row.PromptTokens {
			t.Errorf("%+v, want %g", row, want)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestIdentifier_NamesTheMeasuredGPU(t *testing.T) {
	for _, c := range []struct {
		device        int
		visible, want string
	}{{0, "", "0"}, {1, "", "1"}, {0, "3", "3"}, {1, "2, 5", "5"},
		{0, "GPU-8932f937-d72c", "GPU-8932f937-d72c"}} {
		if got := identifier(c.device, c.visible); got != c.want {
			t.Errorf("device %d of %q is %q, want %q", c.device, c.visible, got, c.want)
		}
	}
}

// The expected score is the sum of the log-probabilities of the tokens, from Logits.
func TestRunGPTScore_IsTheMeanLogLikelihoodBothWays(t *testing.T) {
	m, tok := small(t, "mamba2"), characters(t)
	dir := t.TempDir()
	list := []Prediction{{4, "p", "the lamp is lit", "a lamp, lit"},
		{9, "p", "fog", "no sight of land"}}
	path := filepath.Join(dir, PredictionsName("windowed:2"))
	if err := WritePredictions(path, list); err != nil {
		t.Fatal(err)
	}
	aspects, err := ParseAspects([]string{"none", "fluency"})
	if err != nil {
		t.Fatal(err)
	}
	score := func(instruction, given, target string) float64 {
		front := tok.Encode(instruction+given+" In other words,", true)
		s, err := generate.Score(context.Background(), m, append(slices.Clone(front),
			tok.Encode(" "+target, false)...))
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for _, nll := range s.TokenNLL[len(front)-1:] {
			sum -= nll
		}
		return sum / float64(len(s.TokenNLL)-len(front)+1)
	}
	var rows []GPTScoreRow
	add := func(row GPTScoreRow, total int) { rows = append(rows, row) }
	if err := RunGPTScore(context.Background(), m, tok, []string{path}, aspects, add); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 4 {
		t.Fatalf("%+v", rows)
	}
	for i, r := range rows {
		p := list[i/2]
		instruction := ""
		if r.Aspect == "fluency" {
			instruction = aspects[1].Instruction + "\n"
		}
		forth, back := score(instruction, p.Reference, p.Prediction),
			score(instruction, p.Prediction, p.Reference)
		harmonic := 2 / (1/forth + 1/back)
		for name, pair := range map[string][2]float64{
			"hypo given ref": {r.HypoGivenRef, forth}, "ref given hypo": {r.RefGivenHypo, back},
			"average":       {r.Average, (forth + back) / 2},
			"harmonic mean": {r.HarmonicMean, harmonic},
		} {
			if !(math.Abs(pair[0]-pair[1]) < 1e-4*math.Abs(pair[1])) {
				t.Errorf("%d %s, %s: %g, want %g", r.ID, r.Aspect, name, pair[0], pair[1])
			}
		}
		if r.ID != p.ID || r.Source != "accuracy_windowed_2.tsv" || r.Strategy != "windowed:2" ||
			r.HypoGivenRef >= 0 {
			t.Errorf("%+v", r)
		}
	}
	if rows[0].Average == rows[1].Average {
		t.Error("the instruction changes nothing")
	}
}

func TestRunGPTScore_ChecksAllInputFirst(t *testing.T) {
	m, tok := small(t, "bamba"), characters(t)
	long := filepath.Join(t.TempDir(), "long.tsv")
	text := fmt.Sprintf("1\tp\tshort\tfine\n2\tp\t%s\tfine\n", strings.Repeat("x", m.MaxLength()))
	os.WriteFile(long, []byte(text), 0o644)
	never := func(GPTScoreRow, int) { t.Error("a row was scored") }
	err := RunGPTScore(context.Background(), m, nil, []string{long}, Aspects, never)
	if err == nil || !strings.Contains(err.Error(), "tokenizer") {
		t.Error(err)
	}
	err = RunGPTScore(context.Background(), m, tok, []string{long}, Aspects, never)
	if err == nil || !strings.Contains(err.Error(), "id 2") {
		t.Error(err)
	}
	if _, err := ParseAspects([]string{"beauty"}); err == nil ||
		!strings.Contains(err.Error(), "fluency") {
		t.Error(err)
	}
}
