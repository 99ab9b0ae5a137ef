package onig

import (
	"unicode/utf8"
)

// matcher matches programs in one text. No position that is more than reach before floor is visited
// again.
type matcher struct {
	text         string
	reach, floor int
	runs         map[*program]*run
}

// begin prepares the matcher for a text.
func (m *matcher) begin(text string) {
	m.text, m.floor = text, 0
	for _, r := range m.runs {
		if cap(r.visited) > maxIdle {
			r.visited = nil
		}
		r.forget(0)
		clear(r.spans)
	}
}

// maxIdle is the most words that a run keeps for the next text.
const maxIdle = 1 << 12

// run is the state of one program in a text: the choices that are left, and what is known of the
// states that were visited before. A state is a position and an instruction that remembers
// (opSplit and opOnce). What follows a state does not depend on what came before it. So a state is
// visited once: it failed, or it led to a match whose end is known.
type run struct {
	stack   []choice
	path    []int    // states that led to the present one
	visited []uint64 // a bit a state since base
	base    int
	main    bool
	ends    map[int]int    // of the visited states that led to a match: where it ends
	spans   map[int][2]int // by instruction: the last run of characters of an opSpan
}

// choice is where to continue after a failure, and the length of the path to it.
type choice struct{ at, pos, path int }

// search returns the first match at or after start, or -1. The starts of one matcher do not
// decrease.
func (m *matcher) search(p *program, start int) (from, to int) {
	m.floor = start
	r := m.runOf(p)
	r.main = true
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

// minForgotten is from how many bytes before the floor a run forgets its states.
const minForgotten = 4096

// runOf returns the run of a program whose match may end anywhere. It forgets what it knows when at
// least half of that is about positions that are not visited again.
func (m *matcher) runOf(p *program) *run {
	r := m.runs[p]
	if r == nil {
		if m.runs == nil {
			m.runs = map[*program]*run{}
		}
		r = &run{base: max(0, m.floor-m.reach)}
		m.runs[p] = r
	}
	if past := m.floor - m.reach - r.base; past >= minForgotten+m.reach &&
		2*past*p.states >= 64*len(r.visited) {
		r.forget(m.floor - m.reach)
	}
	return r
}

func (r *run) forget(base int) {
	clear(r.visited)
	clear(r.ends)
	r.visited, r.base = r.visited[:0], base
}

// visit reports whether a state is visited for the first time. If not, end is where the match ends
// that it led to, or -1.
func (r *run) visit(p *program, index, pos int) (first bool, end int) {
	state := (pos-r.base)*p.states + index
	word := state / 64
	if word >= len(r.visited) {
		if word < cap(r.visited) {
			r.visited = r.visited[:word+1] // forget cleared it
		} else {
			r.visited = append(r.visited, make([]uint64, word+1+word/2-len(r.visited))...)
		}
	}
	if r.visited[word]>>(state%64)&1 != 0 {
		if end, matched := r.ends[state]; matched {
			return false, end
		}
		return false, -1
	}
	r.visited[word] |= 1 << (state % 64)
	r.path = append(r.path, state)
	return true, -1
}

// keptState says which states of a path to a match are kept: one of so many. The others may be
// visited again, which leads to a kept one soon.
const keptState = 64

// matched notes that the states of the path lead to a match. The main program does not visit them
// again, because the next search begins where the match ends.
func (r *run) matched(end int) {
	for i, state := range r.path {
		if !r.main && i%keptState == 0 {
			if r.ends == nil {
				r.ends = map[int]int{}
			}
			r.ends[state] = end
			continue
		}
		r.visited[state/64] &^= 1 << (state % 64)
	}
}

// match runs p at pos and returns the end of its first match, or -1. The match must
// end at target unless that is negative.
func (m *matcher) match(r *run, p *program, pos, target int) int {
	r.stack, r.path = append(r.stack[:0], choice{0, pos, 0}), r.path[:0]
	for len(r.stack) > 0 {
		top := r.stack[len(r.stack)-1]
		r.stack, r.path = r.stack[:len(r.stack)-1], r.path[:top.path]
		if end := m.follow(r, p, top.at, top.pos, target); end >= 0 {
			r.matched(end)
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
			if pos = m.span(r, i, at, pos); pos < 0 {
				return -1
			}
		case opSplit:
			first, end := r.visit(p, i.index, pos)
			if !first {
				return end
			}
			r.stack = append(r.stack, choice{i.y, pos, len(r.path)})
			at = i.x
		case opOnce:
			if first, end := r.visit(p, i.index, pos); !first {
				return end
			}
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
			if pos = m.match(m.runOf(i.sub), i.sub, pos, -1); pos < 0 {
				return -1
			}
		case opMatch:
			if target >= 0 && pos != target {
				return -1
			}
			return pos
		}
	}
}

// span returns the end of the characters that an opSpan takes at pos, or -1 if they are too few.
func (m *matcher) span(r *run, i *instruction, at, pos int) int {
	endless := i.max < 0
	if endless && len(r.spans) > 0 {
		last := r.spans[at]
		if pos >= last[0] && pos < last[1] && last[1]-pos >= i.min*utf8.UTFMax {
			return last[1]
		}
	}
	start, n := pos, 0
	for ; n != i.max; n++ {
		size := m.charIn(i.set, pos)
		if size == 0 {
			break
		}
		pos += size
	}
	if endless && pos-start >= minSpan {
		if r.spans == nil {
			r.spans = map[int][2]int{}
		}
		r.spans[at] = [2]int{start, pos}
	}
	if n < i.min {
		return -1
	}
	return pos
}

// minSpan is the length from which a span is remembered, so that the positions inside it do not
// read it again.
const minSpan = 64

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
		return m.match(m.runOf(i.sub), i.sub, pos, -1) >= 0
	}
	// The states depend on where the match must end.
	r := new(run)
	for start, n := pos, 0; ; n++ {
		r.forget(start)
		if m.match(r, i.sub, start, pos) >= 0 {
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
