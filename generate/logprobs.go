package generate

import (
	"slices"

	"conquer/torch"
)

// MaxTopLogprobs is the most that Options.TopLogprobs may be.
const MaxTopLogprobs = 100

// TokenLogprob is a token with the natural logarithm of its probability, as the model gives it
// before penalties, rules, temperature and filters.
type TokenLogprob struct {
	ID      int32
	Logprob float64
	Top     []TokenLogprob // the most likely tokens in its place, most likely first
}

// Logprobs returns the log-probabilities of ids, token i by row i of logits [L,V], each with the
// top most likely tokens. It may be called inside [torch.Run] only.
func Logprobs(logits torch.Tensor, ids []int32, top int) []TokenLogprob {
	values := floats(logits.To(torch.Float32).LogSoftmax(-1).ToDevice(torch.CPU).Contiguous())
	list := make([]TokenLogprob, len(ids))
	width := len(values) / len(ids)
	for i, id := range ids {
		list[i] = topLogprobs(values[i*width:(i+1)*width], id, top)
	}
	return list
}

// topLogprobs returns a token's element of values, with the n largest. Equal ones come in the order
// of their ids.
func topLogprobs(values []float32, id int32, n int) TokenLogprob {
	list := make([]TokenLogprob, 0, n+1)
	for i, v := range values {
		p := float64(v)
		if n == 0 || len(list) == n && p <= list[n-1].Logprob {
			continue
		}
		at := len(list)
		for at > 0 && list[at-1].Logprob < p {
			at--
		}
		if list = slices.Insert(list, at, TokenLogprob{ID: int32(i), Logprob: p}); len(list) > n {
			list = list[:n]
		}
	}
	return TokenLogprob{ID: id, Logprob: float64(values[id]), Top: list}
}
