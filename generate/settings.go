package generate

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"conquer/text/tokenizer"
)

// Settings are what a generation_config.json says about choosing tokens. A nil pointer means that
// the file does not say.
type Settings struct {
	DoSample                                   *bool
	Temperature, TopP, MinP, RepetitionPenalty *float64
	TopK                                       *int
	Stop                                       []string
	EOS                                        []int32
	Rules                                      Rules
	// Unsupported names the fields, with their values, that change a text in transformers and are
	// not used here. UnsupportedSampling names those that change sampled texts only.
	Unsupported, UnsupportedSampling []string
}

// settingsField says what is done with a field of generation_config.json. A field with neither
// function does not change which tokens are chosen here.
type settingsField struct {
	read func(s *Settings, v any) error
	// harmless reports whether the value of a field that is not supported changes nothing.
	harmless func(v any) bool
	sampling bool // changes sampled texts only
}

// settingsFields holds the fields of transformers 5.24's GenerationConfig.
var settingsFields = map[string]settingsField{
	"do_sample": {read: func(s *Settings, v any) error {
		on, ok := v.(bool)
		if !ok {
			return errors.New("true or false")
		}
		s.DoSample = &on
		return nil
	}},
	"temperature": {read: func(s *Settings, v any) error {
		return number(&s.Temperature, v, 0, math.MaxFloat64, "0 or more")
	}},
	"top_k": {read: func(s *Settings, v any) error {
		k, ok := whole(v)
		if !ok || k < -1 {
			return errors.New("a whole number, or -1 for all tokens")
		}
		k = max(k, 0)
		s.TopK = &k
		return nil
	}},
	"top_p": {read: func(s *Settings, v any) error {
		err := number(&s.TopP, v, 0, math.MaxFloat64, "0 or more")
		if err == nil { // more than 1 keeps all tokens too
			*s.TopP = min(*s.TopP, 1)
		}
		return err
	}},
	"min_p": {read: func(s *Settings, v any) error {
		return number(&s.MinP, v, 0, 1, "from 0 to 1")
	}},
	"repetition_penalty": {read: func(s *Settings, v any) error {
		return number(&s.RepetitionPenalty, v, math.SmallestNonzeroFloat32, math.MaxFloat32,
			"more than 0")
	}},
	"stop_strings": {read: func(s *Settings, v any) error {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, v := range list {
			text, ok := v.(string)
			if !ok || text == "" {
				return errors.New("a text or a list of texts")
			}
			s.Stop = append(s.Stop, text)
		}
		return nil
	}},
	"eos_token_id": {read: func(s *Settings, v any) error {
		if n, one := v.(float64); one {
			v = []any{n}
		}
		list, ok := v.([]any)
		for _, v := range list {
			id, valid := whole(v)
			if ok = ok && valid; ok && id >= 0 { // -1: no such token
				s.EOS = append(s.EOS, int32(id))
			}
		}
		if !ok || len(list) > tokenizer.MaxIDs {
			return fmt.Errorf("a token id or a list of at most %d", tokenizer.MaxIDs)
		}
		return nil
	}},
	"suppress_tokens":       tokens(func(s *Settings) *[]int32 { return &s.Rules.Suppress }),
	"begin_suppress_tokens": tokens(func(s *Settings) *[]int32 { return &s.Rules.BeginSuppress }),
	"bad_words_ids": {read: func(s *Settings, v any) error {
		list, ok := v.([]any)
		for _, v := range list {
			ids, valid := idsOf(v)
			ok = ok && valid && len(ids) > 0
			s.Rules.BadWords = append(s.Rules.BadWords, ids)
		}
		if !ok {
			return errors.New("a list of lists of token ids")
		}
		return nil
	}},
	"no_repeat_ngram_size": length(func(s *Settings) *int { return &s.Rules.NoRepeatNGram }),
	"min_new_tokens":       length(func(s *Settings) *int { return &s.Rules.MinNewTokens }),
	"min_length":           length(func(s *Settings) *int { return &s.Rules.MinLength }),

	"num_beams":                        {harmless: atMost(1)},
	"num_beam_groups":                  {harmless: atMost(1)},
	"num_return_sequences":             {harmless: atMost(1)},
	"penalty_alpha":                    {harmless: atMost(0)},
	"encoder_no_repeat_ngram_size":     {harmless: atMost(0)},
	"encoder_repetition_penalty":       {harmless: exactly(1)},
	"guidance_scale":                   {harmless: exactly(1)},
	"token_healing":                    {harmless: off},
	"max_time":                         {harmless: never},
	"dola_layers":                      {harmless: never},
	"constraints":                      {harmless: never},
	"force_words_ids":                  {harmless: never},
	"forced_bos_token_id":              {harmless: never},
	"forced_eos_token_id":              {harmless: never},
	"exponential_decay_length_penalty": {harmless: never},
	"sequence_bias":                    {harmless: never},
	"watermarking_config":              {harmless: never},
	"cache_implementation":             {harmless: func(v any) bool { return v != "quantized" }},
	"typical_p":                        {harmless: outside01, sampling: true},
	"epsilon_cutoff":                   {harmless: outside01, sampling: true},
	"eta_cutoff":                       {harmless: outside01, sampling: true},
	"top_h":                            {harmless: never, sampling: true},

	// The caller sets the length.
	"max_new_tokens": {}, "max_length": {},
	// They shape beam search, or select outputs.
	"early_stopping": {}, "length_penalty": {}, "diversity_penalty": {}, "low_memory": {},
	"output_attentions": {}, "output_hidden_states": {}, "output_scores": {}, "output_logits": {},
	"return_dict_in_generate": {}, "renormalize_logits": {}, "remove_invalid_values": {},
	// They change the speed, not the text.
	"use_cache": {}, "cache_config": {}, "max_cache_len": {}, "use_mtp": {}, "compile_config": {},
	"disable_compile": {}, "prefill_chunk_size": {}, "continuous_batching_config": {},
	// They need a second model, or find drafts that the model checks.
	"is_assistant": {}, "num_assistant_tokens": {}, "num_assistant_tokens_schedule": {},
	"assistant_confidence_threshold": {}, "prompt_lookup_num_tokens": {},
	"max_matching_ngram_size": {}, "assistant_early_exit": {}, "assistant_lookbehind": {},
	"target_lookbehind": {}, "assistant_ensemble_weight": {}, "speculation_type": {},
	// The tokenizer has these tokens, or the file is described.
	"pad_token_id": {}, "bos_token_id": {}, "decoder_start_token_id": {},
	"_from_model_config": {}, "transformers_version": {},
}

