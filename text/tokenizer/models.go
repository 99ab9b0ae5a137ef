package tokenizer

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// unigram divides a word into the tokens whose scores have the largest sum.
type unigram struct {
	pieces       *prefixes
	pieceIDs     []int32 // by index in pieces
	ids          map[string]int32
	scores       []float64
	unkScore     float64
	unk          int32 // -1 if there is none
	byteFallback bool
}

// unkPenalty lies between the lowest score and that of an unknown character.
const unkPenalty = 10

func (s *modelSpec) buildUnigram(t *Tokenizer) (wordModel, error) {
	if s.scores == nil {
		return nil, fmt.Errorf("the vocabulary of Unigram must be a list of tokens and scores")
	}
	m := &unigram{pieces: newPrefixes(slices.Clone(s.pieces)), ids: s.Vocab, scores: s.scores,
		unk: -1, byteFallback: s.ByteFallback}
	lowest := math.Inf(1)
	for id, piece := range s.pieces {
		if len(piece) > maxPiece {
			return nil, fmt.Errorf("token %d has %d bytes, expected at most %d", id, len(piece),
				maxPiece)
		}
		lowest = min(lowest, s.scores[id])
	}
	for _, piece := range m.pieces.sorted {
		m.pieceIDs = append(m.pieceIDs, s.Vocab[piece])
	}
	m.unkScore = lowest - unkPenalty
	t.tokens = append([]string(nil), s.pieces...)
	if s.UnkID != nil {
		if *s.UnkID < 0 || int(*s.UnkID) >= len(s.pieces) {
			return nil, fmt.Errorf("unk_id is %d, the vocabulary has %d tokens", *s.UnkID,
				len(s.pieces))
		}
		m.unk, t.unk = *s.UnkID, *s.UnkID
		return m, nil
	}
	return nil, fmt.Errorf("a Unigram model without unk_id is not supported: it fails at unknown " +
		"characters")
}

// pathEnd is the best way to divide a text up to a position.
type pathEnd struct {
	start int // of the last token; -1 if there is no way
	id    int32
	score float64
}

func (m *unigram) encode(out []int32, _ *scratch, word string) []int32 {
	best := make([]pathEnd, len(word)+1)
	for i := range best {
		best[i].start = -1
	}
	reach := func(start, end int, id int32, score float64) {
		score += best[start].score
		if e := &best[end]; e.start < 0 || score > e.score {
			*e = pathEnd{start, id, score}
		}
	}
	for start := 0; start < len(word); {
		_, width := utf8.DecodeRuneInString(word[start:])
		single := false
		m.pieces.each(word[start:], func(index, length int) {
			id := m.pieceIDs[index]
			reach(start, start+length, id, m.scores[id])
			single = single || length == width
		})
		if !single {
			reach(start, start+width, m.unk, m.unkScore)
		}
		start += width
	}
	// Unknown characters that follow each other are one token.
	var ends []int // of the tokens, last to first
	for end := len(word); end > 0; {
		ends = append(ends, end)
		e := best[end]
		for e.id == m.unk && e.start > 0 && best[e.start].id == m.unk {
			e = best[e.start]
		}
		end = e.start
	}
	start := 0
	for i := len(ends) - 1; i >= 0; i-- {
		out = m.appendToken(out, word[start:ends[i]])
		start = ends[i]
	}
	return out
}

func (m *unigram) appendToken(out []int32, token string) []int32 {
	if id, ok := m.ids[token]; ok {
		return append(out, id)
	}
	if m.byteFallback {
		start := len(out)
		for i := range len(token) {
			id, ok := m.ids[fmt.Sprintf("<0x%02X>", token[i])]
			if !ok {
				return append(out[:start], m.unk)
			}
			out = append(out, id)
		}
		return out
	}
	return append(out, m.unk)
}

// wordPiece divides a word into the longest tokens, from its beginning. All but the
// first have a prefix.
type wordPiece struct {
	ids         map[string]int32
	prefix      string
	unk         int32
	maxChars    int       // a longer word is unknown
	first, next *prefixes // tokens that begin a word; others, without their prefix
}

func (s *modelSpec) buildWordPiece() (wordModel, error) {
	unk, err := s.unknown("[UNK]")
	if err != nil {
		return nil, err
	}
	m := &wordPiece{ids: s.Vocab, prefix: "##", unk: unk, maxChars: 100}
	if s.Prefix != nil {
		m.prefix = *s.Prefix
	}
	if s.MaxChars != nil {
		m.maxChars = *s.MaxChars
	}
	var first, next []string
	for token := range s.Vocab {
		if len(token) > maxPiece {
			return nil, fmt.Errorf("token %.40q has %d bytes, expected at most %d", token,
				len(token), maxPiece)
		}
		first = append(first, token)
		if rest, ok := strings.CutPrefix(token, m.prefix); ok {
			next = append(next, rest)
		}
	}
	m.first, m.next = newPrefixes(first), newPrefixes(next)
	return m, nil
}

// unknown returns the id of the token for unknown words.
func (s *modelSpec) unknown(missing string) (int32, error) {
	name := missing
	if s.UnkToken != nil {
		name = *s.UnkToken
	}
	id, ok := s.Vocab[name]
	if !ok {
		return 0, fmt.Errorf("unk_token %q is not in the vocabulary", name)
	}
	return id, nil
}

func (m *wordPiece) encode(out []int32, _ *scratch, word string) []int32 {
	if utf8.RuneCountInString(word) > m.maxChars {
		return append(out, m.unk)
	}
	first := len(out)
	tokens, prefix := m.first, ""
	for word != "" {
		longest := 0
		tokens.each(word, func(_, length int) {
			if length == len(word) || utf8.RuneStart(word[length]) {
				longest = length
			}
		})
		if longest == 0 {
			return append(out[:first], m.unk)
		}
		out = append(out, m.ids[prefix+word[:longest]])
		word, tokens, prefix = word[longest:], m.next, m.prefix
	}
	return out
}

// wordLevel has one token for each known word.
type wordLevel struct {
	ids map[string]int32
	unk int32
}

func (s *modelSpec) buildWordLevel() (wordModel, error) {
	unk, err := s.unknown("<unk>")
	return &wordLevel{s.Vocab, unk}, err
}

func (m *wordLevel) encode(out []int32, _ *scratch, word string) []int32 {
	if id, ok := m.ids[word]; ok {
		return append(out, id)
	}
	return append(out, m.unk)
}
