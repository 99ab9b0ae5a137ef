package tokenizer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of the protocol buffer ModelProto in sentencepiece_model.proto, the
// format of a tokenizer.model.
const (
	modelPieces     protowire.Number = 1
	modelTrainer    protowire.Number = 2
	modelNormalizer protowire.Number = 3

	piecePiece protowire.Number = 1
	pieceScore protowire.Number = 2
	pieceType  protowire.Number = 3

	trainerModelType    protowire.Number = 3
	trainerByteFallback protowire.Number = 35

	normalizerName         protowire.Number = 1
	normalizerCharsMap     protowire.Number = 2
	normalizerDummyPrefix  protowire.Number = 3
	normalizerRemoveExtra  protowire.Number = 4
	normalizerEscapeSpaces protowire.Number = 5
)

// Types of a piece. GGUF uses the same numbers.
const (
	pieceNormal = 1
	pieceUnused = 5
	pieceByte   = 6
)

// maxPiece limits the bytes of a piece, because finding its splits takes
// quadratic time.
const maxPiece = 1024

// fields calls f for each field of a message, with its bytes or its value.
func fields(message []byte, f func(n protowire.Number, data []byte, value uint64) error) error {
	for len(message) > 0 {
		n, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		var data []byte
		var value uint64
		switch kind {
		case protowire.BytesType:
			data, size = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			value, size = protowire.ConsumeVarint(message)
		case protowire.Fixed32Type:
			var v uint32
			v, size = protowire.ConsumeFixed32(message)
			value = uint64(v)
		default:
			size = protowire.ConsumeFieldValue(n, kind, message)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		if err := f(n, data, value); err != nil {
			return err
		}
	}
	return nil
}

// sentencePiece is a tokenizer.model.
type sentencePiece struct {
	tokens []string
	scores []float32
	types  []int32

	modelType    uint64
	byteFallback bool
	normalizer   struct {
		name                             string
		charsMap                         int // bytes
		dummyPrefix, removeExtra, escape bool
	}
}

// parseSentencePiece reads a tokenizer.model.
func parseSentencePiece(data []byte) (*sentencePiece, error) {
	if len(data) > maxModel {
		return nil, fmt.Errorf("it has %d bytes, a SentencePiece model at most %d", len(data),
			maxModel)
	}
	m := &sentencePiece{modelType: 1}
	m.normalizer.dummyPrefix, m.normalizer.removeExtra, m.normalizer.escape = true, true, true
	err := fields(data, func(n protowire.Number, data []byte, _ uint64) error {
		switch n {
		case modelPieces:
			return m.parsePiece(data)
		case modelTrainer:
			return fields(data, m.setTrainer)
		case modelNormalizer:
			return fields(data, m.setNormalizer)
		}
		return nil
	})
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && len(m.tokens) > 0:
		return nil, fmt.Errorf("it looks like a SentencePiece model "+
			"that is cut off after %d pieces and %d bytes", len(m.tokens), len(data))
	case err != nil:
		return nil, fmt.Errorf("it is neither JSON nor a SentencePiece model: %w", err)
	case len(m.tokens) == 0:
		return nil, fmt.Errorf("it is neither JSON nor a SentencePiece model, which has pieces")
	case m.modelType != 2:
		name := map[uint64]string{1: "unigram", 3: "word", 4: "char"}[m.modelType]
		return nil, fmt.Errorf("SentencePiece model of type %s; only bpe is supported", name)
	}
	if n := m.normalizer; n.charsMap > 0 || n.removeExtra || !n.escape {
		return nil, fmt.Errorf("SentencePiece model that rewrites text (normalization %q, "+
			"remove_extra_whitespaces %t); only identity, as in Llama, is supported: "+
			"convert it to a tokenizer.json", n.name, n.removeExtra)
	}
	return m, nil
}

func (m *sentencePiece) parsePiece(data []byte) error {
	if len(m.tokens) >= maxVocab {
		return fmt.Errorf("more than %d pieces", maxVocab)
	}
	piece, score, kind := "", float32(0), int32(pieceNormal)
	err := fields(data, func(n protowire.Number, data []byte, value uint64) error {
		switch n {
		case piecePiece:
			piece = string(data)
		case pieceScore:
			score = math.Float32frombits(uint32(value))
		case pieceType:
			kind = int32(value)
		}
		return nil
	})
	if err != nil || piece == "" || len(piece) > maxPiece || !utf8.ValidString(piece) {
		return fmt.Errorf("piece %d is %.40q, expected a token of 1 to %d bytes",
			len(m.tokens), piece, maxPiece)
	}
	m.tokens, m.scores = append(m.tokens, piece), append(m.scores, score)
	m.types = append(m.types, kind)
	return nil
}

func (m *sentencePiece) setTrainer(n protowire.Number, _ []byte, value uint64) error {
	switch n {
	case trainerModelType:
		m.modelType = value
	case trainerByteFallback:
		m.byteFallback = value != 0
	}
	return nil
}

func (m *sentencePiece) setNormalizer(n protowire.Number, data []byte, value uint64) error {
	switch n {
	case normalizerName:
		m.normalizer.name = string(data)
	case normalizerCharsMap:
		m.normalizer.charsMap = len(data)
	case normalizerDummyPrefix:
		m.normalizer.dummyPrefix = value != 0
	case normalizerRemoveExtra:
		m.normalizer.removeExtra = value != 0
	case normalizerEscapeSpaces:
		m.normalizer.escape = value != 0
	}
	return nil
}