// ReadSettings reads a generation_config.json, as encoding/json decodes it. It returns an error for
// a value that transformers refuses too.
func ReadSettings(config map[string]any) (Settings, error) {
	var s Settings
	for _, name := range slices.Sorted(maps.Keys(config)) {
		field, v := settingsFields[name], config[name]
		if v == nil { // null: not set
			continue
		}
		if bare, ok := v.(map[string]any); ok && bare["__float__"] != nil { // Python's NaN
			v = fmt.Sprint(bare["__float__"])
		}
		switch {
		case field.read != nil:
			if err := field.read(&s, v); err != nil {
				return Settings{}, fmt.Errorf("generation_config.json: %s is %.60s, expected %w",
					name, shown(v), err)
			}
		case field.harmless == nil || field.harmless(v):
		case field.sampling:
			s.UnsupportedSampling = append(s.UnsupportedSampling, name+" "+shown(v))
		default:
			s.Unsupported = append(s.Unsupported, name+" "+shown(v))
		}
	}
	return s, nil
}

// Sample sets the sampling options of a text that is sampled. Where the file does not say, it keeps
// the options, but if the file turns sampling on, transformers' defaults replace them: temperature
// 1, the 50 most likely tokens, top_p 1. keep reports the fields that a caller has chosen.
func (s Settings) Sample(o *Options, keep func(field string) bool) {
	completed := s.DoSample != nil && *s.DoSample
	set := func(name string, to *float64, value *float64, otherwise float64) {
		switch {
		case keep(name):
		case value != nil:
			*to = *value
		case completed:
			*to = otherwise
		}
	}
	set("temperature", &o.Temperature, s.Temperature, 1)
	set("top_p", &o.TopP, s.TopP, 1)
	set("min_p", &o.MinP, s.MinP, 0)
	switch {
	case keep("top_k"):
	case s.TopK != nil:
		o.TopK = *s.TopK
	case completed:
		o.TopK = 50
	}
	if !keep("top_p") && s.TopP != nil && *s.TopP == 0 {
		o.TopK, o.TopP = 1, 1 // the most likely token only
	}
}

