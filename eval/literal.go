package eval

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// literal is Python's ast.literal_eval for what a template prints: None, True, False, numbers,
// strings, and lists and tuples of them, which are both []any.
func literal(source string) (any, error) {
	p := &literals{rest: strings.TrimLeft(source, " \t")}
	v, err := p.value(0)
	if err == nil {
		if p.skip(); p.rest != "" {
			err = fmt.Errorf("unexpected %.20q behind the value", p.rest)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%.60q is not a Python literal: %w", source, err)
	}
	return v, nil
}

// literalDepth is the deepest nesting of lists, as CPython's parser limits it too.
const literalDepth = 100

type literals struct{ rest string }

func (p *literals) skip() { p.rest = strings.TrimLeft(p.rest, " \t\n\r\f") }

func (p *literals) value(depth int) (any, error) {
	if depth > literalDepth {
		return nil, errors.New("it is nested too deeply")
	}
	p.skip()
	for _, word := range []struct {
		name  string
		value any
	}{{"None", nil}, {"True", true}, {"False", false}} {
		if rest, ok := strings.CutPrefix(p.rest, word.name); ok && !startsName(rest) {
			p.rest = rest
			return word.value, nil
		}
	}
	switch {
	case p.rest == "":
		return nil, errors.New("it ends early")
	case p.rest[0] == '[':
		return p.sequence(']', depth)
	case p.rest[0] == '(':
		return p.sequence(')', depth)
	case p.rest[0] == '\'' || p.rest[0] == '"':
		return p.strings()
	}
	return p.number()
}

func startsName(s string) bool {
	return s != "" && (s[0] == '_' || s[0] >= '0' && s[0] <= '9' || s[0] >= 'A' && s[0] <= 'Z' ||
		s[0] >= 'a' && s[0] <= 'z' || s[0] >= utf8.RuneSelf)
}

// sequence reads a list, a tuple or a value in parentheses.
func (p *literals) sequence(end byte, depth int) (any, error) {
	p.rest = p.rest[1:]
	items, comma := []any{}, false
	for {
		p.skip()
		if p.rest != "" && p.rest[0] == end {
			p.rest = p.rest[1:]
			if end == ')' && len(items) == 1 && !comma {
				return items[0], nil
			}
			return items, nil
		}
		if len(items) > 0 && !comma {
			return nil, fmt.Errorf("expected a comma at %.20q", p.rest)
		}
		item, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
		p.skip()
		if comma = strings.HasPrefix(p.rest, ","); comma {
			p.rest = p.rest[1:]
		}
	}
}

// strings reads a string, or several that follow each other.
func (p *literals) strings() (any, error) {
	var b strings.Builder
	for p.rest != "" && (p.rest[0] == '\'' || p.rest[0] == '"') {
		if err := p.quoted(&b); err != nil {
			return nil, err
		}
		p.skip()
	}
	return b.String(), nil
}

func (p *literals) quoted(b *strings.Builder) error {
	quote := p.rest[0]
	p.rest = p.rest[1:]
	for p.rest != "" {
		c := p.rest[0]
		switch {
		case c == quote:
			p.rest = p.rest[1:]
			return nil
		case c == '\n':
			return errors.New("a string holds a line end")
		case c != '\\':
			b.WriteByte(c)
			p.rest = p.rest[1:]
		default:
			if err := p.escape(b); err != nil {
				return err
			}
		}
	}
	return errors.New("a string does not end")
}

// escape reads a backslash and what belongs to it.
func (p *literals) escape(b *strings.Builder) error {
	if len(p.rest) < 2 {
		return errors.New("a string does not end")
	}
	c := p.rest[1]
	if plain := strings.IndexByte(`\'"abfnrtv`, c); plain >= 0 {
		b.WriteByte("\\'\"\a\b\f\n\r\t\v"[plain])
		p.rest = p.rest[2:]
		return nil
	}
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
	switch {
	case c == '\n':
		p.rest = p.rest[2:]
	case digits > 0 && len(p.rest) >= 2+digits:
		code, err := strconv.ParseUint(p.rest[2:2+digits], 16, 32)
		if err != nil || code > utf8.MaxRune {
			return fmt.Errorf("%q is not a character", p.rest[:2+digits])
		}
		b.WriteRune(rune(code))
		p.rest = p.rest[2+digits:]
	case digits > 0:
		return errors.New("a string does not end")
	case c >= '0' && c <= '7' || c == 'N':
		return fmt.Errorf("the escape \\%c is not supported", c)
	default: // Python keeps the backslash
		b.WriteByte('\\')
		p.rest = p.rest[1:]
	}
	return nil
}

func (p *literals) number() (any, error) {
	n := 0
	for n < len(p.rest) && strings.IndexByte("+-.0123456789eE_", p.rest[n]) >= 0 {
		n++
	}
	text := p.rest[:n]
	if n == 0 || startsName(p.rest[n:]) {
		return nil, fmt.Errorf("unexpected %.20q", p.rest)
	}
	p.rest = p.rest[n:]
	digits := strings.TrimLeft(text, "+-")
	if len(digits) > 1 && digits[0] == '0' && isDigits(digits) && strings.Trim(digits, "0") != "" {
		return nil, fmt.Errorf("the number %s begins with a zero", text)
	}
	if i, err := strconv.Atoi(text); err == nil {
		return i, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, fmt.Errorf("%q is not a number that is supported", text)
	}
	return f, nil
}
