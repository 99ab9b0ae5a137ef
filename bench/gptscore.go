package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"conquer/model"
	"conquer/text/tokenizer"
)

// Aspects are the instructions of GPTScore (Fu et al., arXiv 2302.04166) by name: what a scorer is told to do with the text
// that is given before it judges the other. Without an instruction it is told nothing.
var Aspects = []Aspect{
	{"none", ""},
	{"semantics", "Rewrite the following text with the same meaning."},
	{"informativeness", "Rewrite the following text so that all of its information is kept."},
	{"relevance", "Rewrite the following text and keep to what matters in it."},
	{"factuality", "Rewrite the following text with the same facts."},
	{"coherence", "Rewrite the following text so that it is coherent."},
	{"fluency", "Rewrite the following text so that it is fluent and grammatical."},
}

// Aspect is a quality to judge by.
type Aspect struct{ Name, Instruction string }

// ParseAspects finds aspects by their names.
func ParseAspects(names []string) (list []Aspect, err error) {
	var known []string
	for _, a := range Aspects {
		known = append(known, a.Name)
	}
next:
	for _, name := range names {
		for _, a := range Aspects {
			if a.Name == name {
				list = append(list, a)
				continue next
			}
		}
		return nil, fmt.Errorf("unknown aspect %q: choose among %s", name, strings.Join(known, ", "))
	}
	if list == nil {
		err = errors.New("no aspect is named")
	}
	return list, err
}

// prefix is what stands before the text that is judged; the text follows after a space.
func (a Aspect) prefix(given string) string {
	if a.Instruction == "" {
		return given + " In other words,"
	}
	return a.Instruction + "\n" + given + " In other words,"
}

// RunGPTScore scores the predictions of each file under each aspect. A score is the mean log-likelihood, in nats a token, of
// one text after the other as the scorer sees it: how well it says the same. each gets every row as it is finished, with how
// many there will be. Files and lengths are checked before the first text is scored.
func RunGPTScore(ctx context.Context, scorer model.Model, tok *tokenizer.Tokenizer, files []string, aspects []Aspect, each func(row GPTScoreRow, total int)) error {
	if tok == nil {
		return errors.New("the scorer has no tokenizer: give one with --tokenizer")
	}
	type task struct {
		row                                                    GPTScoreRow
		givenReference, hypothesis, givenHypothesis, reference []int32
	}
	var tasks []task
	for _, path := range files {
		list, err := ReadPredictions(path)
		if err != nil {
			return err
		}
		for _, p := range list {
			for _, a := range aspects {
				t := task{row: GPTScoreRow{ID: p.ID, Source: filepath.Base(path), Strategy: strategyOf(path), Aspect: a.Name}}
				reference, hypothesis := strings.TrimSpace(p.Reference), strings.TrimSpace(p.Prediction)
				t.givenReference, t.hypothesis = tok.Continuation(a.prefix(reference), " "+hypothesis)
				t.givenHypothesis, t.reference = tok.Continuation(a.prefix(hypothesis), " "+reference)
				if len(t.hypothesis) == 0 || len(t.reference) == 0 {
					return fmt.Errorf("%s: id %d: the prediction or the reference has no tokens", path, p.ID)
				}
				longest := max(len(t.givenReference)+len(t.hypothesis), len(t.givenHypothesis)+len(t.reference))
				if longest > scorer.MaxLength() {
					return fmt.Errorf("%s: id %d takes %d tokens with aspect %s, the scorer's context is %d", path, p.ID, longest, a.Name, scorer.MaxLength())
				}
				tasks = append(tasks, t)
			}
		}
	}
	for _, t := range tasks {
		if err := ctx.Err(); err != nil {
			return err
		}
		hypothesis, err := meanNLL(scorer, t.givenReference, t.hypothesis)
		if err != nil {
			return fmt.Errorf("%s: id %d: %w", t.row.Source, t.row.ID, err)
		}
		reference, err := meanNLL(scorer, t.givenHypothesis, t.reference)
		if err != nil {
			return fmt.Errorf("%s: id %d: %w", t.row.Source, t.row.ID, err)
		}
		row := t.row
		row.HypoGivenRef, row.RefGivenHypo = -hypothesis, -reference
		row.Average = (row.HypoGivenRef + row.RefGivenHypo) / 2
		if row.Average != 0 {
			row.HarmonicMean = row.HypoGivenRef * row.RefGivenHypo / row.Average // 2ab/(a+b)
		}
		each(row, len(tasks))
	}
	return nil
}
