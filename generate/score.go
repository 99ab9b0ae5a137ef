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
	// TokenNLL is the negative log-likelihood in nats of each token except the first,
	// given the tokens before it.
	TokenNLL []float64
	// NLL is the mean of TokenNLL, Perplexity its exponential.
	NLL, Perplexity float64
}

// scoreChunk is the number of tokens in one forward pass.
const scoreChunk = 2048

// Score computes the likelihood of ids, which must be at least two. A text longer than
// the model's context is read in windows of that length that share one token. So every
// token except the first is predicted once, but the first tokens of a window have
// little context. If the model is divided over processes, all of them must call Score,
// and all get the same result.
func Score(ctx context.Context, m model.Model, ids []int32) (Scores, error) {
	var s Scores
	if len(ids) < 2 {
		return s, errors.New("a text needs at least two tokens to be scored")
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

// window scores ids[1:], each token given those before it in ids.
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
			hidden := model.Hidden(m, model.Sequence{IDs: input.Unsqueeze(0),
				Cache: cache}).Squeeze(0)
			_, nll := m.Head().Loss(hidden, tensor(m, ids[start+1:end+1]), torch.Loss{})
			s.TokenNLL = append(s.TokenNLL, torch.Values[float64](nll)...)
		})
	}
	return nil
}

// tensor returns ids as an int64 tensor on the model's device.
func tensor(m model.Model, ids []int32) torch.Tensor {
	return torch.From(ids, len(ids)).To(torch.Int64).ToDevice(model.Device(m))
}
