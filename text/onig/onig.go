// Package onig matches regular expressions as Oniguruma reads them in UTF-8, with
// its default syntax. Hugging Face's tokenizers are written for it.
//
// The package differs from Go's regexp and from Perl's dialect in nested sets and
// their intersection ("[a-z&&[^aeiou]]"), POSIX brackets, ^ and $ at every line,
// possessive quantifiers, look-around, and Unicode 16. Compile refuses what it does
// not support: references to groups, calls, conditions, \G, \K, \X, \y, repeats of
// what can be empty, letters whose case folding has several characters under (?i), and
// look-behind without a longest match.
//
// Matching takes time proportional to the length of the pattern times that of the
// text. It remembers which states failed at which position, instead of trying them
// again.
package onig

import "fmt"

// Regexp is a compiled pattern. Several goroutines may use it at once.
type Regexp struct {
	program *program
}

// Compile parses a pattern. The error says at which byte and why it is refused.
func Compile(pattern string) (*Regexp, error) {
	p := &parser{text: pattern}
	n, err := p.parse()
	if err != nil {
		return nil, fmt.Errorf("regular expression %.200q: %w", pattern, err)
	}
	c := new(compiler)
	main := c.compile(n, 0, true)
	if c.err != nil {
		return nil, fmt.Errorf("regular expression %.200q: %w", pattern, c.err)
	}
	return &Regexp{program: main}, nil
}

// FindAll returns the byte ranges [start, end) of all matches in s, which must be
// UTF-8. A match may be empty, but not at the end of the match before it.
func (r *Regexp) FindAll(s string) (found [][2]int) {
	m := &matcher{text: s}
	last := -1
	for at := 0; at <= len(s); {
		start, end := m.search(r.program, at)
		if start < 0 {
			return found
		}
		if start == end && end == last {
			at = end + m.width(end)
			continue
		}
		found = append(found, [2]int{start, end})
		at, last = end, end
	}
	return found
}
