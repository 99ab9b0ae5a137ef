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
	order := make([]int, len(offsets))
	for k := range order {
		order[k] = k
	}
	slices.SortFunc(order, func(a, b int) int { return offsets[a] - offsets[b] })
	found, at := (*placed)(nil), -1 // of part number at
	for _, k := range order {
		i := sort.Search(len(parts), func(i int) bool { return parts[i].end > offsets[k] })
		switch {
		case i == len(parts):
			tokens[k] = len(ids)
		case parts[i].added:
			tokens[k] = first[i]
		default:
			p := parts[i]
			if at != i {
				found, at = t.place(s[p.start:p.end], p.start == 0, ids[first[i]:first[i+1]]), i
			}
			tokens[k] = first[i] + found.tokenAt(offsets[k]-p.start)
		}
	}
	if addSpecial {
		ids = append(ids, t.suffix...)
	}
	return ids, tokens
}

// placed tells which token holds which byte of a text without added tokens. It is asked for growing
// offsets.
type placed struct {
	t     *Tokenizer
	piece string
	first bool // the text is at the beginning of the whole one
	whole string
	ids   []int32
	ends  []int // of the tokens in whole; nil if they are not known

	done, length int // whole[:length] is made of piece[:done]
}

// place finds the tokens of a text.
func (t *Tokenizer) place(piece string, first bool, ids []int32) *placed {
	p := &placed{t: t, piece: piece, first: first, ids: ids, whole: t.prepared(piece, first)}
	total := 0
	for _, id := range ids {
		total += t.span(id)
		p.ends = append(p.ends, total)
	}
	if total != len(p.whole) { // some of the text is unknown
		p.align()
	}
	if piece[0] != ' ' {
		for _, space := range []string{" ", spaceMark} { // one that was put in front
			if strings.HasPrefix(p.whole, space) {
				p.length = len(space)
			}
		}
	}
	return p
}

// align sets the ends of tokens of which some do not spell their text. Such a token stands for the
// characters up to the next token that does. ends is nil if that is not so.
func (p *placed) align() {
	spelled := func(id int32) string {
		token := p.t.tokens[id]
		if p.t.byteLevel {
			token, _ = byteLevelBytes(token)
		}
		return token
	}
	at := 0
	for i, id := range p.ids {
		token := spelled(id)
		switch {
		case token != "" && id != p.t.unk && strings.HasPrefix(p.whole[at:], token):
			at += len(token)
		case id != p.t.unk && p.t.span(id) == 1 && at < len(p.whole): // a byte
			at++
		case at < len(p.whole):
			_, size := utf8.DecodeRuneInString(p.whole[at:])
			at += size
			if i+1 < len(p.ids) && p.ids[i+1] != p.t.unk {
				if n := strings.Index(p.whole[at:], spelled(p.ids[i+1])); n > 0 {
					at += n
				}
			} else if i+1 == len(p.ids) {
				at = len(p.whole)
			}
		default:
			p.ends = nil
			return
		}
		p.ends[i] = at
	}
	if at != len(p.whole) {
		p.ends = nil
	}
}

// tokenAt returns the index of the token that holds the byte at an offset of piece.
func (p *placed) tokenAt(at int) int {
	start := at
	for start > 0 && !utf8.RuneStart(p.piece[start]) {
		start--
	}
	if p.ends == nil {
		prefix := p.t.Encode(p.piece[:start], false)
		return max(0, min(CommonPrefix(prefix, p.ids), len(p.ids)-1))
	}
	p.advance(start)
	target := p.length + at - start
	i := sort.Search(len(p.ends), func(i int) bool { return p.ends[i] > target })
	return max(0, min(i, len(p.ends)-1))
}

// advance sets done to start. What is between is prepared by itself if that gives the same text.
func (p *placed) advance(start int) {
	if start == p.done {
		return
	}
	next := p.t.prepared(p.piece[p.done:start], false)
	for _, mark := range []string{"", " ", spaceMark} { // one that was put in front
		more, ok := strings.CutPrefix(next, mark)
		if ok && p.done > 0 && strings.HasPrefix(p.whole[min(p.length, len(p.whole)):], more) {
			p.done, p.length = start, p.length+len(more)
			return
		}
	}
	p.done, p.length = start, len(p.t.prepared(p.piece[:start], p.first))
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
