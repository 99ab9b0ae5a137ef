package onig

import (
	"unicode/utf8"
)

// matcher matches programs in one text.
type matcher struct {
	text string
	free []*run
}

// run is the state of one program: the choices that are left, and the choices that
// were made before at each position. A choice that was made is not made again: it
// failed, or it is part of an empty repeat.
type run struct {
	stack []choice
	made  []uint64 // a bit per split and position since base
	base  int
}

type choice struct{ at, pos int }

// search returns the first match at or after start, or -1.
func (m *matcher) search(p *program, start int) (from, to int) {
	r := m.newRun(start)
	defer m.release(r)
	for pos := start; pos <= len(m.text); {
		if end := m.match(r, p, pos, -1); end >= 0 {
			return pos, end
		}
		pos += m.width(pos)
	}
	return -1, -1
}

// width returns the bytes of the character at pos, at least 1.
func (m *matcher) width(pos int) int {
	if pos >= len(m.text) || m.text[pos] < utf8.RuneSelf {
		return 1
	}
	_, size := utf8.DecodeRuneInString(m.text[pos:])
	return size
}

func (m *matcher) newRun(base int) *run {
	if n := len(m.free); n > 0 {
		r := m.free[n-1]
		m.free = m.free[:n-1]
		r.base = base
		return r
	}
	return &run{base: base}
}

func (m *matcher) release(r *run) {
	clear(r.made)
	r.made, r.stack = r.made[:0], r.stack[:0]
	m.free = append(m.free, r)
}

// first reports whether a choice is made for the first time.
func (r *run) first(p *program, index, pos int) bool {
	bit := (pos-r.base)*p.splits + index
	word := bit / 64
	if word >= len(r.made) {
		if word < cap(r.made) {
			r.made = r.made[:word+1] // release cleared it
		} else {
			r.made = append(r.made, make([]uint64, word+1+word/2-len(r.made))...)
		}
	}
	if r.made[word]>>(bit%64)&1 != 0 {
		return false
	}
	r.made[word] |= 1 << (bit % 64)
	return true
}

// match runs p at pos and returns the end of its first match, or -1. The match must
// end at target unless that is negative.
func (m *matcher) match(r *run, p *program, pos, target int) int {
	r.stack = append(r.stack[:0], choice{0, pos})
	for len(r.stack) > 0 {
		top := r.stack[len(r.stack)-1]
		r.stack = r.stack[:len(r.stack)-1]
		if end := m.follow(r, p, top.at, top.pos, target); end >= 0 {
			return end
		}
	}
	return -1
}

// follow runs p from an instruction until it fails or matches.
func (m *matcher) follow(r *run, p *program, at, pos, target int) int {
	for {
		i := &p.code[at]
		at++
		switch i.op {
		case opChar:
			size := m.charIn(i.set, pos)
			if size == 0 {
				return -1
			}
			pos += size
		case opSpan:
			n := 0
			for ; n != i.max; n++ {
				size := m.charIn(i.set, pos)
				if size == 0 {
					break
				}
				pos += size
			}
			if n < i.min {
				return -1
			}
		case opSplit:
			if !r.first(p, i.index, pos) {
				return -1
			}
			r.stack = append(r.stack, choice{i.y, pos})
			at = i.x
		case opJump:
			at = i.x
		case opAssert:
			if !m.holds(i.assert, pos) {
				return -1
			}
		case opLook:
			if m.look(i, pos) == i.negative {
				return -1
			}
		case opAtomic:
			inner := m.newRun(pos)
			end := m.match(inner, i.sub, pos, -1)
			m.release(inner)
			if end < 0 {
				return -1
			}
			pos = end
		case opMatch:
			if target >= 0 && pos != target {
				return -1
			}
			return pos
		}
	}
}

// charIn returns the bytes of the character at pos if it is in s, else 0.
func (m *matcher) charIn(s *set, pos int) int {
	if pos >= len(m.text) {
		return 0
	}
	if b := m.text[pos]; b < utf8.RuneSelf {
		return int(s.ascii[b/64] >> (b % 64) & 1)
	}
	r, size := utf8.DecodeRuneInString(m.text[pos:])
	if s.has(r) {
		return size
	}
	return 0
}

// look reports whether the program of a look-around matches at pos.
func (m *matcher) look(i *instruction, pos int) bool {
	if !i.isBehind {
		r := m.newRun(pos)
		defer m.release(r)
		return m.match(r, i.sub, pos, -1) >= 0
	}
	for start, n := pos, 0; ; n++ {
		r := m.newRun(start)
		end := m.match(r, i.sub, start, pos)
		m.release(r)
		if end >= 0 {
			return true
		}
		if start == 0 || n == i.behind {
			return false
		}
		_, size := utf8.DecodeLastRuneInString(m.text[:start])
		start -= size
	}
}

// holds reports whether an assertion holds at pos. No line begins after a line feed
// at the end of the text.
func (m *matcher) holds(a assertion, pos int) bool {
	s, n := m.text, len(m.text)
	switch a {
	case lineStart:
		return pos == 0 || s[pos-1] == '\n' && pos < n
	case lineEnd:
		return pos == n || s[pos] == '\n'
	case textStart:
		return pos == 0
	case textEnd:
		return pos == n
	case textEndOrNewline:
		return pos == n || pos == n-1 && s[pos] == '\n'
	}
	before, _ := utf8.DecodeLastRuneInString(s[:pos])
	after, _ := utf8.DecodeRuneInString(s[pos:])
	boundary := (pos > 0 && wordSet().has(before)) != (pos < n && wordSet().has(after))
	return boundary == (a == wordBoundary)
}
