package onig

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// node is a part of a pattern.
type node struct {
	kind     kind
	set      *set
	parts    []*node // of a sequence, of alternatives; one of the others
	min, max int     // of a repeat; max is -1 without a limit
	greed    greed
	assert   assertion
	negative bool // of a look-around
	behind   bool
}

type kind uint8

const (
	oneChar kind = iota // a character of set
	sequence
	alternatives
	repeat
	atomic
	lookAround
	simpleAssertion
)

type greed uint8

const (
	greedy greed = iota
	lazy
	possessive
)

type assertion uint8

const (
	lineStart assertion = iota
	lineEnd
	textStart
	textEnd
	textEndOrNewline
	wordBoundary
	noWordBoundary
)

// maxRepeat limits the numbers of a repeat as Oniguruma does.
const maxRepeat = 100000

// maxDepth limits nested groups.
const maxDepth = 200

// flags are the options of a group.
type flags struct{ ignoreCase, dotAll, extended bool }

// parser reads a pattern.
type parser struct {
	text  string
	at    int
	flags flags
	depth int
	// inClass counts the classes around the position.
	inClass int
	// sets are the sets of classes and properties by what spells them.
	sets map[string]*set
}

func (p *parser) errorf(format string, args ...any) error {
	return fmt.Errorf("at byte %d: %s", p.at, fmt.Sprintf(format, args...))
}

func (p *parser) parse() (*node, error) {
	n, err := p.alternatives()
	if err == nil && p.at < len(p.text) {
		err = p.errorf("unmatched )")
	}
	return n, err
}

// oneOf returns the node of a set that the pattern spells from start on. It keeps the set, because
// large ones take memory.
func (p *parser) oneOf(s *set, start int) *node {
	key := fmt.Sprint(p.flags.ignoreCase, p.text[start:p.at])
	if p.sets[key] == nil {
		p.sets[key] = s.done()
	}
	return &node{set: p.sets[key]}
}

func (p *parser) more() bool { return p.at < len(p.text) }

func (p *parser) peek() rune {
	r, _ := utf8.DecodeRuneInString(p.text[p.at:])
	return r
}

func (p *parser) next() rune {
	r, size := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += size
	return r
}

// take skips s if it comes next.
func (p *parser) take(s string) bool {
	if strings.HasPrefix(p.text[p.at:], s) {
		p.at += len(s)
		return true
	}
	return false
}

// alternatives parses up to the end of a group.
func (p *parser) alternatives() (*node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.errorf("more than %d nested groups", maxDepth)
	}
	defer func() { p.depth-- }()
	var parts []*node
	for {
		n, err := p.sequence()
		if err != nil {
			return nil, err
		}
		parts = append(parts, n)
		if !p.take("|") {
			break
		}
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return &node{kind: alternatives, parts: parts}, nil
}

func (p *parser) sequence() (*node, error) {
	n := &node{kind: sequence}
	var folded []rune // the characters so far that match in any case
	for p.more() && p.peek() != '|' && p.peek() != ')' {
		if p.flags.extended && p.skipExtended() {
			continue
		}
		start := p.at
		part, err := p.item()
		if err != nil {
			return nil, err
		}
		if part == nil {
			continue // a comment or an option
		}
		if p.flags.ignoreCase && part.kind == oneChar && part.set.folded != 0 {
			folded = append(folded, part.set.folded)
			if text := joinsFold(folded); text != "" {
				p.at = start
				return nil, p.errorf("%q matches one character in another case, "+
					"which is not supported", text)
			}
		} else {
			folded = nil
		}
		if part, err = p.quantifiers(part); err != nil {
			return nil, err
		}
		n.parts = append(n.parts, part)
	}
	if len(n.parts) == 1 {
		return n.parts[0], nil
	}
	return n, nil
}

// skipExtended skips white space and a comment.
func (p *parser) skipExtended() bool {
	switch r := p.peek(); {
	case r == '#':
		for p.more() && p.next() != '\n' {
		}
	case r == ' ' || r >= '\t' && r <= '\r':
		p.next()
	default:
		return false
	}
	return true
}

// quantifiers parses the quantifiers after n.
func (p *parser) quantifiers(n *node) (*node, error) {
	for p.more() {
		if p.flags.extended && p.skipExtended() {
			continue
		}
		least, most, interval := 0, -1, false
		switch {
		case p.take("?"):
			most = 1
		case p.take("*"):
		case p.take("+"):
			least = 1
		case p.peek() == '{':
			start := p.at
			var ok bool
			if least, most, ok = p.interval(); !ok {
				p.at = start
				return n, nil // an ordinary brace
			}
			interval = true
			if least > maxRepeat || most > maxRepeat {
				return nil, p.errorf("a repeat of more than %d", maxRepeat)
			}
			if most >= 0 && least > most {
				return nil, p.errorf("the repeat {%d,%d} is reversed", least, most)
			}
		default:
			return n, nil
		}
		if n.kind == simpleAssertion || n.kind == lookAround {
			return nil, p.errorf("a repeat of an assertion is not supported")
		}
		if n.canBeEmpty() && most != 1 {
			return nil, p.errorf("a repeat of what can be empty is not supported")
		}
		q := &node{kind: repeat, parts: []*node{n}, min: least, max: most}
		switch {
		case interval && least == most: // {n}? is optional, not lazy
		case p.take("?"):
			q.greed = lazy
		case !interval && p.take("+"):
			q.greed = possessive
		}
		n = q
	}
	return n, nil
}

