// Package generate continues texts with a causal language model, and measures how
// well the model predicts a given text.
//
// [Generate] continues a batch of prompts. A [Session] continues one conversation
// turn after turn and keeps the model's cache between turns. [Score] returns the
// likelihood of a text.
//
// Prompts of unequal length are padded on the left in the cache, and each row sees
// only its own tokens, so a prompt gives the same tokens alone and in a batch.
// Sampling depends on Options.Seed, the prompt and the number of its sample, not on
// the batch: the same seed gives the same text on every device that computes the same
// logits.
//
// The functions of this package return failures of libtorch as errors (see
// [conquer/torch.Run]).
package generate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// Generate continues each prompt, a list of token ids. tok turns tokens into text
// and may be nil. onText may be nil; else it receives each piece of a row's text as
// soon as it is certain. A piece never ends inside a character and never holds a
// part of a stop string.
//
// If ctx is cancelled, Generate returns the tokens made so far and the error of ctx.
func Generate(ctx context.Context, m model.Model, tok *tokenizer.Tokenizer, prompts [][]int32,
	o Options,
	onText func(row int, piece string)) ([]Result, Stats, error) {
	g, err := begin(m, tok, prompts, o, onText)
	if err != nil || len(prompts) == 0 {
		return nil, Stats{}, err
	}
	err = torch.Run(func() (err error) {
		torch.NoGrad(func() {
			if o.NoCache {
				err = g.loop(ctx, g.whole)
				return
			}
			cache := m.NewCache(len(g.rows), g.capacity(), model.DType(m), model.Device(m))
			defer cache.Free()
			defer g.stats.fusion(m, cache)
			cache.Starts = g.starts()
			logits := func() torch.Tensor { return g.cached(cache, 0) }
			if !o.compiled(model.Device(m)) {
				err = g.loop(ctx, logits)
				return
			}
			d := newDecoder(m, cache, len(g.rows), o)
			defer d.free()
			err = g.decode(ctx, d, logits)
		})
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil, g.stats, err
	}
	return g.results(), g.stats, err
}

// CheckIDs returns an error if ids is empty or holds an id outside the vocabulary
// of m.
func CheckIDs(m model.Model, ids []int32) error {
	if len(ids) == 0 {
		return errors.New("there are no tokens")
	}
	for i, id := range ids {
		if id < 0 || int(id) >= vocabulary(m) {
			return fmt.Errorf("token %d is %d, but the model's vocabulary has the ids 0 to %d", i+1,
				id, vocabulary(m)-1)
		}
	}
	return nil
}

// CheckPrompt returns an error if ids cannot be continued: for a reason of [CheckIDs], or
// because the model's context has no room for a new token.
func CheckPrompt(m model.Model, ids []int32) error { return checkPrompt(m, ids, m.MaxLength()) }

func checkPrompt(m model.Model, ids []int32, context int) error {
	if err := CheckIDs(m, ids); err != nil {
		return err
	}
	if len(ids) >= context {
		return fmt.Errorf("the prompt has %d tokens, the context only %d, including at least one "+
			"new token: shorten it", len(ids), context)
	}
	return nil
}

func vocabulary(m model.Model) int { return m.Head().Shape[0] }

// EOS returns the tokens that end a text: those of the tokenizer, which may be nil,
// then those of the model's config.
func EOS(m model.Model, tok *tokenizer.Tokenizer) []int32 {
	var ids []int32
	if tok != nil {
		ids = tok.EOS()
	}
	add := func(v any) {
		if n, ok := v.(float64); ok && n >= 0 && n < math.MaxInt32 &&
			!slices.Contains(ids, int32(n)) {
			ids = append(ids, int32(n))
		}
	}
	switch v := m.Config()["eos_token_id"].(type) {
	case []any:
		for _, id := range v {
			add(id)
		}
	default:
		add(v)
	}
	return ids
}
