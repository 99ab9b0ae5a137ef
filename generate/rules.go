package generate

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Rules forbid tokens, as the settings of the same names do in transformers. With rules, tokens are
// chosen on the host, and steps are not recorded.
type Rules struct {
	// NoRepeatNGram is the length of the sequences of tokens that may occur once only, in the
	// prompt and the text together; 0 allows all.
	NoRepeatNGram int
	BadWords      [][]int32 // sequences of tokens that are never completed
	Suppress      []int32   // tokens that are never chosen
	BeginSuppress []int32   // tokens that are not chosen first
	// MinNewTokens is the number of new tokens, and MinLength the number of tokens of prompt and
	// text together, before which no token of Options.EOS is chosen.
	MinNewTokens, MinLength int
}

var errAllForbidden = errors.New("the rules or the grammar forbid every token: suppress fewer " +
	"tokens, or allow longer sequences to repeat")

// none reports whether every token is allowed.
func (r Rules) none() bool {
	return r.NoRepeatNGram == 0 && len(r.BadWords) == 0 && len(r.Suppress) == 0 &&
		len(r.BeginSuppress) == 0 && r.MinNewTokens == 0 && r.MinLength == 0
}

// checkVocabulary returns an error for a token that the model does not have.
func (o Options) checkVocabulary(vocabulary int) error {
	for id, bias := range o.LogitBias {
		if id < 0 || int(id) >= vocabulary {
			return fmt.Errorf("logit_bias names the token %d, but the model's vocabulary has the "+
				"ids 0 to %d", id, vocabulary-1)
		}
		if !(math.Abs(bias) <= math.MaxFloat32) {
			return fmt.Errorf("logit_bias of the token %d is %v, expected a number", id, bias)
		}
	}
	return o.Rules.check(vocabulary)
}

// check returns an error for the first rule that a vocabulary does not allow.
func (r Rules) check(vocabulary int) error {
	if r.NoRepeatNGram < 0 || r.MinNewTokens < 0 || r.MinLength < 0 {
		return errors.New("no_repeat_ngram_size, min_new_tokens and min_length must be 0 or more")
	}
	for _, id := range slices.Concat(r.Suppress, r.BeginSuppress) {
		if id < 0 { // one above the vocabulary cannot be chosen anyway
			return fmt.Errorf("the token id %d is suppressed, expected 0 or more", id)
		}
	}
	for _, word := range r.BadWords {
		if len(word) == 0 {
			return errors.New("a sequence of bad_words_ids is empty")
		}
		for _, id := range word {
			if id < 0 || int(id) >= vocabulary {
				return fmt.Errorf("bad_words_ids holds %d, but the model's vocabulary has the ids "+
					"0 to %d", id, vocabulary-1)
			}
		}
	}
	return nil
}

// forbid sets the logits of the tokens that may not follow ids to minus infinity. The first prompt
// ids are the prompt. eos lists the tokens that end a text.
func (r Rules) forbid(logits []float32, ids []int32, prompt int, eos []int32) {
	ban := func(id int32) {
		if int(id) < len(logits) {
			logits[id] = float32(math.Inf(-1))
		}
	}
	if n := r.NoRepeatNGram; n > 0 && len(ids) >= n {
		last := ids[len(ids)-n+1:]
		for i := n - 1; i < len(ids); i++ {
			if slices.Equal(ids[i-n+1:i], last) {
				ban(ids[i])
			}
		}
	}
	for _, word := range r.BadWords {
		start := len(word) - 1
		if len(word) == 1 && slices.Contains(eos, word[0]) { // a text must be able to end
			continue
		}
		if start <= len(ids) && slices.Equal(ids[len(ids)-start:], word[:start]) {
			ban(word[start])
		}
	}
	if len(ids) < r.MinLength || len(ids)-prompt < r.MinNewTokens {
		for _, id := range eos {
			ban(id)
		}
	}
	for _, id := range r.Suppress {
		ban(id)
	}
	if len(ids) == prompt {
		for _, id := range r.BeginSuppress {
			ban(id)
		}
	}
}
