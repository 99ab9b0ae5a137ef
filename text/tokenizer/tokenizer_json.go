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

// fileSpec is a tokenizer.json, the format of Hugging Face's tokenizers library.
type fileSpec struct {
	Version       string          `json:"version"`
	Truncation    json.RawMessage `json:"truncation"`
	Padding       json.RawMessage `json:"padding"`
	AddedTokens   addedList       `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         modelSpec       `json:"model"`
}

// addedList is a list of added tokens.
type addedList []addedToken

// UnmarshalJSON reads a list that is not too long.
func (l *addedList) UnmarshalJSON(data []byte) error {
	if err := checkMembers(data, maxAdded, "added tokens"); err != nil {
		return err
	}
	return json.Unmarshal(data, (*[]addedToken)(l))
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

	UnkID    *int32    `json:"unk_id,omitempty"` // Unigram
	scores   []float64 // Unigram: by id
	pieces   []string  // Unigram: by id
	MaxChars *int      `json:"max_input_chars_per_word,omitempty"` // WordPiece
}

// UnmarshalJSON reads the vocabulary as an object of ids or, for Unigram, as a list of
// tokens and scores.
func (m *modelSpec) UnmarshalJSON(data []byte) error {
	type plain modelSpec
	list := struct {
		*plain
		Vocab  json.RawMessage `json:"vocab"`
		Merges json.RawMessage `json:"merges"`
	}{plain: (*plain)(m)}
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	if err := errors.Join(checkMembers(list.Vocab, maxVocab, "tokens"),
		checkMembers(list.Merges, maxVocab, "merges")); err != nil {
		return err
	}
	if len(list.Merges) > 0 {
		if err := json.Unmarshal(list.Merges, &m.Merges); err != nil {
			return err
		}
	}
	if !bytes.HasPrefix(list.Vocab, []byte("[")) {
		if len(list.Vocab) == 0 {
			return nil
		}
		return json.Unmarshal(list.Vocab, &m.Vocab)
	}
	var pieces []scoredPiece
	if err := json.Unmarshal(list.Vocab, &pieces); err != nil {
		return err
	}
	m.Vocab = make(vocab, len(pieces))
	for id, p := range pieces {
		m.Vocab[p.token] = int32(id)
		m.pieces, m.scores = append(m.pieces, p.token), append(m.scores, p.score)
	}
	return nil
}

// scoredPiece is a token of Unigram and its score, written as a list of both.
type scoredPiece struct {
	token string
	score float64
}

func (p *scoredPiece) UnmarshalJSON(data []byte) error {
	comma := bytes.LastIndexByte(data, ',')
	if data[0] != '[' || comma < 0 || members(data) != 2 {
		return fmt.Errorf("%.60s in the vocabulary is not a token and a score", data)
	}
	if err := errors.Join(json.Unmarshal(data[1:comma], &p.token),
		json.Unmarshal(data[comma+1:len(data)-1], &p.score)); err != nil {
		return fmt.Errorf("%.60s in the vocabulary: %w", data, err)
	}
	return nil
}

// tokenAndID is a token in a post-processor, written as a list.
type tokenAndID struct{ id int32 }

func (t *tokenAndID) UnmarshalJSON(data []byte) error {
	var pair []json.RawMessage
	t.id = -1
	if err := json.Unmarshal(data, &pair); err != nil || len(pair) != 2 {
		return fmt.Errorf("expected a token and its id, got %.40s", data)
	}
	return json.Unmarshal(pair[1], &t.id)
}

// newSpec returns an empty file with room for size tokens. Its empty lists are
// written as [], because transformers refuses null.
func newSpec(size int) *fileSpec {
	return &fileSpec{
		Version:     "1.0",
		AddedTokens: []addedToken{},
		Model:       modelSpec{Type: "BPE", Vocab: make(vocab, size), Merges: []mergePair{}},
	}
}

// vocab maps tokens to ids. It is written in the order of the ids.
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

// mergePair is one merge, written "a b" in older files and ["a","b"] in newer
// ones.
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
		return fmt.Errorf("merge %q is not two tokens separated by a space", line)
	}
	*p = mergePair{left, right}
	return nil
}

// stage is a normalizer, pre-tokenizer, post-processor or decoder. It has the
// fields of all types.
type stage struct {
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
	Delimiter        string `json:"delimiter"`

	StripLeft    bool       `json:"strip_left"` // normalizers
	StripRight   bool       `json:"strip_right"`
	CleanText    *bool      `json:"clean_text"`
	ChineseChars *bool      `json:"handle_chinese_chars"`
	StripAccents *bool      `json:"strip_accents"`
	Lowercase    *bool      `json:"lowercase"`
	Sep          tokenAndID `json:"sep"` // post-processors
	Cls          tokenAndID `json:"cls"`

	Prefix        *string `json:"prefix"` // decoders
	Suffix        *string `json:"suffix"`
	Cleanup       *bool   `json:"cleanup"`
	PadToken      *string `json:"pad_token"`
	WordDelimiter *string `json:"word_delimiter_token"`

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

// eachStage calls f for the stage in raw, or for each stage of it if it is a
// Sequence. kind is for errors.
func eachStage(kind string, raw json.RawMessage, f func(*stage) error) error {
	if len(raw) > maxStage {
		return fmt.Errorf("%s: it has %d bytes, expected at most %d", kind, len(raw), maxStage)
	}
	count := 0
	return eachStageAt(kind, raw, 0, &count, f)
}

func eachStageAt(kind string, raw json.RawMessage, depth int, count *int,
	f func(*stage) error,
) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var c stage
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	if *count++; *count > maxStages {
		return fmt.Errorf("%s: more than %d stages", kind, maxStages)
	}
	if c.Type == "Sequence" {
		if depth == maxNesting {
			return fmt.Errorf("%s: more than %d Sequences inside each other", kind, maxNesting)
		}
		for _, part := range slices.Concat(c.Normalizers, c.Pretokenizers, c.Processors,
			c.Decoders) {
			if err := eachStageAt(kind, part, depth+1, count, f); err != nil {
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

// unsupported returns the error for a type that is not known.
func unsupported(got, known string) error {
	return fmt.Errorf("type %q is not supported; known are %s", got, known)
}

// parseSpec parses a tokenizer.json.
func parseSpec(data []byte) (*fileSpec, error) {
	spec := new(fileSpec)
	if err := json.Unmarshal(data, spec); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("it looks like a tokenizer.json, but is not JSON: %w (at "+
				"byte %d of %d)",
				err, syntax.Offset, len(data))
		}
		return nil, fmt.Errorf("it is JSON, but not a tokenizer.json: %w", err)
	}
	if m := &spec.Model; m.Type == "" && m.Vocab == nil {
		return nil, fmt.Errorf("it is JSON, but not a tokenizer.json: " +
			"it has no model with a vocabulary")
	}
	return spec, nil
}
