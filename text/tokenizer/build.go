package tokenizer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// build makes the tokenizer that a tokenizer.json describes. It fails if a stage
// has a type that is not supported.
func (spec *fileSpec) build() (*Tokenizer, error) {
	t := &Tokenizer{bos: -1, pad: -1, unk: -1}
	t.scratch.New = newScratch
	for _, f := range []func(*Tokenizer) error{
		spec.buildPreTokenizer, spec.buildModel, spec.buildNormalizer, (*Tokenizer).checkStages,
		spec.buildAdded, spec.buildPostProcessor,
	} {
		if err := f(t); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// buildModel makes the model of its type and sets the vocabulary.
func (spec *fileSpec) buildModel(t *Tokenizer) error {
	s := &spec.Model
	size := int32(0)
	for token, id := range s.Vocab {
		if id < 0 || id >= maxVocab {
			return fmt.Errorf("model: token %q has id %d, expected 0 to %d", token, id, maxVocab-1)
		}
		size = max(size, id+1)
	}
	t.vocab = s.Vocab
	t.tokens = make([]string, size)
	for token, id := range s.Vocab {
		t.tokens[id] = token
	}
	var err error
	switch {
	case s.Type == "BPE" || s.Type == "" && len(s.Merges) > 0:
		t.model, err = s.buildBPE(t)
	case s.Type == "Unigram" && len(s.Vocab) > 0:
		t.model, err = s.buildUnigram(t)
	case s.Type == "WordPiece" && len(s.Vocab) > 0:
		t.model, err = s.buildWordPiece()
	case s.Type == "WordLevel" && len(s.Vocab) > 0:
		t.model, err = s.buildWordLevel()
	case s.Type == "Unigram" || s.Type == "WordPiece" || s.Type == "WordLevel":
	default:
		err = unsupported(s.Type, "BPE, Unigram, WordLevel, WordPiece")
	}
	if err == nil && len(s.Vocab) == 0 {
		err = fmt.Errorf("the vocabulary is empty")
	}
	if err == nil && t.byteLevel && s.Type != "BPE" && s.Type != "" {
		t.spellBytes()
	}
	if err == nil && s.UnkToken != nil {
		id, ok := s.Vocab[*s.UnkToken]
		if !ok {
			err = fmt.Errorf("unk_token %q is not in the vocabulary", *s.UnkToken)
		}
		t.unk = id
	}
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	return nil
}

// buildBPE makes byte-pair encoding.
func (s *modelSpec) buildBPE(t *Tokenizer) (*bpe, error) {
	switch {
	case s.Prefix != nil && *s.Prefix != "" || s.Suffix != nil && *s.Suffix != "":
		return nil, fmt.Errorf(
			"continuing_subword_prefix and end_of_word_suffix are not supported")
	case s.Dropout != nil && *s.Dropout != 0:
		return nil, fmt.Errorf("dropout %g is not supported: encoding would be random", *s.Dropout)
	}
	m := &bpe{ids: s.Vocab, byteLevel: t.byteLevel, byteFallback: s.ByteFallback,
		ignoreMerges: s.IgnoreMerges, fuseUnk: s.FuseUnk, unk: -1}
	if s.UnkToken != nil {
		if id, ok := s.Vocab[*s.UnkToken]; ok {
			m.unk = id
		}
	}
	if err := m.setMerges(s.Merges); err != nil {
		return nil, err
	}
	m.setUnits()
	return m, nil
}

func (spec *fileSpec) buildPreTokenizer(t *Tokenizer) error {
	b := &t.pretokenBudget
	return eachStage("pre_tokenizer", spec.PreTokenizer, func(c *stage) error {
		if t.byteLevel {
			b.grow(2)
			t.spellBytes() // the stages after ByteLevel see characters that spell bytes
		}
		step, err := preStep{}, error(nil)
		switch c.Type {
		case "ByteLevel":
			t.byteLevel = true
			if c.AddPrefixSpace == nil || *c.AddPrefixSpace {
				b.grow(2)
				step.rewrite = func(s string, _ bool) string {
					if strings.HasPrefix(s, " ") {
						return s
					}
					return " " + s
				}
			}
			if c.UseRegex == nil || *c.UseRegex {
				step.next = nextGPT2
			}
		case "Digits":
			step.next = nextDigits(c.IndividualDigits)
		case "Split":
			switch {
			case c.Pattern.Regex != nil:
				step, err = splitByPattern(*c.Pattern.Regex, c.Behavior, c.Invert)
			case c.Pattern.String != nil:
				step, err = splitByString(*c.Pattern.String, c.Behavior, c.Invert)
			default:
				err = fmt.Errorf("the pre-tokenizer Split has no pattern")
			}
		case "Metaspace":
			b.grow(1 + len(c.Replacement))
			step, err = metaspace(c)
		case "Whitespace":
			step.all = wordsAndSymbols
		case "WhitespaceSplit":
			step.all = strings.Fields
		case "BertPreTokenizer":
			step.all = bertWords
		case "Punctuation":
			behavior := c.Behavior
			if behavior == "" {
				behavior = "Isolated"
			}
			step, err = splitAt(findRunes(isPunctuation), behavior, false)
		case "CharDelimiterSplit":
			step, err = splitByString(c.Delimiter, "Removed", false)
		default:
			err = unsupported(c.Type, "BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, "+
				"Metaspace, Punctuation, Sequence, Split, Whitespace, WhitespaceSplit")
		}
		if step.cost > 0 {
			b.match(step.cost)
		}
		t.pretoken = append(t.pretoken, step)
		return err
	})
}

// checkStages returns an error if normalizing and dividing a text may take too much.
func (t *Tokenizer) checkStages() error {
	all := t.normalBudget.then(t.pretokenBudget)
	if err := all.check(); err != nil {
		return fmt.Errorf("normalizer and pre_tokenizer: %w", err)
	}
	return nil
}

// scheme returns when Metaspace adds its mark to the start of a text: always,
// first or never. Older files have add_prefix_space instead.
func (c *stage) scheme() string {
	if c.PrependScheme == "" {
		if c.AddPrefixSpace != nil && !*c.AddPrefixSpace {
			return "never"
		}
		return "always"
	}
	return c.PrependScheme
}

// metaspace returns the pre-tokenizer Metaspace, which replaces spaces by a mark.
func metaspace(c *stage) (step preStep, err error) {
	mark, scheme := c.Replacement, c.scheme()
	if mark == "" || !slices.Contains([]string{"always", "first", "never"}, scheme) {
		return step, fmt.Errorf("the pre-tokenizer Metaspace has replacement %q "+
			"and prepend_scheme %q; expected a character, and always, first or never", mark, scheme)
	}
	step.rewrite = func(s string, first bool) string {
		s = strings.ReplaceAll(s, " ", mark)
		if (scheme == "always" || scheme == "first" && first) && !strings.HasPrefix(s, mark) {
			s = mark + s
		}
		return s
	}
	if c.Split == nil || *c.Split {
		step.next = nextMark(mark)
	}
	return step, nil
}

// numberAdded sets the id of every added token: the model's id if the model has the
// token, else the next free id. Like Hugging Face, it ignores the id in the file,
// which differs only if the file was edited by hand. Of two added tokens of the same
// content, the properties of the last count.
func (spec *fileSpec) numberAdded() {
	index, next := map[string]int{}, int32(len(spec.Model.Vocab))
	list := []addedToken{}
	for _, token := range spec.AddedTokens {
		if token.Content == "" {
			continue
		}
		if i, double := index[token.Content]; double {
			token.ID = list[i].ID
			list[i] = token
			continue
		}
		if id, ok := spec.Model.Vocab[token.Content]; ok {
			token.ID = id
		} else {
			token.ID = next
		}
		next = max(next, token.ID+1)
		index[token.Content] = len(list)
		list = append(list, token)
	}
	spec.AddedTokens = list
}

// buildAdded takes the added tokens and how ids are decoded.
func (spec *fileSpec) buildAdded(t *Tokenizer) error {
	t.ids = make(map[string]int32, len(t.vocab)+len(spec.AddedTokens))
	maps.Copy(t.ids, t.vocab)
	spec.numberAdded()
	t.added = spec.AddedTokens
	if len(t.added) > maxAdded {
		return fmt.Errorf("%d added tokens, expected at most %d", len(t.added), maxAdded)
	}
	size := 0 // of those in the normalized text
	for _, token := range t.added {
		if len(token.Content) > maxPiece {
			return fmt.Errorf("the added token %.40q has %d bytes, expected at most %d",
				token.Content, len(token.Content), maxPiece)
		}
		if token.Normalized {
			size += len(token.Content)
		}
	}
	if err := t.normalBudget.checkOn(size, "the added tokens"); err != nil {
		return fmt.Errorf("normalizer: %w", err)
	}
	for _, token := range t.added {
		for int(token.ID) >= len(t.tokens) {
			t.tokens = append(t.tokens, "")
		}
		t.tokens[token.ID], t.ids[token.Content] = token.Content, token.ID
	}
	raw, norm := map[string]*addedToken{}, map[string]*addedToken{}
	normalized, special := map[int32]string{}, map[string]bool{}
	for i := range t.added {
		token := &t.added[i]
		if token.Special {
			special[token.Content] = true
		}
		if !token.Normalized {
			raw[token.Content] = token
			continue
		}
		content := token.Content
		for _, f := range t.normalize {
			content = f(content)
		}
		normalized[token.ID] = content
		norm[content] = token
	}
	t.rawAdded, t.normAdded = newMatcher(raw), newMatcher(norm)
	if err := spec.buildDecoder(t); err != nil {
		return err
	}
	t.setDecoding(normalized, special)
	return nil
}

func (spec *fileSpec) buildPostProcessor(t *Tokenizer) error {
	err := eachStage("post_processor", spec.PostProcessor, func(c *stage) error {
		switch c.Type {
		case "ByteLevel":
			return nil // changes only offsets, which this package does not report
		case "BertProcessing", "RobertaProcessing":
			if c.Cls.id < 0 || c.Sep.id < 0 {
				return fmt.Errorf("%s lacks cls or sep", c.Type)
			}
			t.prefix = append([]int32{c.Cls.id}, t.prefix...)
			t.suffix = append(t.suffix, c.Sep.id)
			return t.checkFixed(len(t.prefix) + len(t.suffix))
		case "TemplateProcessing":
		default:
			return unsupported(c.Type, "BertProcessing, ByteLevel, RobertaProcessing, Sequence, "+
				"TemplateProcessing")
		}
		var before, after []int32
		side := &before
		for _, part := range c.Single {
			switch {
			case part.Sequence != nil:
				side = &after
			case part.SpecialToken != nil:
				ids := c.SpecialTokens[part.SpecialToken.ID].IDs
				if err := t.checkFixed(len(t.prefix) + len(t.suffix) + len(before) + len(after) +
					len(ids)); err != nil {
					return err
				}
				*side = append(*side, ids...)
			}
		}
		t.prefix = append(before, t.prefix...)
		t.suffix = append(t.suffix, after...)
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Concat(t.prefix, t.suffix) {
		if id < 0 || int(id) >= len(t.tokens) {
			return fmt.Errorf("post_processor: it adds token %d, the vocabulary has %d", id,
				len(t.tokens))
		}
	}
	return nil
}

func (t *Tokenizer) checkFixed(n int) error {
	if n > maxFixed {
		return fmt.Errorf("it adds more than %d tokens to a text", maxFixed)
	}
	return nil
}
