package tokenizer

import (
	"slices"
	"sort"
	"strings"
	"unicode/utf8"
)

// part is a range of a text that is encoded by itself: an added token, or the text between two.
type part struct {
	start, end int
	added      bool
}

// EncodeAt encodes s like Encode and finds the tokens at byte offsets of s, which is UTF-8.
// tokens[k] is the index in ids of the token that holds byte offsets[k]; for len(s) it is the
// number of ids that stand for text of s and what precedes it.
func (t *Tokenizer) EncodeAt(s string, addSpecial bool, offsets []int) (ids []int32, tokens []int) {
	var parts []part
	var first []int // index of each part's first token
	if addSpecial {
		ids = append(ids, t.prefix...)
	}
	ids = t.encodeParts(ids, s, func(p part, before int) {
		parts, first = append(parts, p), append(first, before)
	})
	first = append(first, len(ids))
	tokens = make([]int, len(offsets))
	for k, at := range offsets {
		i := sort.Search(len(parts), func(i int) bool { return parts[i].end > at })
		switch {
		case i == len(parts):
			tokens[k] = len(ids)
		case parts[i].added:
			tokens[k] = first[i]
		default:
			p := parts[i]
			tokens[k] = first[i] + t.tokenAt(s[p.start:p.end], p.start == 0,
				ids[first[i]:first[i+1]], at-p.start)
		}
	}
	if addSpecial {
		ids = append(ids, t.suffix...)
	}
	return ids, tokens
}

// tokenAt returns the index of the token of piece that holds the byte at an offset. first is true
// at the beginning of the text.
func (t *Tokenizer) tokenAt(piece string, first bool, ids []int32, at int) int {
	whole := t.prepared(piece, first)
	total := 0
	for _, id := range ids {
		total += t.span(id)
	}
	start := at
	for start > 0 && !utf8.RuneStart(piece[start]) {
		start--
	}
	if total != len(whole) {
		// The tokens do not spell the text, because some of it is unknown.
		return min(CommonPrefix(t.Encode(piece[:start], false), ids), len(ids)-1)
	}
	target := at - start
	if start > 0 {
		target += len(t.prepared(piece[:start], first))
	} else {
		for _, space := range []string{" ", spaceMark} { // one that was put in front
			if strings.HasPrefix(whole, space) && piece[0] != ' ' {
				target += len(space)
			}
		}
	}
	for i, id := range ids {
		if target -= t.span(id); target < 0 {
			return i
		}
	}
	return len(ids) - 1
}

// prepared returns a text as the model gets it.
func (t *Tokenizer) prepared(s string, first bool) string {
	for _, f := range t.normalize {
		s = f(s)
	}
	for _, step := range t.pretoken {
		if step.rewrite != nil {
			s = step.rewrite(s, first)
		}
		if step.next != nil || step.all != nil {
			break
		}
	}
	return s
}

// span returns how many bytes of the model's text a token stands for.
func (t *Tokenizer) span(id int32) int {
	token := t.tokens[id]
	if t.byteLevel {
		return utf8.RuneCountInString(token)
	}
	if m, ok := t.model.(*bpe); ok && m.byteFallback && len(token) == 6 &&
		slices.Contains(m.fallback[:], id) {
		return 1
	}
	return len(token)
}

// IsSpecial reports whether id is a special token, such as one that ends a turn.
func (t *Tokenizer) IsSpecial(id int32) bool {
	return id >= 0 && int(id) < len(t.decodeKind) && t.decodeKind[id] == specialPiece
}
