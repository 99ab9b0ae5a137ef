package tokenizer

import (
	"fmt"
	"math"
	"unicode/utf8"
)

// unigram divides a word into the tokens whose scores have the largest sum.
type unigram struct {
	trie         *pieceTrie
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
	m := &unigram{trie: &pieceTrie{}, ids: s.Vocab, scores: s.scores, unk: -1,
		byteFallback: s.ByteFallback}
	lowest := math.Inf(1)
	for id, piece := range s.pieces {
		if len(piece) > maxPiece {
			return nil, fmt.Errorf("token %d has %d bytes, expected at most %d", id, len(piece),
				maxPiece)
		}
		m.trie.add(piece)
		lowest = min(lowest, s.scores[id])
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

// pieceTrie finds the tokens that begin at a position.
type pieceTrie struct {
	next map[byte]*pieceTrie
	end  bool
}

func (t *pieceTrie) add(piece string) {
	for i := range len(piece) {
		child := t.next[piece[i]]
		if child == nil {
			if t.next == nil {
				t.next = map[byte]*pieceTrie{}
			}
			child = &pieceTrie{}
			t.next[piece[i]] = child
		}
		t = child
	}
	t.end = true
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
		for node, end := m.trie, start; end < len(word); {
			if node = node.next[word[end]]; node == nil {
				break
			}
			if end++; node.end {
				id := m.ids[word[start:end]]
				reach(start, end, id, m.scores[id])
				single = single || end == start+width
			}
		}
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
	ids      map[string]int32
	prefix   string
	unk      int32
	maxChars int // a longer word is unknown
	longest  int // bytes of the longest token
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
	for token := range s.Vocab {
		m.longest = max(m.longest, len(token))
	}
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
	for start := 0; start < len(word); {
		end := min(len(word), start+m.longest)
		for ; end > start; end-- {
			if end < len(word) && !utf8.RuneStart(word[end]) {
				continue
			}
			token := word[start:end]
			if start > 0 {
				token = m.prefix + token
			}
			if id, ok := m.ids[token]; ok {
				out = append(out, id)
				break
			}
		}
		if end == start {
			return append(out[:first], m.unk)
		}
		start = end
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