// interval parses {n}, {n,}, {,m} or {n,m}.
func (p *parser) interval() (least, most int, ok bool) {
	p.take("{")
	number := func() (int, bool) {
		start := p.at
		for p.more() && p.peek() >= '0' && p.peek() <= '9' {
			p.next()
		}
		n, err := strconv.Atoi(p.text[start:p.at])
		if err != nil && p.at > start {
			return maxRepeat + 1, true
		}
		return n, p.at > start
	}
	least, first := number()
	most = least
	second := true
	if p.take(",") {
		if most, second = number(); !second {
			most = -1
		}
	}
	return least, most, (first || second) && p.take("}")
}

// item parses one character, class, group or assertion. It returns nil for a comment.
func (p *parser) item() (*node, error) {
	start := p.at
	switch r := p.next(); r {
	case '(':
		return p.group()
	case '[':
		s, negative, err := p.class()
		switch {
		case err != nil:
			return nil, err
		case negative && p.flags.ignoreCase:
			s.addFolds()
		case p.flags.ignoreCase:
			err = p.foldClass(s)
		}
		if err != nil {
			return nil, err
		}
		if negative {
			s.negate()
		}
		return p.oneOf(s, start), nil
	case '.':
		s := newSet(0, unicode.MaxRune)
		if !p.flags.dotAll {
			s.remove('\n', '\n')
		}
		return &node{set: s.done()}, nil
	case '^':
		return &node{kind: simpleAssertion, assert: lineStart}, nil
	case '$':
		return &node{kind: simpleAssertion, assert: lineEnd}, nil
	case '*', '+', '?':
		p.at--
		return nil, p.errorf("there is nothing to repeat")
	case '\\':
		return p.escape()
	default:
		return p.char(r)
	}
}

// char returns a node for one character.
func (p *parser) char(r rune) (*node, error) {
	s := newSet(r, r)
	if p.flags.ignoreCase {
		if foldsToSeveral(r) {
			return nil, p.errorf("%q in any case is not supported: its case folding has several "+
				"characters", r)
		}
		s.addFolds()
		s.folded = foldOf(r)
	}
	return &node{set: s.done()}, nil
}

// foldClass closes a class under changes of case.
func (p *parser) foldClass(s *set) error {
	if r := s.firstFoldingToSeveral(); r >= 0 {
		return p.errorf("a class in any case with %q is not supported: its case folding has "+
			"several characters", r)
	}
	s.addFolds()
	return nil
}

// group parses what follows "(".
func (p *parser) group() (*node, error) {
	start := p.at
	n := &node{kind: sequence}
	outer := p.flags
	switch {
	case !p.take("?"):
	case p.take(":"):
	case p.take("="):
		n.kind = lookAround
	case p.take("!"):
		n.kind, n.negative = lookAround, true
	case p.take("<="):
		n.kind, n.behind = lookAround, true
	case p.take("<!"):
		n.kind, n.behind, n.negative = lookAround, true, true
	case p.take(">"):
		n.kind = atomic
	case p.take("#"):
		for p.more() {
			switch p.next() {
			case '\\':
				if p.more() {
					p.next()
				}
			case ')':
				return nil, nil
			}
		}
		return nil, p.errorf("the comment has no end")
	case p.take("<"), p.take("'"):
		end := strings.IndexAny(p.text[p.at:], ">'")
		if end < 1 {
			return nil, p.errorf("the name of a group has no end")
		}
		for i, r := range p.text[p.at : p.at+end] {
			if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
				return nil, p.errorf("a group has a name that is not supported")
			}
		}
		p.at += end + 1
	default:
		toEnd, err := p.options(start)
		if err != nil {
			return nil, err
		}
		if toEnd {
			// The options hold up to the end of the group around, over its alternatives too.
			inner, err := p.alternatives()
			p.flags = outer
			return inner, err
		}
	}
	inner, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	p.flags = outer
	if !p.take(")") {
		p.at = start
		return nil, p.errorf("the group has no end")
	}
	n.parts = []*node{inner}
	return n, nil
}

// options parses the letters of (?i-m:…) or (?i). toEnd is true for the latter.
func (p *parser) options(start int) (toEnd bool, err error) {
	on := true
	for p.more() {
		switch p.next() {
		case '-':
			on = false
		case 'i':
			p.flags.ignoreCase = on
		case 'm':
			p.flags.dotAll = on
		case 'x':
			p.flags.extended = on
		case ':':
			return false, nil
		case ')':
			return true, nil
		default:
			p.at = start
			return false, p.errorf("a group of the form (%.8s is not supported", p.text[start:])
		}
	}
	return false, p.errorf("the group has no end")
}
