package tokenizer

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
)

// Token types of the GGUF specification.
const (
	ggufUnknown     = 2
	ggufControl     = 3
	ggufUserDefined = 4
	ggufUnused      = 5
	ggufByte        = 6
)

// FromGGUF makes the tokenizer of a GGUF file. meta holds the file's metadata by
// key; lists are []string, []int32 and []float32, single numbers are of any
// integer type. Supported values of tokenizer.ggml.model are "gpt2" (byte-level
// BPE, with a value of tokenizer.ggml.pre that llama.cpp knows) and "llama"
// (SentencePiece BPE).
func FromGGUF(meta map[string]any) (*Tokenizer, error) {
	t, err := fromGGUF(ggufMeta(maps.Clone(meta)))
	if err != nil {
		return nil, fmt.Errorf("GGUF tokenizer: %w", err)
	}
	return t, nil
}

func fromGGUF(meta ggufMeta) (*Tokenizer, error) {
	v, err := meta.vocabulary()
	if err != nil {
		return nil, err
	}
	spec := newSpec(len(v.tokens))
	if name := v.token(v.addTokens(spec, meta.id("unknown"))); name != "" {
		spec.Model.UnkToken = &name
	}
	spec.Model.Merges = make([]mergePair, len(v.merges))
	for i, line := range v.merges {
		if err := spec.Model.Merges[i].parse(line); err != nil {
			return nil, fmt.Errorf("tokenizer.ggml.merges, entry %d: %w", i, err)
		}
	}
	addBOS := false
	switch kind := meta.text("tokenizer.ggml.model"); kind {
	case "gpt2":
		addBOS, err = spec.setGGUFByteLevel(meta.text("tokenizer.ggml.pre"))
	case "llama":
		for key, id := range map[string]int32{"bos": 1, "eos": 2} {
			if _, ok := meta["tokenizer.ggml."+key+"_token_id"]; !ok {
				meta["tokenizer.ggml."+key+"_token_id"] = id // llama.cpp's defaults
			}
		}
		addBOS, err = true, spec.setGGUFSentencePiece(v, meta.flag("add_space_prefix", true))
	default:
		err = fmt.Errorf("tokenizer.ggml.model is %q; known are gpt2 and llama", kind)
	}
	if err != nil {
		return nil, err
	}
	bos, eos := meta.id("bos"), meta.id("eos")
	before, after := "", ""
	if meta.flag("add_bos_token", addBOS) {
		before = v.token(bos)
	}
	if meta.flag("add_eos_token", false) {
		after = v.token(eos)
	}
	spec.PostProcessor = templateProcessing(before, bos, after, eos)
	t, err := spec.build()
	if err != nil {
		return nil, err
	}
	t.source.spec = spec
	templates := map[string]string{defaultTemplate: meta.text("tokenizer.chat_template")}
	for key := range meta {
		if name, ok := strings.CutPrefix(key, "tokenizer.chat_template."); ok {
			templates[name] = meta.text(key)
		}
	}
	t.setTemplates(templates)
	for key, to := range map[string]*int32{"bos": &t.bos, "padding": &t.pad, "unknown": &t.unk} {
		if id := meta.id(key); t.valid(id) {
			*to = id
		}
	}
	t.setGGUFEnds(meta)
	t.setNames()
	return t, nil
}

// ggufVocabulary holds the lists of a GGUF file's tokenizer; types and scores
// are nil or as long as tokens.
type ggufVocabulary struct {
	tokens []string
	types  []int32
	scores []float32
	merges []string
}

func (m ggufMeta) vocabulary() (v ggufVocabulary, err error) {
	if v.tokens, err = list[string](m, "tokens", -1); err != nil {
		return v, err
	}
	n := len(v.tokens)
	if n == 0 || n > maxVocab {
		return v, fmt.Errorf("tokenizer.ggml.tokens has %d entries, expected 1 to %d", n, maxVocab)
	}
	if v.types, err = list[int32](m, "token_type", n); err != nil {
		return v, err
	}
	if v.scores, err = list[float32](m, "scores", n); err != nil {
		return v, err
	}
	v.merges, err = list[string](m, "merges", -1)
	return v, err
}

// token returns the token of an id, or "" if there is none.
func (v ggufVocabulary) token(id int32) string {
	if id < 0 || int(id) >= len(v.tokens) {
		return ""
	}
	return v.tokens[id]
}

// addTokens fills the vocabulary and the added tokens of spec. It returns unk, or
// the first token of the unknown type if unk is negative.
func (v ggufVocabulary) addTokens(spec *fileSpec, unk int32) int32 {
	for i, content := range v.tokens {
		kind := int32(0)
		if v.types != nil {
			kind = v.types[i]
		}
		if kind == ggufUnused && content == paddingToken(i) {
			continue // not a token: a row of an embedding larger than the vocabulary
		}
		if _, double := spec.Model.Vocab[content]; double {
			continue // some files repeat names as padding; the first one counts
		}
		spec.Model.Vocab[content] = int32(i)
		if kind != ggufUnknown && endsGGUF(content) {
			kind = ggufControl // some files give these tokens the type of ordinary text
		}
		switch kind {
		case ggufUnknown, ggufControl, ggufUserDefined:
			spec.AddedTokens = append(spec.AddedTokens,
				addedToken{ID: int32(i), Content: content, Special: kind != ggufUserDefined})
			if kind == ggufUnknown && unk < 0 {
				unk = int32(i)
			}
		}
	}
	return unk
}

