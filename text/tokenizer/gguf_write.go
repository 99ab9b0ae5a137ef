package tokenizer

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
)

// paddingToken returns the name that llama.cpp's converter gives to an unused id.
func paddingToken(id int) string { return fmt.Sprintf("[PAD%d]", id) }

// GGUF returns the tokenizer as metadata of a GGUF file (tokenizer.ggml.* and the
// chat template) for a model whose embedding has the given number of rows. It is
// the inverse of [FromGGUF]. It fails if llama.cpp cannot represent the tokenizer.
func (t *Tokenizer) GGUF(rows int) (map[string]any, error) {
	meta, err := t.gguf(rows)
	if err != nil {
		return nil, fmt.Errorf("the tokenizer cannot be written to GGUF: %w", err)
	}
	return meta, nil
}

func (t *Tokenizer) gguf(rows int) (map[string]any, error) {
	spec, err := t.spec()
	if err != nil {
		return nil, err
	}
	if !t.Fits(rows) {
		return nil, fmt.Errorf("it has %d tokens, the model's embedding only %d rows",
			len(t.tokens), rows)
	}
	tokens, types := t.ggufTokens(rows)
	meta := map[string]any{"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
	switch {
	case spec.Model.Type != "BPE" && spec.Model.Type != "":
		err = fmt.Errorf("its model is %s, not BPE", spec.Model.Type)
	case t.byteLevel:
		err = spec.ggufByteLevel(meta)
	case spec.Model.ByteFallback:
		err = spec.ggufSentencePiece(meta, tokens, types, t.unk)
	default:
		err = fmt.Errorf("it is neither byte-level BPE nor BPE with byte fallback")
	}
	if err != nil {
		return nil, err
	}
	if err := t.ggufSpecial(meta, rows); err != nil {
		return nil, err
	}
	if t.template.source != "" {
		meta["tokenizer.chat_template"] = t.template.source
	}
	if names := t.templateNames(); len(names) > 0 {
		meta["tokenizer.chat_templates"] = names
		for _, name := range names {
			meta["tokenizer.chat_template."+name] = t.named[name]
		}
	}
	return meta, nil
}

// spec returns the tokenizer.json of the tokenizer.
func (t *Tokenizer) spec() (*fileSpec, error) {
	if t.source.spec != nil {
		return t.source.spec, nil
	}
	data, err := readFile(filepath.Join(t.source.folder, "tokenizer.json"), maxFile)
	if err != nil {
		return nil, err
	}
	return parseSpec(data)
}

// ggufTokens returns the token of each row of the embedding and its type.
func (t *Tokenizer) ggufTokens(rows int) (tokens []string, types []int32) {
	tokens, types = make([]string, rows), make([]int32, rows)
	for i := range tokens {
		tokens[i], types[i] = paddingToken(i), ggufUnused
		if t.valid(int32(i)) {
			tokens[i], types[i] = t.tokens[i], pieceNormal
		}
	}
	for _, a := range t.added {
		if int(a.ID) >= rows {
			continue // the model cannot read it
		}
		types[a.ID] = ggufUserDefined
		if a.Special {
			types[a.ID] = ggufControl
		}
	}
	return tokens, types
}

// ggufSpecial adds the ids of special tokens to meta, and which of them are added to
// a text.
func (t *Tokenizer) ggufSpecial(meta map[string]any, rows int) error {
	set := func(key string, id int32) {
		if id >= 0 && int(id) < rows {
			meta["tokenizer.ggml."+key+"_token_id"] = uint32(id)
		}
	}
	set("bos", t.bos)
	set("unknown", t.unk)
	set("padding", t.pad)
	for i, key := range []string{"eos", "eot", "eom"} {
		if i < len(t.eos) {
			set(key, t.eos[i])
		}
	}
	addBOS := len(t.prefix) == 1 && t.prefix[0] == t.bos
	addEOS := len(t.suffix) == 1 && len(t.eos) > 0 && t.suffix[0] == t.eos[0]
	if len(t.prefix) > 0 && !addBOS || len(t.suffix) > 0 && !addEOS {
		return fmt.Errorf("it adds the ids %v before a text and %v after it, "+
			"but GGUF can only add the bos and eos token", t.prefix, t.suffix)
	}
	meta["tokenizer.ggml.add_bos_token"], meta["tokenizer.ggml.add_eos_token"] = addBOS, addEOS
	return nil
}

// ggufByteLevel adds the name of the pre-tokenizer and the merges of byte-level
// BPE to meta.
func (spec *fileSpec) ggufByteLevel(meta map[string]any) error {
	own, err := spec.splits()
	if err != nil {
		return err
	}
	err = eachStage("normalizer", spec.Normalizer, func(c *stage) error {
		if c.Type != "NFC" {
			return fmt.Errorf("llama.cpp does not apply the normalizer %s", c.Type)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, pre := range ggufPres {
		if pre.ignoreMerges != spec.Model.IgnoreMerges && pre.names[0] != "gpt-2" &&
			pre.names[0] != "smollm" {
			continue
		}
		forms := append([]json.RawMessage{pre.json()}, originalForms[pre.names[0]]...)
		name := ""
		for _, form := range forms {
			known, err := (&fileSpec{PreTokenizer: form}).splits()
			if err != nil {
				return err
			}
			if slices.Equal(own, known) {
				name = pre.names[0]
			}
		}
		if name == "" {
			continue
		}
		meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"] = "gpt2", name
		merges := make([]string, 0, len(spec.Model.Merges))
		rows := int32(len(meta["tokenizer.ggml.tokens"].([]string)))
		for _, m := range spec.Model.Merges {
			if v := spec.Model.Vocab; v[m[0]] < rows && v[m[1]] < rows && v[m[0]+m[1]] < rows {
				merges = append(merges, m[0]+" "+m[1])
			}
		}
		meta["tokenizer.ggml.merges"] = merges
		return nil
	}
	return fmt.Errorf("llama.cpp has no name for its pre-tokenizer: %.200s", spec.PreTokenizer)
}

// originalForms are pre-tokenizers as the models' own tokenizer.json has them, where
// llama.cpp's patterns are written in another way.
var originalForms = func() map[string][]json.RawMessage {
	upper := `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
	lower := `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
	words := func(after string) string {
		return `[^\r\n\p{L}\p{N}]?` + upper + `*` + lower + `+` + after + `|[^\r\n\p{L}\p{N}]?` +
			upper +
			`+` + lower + `*` + after
	}
	rest := ` ?[^\s\p{L}\p{N}]+[\r\n/]*|` + spacesEnd
	form := func(patterns ...string) json.RawMessage {
		return ggufPre{names: []string{""}, patterns: patterns}.json()
	}
	return map[string][]json.RawMessage{
		"tekken": {form(words("") + `|\p{N}|` + rest)},
		"gpt-4o": {form(words(`(?i:'s|'t|'re|'ve|'m|'ll|'d)?`) + `|\p{N}{1,3}|` + rest)},
	}
}()

// splits describes the stages of the pre-tokenizer, to compare two files.
func (spec *fileSpec) splits() (list []string, err error) {
	yes := func(b *bool) bool { return b == nil || *b }
	err = eachStage("pre_tokenizer", spec.PreTokenizer, func(c *stage) error {
		s := c.Type
		switch c.Type {
		case "Digits":
			s += fmt.Sprint(c.IndividualDigits)
		case "ByteLevel":
			s += fmt.Sprint(yes(c.AddPrefixSpace), yes(c.UseRegex))
		case "Split":
			if c.Pattern.Regex != nil {
				s += *c.Pattern.Regex
			}
			s += c.Behavior + fmt.Sprint(c.Invert, c.Pattern.String != nil)
		}
		list = append(list, s)
		return nil
	})
	return list, err
}

// ggufSentencePiece adds the scores of SentencePiece BPE to meta. The score of a
// piece is minus the rank of the first merge that produces it, so the scores give
// the merges their order. Pieces that no merge produces come last.
func (spec *fileSpec) ggufSentencePiece(meta map[string]any, tokens []string, types []int32,
	unk int32,
) error {
	scores := make([]float32, len(tokens))
	for i := range scores {
		scores[i] = -1e9
		if types[i] != pieceNormal {
			scores[i] = 0
		}
		var b byte
		if n, err := fmt.Sscanf(tokens[i], "<0x%02X>", &b); n == 1 && err == nil &&
			len(tokens[i]) == 6 {
			types[i], scores[i] = ggufByte, 0
		}
	}
	if unk >= 0 && int(unk) < len(types) {
		types[unk] = ggufUnknown
	}
	for rank, m := range slices.Backward(spec.Model.Merges) {
		if id, ok := spec.Model.Vocab[m[0]+m[1]]; ok && int(id) < len(scores) {
			scores[id] = -float32(rank)
		}
	}
	space, known := false, false
	see := func(c *stage) error {
		switch c.Type {
		case "Prepend", "Replace":
			known = true
			space = space || c.Type == "Prepend"
		case "Metaspace":
			known = true
			space = c.PrependScheme != "never"
		default:
			return fmt.Errorf("llama.cpp does not apply %s to a SentencePiece model", c.Type)
		}
		return nil
	}
	if err := eachStage("normalizer", spec.Normalizer, see); err != nil {
		return err
	}
	if err := eachStage("pre_tokenizer", spec.PreTokenizer, see); err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("it does not replace spaces by ▁ as SentencePiece does")
	}
	meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"] = "llama", "default"
	meta["tokenizer.ggml.scores"], meta["tokenizer.ggml.add_space_prefix"] = scores, space
	return nil
}
