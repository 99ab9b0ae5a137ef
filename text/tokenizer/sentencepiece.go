package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// A tokenizer.model is the protocol buffer ModelProto of SentencePiece
// (sentencepiece_model.proto). These are the fields that are read.
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

// SentencePiece's types of piece are those GGUF took over.
const (
	pieceNormal = 1
	pieceUnused = 5
	pieceByte   = 6
)

// maxPiece is the longest piece that is read, in bytes: looking for its splits
// takes the square of that.
const maxPiece = 1024

// fields calls f for each field of a message, with its bytes or its number.
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

// specFromSentencePiece describes a tokenizer.model as a tokenizer.json, the
// way Hugging Face converts Llama's: the merges are all splits of each piece
// into two others, best score first.
func (about *folderInfo) specFromSentencePiece(data []byte) (*fileSpec, error) {
	var tokens []string
	var scores []float32
	var types []int32
	modelType, byteFallback := uint64(1), false
	normalizer := struct {
		name                             string
		charsMap                         int
		dummyPrefix, removeExtra, escape bool
	}{dummyPrefix: true, removeExtra: true, escape: true}
	err := fields(data, func(n protowire.Number, data []byte, _ uint64) error {
		switch n {
		case modelPieces:
			if len(tokens) >= maxVocab {
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
				return fmt.Errorf("piece %d is %.40q, expected a token of 1 to %d bytes", len(tokens), piece, maxPiece)
			}
			tokens, scores, types = append(tokens, piece), append(scores, score), append(types, kind)
		case modelTrainer:
			return fields(data, func(n protowire.Number, _ []byte, value uint64) error {
				switch n {
				case trainerModelType:
					modelType = value
				case trainerByteFallback:
					byteFallback = value != 0
				}
				return nil
			})
		case modelNormalizer:
			return fields(data, func(n protowire.Number, data []byte, value uint64) error {
				switch n {
				case normalizerName:
					normalizer.name = string(data)
				case normalizerCharsMap:
					normalizer.charsMap = len(data)
				case normalizerDummyPrefix:
					normalizer.dummyPrefix = value != 0
				case normalizerRemoveExtra:
					normalizer.removeExtra = value != 0
				case normalizerEscapeSpaces:
					normalizer.escape = value != 0
				}
				return nil
			})
		}
		return nil
	})
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && len(tokens) > 0:
		return nil, fmt.Errorf("it looks like a SentencePiece model that is cut off after %d pieces and %d bytes", len(tokens), len(data))
	case err != nil:
		return nil, fmt.Errorf("it is neither JSON nor a SentencePiece model: %w", err)
	case len(tokens) == 0:
		return nil, fmt.Errorf("it is neither JSON nor a SentencePiece model, which has pieces")
	case modelType != 2:
		name := map[uint64]string{1: "unigram", 3: "word", 4: "char"}[modelType]
		return nil, fmt.Errorf("SentencePiece model of type %s; only bpe is supported", name)
	case normalizer.charsMap > 0 || normalizer.removeExtra || !normalizer.escape:
		return nil, fmt.Errorf("SentencePiece model that rewrites text (normalization %q, remove_extra_whitespaces %t); only Llama's kind, identity, is supported: convert it to a tokenizer.json", normalizer.name, normalizer.removeExtra)
	}

	spec := newSpec(len(tokens))
	special := map[string]*int32{}
	for i, token := range tokens {
		if _, double := spec.Model.Vocab[token]; double {
			return nil, fmt.Errorf("piece %d repeats %q", i, token)
		}
		id := int32(i)
		spec.Model.Vocab[token] = id
		switch types[i] {
		case ggufUnknown:
			spec.Model.UnkToken = &tokens[i]
			fallthrough
		case ggufControl, ggufUserDefined:
			special[token] = &id
			spec.AddedTokens = append(spec.AddedTokens, addedToken{ID: id, Content: token, Special: types[i] != ggufUserDefined})
		}
	}
	spec.Model.Merges = mergesFromScores(tokens, scores, func(i int) bool {
		return types[i] != pieceNormal && types[i] != ggufUserDefined
	})
	spec.setSentencePiece(normalizer.dummyPrefix, !about.legacyOff)
	spec.Model.ByteFallback = byteFallback
	// The tokens' roles are not in the pieces; these are the names every
	// SentencePiece Llama gives them.
	defaults := map[*string]string{&about.bos: "<s>", &about.eos: "</s>", &about.unk: "<unk>"}
	for to, name := range defaults {
		if *to == "" && special[name] != nil {
			*to = name
		}
	}
	before, after := "", ""
	if about.addBOS == nil || *about.addBOS {
		before = about.bos
	}
	if about.addEOS != nil && *about.addEOS {
		after = about.eos
	}
	spec.PostProcessor = templateProcessing(before, spec.Model.Vocab[before], after, spec.Model.Vocab[after])
	return spec, nil
}

// setSentencePiece gives a file the normalizer and decoder of Llama 2's. A space
// is put in front of the text after each special token too, as the first
// conversions had it; with legacy false at the beginning of the text only.
func (spec *fileSpec) setSentencePiece(prefixSpace, legacy bool) {
	replace := `{"type":"Replace","pattern":{"String":" "},"content":"▁"}`
	back := `{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"}`
	scheme := "never"
	if prefixSpace {
		replace = `{"type":"Prepend","prepend":"▁"},` + replace
		back += `,{"type":"Strip","content":" ","start":1,"stop":0}`
		scheme = "first"
	}
	if legacy {
		spec.Normalizer = json.RawMessage(`{"type":"Sequence","normalizers":[` + replace + `]}`)
	} else {
		spec.PreTokenizer = json.RawMessage(`{"type":"Metaspace","replacement":"▁","prepend_scheme":"` + scheme + `","split":false}`)
	}
	spec.Decoder = json.RawMessage(`{"type":"Sequence","decoders":[` + back + `]}`)
	spec.Model.FuseUnk, spec.Model.ByteFallback = true, true
}

// mergesFromScores lists all splits of each piece into two pieces, best score
// first, then longer left part, then longer right part; skip leaves a piece out.
func mergesFromScores(tokens []string, scores []float32, skip func(int) bool) []mergePair {
	ids := make(map[string]int, len(tokens))
	for i, token := range tokens {
		if _, double := ids[token]; !double && !skip(i) {
			ids[token] = i
		}
	}
	type split struct {
		piece, left, right   int
		leftLen, rightLength int // in characters
	}
	var splits []split
	for i, token := range tokens {
		if ids[token] != i || skip(i) {
			continue
		}
		start, n := len(splits), utf8.RuneCountInString(token)
		count := 0
		for cut := range token {
			if cut == 0 {
				continue
			}
			count++
			left, ok := ids[token[:cut]]
			right, ok2 := ids[token[cut:]]
			if ok && ok2 {
				splits = append(splits, split{i, left, right, count, n - count})
			}
		}
		local := splits[start:]
		sort.Slice(local, func(a, b int) bool {
			if local[a].left != local[b].left {
				return local[a].left < local[b].left
			}
			return local[a].right < local[b].right
		})
	}
	sort.SliceStable(splits, func(a, b int) bool {
		x, y := splits[a], splits[b]
		if scores[x.piece] != scores[y.piece] {
			return scores[x.piece] > scores[y.piece]
		}
		if x.leftLen != y.leftLen {
			return x.leftLen > y.leftLen
		}
		return x.rightLength > y.rightLength
	})
	merges := make([]mergePair, len(splits))
	for i, s := range splits {
		merges[i] = mergePair{tokens[s.left], tokens[s.right]}
	}
	return merges
}
