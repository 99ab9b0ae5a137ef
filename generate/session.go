package generate

import (
	"context"
	"errors"

	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// Session continues one growing text. It keeps the model's cache from one call to the next, so that only what is new of a
// prompt is read. It serves one goroutine at a time.
type Session struct {
	model model.Model
	tok   *tokenizer.Tokenizer
	cache *model.Cache
	held  []int32 // the tokens that the cache has read
	// Takes the steps where they are recorded; serves every text of this cache that is sampled in the same way.
	decoder *decoder
}

// NewSession begins an empty text; tok may be nil. The caller ends it with Close.
func NewSession(m model.Model, tok *tokenizer.Tokenizer) *Session {
	return &Session{model: m, tok: tok}
}

// Close frees the cache.
func (s *Session) Close() { s.Reset() }

// Reset forgets the text so far.
func (s *Session) Reset() {
	s.decoder.free()
	s.decoder = nil
	if s.cache != nil {
		s.cache.Free()
		s.cache = nil
	}
	s.held = nil
}

// Generate continues prompt, which holds the whole text from its beginning; the part at the front that an earlier call
// read or made is not computed again. Everything else is as in the function [Generate].
func (s *Session) Generate(ctx context.Context, prompt []int32, o Options, onText func(piece string)) (Result, Stats, error) {
	if o.NoCache {
		return Result{}, Stats{}, errors.New("a session cannot do without its cache")
	}
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
			if s.decoder == nil || s.decoder.cache != s.cache || s.decoder.sampling != o.sampling() {
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
	if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) { // which the first of several processes may say
		s.Reset() // a step that failed half-way leaves a cache that nothing is known of
		return Result{}, g.stats, err
	}
	return g.results()[0], g.stats, err
}

// prepare makes the cache hold the longest beginning of prompt that it can, with room for capacity tokens, and returns
// how many it holds. At least one token of the prompt is left to be read.
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
		grown := s.model.NewCache(1, min(room, max(capacity, s.model.MaxLength())), model.DType(s.model), model.Device(s.model))
		if s.cache != nil {
			move(grown, s.cache, kept)
			s.cache.Free()
		}
		s.cache = grown
	}
	s.cache.Length = kept
	return kept
}

// rewinds reports whether a cache can go back to an earlier token: keys and values can, a running state cannot.
func rewinds(c *model.Cache) bool {
	for i := range c.Layers {
		if c.Layers[i].State.Defined() || c.Layers[i].Conv.Defined() {
			return false
		}
	}
	return true
}

// move takes the first length columns of from, and its states, to a larger cache.
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