// setGGUFByteLevel sets the stages of byte-level BPE for a value of
// tokenizer.ggml.pre. addBOS is the default for tokenizer.ggml.add_bos_token.
func (spec *fileSpec) setGGUFByteLevel(pre string) (addBOS bool, err error) {
	known, err := findGGUFPre(pre)
	if err != nil {
		return false, err
	}
	spec.PreTokenizer = known.json()
	spec.Decoder = json.RawMessage(`{"type":"ByteLevel","add_prefix_space":false,` +
		`"trim_offsets":true,"use_regex":true}`)
	spec.Model.IgnoreMerges = known.ignoreMerges
	if known.nfc {
		spec.Normalizer = json.RawMessage(`{"type":"NFC"}`)
	}
	return known.addBOS, nil
}

// setGGUFSentencePiece sets the stages of SentencePiece BPE, and the merges if
// the file has scores instead.
func (spec *fileSpec) setGGUFSentencePiece(v ggufVocabulary, spacePrefix bool) error {
	scheme := "never"
	if spacePrefix {
		scheme = normalizerPrefix
	}
	spec.setSentencePiece(scheme)
	if len(v.merges) > 0 {
		return nil
	}
	if v.scores == nil {
		return fmt.Errorf("tokenizer.ggml.model is llama, but there are neither scores nor merges")
	}
	for i, piece := range v.tokens {
		if len(piece) > maxPiece {
			return fmt.Errorf("tokenizer.ggml.tokens, entry %d has %d bytes, expected at most %d",
				i, len(piece), maxPiece)
		}
	}
	merges, err := mergesFromScores(v.tokens, v.scores, func(i int) bool {
		return v.types != nil && v.types[i] != pieceNormal && v.types[i] != ggufUserDefined
	})
	spec.Model.Merges = merges
	return err
}

// ggufMeta is the metadata of a GGUF file.
type ggufMeta map[string]any

func (m ggufMeta) text(key string) string {
	s, _ := m[key].(string)
	return s
}

// flag returns tokenizer.ggml.<key>, or missing if it is not there.
func (m ggufMeta) flag(key string, missing bool) bool {
	if b, ok := m["tokenizer.ggml."+key].(bool); ok {
		return b
	}
	return missing
}

// id returns tokenizer.ggml.<key>_token_id, or -1.
func (m ggufMeta) id(key string) int32 {
	n := int64(-1)
	switch v := reflect.ValueOf(m["tokenizer.ggml."+key+"_token_id"]); {
	case v.CanInt():
		n = v.Int()
	case v.CanUint():
		n = int64(v.Uint())
	}
	if n < 0 || n >= maxVocab {
		return -1
	}
	return int32(n)
}

// list returns tokenizer.ggml.<key>, nil if it is not there. It must have want
// entries unless want is negative.
func list[T any](m ggufMeta, key string, want int) ([]T, error) {
	v, ok := m["tokenizer.ggml."+key]
	if !ok {
		return nil, nil
	}
	l, ok := v.([]T)
	if !ok {
		return nil, fmt.Errorf("tokenizer.ggml.%s is a %T, expected a %T", key, v, l)
	}
	if want >= 0 && len(l) != want {
		return nil, fmt.Errorf("tokenizer.ggml.%s has %d entries for %d tokens", key, len(l), want)
	}
	return l, nil
}

// templateProcessing returns the post-processor that adds the token before to
// the beginning of a text and the token after to its end; "" means none.
func templateProcessing(
	before string, beforeID int32, after string, afterID int32,
) json.RawMessage {
	if before == "" && after == "" {
		return nil
	}
	var single, pair []any
	special := map[string]any{}
	add := func(to *[]any, name string, id int32, sequence int) {
		if name == "" {
			return
		}
		*to = append(*to, map[string]any{"SpecialToken": map[string]any{"id": name,
			"type_id": sequence}})
		special[name] = map[string]any{"id": name, "ids": []int32{id}, "tokens": []string{name}}
	}
	for i, name := range []string{"A", "B"} {
		to := &pair
		add(to, before, beforeID, i)
		*to = append(*to, map[string]any{"Sequence": map[string]any{"id": name, "type_id": i}})
		add(to, after, afterID, i)
		if i == 0 {
			single = append(single, pair...)
		}
	}
	raw, err := json.Marshal(map[string]any{
		"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special,
	})
	if err != nil {
		panic(err) // strings and integers always marshal
	}
	return raw
}
