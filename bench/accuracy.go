package bench

import (
	"context"
	"errors"
	"fmt"
	"math"

	"conquer/generate"
	"conquer/model"
	"conquer/torch"
)

// RunAccuracy measures the perplexity of each reference after its prompt under each strategy,
// and generates a greedy answer of at most as many tokens as the reference. It calls each
// with every row when it is finished and with the total number of rows.
func RunAccuracy(ctx context.Context, s Subject, each func(row AccuracyRow, total int)) error {
	if s.Tokenizer == nil {
		return errors.New("comparing texts needs a tokenizer, and the model has none: " +
			"give one with --tokenizer")
	}
	n := len(s.Prompts)
	prompts, givens, references := make([][]int32, n), make([][]int32, n), make([][]int32, n)
	for id, p := range s.Prompts {
		prompts[id] = s.Tokenizer.Encode(p.Prompt, true)
		givens[id], references[id] = s.Tokenizer.Continuation(p.Prompt, p.Answer)
		if len(givens[id]) == 0 || len(references[id]) == 0 {
			return fmt.Errorf("prompt %d or its answer has no tokens", id)
		}
		if n := len(givens[id]) + len(references[id]); n > s.Model.MaxLength() {
			return fmt.Errorf("prompt %d and its answer have %d tokens, the model's context is %d",
				id, n, s.Model.MaxLength())
		}
	}
	before := s.Model.Chunking()
	defer s.Model.SetChunking(before)
	for _, c := range s.Strategies {
		if err := s.Model.SetChunking(c); err != nil {
			return err
		}
		for id, prompt := range prompts {
			reference := references[id]
			options := generate.Options{MaxNewTokens: len(reference), NoCache: !s.UseCache}
			results, _, err := generate.Generate(ctx, s.Model, s.Tokenizer, [][]int32{prompt},
				options, nil)
			if err != nil {
				return fmt.Errorf("prompt %d: %w", id, err)
			}
			nll, err := meanNLL(s.Model, givens[id], reference)
			if err != nil {
				return fmt.Errorf("prompt %d: %w", id, err)
			}
			each(AccuracyRow{
				ID: id, Strategy: s.Model.Chunking().String(), ChunkSize: chunkSize(s.Model),
				PromptTokens: len(prompt), ReferenceTokens: len(reference),
				NLL: nll, Perplexity: math.Exp(nll), Prediction: results[0].Text,
			}, len(s.Strategies)*len(s.Prompts))
		}
	}
	return nil
}

// meanNLL returns the mean negative log-likelihood in nats of the tokens in target after those
// in given. All go through the model in one pass, so the chunks of a strategy are those of
// the whole text.
func meanNLL(m model.Model, given, target []int32) (mean float64, err error) {
	ids := append(append([]int32{}, given...), target...)
	if err := generate.CheckIDs(m, ids); err != nil {
		return 0, err
	}
	err = torch.Run(func() error {
		torch.NoGrad(func() {
			all := torch.From(ids, 1, len(ids)).To(torch.Int64).ToDevice(model.Device(m))
			hidden := model.Hidden(m, model.Sequence{IDs: all.Narrow(1, 0, len(ids)-1)})
			last := hidden.Select(0, 0).Narrow(0, len(given)-1, len(target))
			labels := all.Select(0, 0).Narrow(0, len(given), len(target))
			_, each := m.Head().Loss(last, labels, torch.Loss{})
			for _, nll := range torch.Values[float64](each) {
				mean += nll / float64(len(target))
			}
		})
		return nil
	})
	if err == nil && (math.IsNaN(mean) || math.IsInf(mean, 0)) {
		err = errors.New("the model's probabilities are not numbers")
	}
	return mean, err
}
