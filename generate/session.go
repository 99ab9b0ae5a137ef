package generate

import (
	"context"
	"errors"

	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// Session continues one growing text. It keeps the model's cache between calls, so
// that only the new tokens of a prompt are read. One goroutine at a time may use it.
type Session struct {
	model model.Model
	tok   *tokenizer.Tokenizer
	cache *model.Cache
	held  []int32 // tokens in the cache
	// decoder runs recorded steps. It is kept while the cache and the sampling options
	// stay the same.
	decoder *decoder
	calls   int // number of calls so far, so that an equal prompt gets another text
}

// NewSession returns a session with an empty text. tok may be nil. The caller must
// call Close.
func NewSession(m model.Model, tok *tokenizer.Tokenizer) *Session {
	return &Session{model: m, tok: tok}
}

// Close frees the cache.
func (s *Session) Close() { s.Reset() }

// Reset discards the text so far.
func (s *Session) Reset() {
	s.decoder.free()
	s.decoder = nil
	if s.cache != nil {
		s.cache.Free()
		s.cache = nil
	}
	s.held = nil
}

// Generate continues prompt, which is the whole text from its beginning. The tokens
// at its start that an earlier call read or made are not computed again. Without
// Options.Samples the calls are numbered. Otherwise it is like the function [Generate].
func (s *Session) Generate(ctx context.Context, prompt []int32, o Options,
	onText func(piece string),
) (Result, Stats, error) {
	if o.NoCache {
		return Result{}, Stats{}, errors.New("a session needs its cache: NoCache is not supported")
	}
	if o.Samples == nil {
		o.Samples = []int{s.calls}
	}
	s.calls++
	g, err := begin(s.model, s.tok, [][]int32{prompt}, o, func(_ int, piece string) {
		if onText != nil {
			onText(piece)
		}
	})
	if err != nil {
		return Result{}, Stats{}, err
	}
	err = torch.Run(func() (err error) {
		torch.NoGrad(func() {
			kept := s.prepare(prompt, g.capacity())
			g.stats.Reused = kept
			logits := func() torch.Tensor { return g.cached(s.cache, kept) }
			if !o.compiled(model.Device(s.model)) {
				err = g.loop(ctx, logits)
				return
			}
			if s.decoder == nil || s.decoder.cache != s.cache ||
				s.decoder.sampling != o.sampling() {
				s.decoder.free()
				s.decoder = newDecoder(s.model, s.cache, 1, o)
			}
			err = g.decode(ctx, s.decoder, logits)
		})
		return err
	})
	if s.cache != nil {
		g.stats.fusion(s.model, s.cache)
		s.held = append(s.held[:0], g.rows[0].ids[:s.cache.Length]...)
	}
	// The first process of a group may report Canceled while ctx is not done.
	if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		s.Reset() // a step that failed leaves the cache in an unknown state
		return Result{}, g.stats, err
	}
	return g.results()[0], g.stats, err
}

// prepare makes room for capacity tokens in the cache and keeps the longest prefix of
// prompt that is in it. It returns the length of that prefix, which leaves at least
// one token of the prompt to read.
func (s *Session) prepare(prompt []int32, capacity int) int {
	kept := 0
	for kept < min(len(s.held), len(prompt)-1) && s.held[kept] == prompt[kept] {
		kept++
	}
	if s.cache != nil && kept < s.cache.Length && !rewinds(s.cache) {
		s.Reset()
		kept = 0
	}
	if s.cache == nil || s.cache.Capacity < capacity {
		room := 1024
		for room < capacity {
			room *= 2
		}
		grown := s.model.NewCache(1, min(room, max(capacity, s.model.MaxLength())),
			model.DType(s.model), model.Device(s.model))
		if s.cache != nil {
			move(grown, s.cache, kept)
			s.cache.Free()
		}
		s.cache = grown
	}
	s.cache.Length = kept
	return kept
}

// rewinds reports whether a cache can return to an earlier token. Keys and values
// can, the state of a state-space layer cannot.
func rewinds(c *model.Cache) bool {
	for i := range c.Layers {
		if c.Layers[i].State.Defined() || c.Layers[i].Conv.Defined() {
			return false
		}
	}
	return true
}

// move copies the first length columns of from, and moves its states, to a larger
// cache.
func move(to, from *model.Cache, length int) {
	for i := range to.Layers {
		a, b := &to.Layers[i], &from.Layers[i]
		if b.Keys.Defined() && length > 0 {
			torch.Scoped(func() {
				a.Keys.Narrow(2, 0, length).Copy(b.Keys.Narrow(2, 0, length))
				a.Values.Narrow(2, 0, length).Copy(b.Values.Narrow(2, 0, length))
			})
		}
		a.Conv, b.Conv = b.Conv, a.Conv
		a.State, b.State = b.State, a.State
	}
}
