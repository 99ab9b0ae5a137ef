package tokenizer

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// GGUF's token types, from ggml's gguf specification.
const (
	ggufUnknown     = 2
	ggufControl     = 3
	ggufUserDefined = 4
	ggufUnused      = 5
	ggufByte        = 6
)

// Pre-tokenizers by the family that GGUF's tokenizer.ggml.pre names.
const (
	byteLevelOnly = `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}`
	byteLevelGPT2 = `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`
	digitsGPT2    = `{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},` + byteLevelGPT2 + `]}`
)

func splitThenBytes(pattern string) string {
	quoted, _ := json.Marshal(pattern)
	return `{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":` + string(quoted) +
		`},"behavior":"Isolated","invert":false},` + byteLevelOnly + `]}`
}

// ggufPre maps tokenizer.ggml.pre to a pre-tokenizer, as llama.cpp reads it.
var ggufPre = func() map[string]string {
	m := map[string]string{}
	for pre, names := range map[string][]string{
		byteLevelGPT2:                 {"gpt-2", "phi-2", "olmo", "mpt", "jina-es", "jina-de", "roberta-bpe"},
		digitsGPT2:                    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
		splitThenBytes(llama3Pattern): {"llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"},
		splitThenBytes(qwen2Pattern):  {"qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "solar-open"},
	} {
		for _, name := range names {
			m[name] = pre
		}
	}
	return m
}()

// FromGGUF makes the tokenizer that a GGUF file carries. meta holds the file's
// metadata by key; lists are []string, []int32 and []float32, single numbers
// any integer type. Known are tokenizer.ggml.model "gpt2" (byte-level BPE, with
// the families of tokenizer.ggml.pre that llama.cpp names) and "llama"
// (SentencePiece BPE).
func FromGGUF(meta map[string]any) (*Tokenizer, error) {
	t, err := fromGGUF(ggufMeta(meta))
	if err != nil {
		return nil, fmt.Errorf("GGUF tokenizer: %w", err)
	}
	return t, nil
}

type ggufMeta map[string]any

func (m ggufMeta) text(key string) string {
	s, _ := m[key].(string)
	return s
}

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

func fromGGUF(meta ggufMeta) (*Tokenizer, error) {
	tokens, err := list[string](meta, "tokens", -1)
	if err != nil {
		return nil, err
	}
	if len(tokens) == 0 || len(tokens) > maxVocab {
		return nil, fmt.Errorf("tokenizer.ggml.tokens has %d entries, expected 1 to %d", len(tokens), maxVocab)
	}
	types, err := list[int32](meta, "token_type", len(tokens))
	if err != nil {
		return nil, err
	}
	scores, err := list[float32](meta, "scores", len(tokens))
	if err != nil {
		return nil, err
	}
	lines, err := list[string](meta, "merges", -1)
	if err != nil {
		return nil, err
	}
	spec := newSpec(len(tokens))
	token := func(id int32) string {
		if id < 0 || int(id) >= len(tokens) {
			return ""
		}
		return tokens[id]
	}
	unk := meta.id("unknown")
	for i, content := range tokens {
		kind := int32(0)
		if types != nil {
			kind = types[i]
		}
		if kind == ggufUnused && content == paddingToken(i) {
			continue // no token, but a row of an embedding that is larger than the vocabulary
		}
		if _, double := spec.Model.Vocab[content]; double {
			// Padding of the vocabulary repeats names in some files; the first counts.
			continue
		}
		spec.Model.Vocab[content] = int32(i)
		switch kind {
		case ggufUnknown, ggufControl, ggufUserDefined:
			spec.AddedTokens = append(spec.AddedTokens, addedToken{ID: int32(i), Content: content, Special: kind != ggufUserDefined})
			if kind == ggufUnknown && unk < 0 {
				unk = int32(i)
			}
		}
	}
	if name := token(unk); name != "" {
		spec.Model.UnkToken = &name
	}
	spec.Model.Merges = make([]mergePair, len(lines))
	for i, line := range lines {
		if err := spec.Model.Merges[i].parse(line); err != nil {
			return nil, fmt.Errorf("tokenizer.ggml.merges, entry %d: %w", i, err)
		}
	}
	addBOS := false
	switch kind, pre := meta.text("tokenizer.ggml.model"), meta.text("tokenizer.ggml.pre"); kind {
	case "gpt2":
		known, ok := ggufPre[pre]
		if !ok {
			return nil, fmt.Errorf("tokenizer.ggml.pre is %q; known are the families of gpt-2, smollm, llama-bpe and qwen2", pre)
		}
		spec.PreTokenizer = json.RawMessage(known)
		spec.Decoder = json.RawMessage(byteLevelGPT2)
		if known == ggufPre["llama-bpe"] {
			spec.Model.IgnoreMerges, addBOS = true, true
		}
		if known == ggufPre["qwen2"] {
			spec.Normalizer = json.RawMessage(`{"type":"NFC"}`)
		}
	case "llama":
		if len(lines) == 0 {
			if scores == nil {
				return nil, fmt.Errorf("tokenizer.ggml.model is llama, but there are neither scores nor merges")
			}
			for i, piece := range tokens {
				if len(piece) > maxPiece {
					return nil, fmt.Errorf("tokenizer.ggml.tokens, entry %d has %d bytes, expected at most %d", i, len(piece), maxPiece)
				}
			}
			spec.Model.Merges = mergesFromScores(tokens, scores, func(i int) bool {
				return types != nil && types[i] != 1 && types[i] != ggufUserDefined
			})
		}
		spec.setSentencePiece(meta.flag("add_space_prefix", true), true)
		addBOS = true
	default:
		return nil, fmt.Errorf("tokenizer.ggml.model is %q; known are gpt2 and llama", kind)
	}
	bos, eos := meta.id("bos"), meta.id("eos")
	before, after := "", ""
	if meta.flag("add_bos_token", addBOS) {
		before = token(bos)
	}
	if meta.flag("add_eos_token", false) {
		after = token(eos)
	}
	spec.PostProcessor = templateProcessing(before, bos, after, eos)
	t, err := spec.build()
	if err != nil {
		return nil, err
	}
	t.source.spec = spec
	t.template.source = meta.text("tokenizer.chat_template")
	for key, to := range map[string]*int32{"bos": &t.bos, "padding": &t.pad, "unknown": &t.unk} {
		if id := meta.id(key); t.valid(id) {
			*to = id
		}
	}
	for _, key := range []string{"eos", "eot", "eom"} {
		t.addEOS(meta.id(key))
	}
	return t, nil
}

// templateProcessing is the post-processor that puts the token before in front
// of a text and the token after behind it; "" stands for none.
func templateProcessing(before string, beforeID int32, after string, afterID int32) json.RawMessage {
	if before == "" && after == "" {
		return nil
	}
	var single, pair []any
	special := map[string]any{}
	add := func(to *[]any, name string, id int32, sequence int) {
		if name == "" {
			return
		}
		*to = append(*to, map[string]any{"SpecialToken": map[string]any{"id": name, "type_id": sequence}})
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
