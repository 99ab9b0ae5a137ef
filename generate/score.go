package generate

import (
	"context"
	"errors"
	"fmt"
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

// Windows say how a text is scored that may be longer than the model's context.
type Windows struct {
	// Size is the number of tokens that the model reads at once, at least 2 and at most its
	// context; 0 means its context.
	Size int
	// Stride is the number of tokens from the start of a window to the start of the next, from 1
	// to Size-1; 0 means Size-1. All tokens but those of the first window are predicted after at
	// least Size-Stride tokens, so a smaller stride gives them more context and takes longer.
	Stride int
}

// For returns the windows with a model's defaults, or an error if they are invalid for it.
func (w Windows) For(m model.Model) (Windows, error) {
	most := max(2, m.MaxLength())
	if w.Size == 0 {
		w.Size = most
	}
	if w.Stride == 0 {
		w.Stride = max(1, w.Size-1)
	}
	switch {
	case w.Size < 2 || w.Size > most:
		return w, fmt.Errorf("window is %d, expected 2 to the model's context of %d", w.Size, most)
	case w.Stride < 1 || w.Stride >= w.Size:
		return w, fmt.Errorf("stride is %d, expected 1 to %d, one less than the window", w.Stride,
			w.Size-1)
	}
	return w, nil
}

// Score computes the likelihood of ids, which must be at least two. A text longer than the model's
// context is read in windows of that length that share one token. So every token except the first
// is predicted once, but the first tokens of a window have little context; [ScoreWindows] gives
// them more. If the model is divided over processes, all of them must call Score, and all get the
// same result.
func Score(ctx context.Context, m model.Model, ids []int32) (Scores, error) {
	return ScoreWindows(ctx, m, ids, Windows{})
}

// ScoreWindows is [Score] with a sliding window, as in transformers' guide to the perplexity of
// models with a fixed length. Every token except the first is predicted once, by the first window
// that holds it.
func ScoreWindows(ctx context.Context, m model.Model, ids []int32, w Windows) (Scores, error) {
	var s Scores
	if len(ids) < 2 {
		return s, errors.New("a text needs at least two tokens to be scored")
	}
	if err := CheckIDs(m, ids); err != nil {
		return s, err
	}
	w, err := w.For(m)
	if err != nil {
		return s, err
	}
	err = torch.Run(func() (err error) {
		torch.NoGrad(func() {
			scored := 1
			for start := 0; scored < len(ids) && err == nil; start += w.Stride {
				end := min(start+w.Size, len(ids))
				err = s.window(ctx, m, ids[start:end], scored-start)
				scored = end
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

// window scores ids[first:], each token given those before it in ids.
func (s *Scores) window(ctx context.Context, m model.Model, ids []int32, first int) error {
	var cache *model.Cache
	if len(ids)-1 > scoreChunk || model.CacheForm(m) != model.CacheAsModel {
		cache = m.NewCache(1, len(ids)-1, model.DType(m), model.Device(m))
		defer cache.Free()
	}
	for start := 0; start+1 < len(ids); start += scoreChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		end := min(start+scoreChunk, len(ids)-1)
		from := max(start, first-1) // its successor is the first token to score
		torch.Scoped(func() {
			input := tensor(m, ids[start:end])
			hidden := model.Hidden(m, model.Sequence{IDs: input.Unsqueeze(0),
				Cache: cache}).Squeeze(0)
			if from >= end {
				return
			}
			_, nll := m.Head().Loss(hidden.Narrow(0, from-start, end-from),
				tensor(m, ids[from+1:end+1]), torch.Loss{})
			s.TokenNLL = append(s.TokenNLL, torch.Values[float64](nll)...)
		})
	}
	return nil
}

// tensor returns ids as an int64 tensor on the model's device.
func tensor(m model.Model, ids []int32) torch.Tensor {
	return torch.From(ids, len(ids)).To(torch.Int64).ToDevice(model.Device(m))
}