// Constrain sets the options that hold for greedy texts too: the repetition penalty, the rules, the
// stop strings and the tokens that end a text, in addition to end. keep reports the fields that a
// caller has chosen.
func (s Settings) Constrain(o *Options, end []int32, keep func(field string) bool) {
	if s.RepetitionPenalty != nil && !keep("repetition_penalty") {
		o.RepetitionPenalty = *s.RepetitionPenalty
	}
	if s.Stop != nil && !keep("stop") {
		o.Stop = s.Stop
	}
	o.Rules = s.Rules
	o.EOS = slices.Clone(end)
	for _, id := range s.EOS {
		if !slices.Contains(o.EOS, id) {
			o.EOS = append(o.EOS, id)
		}
	}
}

// number reads a number between two limits.
func number(to **float64, v any, low, high float64, want string) error {
	n, ok := v.(float64)
	if !ok || !(n >= low && n <= high) {
		return errors.New(want)
	}
	*to = &n
	return nil
}

// whole returns v as an integer, if it is one.
func whole(v any) (int, bool) {
	n, ok := v.(float64)
	return int(n), ok && n == math.Trunc(n) && math.Abs(n) <= math.MaxInt32
}

// length is a field that holds a number of tokens.
func length(at func(*Settings) *int) settingsField {
	return settingsField{read: func(s *Settings, v any) error {
		n, ok := whole(v)
		if !ok || n < 0 {
			return errors.New("a whole number, 0 or more")
		}
		*at(s) = n
		return nil
	}}
}

// tokens is a field that holds a token id or a list of them.
func tokens(at func(*Settings) *[]int32) settingsField {
	return settingsField{read: func(s *Settings, v any) error {
		if _, one := v.(float64); one {
			v = []any{v}
		}
		ids, ok := idsOf(v)
		if !ok {
			return errors.New("a token id or a list of them")
		}
		*at(s) = ids
		return nil
	}}
}

// idsOf returns a list of token ids.
func idsOf(v any) ([]int32, bool) {
	list, ok := v.([]any)
	ids := make([]int32, len(list))
	for i, v := range list {
		id, valid := whole(v)
		ids[i], ok = int32(id), ok && valid && id >= 0
	}
	return ids, ok
}

func atMost(most float64) func(any) bool {
	return func(v any) bool { n, ok := v.(float64); return ok && n <= most }
}

func exactly(want float64) func(any) bool { return func(v any) bool { return v == want } }

// outside01 holds for a share of the probability that removes no token.
func outside01(v any) bool { n, ok := v.(float64); return ok && !(n > 0 && n < 1) }

func off(v any) bool { return v == false }

func never(any) bool { return false }

// shown formats a value of JSON for a message.
func shown(v any) string {
	if text, ok := v.(string); ok {
		return fmt.Sprintf("%q", text)
	}
	text := strings.NewReplacer("map[", "{", "]", "]").Replace(fmt.Sprint(v))
	if runes := []rune(text); len(runes) > 60 {
		return string(runes[:60]) + "…"
	}
	return text
}
