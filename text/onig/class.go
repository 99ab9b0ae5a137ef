package onig

import (
	"strings"
)

// class parses what follows "[". If negative is true, the class has all characters but
// those of the set.
func (p *parser) class() (s *set, negative bool, err error) {
	if p.depth++; p.depth > maxDepth {
		return nil, false, p.errorf("more than %d nested sets", maxDepth)
	}
	p.inClass++
	defer func() { p.depth, p.inClass = p.depth-1, p.inClass-1 }()
	start := p.at - 1
	negative = p.take("^")
	s, err = p.members(start)
	return s, negative, err
}

// members parses the items of a class that began at start, up to its "]".
func (p *parser) members(start int) (*set, error) {
	var left *set // the operands of && so far
	s := new(set)
	empty := true
	if p.more() && p.peek() == ']' && strings.Contains(p.text[p.at+1:], "]") {
		p.at++ // the first one is an ordinary character
		if err := p.classRange(s, ']'); err != nil {
			return s, err
		}
		empty = false
	}
	for p.more() {
		item := p.at
		switch r := p.next(); {
		case r == ']':
			if empty {
				p.at = start
				return s, p.errorf("the set is empty")
			}
			if left != nil {
				left.intersect(s)
				s = left
			}
			return s, nil
		case r == '&' && p.take("&"):
			if left != nil {
				left.intersect(s)
			} else {
				left = s
			}
			s = new(set)
		case r == '[' && p.take(":"):
			posix, ok := p.posix()
			if !ok {
				p.at = item
				return s, p.errorf("a set that begins with [: is not supported")
			}
			s.union(posix)
			if err := p.noRange(); err != nil {
				return s, err
			}
		case r == '[':
			inner, negative, err := p.class()
			if err != nil {
				return s, err
			}
			if negative {
				inner.negate()
			}
			s.union(inner)
			if err := p.noRange(); err != nil {
				return s, err
			}
		case r == '\\':
			set, char, err := p.classEscape()
			if err == nil && set == nil {
				err = p.classRange(s, char)
			} else if err == nil {
				s.union(set)
				err = p.noRange()
			}
			if err != nil {
				return s, err
			}
		default:
			if err := p.classRange(s, r); err != nil {
				return s, err
			}
		}
		empty = false
	}
	p.at = start
	return s, p.errorf("the set has no end")
}

// classEscape parses what follows a backslash in a class.
func (p *parser) classEscape() (*set, rune, error) {
	if p.take("b") {
		return nil, '\b', nil
	}
	if !p.more() {
		return nil, 0, p.errorf("the pattern ends with a backslash")
	}
	return p.escaped()
}

// noRange refuses a minus sign between a set and a character, which engines read
// differently.
func (p *parser) noRange() error {
	if strings.HasPrefix(p.text[p.at:], "-") && !strings.HasPrefix(p.text[p.at:], "-]") {
		return p.errorf("a range that begins with a set is not supported: write \\-")
	}
	return nil
}

// classRange adds first, or the range that begins with it.
func (p *parser) classRange(s *set, first rune) error {
	rest := p.text[p.at:]
	if !strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "-]") || len(rest) == 1 {
		s.add(first, first)
		return nil
	}
	if strings.HasPrefix(rest, "-[") || strings.HasPrefix(rest, "-&&") {
		return p.errorf("a range that ends with a set is not supported: write \\-")
	}
	p.at++
	last := p.next()
	if last == '\\' {
		set, char, err := p.classEscape()
		if err != nil {
			return err
		}
		if set != nil {
			return p.errorf("a range that ends with a set is not supported: write \\-")
		}
		last = char
	}
	if last < first {
		return p.errorf("the range %q-%q is reversed", first, last)
	}
	s.add(first, last)
	return p.noRange()
}

// posix parses a POSIX bracket after "[:".
func (p *parser) posix() (*set, bool) {
	name, _, ok := strings.Cut(p.text[p.at:], ":]")
	if !ok {
		return nil, false
	}
	bare, negative := strings.CutPrefix(name, "^")
	s := posixSets[bare]
	if s == nil {
		return nil, false
	}
	p.at += len(name) + len(":]")
	set := s()
	if negative {
		set.negate()
	}
	return set, true
}
