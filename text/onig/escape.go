package onig

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escape parses what follows a backslash outside of a class.
func (p *parser) escape() (*node, error) {
	if !p.more() {
		return nil, p.errorf("the pattern ends with a backslash")
	}
	start := p.at
	assertions := map[rune]assertion{'A': textStart, 'z': textEnd, 'Z': textEndOrNewline,
		'b': wordBoundary, 'B': noWordBoundary}
	switch r := p.next(); r {
	case 'A', 'z', 'Z', 'b', 'B':
		return &node{kind: simpleAssertion, assert: assertions[r]}, nil
	case 'R': // \r\n is not divided
		breaks := newSet('\n', '\r')
		breaks.add(0x85, 0x85)
		breaks.add(0x2028, 0x2029)
		pair := &node{kind: sequence, parts: []*node{{set: newSet('\r', '\r').done()},
			{set: newSet('\n', '\n').done()}}}
		return &node{kind: atomic, parts: []*node{{kind: alternatives,
			parts: []*node{pair, {set: breaks.done()}}}}}, nil
	case 'N':
		s := newSet(0, unicode.MaxRune)
		s.remove('\n', '\n')
		return &node{set: s.done()}, nil
	case 'O':
		return &node{set: newSet(0, unicode.MaxRune).done()}, nil
	}
	p.at = start
	s, r, err := p.escaped()
	if err != nil {
		return nil, err
	}
	if s == nil {
		return p.char(r)
	}
	if p.flags.ignoreCase && (p.text[start] == 'p' || p.text[start] == 'P') {
		if err = p.foldClass(s); err != nil {
			return nil, err
		}
	}
	return p.oneOf(s, start), nil
}

// escaped parses what may follow a backslash both inside and outside of a class: a
// set, or a character r if s is nil.
func (p *parser) escaped() (s *set, r rune, err error) {
	start := p.at
	switch r := p.next(); r {
	case 'd', 'D', 's', 'S', 'w', 'W', 'h', 'H':
		name := map[rune]string{'d': "digit", 's': "space", 'w': "word", 'h': "xdigit"}
		s := p.named(name[unicode.ToLower(r)])
		if unicode.IsUpper(r) {
			s.negate()
		}
		return s, 0, nil
	case 'p', 'P':
		s, err := p.property(r == 'P')
		return s, 0, err
	case 't':
		return nil, '\t', nil
	case 'n':
		return nil, '\n', nil
	case 'r':
		return nil, '\r', nil
	case 'f':
		return nil, '\f', nil
	case 'v':
		return nil, '\v', nil
	case 'a':
		return nil, '\a', nil
	case 'e':
		return nil, 0x1b, nil
	case 'x':
		digits, ok := "", false
		if p.take("{") {
			digits, _, ok = strings.Cut(p.text[p.at:], "}")
			p.at += len(digits) + 1
		} else {
			digits, ok = p.hex(2), true
		}
		n, failed := strconv.ParseUint(digits, 16, 32)
		if !ok || failed != nil || !utf8.ValidRune(rune(n)) ||
			p.text[start+1:p.at] != "{"+digits+"}" &&
				n > 0x7f {
			p.at = start
			return nil, 0, p.errorf("\\x does not name a character")
		}
		return nil, rune(n), nil
	case 'u':
		digits := p.hex(4)
		n, failed := strconv.ParseUint(digits, 16, 32)
		if len(digits) < 4 || failed != nil || !utf8.ValidRune(rune(n)) {
			p.at = start
			return nil, 0, p.errorf("\\u does not name a character")
		}
		return nil, rune(n), nil
	case '0':
		n := rune(0)
		for range 2 {
			if !p.more() || p.peek() < '0' || p.peek() > '7' {
				break
			}
			n = n*8 + p.next() - '0'
		}
		return nil, n, nil
	default:
		if r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			p.at = start
			return nil, 0, p.errorf("\\%c is not supported", r)
		}
		return nil, r, nil
	}
}

// named returns the set of a property's name, or nil.
func (p *parser) named(name string) *set {
	if p.inClass == 0 && plainName(name) == "word" {
		return wordAlone()
	}
	return property(name)
}

// hex takes up to most hexadecimal digits.
func (p *parser) hex(most int) string {
	start := p.at
	for p.at-start < most && p.more() &&
		strings.ContainsRune("0123456789abcdefABCDEF", p.peek()) {
		p.at++
	}
	return p.text[start:p.at]
}

// property parses what follows \p or \P.
func (p *parser) property(negative bool) (*set, error) {
	start := p.at
	name, _, ok := strings.Cut(p.text[p.at:], "}")
	if !ok || !strings.HasPrefix(name, "{") {
		return nil, p.errorf("\\p must be followed by a name in braces")
	}
	p.at += len(name) + 1
	name = name[1:]
	if rest, ok := strings.CutPrefix(name, "^"); ok {
		name, negative = rest, !negative
	}
	s := p.named(name)
	if s == nil {
		p.at = start
		return nil, p.errorf("the property %q is not known", name)
	}
	if negative {
		s.negate()
	}
	return s, nil
}