// specFromSentencePiece converts a tokenizer.model to a tokenizer.json like
// Hugging Face does for Llama. The merges are all splits of each piece into two
// others, best score first.
func (about *folderInfo) specFromSentencePiece(data []byte) (*fileSpec, error) {
	m, err := parseSentencePiece(data)
	if err != nil {
		return nil, err
	}
	if !about.llamaClass {
		about.rename(m)
	}
	spec := newSpec(len(m.tokens))
	special := map[string]bool{}
	for i, token := range m.tokens {
		if _, double := spec.Model.Vocab[token]; double {
			return nil, fmt.Errorf("piece %d repeats %q", i, token)
		}
		id := int32(i)
		spec.Model.Vocab[token] = id
		switch m.types[i] {
		case ggufUnknown:
			spec.Model.UnkToken = &m.tokens[i]
			fallthrough
		case ggufControl, ggufUserDefined:
			special[token] = true
			spec.AddedTokens = append(spec.AddedTokens,
				addedToken{ID: id, Content: token, Special: m.types[i] != ggufUserDefined})
		}
	}
	spec.Model.Merges, err = mergesFromScores(m.tokens, m.scores, func(i int) bool {
		return m.types[i] != pieceNormal && m.types[i] != ggufUserDefined
	})
	if err != nil {
		return nil, err
	}
	legacy := !about.llamaClass
	if about.legacy != nil {
		legacy = *about.legacy
	}
	scheme := "first"
	switch {
	case !m.normalizer.dummyPrefix:
		scheme = "never"
	case legacy && about.llamaClass:
		scheme = "always"
	case legacy:
		scheme = normalizerPrefix
	}
	spec.setSentencePiece(scheme)
	spec.Model.ByteFallback = m.byteFallback
	// Pieces do not say which token begins or ends a text. Every SentencePiece
	// model of Llama uses these names.
	for role, name := range map[string]string{
		"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
	} {
		if special[name] {
			about.setDefault(role, name)
		}
	}
	before, after := "", ""
	names := about.values()
	if about.addBOS == nil && !about.configured || about.addBOS != nil && *about.addBOS {
		before = names["bos_token"]
	}
	if about.addEOS != nil && *about.addEOS {
		after = names["eos_token"]
	}
	about.addTo(spec)
	spec.numberAdded()
	ids := map[string]int32{}
	for _, token := range spec.AddedTokens {
		ids[token.Content] = token.ID
	}
	spec.PostProcessor = templateProcessing(before, ids[before], after, ids[after])
	return spec, nil
}

// rename gives a piece the name of the added token that has its id. All added tokens
// are matched in the raw text then. transformers does so for every class but Llama's.
func (about *folderInfo) rename(m *sentencePiece) {
	names, kept := map[int]string{}, map[string]bool{}
	for _, token := range about.listed {
		names[int(token.ID)] = token.Content
		token.Normalized = token.Normalized && !m.normalizer.dummyPrefix
	}
	for i, token := range m.tokens {
		kept[token] = names[i] == ""
	}
	for i := range m.tokens {
		if name := names[i]; name != "" && !kept[name] {
			m.tokens[i] = name
		}
	}
}

// normalizerPrefix adds a space to each text between added tokens, even if the text
// begins with one.
const normalizerPrefix = "normalizer"

// setSentencePiece sets how Llama 2's tokenizer.json treats spaces, and its decoder.
// The scheme says where a space is added: normalizerPrefix, or a prepend_scheme of
// Metaspace.
func (spec *fileSpec) setSentencePiece(scheme string) {
	back := `{"type":"Replace","pattern":{"String":"▁"},"content":" "},` +
		`{"type":"ByteFallback"},{"type":"Fuse"}`
	if scheme != "never" {
		back += `,{"type":"Strip","content":" ","start":1,"stop":0}`
	}
	if scheme == normalizerPrefix {
		spec.Normalizer = json.RawMessage(`{"type":"Sequence","normalizers":[` +
			`{"type":"Prepend","prepend":"▁"},` +
			`{"type":"Replace","pattern":{"String":" "},"content":"▁"}]}`)
	} else {
		spec.PreTokenizer = json.RawMessage(`{"type":"Metaspace","replacement":"▁",` +
			`"prepend_scheme":"` + scheme + `","split":false}`)
	}
	spec.Decoder = json.RawMessage(`{"type":"Sequence","decoders":[` + back + `]}`)
	spec.Model.FuseUnk, spec.Model.ByteFallback = true, true
}

// mergesFromScores lists all splits of each piece into two pieces, ordered by
// best score, then longer left part, then longer right part. Pieces for which
// skip is true are left out.
func mergesFromScores(tokens []string, scores []float32, skip func(int) bool) (
	[]mergePair, error,
) {
	ids := make(map[string]int, len(tokens))
	for i, token := range tokens {
		if _, double := ids[token]; !double && !skip(i) {
			ids[token] = i
		}
	}
	type split struct {
		piece, left, right int
		leftLen, rightLen  int // in characters
	}
	var splits []split
	for i, token := range tokens {
		if ids[token] != i || skip(i) {
			continue
		}
		n, count := utf8.RuneCountInString(token), 0
		for cut := range token {
			if cut == 0 {
				continue
			}
			count++
			left, ok := ids[token[:cut]]
			if !ok {
				continue
			}
			if right, ok := ids[token[cut:]]; ok {
				splits = append(splits, split{i, left, right, count, n - count})
			}
		}
		if len(splits) > maxVocab {
			return nil, fmt.Errorf("its pieces are formed by more than %d merges", maxVocab)
		}
	}
	slices.SortFunc(splits, func(x, y split) int {
		return cmp.Or(cmp.Compare(scores[y.piece], scores[x.piece]), y.leftLen-x.leftLen,
			y.rightLen-x.rightLen, x.piece-y.piece, x.left-y.left, x.right-y.right)
	})
	merges := make([]mergePair, len(splits))
	for i, s := range splits {
		merges[i] = mergePair{tokens[s.left], tokens[s.right]}
	}
	return merges, nil
}
