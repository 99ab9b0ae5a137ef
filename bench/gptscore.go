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

// Aspects are the aspects of GPTScore (Fu et al., arXiv 2302.04166). The instruction of an
// aspect precedes the given text.
var Aspects = []Aspect{
	{"none", ""},
	{"semantics", "Rewrite the following text with the same meaning."},
	{"informativeness", "Rewrite the following text so that all of its information is kept."},
	{"relevance", "Rewrite the following text and keep to what matters in it."},
	{"factuality", "Rewrite the following text with the same facts."},
	{"coherence", "Rewrite the following text so that it is coherent."},
	{"fluency", "Rewrite the following text so that it is fluent and grammatical."},
}

// Aspect is a quality of a text. Instruction may be empty.
type Aspect struct{ Name, Instruction string }

// ParseAspects returns the aspects with the given names.
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
		return nil, fmt.Errorf("aspect %q is not known: choose among %s",
			name, strings.Join(known, ", "))
	}
	if list == nil {
		err = errors.New("no aspect is named")
	}
	return list, err
}

// prefix returns the prompt for the text that is scored, which follows after a space.
func (a Aspect) prefix(given string) string {
	if a.Instruction == "" {
		return given + " In other words,"
	}
	return a.Instruction + "\n" + given + " In other words,"
}

// RunGPTScore scores the predictions of each file under each aspect. A score is the mean
// log-likelihood, in nats per token, that the scorer gives to one text after the other. It
// calls each with every row when it is finished and with the total number of rows. Files and
// lengths are checked before the first text is scored.
func RunGPTScore(ctx context.Context, scorer model.Model, tok *tokenizer.Tokenizer,
	files []string, aspects []Aspect, each func(row GPTScoreRow, total int),
) error {
	if tok == nil {
		return errors.New("the scorer has no tokenizer: give one with --tokenizer")
	}
	var tasks []scoreTask
	for _, path := range files {
		list, err := ReadPredictions(path)
		if err != nil {
			return err
		}
		for _, p := range list {
			for _, a := range aspects {
				t, err := newScoreTask(tok, path, p, a, scorer.MaxLength())
				if err != nil {
					return fmt.Errorf("%s: id %d: %w", path, p.ID, err)
				}
				tasks = append(tasks, t)
			}
		}
	}
	for _, t := range tasks {
		if err := ctx.Err(); err != nil {
			return err
		}
		row, err := t.score(scorer)
		if err != nil {
			return fmt.Errorf("%s: id %d: %w", row.Source, row.ID, err)
		}
		each(row, len(tasks))
	}
	return nil
}

// scoreTask is a prediction and its reference as token ids, each with its prompt, which holds
// the other text.
type scoreTask struct {
	row                        GPTScoreRow
	givenReference, hypothesis []int32
	givenHypothesis, reference []int32
}

// newScoreTask encodes a prediction. It fails if a text has no tokens or does not fit into the
// scorer's context.
func newScoreTask(tok *tokenizer.Tokenizer, path string, p Prediction, a Aspect,
	maxLength int,
) (scoreTask, error) {
	t := scoreTask{row: GPTScoreRow{
		ID: p.ID, Source: filepath.Base(path), Strategy: strategyOf(path), Aspect: a.Name,
	}}
	reference, hypothesis := strings.TrimSpace(p.Reference), strings.TrimSpace(p.Prediction)
	t.givenReference, t.hypothesis = tok.Continuation(a.prefix(reference), " "+hypothesis)
	t.givenHypothesis, t.reference = tok.Continuation(a.prefix(hypothesis), " "+reference)
	if len(t.hypothesis) == 0 || len(t.reference) == 0 {
		return t, errors.New("the prediction or the reference has no tokens")
	}
	n := max(len(t.givenReference)+len(t.hypothesis), len(t.givenHypothesis)+len(t.reference))
	if n > maxLength {
		return t, fmt.Errorf("with aspect %s it has %d tokens, the scorer's context is %d",
			a.Name, n, maxLength)
	}
	return t, nil
}

// score returns the row with its scores.
func (t scoreTask) score(scorer model.Model) (GPTScoreRow, error) {
	row := t.row
	hypothesis, err := meanNLL(scorer, t.givenReference, t.hypothesis)
	if err != nil {
		return row, err
	}
	reference, err := meanNLL(scorer, t.givenHypothesis, t.reference)
	if err != nil {
		return row, err
	}
	row.HypoGivenRef, row.RefGivenHypo = -hypothesis, -reference
	row.Average = (row.HypoGivenRef + row.RefGivenHypo) / 2
	if row.Average != 0 {
		row.HarmonicMean = row.HypoGivenRef * row.RefGivenHypo / row.Average // 2ab/(a+b)
	}
	return row, nil
}
