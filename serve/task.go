package serve

import (
	"context"
	"math"
	"strings"
	"sync"
	"time"

	"conquer/generate"
	"conquer/torch"
)

// task is a prompt that the scheduler reads, and continues unless only the reading is wanted. A
// request with several prompts or choices has several tasks.
type task struct {
	ctx    context.Context
	prompt []int32
	row    *generate.Row           // the continuation; nil if none is wanted
	scored bool                    // scores are wanted
	top    int                     // most likely tokens in each of them
	scores []generate.TokenLogprob // of the prompt's tokens but the first
	pool   *pool                   // nil unless an embedding is wanted
	reused int                     // tokens of the prompt that were not read again

	adapter *adapter // nil: the model as it is
	ended   func()   // ends the use of the adapter, or nil

	queued time.Time
	answer *answer
}

// keepsReading reports whether only what follows the prompt is wanted, so that tokens that were
// read before need not be read again.
func (t *task) keepsReading() bool { return t.row != nil && !t.scored }

// answer is what a handler reads while the scheduler writes.
type answer struct {
	mutex    sync.Mutex
	text     string // not yet taken
	done     bool
	err      error
	logprobs []generate.TokenLogprob // of the new tokens
	changed  chan struct{}           // capacity 1
}

func newAnswer() *answer { return &answer{changed: make(chan struct{}, 1)} }

func (a *answer) update(change func()) {
	a.mutex.Lock()
	change()
	a.mutex.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// write adds text.
func (a *answer) write(piece string) { a.update(func() { a.text += piece }) }

// finish ends the answer. The task's results may be read afterwards.
func (a *answer) finish(err error) { a.update(func() { a.done, a.err = true, err }) }

// take waits for news and returns the new text and whether the answer has ended.
func (a *answer) take(ctx context.Context) (piece string, done bool, err error) {
	for {
		a.mutex.Lock()
		piece, done, err = a.text, a.done, a.err
		a.text = ""
		a.mutex.Unlock()
		if piece != "" || done {
			return piece, done, err
		}
		select {
		case <-a.changed:
		case <-ctx.Done():
			return "", true, ctx.Err()
		}
	}
}

// whole waits for the end of the answer and returns its text.
func (a *answer) whole(ctx context.Context) (string, error) {
	var text strings.Builder
	for {
		piece, done, err := a.take(ctx)
		text.WriteString(piece)
		if done {
			return text.String(), err
		}
	}
}

// logprobsFrom returns the log-probabilities of the new tokens from the n-th on.
func (a *answer) logprobsFrom(n int) []generate.TokenLogprob {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.logprobs[min(n, len(a.logprobs)):]
}

// publish shows the log-probabilities of the row's tokens to the handler.
func (t *task) publish() {
	if list := t.row.Logprobs(); list != nil {
		t.answer.update(func() { t.answer.logprobs = list })
	}
}

// pool collects the last hidden states of a prompt into its embedding.
type pool struct {
	last bool // take the state of the last token, not the mean of all
	sum  []float64
}

// add takes the states [L,D] of a piece.
func (p *pool) add(hidden torch.Tensor) {
	hidden = hidden.To(torch.Float32)
	if p.last {
		p.sum, hidden = nil, hidden.Narrow(0, hidden.Size(0)-1, 1)
	}
	values := torch.Values[float32](hidden.SumDim(0, false))
	if p.sum == nil {
		p.sum = make([]float64, len(values))
	}
	for i, v := range values {
		p.sum[i] += float64(v)
	}
}

// vector returns the embedding, scaled to length 1.
func (p *pool) vector() []float64 {
	square := 0.0
	for _, v := range p.sum {
		square += v * v
	}
	v := make([]float64, len(p.sum))
	for i := range v {
		if square > 0 {
			v[i] = p.sum[i] / math.Sqrt(square)
		}
	}
	return v
}
