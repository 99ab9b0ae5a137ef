package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// fileSpec is a tokenizer.json, the format of Hugging Face's tokenizers.
type fileSpec struct {
	Version       string          `json:"version"`
	Truncation    json.RawMessage `json:"truncation"`
	Padding       json.RawMessage `json:"padding"`
	AddedTokens   []addedToken    `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         modelSpec       `json:"model"`
}

type modelSpec struct {
	Type         string      `json:"type"`
	Dropout      *float64    `json:"dropout"`
	UnkToken     *string     `json:"unk_token"`
	Prefix       *string     `json:"continuing_subword_prefix"`
	Suffix       *string     `json:"end_of_word_suffix"`
	FuseUnk      bool        `json:"fuse_unk"`
	ByteFallback bool        `json:"byte_fallback"`
	IgnoreMerges bool        `json:"ignore_merges"`
	Vocab        vocab       `json:"vocab"`
	Merges       []mergePair `json:"merges"`
}

// newSpec is a file to be filled; lists that stay empty are written as [].
func newSpec(size int) *fileSpec {
	return &fileSpec{
		Version:     "1.0",
		AddedTokens: []addedToken{},
		Model:       modelSpec{Type: "BPE", Vocab: make(vocab, size), Merges: []mergePair{}},
	}
}

// vocab maps tokens to ids; it is written in the order of the ids.
type vocab map[string]int32

func (v vocab) MarshalJSON() ([]byte, error) {
	tokens := make([]string, 0, len(v))
	for token := range v {
		tokens = append(tokens, token)
	}
	sort.Slice(tokens, func(i, j int) bool { return v[tokens[i]] < v[tokens[j]] })
	var b bytes.Buffer
	for i, token := range tokens {
		name, err := json.Marshal(token)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%c%s:%d", "{,"[min(i, 1)], name, v[token])
	}
	if len(tokens) == 0 {
		b.WriteByte('{')
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// mergePair is one merge, written "a b" in older files and ["a","b"] in newer.
type mergePair [2]string

func (p *mergePair) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '[' {
		var parts []string
		if err := json.Unmarshal(data, &parts); err != nil {
			return err
		}
		if len(parts) != 2 {
			return fmt.Errorf("a merge has %d parts, expected 2", len(parts))
		}
		*p = mergePair(parts)
		return nil
	}
	var line string
	if err := json.Unmarshal(data, &line); err != nil {
		return err
	}
	return p.parse(line)
}

func (p *mergePair) parse(line string) error {
	left, right, ok := strings.Cut(line, " ")
	if !ok || strings.Contains(right, " ") {
		return fmt.Errorf("merge %q is not two tokens with a space between", line)
	}
	*p = mergePair{left, right}
	return nil
}

// component is any normalizer, pre-tokenizer, post-processor or decoder.
type component struct {
	Type          string            `json:"type"`
	Normalizers   []json.RawMessage `json:"normalizers"`
	Pretokenizers []json.RawMessage `json:"pretokenizers"`
	Processors    []json.RawMessage `json:"processors"`
	Decoders      []json.RawMessage `json:"decoders"`

	Prepend string `json:"prepend"`
	Pattern struct {
		String *string
		Regex  *string
	} `json:"pattern"`
	Content          string `json:"content"`
	Behavior         string `json:"behavior"`
	Invert           bool   `json:"invert"`
	AddPrefixSpace   *bool  `json:"add_prefix_space"`
	UseRegex         *bool  `json:"use_regex"`
	IndividualDigits bool   `json:"individual_digits"`
	Replacement      string `json:"replacement"`
	PrependScheme    string `json:"prepend_scheme"`
	Split            *bool  `json:"split"`
	Start            int    `json:"start"`
	Stop             int    `json:"stop"`

	Single []struct {
		SpecialToken *struct {
			ID string `json:"id"`
		}
		Sequence *struct {
			ID string `json:"id"`
		}
	} `json:"single"`
	SpecialTokens map[string]struct {
		IDs []int32 `json:"ids"`
	} `json:"special_tokens"`
}

// eachComponent calls f for raw, or for each part of it if it is a Sequence.
func eachComponent(kind string, raw json.RawMessage, f func(*component) error) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var c component
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	if c.Type == "Sequence" {
		for _, part := range slices.Concat(c.Normalizers, c.Pretokenizers, c.Processors, c.Decoders) {
			if err := eachComponent(kind, part, f); err != nil {
				return err
			}
		}
		return nil
	}
	if err := f(&c); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return nil
}

// unsupported names what is known, so that the reader of the error can judge.
func unsupported(got, known string) error {
	return fmt.Errorf("type %q is not supported; known are %s", got, known)
}

func parseSpec(data []byte) (*fileSpec, error) {
	spec := new(fileSpec)
	if err := json.Unmarshal(data, spec); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("it looks like a tokenizer.json, but is not JSON: %w (at byte %d of %d)", err, syntax.Offset, len(data))
		}
		return nil, fmt.Errorf("it is JSON, but not a tokenizer.json: %w", err)
	}
	if m := &spec.Model; m.Type == "" && m.Vocab == nil {
		return nil, fmt.Errorf("it is JSON, but not a tokenizer.json: it has no model with a vocabulary")
	}
	return spec, nil
}

// build makes the tokenizer that a tokenizer.json describes.
func (spec *fileSpec) build() (*Tokenizer, error) {
	t := &Tokenizer{bos: -1, pad: -1, unk: -1}
	t.scratch.New = newScratch
	for _, f := range []func(*Tokenizer) error{
		spec.buildPreTokenizer, spec.buildModel, spec.buildNormalizer, spec.buildAdded, spec.buildPostProcessor,
	} {
		if err := f(t); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (spec *fileSpec) buildModel(t *Tokenizer) error {
	s := &spec.Model
	switch {
	case s.Type != "BPE" && (s.Type != "" || len(s.Merges) == 0):
		return fmt.Errorf("model: %w", unsupported(s.Type, "BPE"))
	case s.Prefix != nil && *s.Prefix != "" || s.Suffix != nil && *s.Suffix != "":
		return fmt.Errorf("model: continuing_subword_prefix and end_of_word_suffix are not supported")
	case s.Dropout != nil && *s.Dropout != 0:
		return fmt.Errorf("model: dropout %g is not supported: encoding would be random", *s.Dropout)
	case len(s.Vocab) == 0:
		return fmt.Errorf("model: the vocabulary is empty")
	}
	m := t.model
	m.ids = s.Vocab
	m.byteFallback, m.ignoreMerges, m.fuseUnk, m.unk = s.ByteFallback, s.IgnoreMerges, s.FuseUnk, -1
	size := int32(0)
	for token, id := range s.Vocab {
		if id < 0 || id >= maxVocab {
			return fmt.Errorf("model: token %q has id %d, expected 0 to %d", token, id, maxVocab-1)
		}
		size = max(size, id+1)
	}
	m.tokens = make([]string, size)
	for token, id := range s.Vocab {
		m.tokens[id] = token
	}
	if s.UnkToken != nil {
		id, ok := s.Vocab[*s.UnkToken]
		if !ok {
			return fmt.Errorf("model: unk_token %q is not in the vocabulary", *s.UnkToken)
		}
		m.unk, t.unk = id, id
	}
	if err := m.setMerges(s.Merges); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	m.setUnits()
	return nil
}

func (spec *fileSpec) buildNormalizer(t *Tokenizer) error {
	return eachComponent("normalizer", spec.Normalizer, func(c *component) error {
		var f func(string) string
		switch c.Type {
		case "NFC":
			f = nfc
		case "NFD":
			f = nfd
		case "Prepend":
			prefix := c.Prepend
			f = func(s string) string {
				if s == "" {
					return s
				}
				return prefix + s
			}
		case "Replace":
			if c.Pattern.String == nil || *c.Pattern.String == "" {
				return fmt.Errorf("the normalizer Replace is supported for a string that is not empty, not for a regular expression")
			}
			from, to := *c.Pattern.String, c.Content
			f = func(s string) string { return strings.ReplaceAll(s, from, to) }
		default:
			return unsupported(c.Type, "NFC, NFD, Prepend, Replace, Sequence")
		}
		t.normalize = append(t.normalize, f)
		return nil
	})
}

func (spec *fileSpec) buildPreTokenizer(t *Tokenizer) error {
	t.model = new(bpe)
	return eachComponent("pre_tokenizer", spec.PreTokenizer, func(c *component) error {
		if t.model.byteLevel {
			return fmt.Errorf("%s comes after ByteLevel, which must be the last", c.Type)
		}
		step, err := preStep{}, error(nil)
		switch c.Type {
		case "ByteLevel":
			t.model.byteLevel = true
			if c.AddPrefixSpace == nil || *c.AddPrefixSpace {
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
				err = fmt.Errorf("Split has no pattern")
			}
		case "Metaspace":
			step, err = metaspace(c)
		default:
			err = unsupported(c.Type, "ByteLevel, Digits, Split, Metaspace, Sequence")
		}
		t.pretoken = append(t.pretoken, step)
		return err
	})
}

// scheme is when Metaspace puts its mark in front: always, first, never. Files
// older than the field say add_prefix_space instead.
func (c *component) scheme() string {
	if c.PrependScheme == "" {
		if c.AddPrefixSpace != nil && !*c.AddPrefixSpace {
			return "never"
		}
		return "always"
	}
	return c.PrependScheme
}

func metaspace(c *component) (step preStep, err error) {
	mark, scheme := c.Replacement, c.scheme()
	if mark == "" || !slices.Contains([]string{"always", "first", "never"}, scheme) {
		return step, fmt.Errorf("the pre-tokenizer Metaspace has replacement %q and prepend_scheme %q; expected a character, and always, first or never", mark, scheme)
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

// buildAdded gives every added token its id: the model's, if the model has the
// token, else the next free one. That is the id the file gives, unless the file
// was edited by hand; Hugging Face goes by the count as well.
func (spec *fileSpec) buildAdded(t *Tokenizer) error {
	t.ids = make(map[string]int32, len(t.model.ids)+len(spec.AddedTokens))
	for token, id := range t.model.ids {
		t.ids[token] = id
	}
	t.tokens = slices.Clone(t.model.tokens)
	t.rawAdded, t.normAdded = newMatcher(), newMatcher()
	normalized, special := map[int32]string{}, map[string]bool{}
	next := int32(len(t.model.ids))
	for i := range spec.AddedTokens {
		token := &spec.AddedTokens[i]
		if token.Content == "" {
			continue
		}
		if id, ok := t.ids[token.Content]; ok {
			token.ID = id
		} else {
			token.ID = next
			next++
		}
		for int(token.ID) >= len(t.tokens) {
			t.tokens = append(t.tokens, "")
		}
		t.tokens[token.ID], t.ids[token.Content] = token.Content, token.ID
		if token.Special {
			special[token.Content] = true
		}
		if !token.Normalized {
			t.rawAdded.add(token.Content, token)
			continue
		}
		content := token.Content
		for _, f := range t.normalize {
			content = f(content)
		}
		normalized[token.ID] = content
		t.normAdded.add(content, token)
	}
	if err := spec.buildDecoder(t); err != nil {
		return err
	}
	t.setDecoding(normalized, special)
	return nil
}

func (spec *fileSpec) buildDecoder(t *Tokenizer) error {
	d := &t.decoder
	if len(spec.Decoder) == 0 || string(spec.Decoder) == "null" {
		d.join = " "
	}
	return eachComponent("decoder", spec.Decoder, func(c *component) error {
		switch c.Type {
		case "ByteLevel":
			d.byteLevel = true
		case "ByteFallback":
			d.byteFallback = true
		case "Fuse":
		case "Replace":
			if c.Pattern.String == nil || *c.Pattern.String == "" {
				return fmt.Errorf("the decoder Replace is supported for a string that is not empty, not for a regular expression")
			}
			d.replace = append(d.replace, [2]string{*c.Pattern.String, c.Content})
		case "Metaspace":
			d.mark, d.markKept = c.Replacement, c.scheme() == "never"
		case "Strip":
			if c.Stop != 0 || c.Content == "" {
				return fmt.Errorf("the decoder Strip is supported at the start of a text, not at its end")
			}
			d.strip, d.stripCount = c.Content, c.Start
		default:
			return unsupported(c.Type, "ByteLevel, ByteFallback, Fuse, Replace, Metaspace, Strip, Sequence")
		}
		return nil
	})
}

func (spec *fileSpec) buildPostProcessor(t *Tokenizer) error {
	return eachComponent("post_processor", spec.PostProcessor, func(c *component) error {
		switch c.Type {
		case "ByteLevel":
			return nil // moves offsets, which are not reported here
		case "TemplateProcessing":
		default:
			return unsupported(c.Type, "TemplateProcessing, ByteLevel, Sequence")
		}
		var before, after []int32
		side := &before
		for _, part := range c.Single {
			switch {
			case part.Sequence != nil:
				side = &after
			case part.SpecialToken != nil:
				*side = append(*side, c.SpecialTokens[part.SpecialToken.ID].IDs...)
			}
		}
		t.prefix = append(before, t.prefix...)
		t.suffix = append(t.suffix, after...)
		return nil
	})
}

// byteRune is the printable character that stands for each byte in byte-level
// vocabularies (GPT-2's table), runeByte its inverse.
var byteRune, runeByte = func() (to [256]rune, from map[rune]byte) {
	from = make(map[rune]byte, 256)
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !('!' <= r && r <= '~' || 0xA1 <= r && r <= 0xAC || 0xAE <= r && r <= 0xFF) {
			r = next
			next++
		}
		to[b], from[r] = r, byte(b)
	}
	return to, from
}()

// byteLevelBytes is the bytes that a byte-level token spells; ok is false if it
// has a character that stands for none.
func byteLevelBytes(token string) (raw string, ok bool) {
	b := make([]byte, 0, len(token))
	for _, r := range token {
		c, ok := runeByte[r]
		if !ok {
			return "", false
		}
		b = append(b, c)
	}
	return string(b), true
}
