package eval

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"conquer/generate"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// LM is a language model with its tokenizer as a [Model]. It reads texts as lm-eval's hf backend
// does. One goroutine at a time may use it.
type LM struct {
	model  model.Model
	tok    *tokenizer.Tokenizer
	prefix int32  // the token before a text: that which begins texts, else that which ends them
	bos    string // its text; a text that begins with it gets no special tokens
	// MaxLength is the number of tokens that the model reads at once, at most; longer texts lose
	// their beginning. NewLM sets it to the model's context.
	MaxLength int
	// BatchTokens is about the number of tokens of one pass, BatchRows the most texts that are
	// continued at once.
	BatchTokens, BatchRows int
	// Whole reads every text from its beginning in one pass, without a cache, as strategies of
	// chunking need: their chunks are those of the whole text. Without it, what texts have in
	// common at their beginnings is read once.
	Whole bool
}

// NewLM returns a model for evaluation.
func NewLM(m model.Model, tok *tokenizer.Tokenizer) (*LM, error) {
	l := &LM{model: m, tok: tok, MaxLength: m.MaxLength(), BatchTokens: 4096, BatchRows: 16}
	if model.Device(m).IsCUDA() {
		l.BatchTokens, l.BatchRows = 16384, 64
	}
	if id, ok := tok.BOS(); ok {
		l.prefix = id
	} else if ends := tok.EOS(); len(ends) > 0 {
		l.prefix = ends[0]
	} else {
		return nil, errors.New("the tokenizer has no token that begins or ends a text, which the " +
			"first token of a text is predicted after")
	}
	l.bos = tok.Decode([]int32{l.prefix}, false)
	return l, nil
}

// encode encodes a text, with special tokens unless it begins with them.
func (l *LM) encode(text string) []int32 {
	return l.tok.Encode(text, !strings.HasPrefix(text, l.bos))
}

// split encodes a pair. The tokens of the continuation are those of both texts without as many as
// the context has.
func (l *LM) split(p Pair) (before, after []int32, err error) {
	if p.Context == "" {
		before, after = []int32{l.prefix}, l.tok.Encode(p.Continuation, false)
		if len(after) > 0 && after[0] == l.prefix {
			before, after = after[:1], after[1:]
		}
	} else {
		context := trimSpaceRight(p.Context)
		whole := l.encode(p.Context + p.Continuation)
		before = l.encode(context)
		after = whole[min(len(before), len(whole)):]
	}
	switch {
	case len(after) == 0:
		err = fmt.Errorf("the text %.60q has no token of its own after %q: write the task so that "+
			"the two meet between words", p.Continuation, tail(p.Context))
	case len(before) == 0:
		err = fmt.Errorf("the context of %.60q has no tokens", p.Continuation)
	case len(after) > l.MaxLength:
		err = fmt.Errorf("the text %.60q has %d tokens, the model reads %d", p.Continuation,
			len(after), l.MaxLength)
	}
	return before, after, err
}

// tail is the end of a text, for errors.
func tail(s string) string {
	runes := []rune(s)
	return string(runes[max(0, len(runes)-40):])
}

// Likelihoods implements [Model].
func (l *LM) Likelihoods(ctx context.Context, pairs []Pair, done func(n int)) ([]Likelihood,
	error) {
	var sequences []sequence
	places := map[string]int{} // equal requests are answered once, so that they tie
	place := make([]int, len(pairs))
	repeats := []int{}
	for i, p := range pairs {
		before, after, err := l.split(p)
		if err != nil {
			return nil, err
		}
		s := l.sequence(len(sequences), before, after)
		key := fmt.Sprint(s.predicted, s.tokens)
		at, ok := places[key]
		if !ok {
			at = len(sequences)
			places[key] = at
			sequences = append(sequences, s)
			repeats = append(repeats, 0)
		}
		place[i] = at
		repeats[at]++
	}
	unique, err := l.likelihoods(ctx, sequences, func(request int) {
		if done != nil {
			done(repeats[request])
		}
	})
	if err != nil {
		return nil, err
	}
	list := make([]Likelihood, len(pairs))
	for i, at := range place {
		list[i] = unique[at]
	}
	return list, nil
}

// sequence joins a context and a continuation and cuts the beginning if they are too long.
func (l *LM) sequence(request int, before, after []int32) sequence {
	tokens := append(append(make([]int32, 0, len(before)+len(after)), before...), after...)
	if most := l.MaxLength + 1; len(tokens) > most {
		tokens = tokens[len(tokens)-most:]
	}
	return sequence{request, tokens, len(after)}
}

// Rolling implements [Model].
func (l *LM) Rolling(ctx context.Context, texts []string, done func(n int)) ([]float64, error) {
	var sequences []sequence
	var owner, left []int
	sums := make([]float64, len(texts))
	for i, text := range texts {
		windows := 0
		for _, w := range rollingWindows(l.encode(text), l.prefix, l.MaxLength) {
			s := l.sequence(len(sequences), w.before, w.after)
			sequences, owner = append(sequences, s), append(owner, i)
			windows++
		}
		left = append(left, windows)
		if windows == 0 && done != nil {
			done(1)
		}
	}
	answers, err := l.likelihoods(ctx, sequences, func(request int) {
		if left[owner[request]]--; left[owner[request]] == 0 && done != nil {
			done(1)
		}
	})
	for i, a := range answers {
		sums[owner[i]] += a.Sum
	}
	return sums, err
}

// window is a part of a text that is predicted at once, and what is read before it.
type window struct{ before, after []int32 }

// rollingWindows divides a text into windows of which the model reads at most length tokens. Each
// token is predicted once. The last window is read with as much before it as fits.
func rollingWindows(tokens []int32, prefix int32, length int) (windows []window) {
	for start := 0; start < len(tokens); start += length {
		end := min(start+length, len(tokens))
		before := []int32{prefix}
		if start > 0 {
			before = tokens[end-length-1 : start]
		}
		windows = append(windows, window{before, tokens[start:end]})
	}
	return windows
}

// likelihoods scores sequences, whose requests are their indices. done is called for each that is
// finished.
func (l *LM) likelihoods(ctx context.Context, sequences []sequence, done func(request int)) (
	[]Likelihood, error) {
	list := make([]Likelihood, len(sequences))
	left := make([]int, len(sequences))
	for i, s := range sequences {
		if err := generate.CheckIDs(l.model, s.tokens); err != nil {
			return nil, err
		}
		list[i].Greedy, left[i] = true, s.predicted
	}
	var roots []*node
	if l.Whole {
		for _, s := range sequences {
			n := &node{tokens: s.inputs()}
			n.add(s)
			roots = append(roots, n)
		}
	} else {
		roots = grow(sequences)
	}
	r := &reading{LM: l, ctx: ctx, result: func(request, count int, sum float64, greedy bool) {
		list[request].Sum += sum
		list[request].Greedy = list[request].Greedy && greedy
		if left[request] -= count; left[request] == 0 {
			done(request)
		}
	}}
	err := torch.Run(func() (err error) {
		torch.NoGrad(func() { err = r.read(nil, jobsOf(roots, 0)) })
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if math.IsNaN(a.Sum) {
			return nil, errors.New("the model's probabilities are not numbers")
		}
	}
	return list, nil
}
