package generate

import (
	"context"
	"errors"
	"math"

	"conquer/model"
	"conquer/torch"
)

// Scores say how well a model predicts a text.
type Scores struct {
	// TokenNLL is the negative log-likelihood, in nats, of each token but the first, given those before it.
	TokenNLL []float64
	// NLL is their mean, Perplexity its exponential.
	NLL, Perplexity float64
}

const scoreChunk = 2048 // tokens that go through the blocks at once

// Score computes the likelihood of ids, at least two. A text longer than the model's context is read in windows of that
// length that share one token, so that every token but the first is predicted once; the first ones of a window have
// little before them to go by. Where processes have divided the model, all of them call it and get the same.
func Score(ctx context.Context, m model.Model, ids []int32) (Scores, error) {
	var s Scores
	if len(ids) < 2 {
		return s, errors.New("a text of fewer than two tokens has no token to predict: give at least two")
	}
	if err := CheckIDs(m, ids); err != nil {
		return s, err
	}
	window := max(2, m.MaxLength())
	err := torch.Run(func() (err error) {
		torch.NoGrad(func() {
			for start := 0; start+1 < len(ids) && err == nil; start += window - 1 {
				err = s.window(ctx, m, ids[start:min(start+window, len(ids))])
			}
		})
		return err
	})
	if err != nil {
		return Scores{}, err
	}
	for _, nll := range s.TokenNLL {
		s.NLL += nll
	}
	s.NLL /= float64(len(s.TokenNLL))
	s.Perplexity = math.Exp(s.NLL)
	if math.IsNaN(s.NLL) {
		return Scores{}, errNotANumber
	}
	return s, nil
}

// window scores ids[1:] given what comes before them in ids.
func (s *Scores) window(ctx context.Context, m model.Model, ids []int32) error {
	var cache *model.Cache
	if len(ids)-1 > scoreChunk {
		cache = m.NewCache(1, len(ids)-1, model.DType(m), model.Device(m))
		defer cache.Free()
	}
	for start := 0; start+1 < len(ids); start += scoreChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		end := min(start+scoreChunk, len(ids)-1)
		torch.Scoped(func() {
			input := tensor(m, ids[start:end])
			hidden := model.Hidden(m, model.Sequence{IDs: input.Unsqueeze(0), Cache: cache}).Squeeze(0)
			_, nll := m.Head().Loss(hidden, tensor(m, ids[start+1:end+1]), torch.Loss{})
			s.TokenNLL = append(s.TokenNLL, torch.Values[float64](nll)...)
		})
	}
	return nil
}

// tensor is ids as an int64 tensor where the model is.
func tensor(m model.Model, ids []int32) torch.Tensor {
	return torch.From(ids, len(ids)).To(torch.Int64).ToDevice(model.Device(m))
}
