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
// Matching takes time proportional to the [Regexp.Cost] of the pattern times the
// length of the text. It remembers which states failed or matched at which
// position, instead of trying them again. Compile refuses a pattern of a large cost.
package onig

import (
	"fmt"
	"sync"
	"unicode/utf8"
)

// Regexp is a compiled pattern. Several goroutines may use it at once.
type Regexp struct {
	program *program
	least   int // characters of a match
	cost    int
	reach   int       // the most bytes before its position that a match looks at
	idle    sync.Pool // of *matcher
}

// Cost returns the most steps that finding all matches takes for a byte of the text.
func (r *Regexp) Cost() int { return r.cost }

// MinLength returns the least characters of a match.
func (r *Regexp) MinLength() int { return r.least }

// maxPattern limits the bytes of a pattern, because each class of it takes memory. The longest of a
// known tokenizer has some 1,000.
const maxPattern = 1 << 14

// Compile parses a pattern. The error says at which byte and why it is refused.
func Compile(pattern string) (*Regexp, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("regular expression %.200q has %d bytes, expected at most %d",
			pattern, len(pattern), maxPattern)
	}
	p := &parser{text: pattern, sets: map[string]*set{}}
	n, err := p.parse()
	if err != nil {
		return nil, fmt.Errorf("regular expression %.200q: %w", pattern, err)
	}
	c := new(compiler)
	main := c.compile(n, 0, true)
	if c.err != nil {
		return nil, fmt.Errorf("regular expression %.200q: %w", pattern, c.err)
	}
	return &Regexp{program: main, least: n.shortest(), cost: c.cost,
		reach: c.reach * utf8.UTFMax}, nil
}

// FindAll returns the byte ranges [start, end) of all matches in s, which must be
// UTF-8. A match may be empty, but not at the end of the match before it.
func (r *Regexp) FindAll(s string) (found [][2]int) {
	m, _ := r.idle.Get().(*matcher)
	if m == nil {
		m = &matcher{reach: r.reach}
	}
	m.begin(s)
	defer r.idle.Put(m)
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
