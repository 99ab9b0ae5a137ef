package grammar

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"unicode"
	"unicode/utf8"
)

// Regexp compiles a regular expression in Go's syntax, which the whole text must match.
func Regexp(pattern string) (*Grammar, error) {
	e, err := parseRegexp(pattern, nil, false)
	if err != nil {
		return nil, err
	}
	return compile(e, nil)
}

// Choice compiles a choice between texts.
func Choice(texts []string) (*Grammar, error) {
	var all alt
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return nil, errors.New("a choice is not valid UTF-8")
		}
		all = append(all, literal(text))
	}
	if len(all) == 0 {
		return nil, errors.New("there are no choices")
	}
	return compile(all, nil)
}

// parseRegexp turns a pattern into an expression. If search is true, the text contains a match, as
// in a JSON schema, else it is one. A text has characters of within only; nil means all.
func parseRegexp(pattern string, within class, search bool) (expr, error) {
	if len(pattern) > 10_000 {
		return nil, errTooLarge
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("regular expression %.80q: %w", pattern, err)
	}
	p := regexpParser{within: within}
	top, begin, end := unanchored(parsed)
	e, err := p.expr(top)
	if err != nil {
		return nil, fmt.Errorf("regular expression %.80q: %w", pattern, err)
	}
	any := repeat{of: p.class(class{0, utf8.MaxRune}), most: -1}
	if search && !begin {
		e = cat{any, e}
	}
	if search && !end {
		e = cat{e, any}
	}
	return e, nil
}

// unanchored removes ^ and $ around the whole expression.
func unanchored(r *syntax.Regexp) (rest *syntax.Regexp, begin, end bool) {
	parts := []*syntax.Regexp{r}
	if r.Op == syntax.OpConcat {
		parts = r.Sub
	}
	for len(parts) > 0 && parts[0].Op == syntax.OpBeginText {
		parts, begin = parts[1:], true
	}
	for len(parts) > 0 && parts[len(parts)-1].Op == syntax.OpEndText {
		parts, end = parts[:len(parts)-1], true
	}
	if len(parts) == 0 {
		return &syntax.Regexp{Op: syntax.OpEmptyMatch}, begin, end
	}
	if len(parts) == 1 {
		return parts[0], begin, end
	}
	return &syntax.Regexp{Op: syntax.OpConcat, Sub: parts}, begin, end
}

type regexpParser struct{ within class }

func (p regexpParser) expr(r *syntax.Regexp) (expr, error) {
	parts := make([]expr, len(r.Sub))
	for i, sub := range r.Sub {
		var err error
		if parts[i], err = p.expr(sub); err != nil {
			return nil, err
		}
	}
	switch r.Op {
	case syntax.OpNoMatch:
		return class{}, nil
	case syntax.OpEmptyMatch:
		return literal(""), nil
	case syntax.OpLiteral:
		var all cat
		for _, c := range r.Rune {
			all = append(all, p.class(spellings(c, r.Flags&syntax.FoldCase != 0)))
		}
		return all, nil
	case syntax.OpCharClass:
		return p.class(class(r.Rune)), nil
	case syntax.OpAnyChar:
		return p.class(class{0, utf8.MaxRune}), nil
	case syntax.OpAnyCharNotNL:
		return p.class(class{0, '\n' - 1, '\n' + 1, utf8.MaxRune}), nil
	case syntax.OpCapture:
		return parts[0], nil
	case syntax.OpStar:
		return repeat{of: parts[0], most: -1}, nil
	case syntax.OpPlus:
		return repeat{of: parts[0], least: 1, most: -1}, nil
	case syntax.OpQuest:
		return repeat{of: parts[0], most: 1}, nil
	case syntax.OpRepeat:
		return repeat{of: parts[0], least: r.Min, most: r.Max}, nil
	case syntax.OpConcat:
		return cat(parts), nil
	case syntax.OpAlternate:
		return alt(parts), nil
	}
	return nil, errors.New("anchors inside and word boundaries are not supported")
}

// spellings are a character and, if case does not matter, its other forms.
func spellings(c rune, fold bool) class {
	all := class{c, c}
	for f := unicode.SimpleFold(c); fold && f != c; f = unicode.SimpleFold(f) {
		all = append(all, f, f)
	}
	return all
}

// class is the part of ranges that lies within the characters that a text may have.
func (p regexpParser) class(ranges class) class {
	if p.within == nil {
		return ranges
	}
	var all class
	for i := 0; i+1 < len(ranges); i += 2 {
		for k := 0; k+1 < len(p.within); k += 2 {
			if lo, hi := max(ranges[i], p.within[k]), min(ranges[i+1],
				p.within[k+1]); lo <= hi {
				all = append(all, lo, hi)
			}
		}
	}
	return all
}
