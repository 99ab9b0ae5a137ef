package generate

import (
	"context"
	"errors"

	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// Session continues one growing text. Prompts are read in pieces that begin at fixed places. What
// was read of earlier prompts is kept, keys and values in the cache and the states of state-space
// layers as they were after each piece, so a prompt that begins as the last one did is read from
// the last piece that they share. The new tokens of an earlier call are read again, as they would
// be in a new session: the result is the same to the last bit. One goroutine at a time may use a
// Session.
type Session struct {
	model model.Model
	tok   *tokenizer.Tokenizer
	cache *model.Cache
	piece int     // tokens
	held  []int32 // tokens in the cache
	read  int     // of them, those that were read as a prompt
	// States after pieces, in order, if the cache has states.
	states []*states
	// decoder runs recorded steps. It is kept while the cache and the sampling options
	// stay the same.
	decoder *decoder
	calls   int // number of calls so far, so that an equal prompt gets another text
}

// NewSession returns a session with an empty text. tok may be nil. The caller must
// call Close.
func NewSession(m model.Model, tok *tokenizer.Tokenizer) *Session {
	return &Session{model: m, tok: tok, piece: pieceOf(m)}
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
	s.held, s.read = nil, 0
	s.dropStates(0)
}

// Generate continues prompt, which is the whole text from its beginning. Whole pieces that
// the last call read are not read again. Without Options.Samples the calls are numbered.
// Otherwise it is like the function [Generate].
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
			tail := -1 // where the last piece begins, once those before it are read
			logits := func() torch.Tensor {
				if tail < 0 {
					tail = s.readPieces(prompt)
				}
				return g.cached(s.cache, tail)
			}
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
		s.read = min(len(prompt), s.cache.Length)
	}
	// The first process of a group may report Canceled while ctx is not done.
	if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		s.Reset() // a step that failed leaves the cache in an unknown state
		return Result{}, g.stats, err
	}
	return g.results()[0], g.stats, err
}

// prepare makes room for capacity tokens in the cache and keeps the whole pieces at the beginning
// of prompt that are in it. It returns their length, which leaves at least one token of the prompt
// to read.
func (s *Session) prepare(prompt []int32, capacity int) int {
	kept := 0
	for kept < min(s.read, len(prompt)-1) && s.held[kept] == prompt[kept] {
		kept++
	}
	kept = kept / s.piece * s.piece
	s.dropStates(kept)
	if s.cache != nil && hasStates(s.cache) {
		if kept = 0; len(s.states) > 0 {
			last := s.states[len(s.states)-1]
			kept = last.length
			s.cache.CopyStates(0, last.cache, 0)
		} else { // those of an empty text
			empty := s.model.NewCache(1, 1, model.DType(s.model), model.Device(s.model))
			s.cache.CopyStates(0, empty, 0)
			empty.Free()
		}
	}
	if s.cache == nil || s.cache.Capacity < capacity {
		room := 1024
		for room < capacity {
			room *= 2
		}
		grown := s.model.NewCache(1, min(room, max(capacity, s.model.MaxLength())),
			model.DType(s.model), model.Device(s.model))
		if s.cache != nil {
			grown.CopyColumns(0, 0, s.cache, 0, 0, kept)
			if kept > 0 {
				grown.CopyStates(0, s.cache, 0)
			}
			s.cache.Free()
		}
		s.cache = grown
	}
	s.cache.Length = kept
	return kept
}

// readPieces reads the prompt from the cache's length on, except the last piece, and returns where
// that one begins.
func (s *Session) readPieces(prompt []int32) int {
	for {
		start := s.cache.Length
		end := (start/s.piece + 1) * s.piece
		if end >= len(prompt) {
			return start
		}
		torch.Scoped(func() {
			ids := torch.From(prompt[start:end], 1, end-start).To(torch.Int64)
			model.Hidden(s.model, model.Sequence{IDs: ids.ToDevice(model.Device(s.model)),
				Cache: s.cache})
		})
		s.keepStates()
	}
}
