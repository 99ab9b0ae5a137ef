package grammar

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// Part is a set of texts from which [Compose] makes a grammar.
type Part func(c *composer) (expr, error)

// composer has the rules of all parts.
type composer struct {
	rules   map[string]expr
	schemas int
}

// Text is one text.
func Text(text string) Part {
	return func(*composer) (expr, error) {
		if !utf8.ValidString(text) {
			return nil, errors.New("a text is not valid UTF-8")
		}
		return literal(text), nil
	}
}

// Except is any text without a marker, whose first two bytes are ASCII characters. It also leaves
// out other texts with these two characters.
func Except(marker string) Part {
	return func(*composer) (expr, error) {
		a, b := rune(marker[0]), rune(marker[1])
		without := func(c rune) class { return class{0, c - 1, c + 1, utf8.MaxRune} }
		return repeat{of: alt{without(a), cat{class{a, a}, without(b)}}, most: -1}, nil
	}
}

// Schema is the texts that satisfy a JSON schema, as in [JSONSchema].
func Schema(schema []byte) Part {
	return func(c *composer) (expr, error) {
		if len(schema) > 1<<20 {
			return nil, errTooLarge
		}
		c.schemas++
		s := &schemaCompiler{root: schema, rules: c.rules, name: fmt.Sprint(c.schemas, " ")}
		s.addJSON()
		return s.reference("#")
	}
}

// Join is one part after the other.
func Join(parts ...Part) Part {
	return func(c *composer) (expr, error) {
		all, err := c.all(parts)
		return cat(all), err
	}
}

// OneOf is one of the parts, at least one.
func OneOf(parts ...Part) Part {
	return func(c *composer) (expr, error) {
		all, err := c.all(parts)
		return alt(all), err
	}
}

// Repeated is a part any number of times.
func Repeated(p Part) Part {
	return func(c *composer) (expr, error) {
		of, err := p(c)
		return repeat{of: of, most: -1}, err
	}
}

func (c *composer) all(parts []Part) (list []expr, err error) {
	for _, p := range parts {
		e, err := p(c)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// Compose compiles a part.
func Compose(p Part) (*Grammar, error) {
	c := &composer{rules: map[string]expr{}}
	e, err := p(c)
	if err != nil {
		return nil, err
	}
	return compile(e, c.rules)
}
