package tokenizer

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"conquer/text/onig"
)

// preStep is one pre-tokenizer. It rewrites the text if rewrite is set, then
// splits it with next or all, if one of them is set.
type preStep struct {
	// rewrite changes the text; first is true at the beginning of the input.
	rewrite func(s string, first bool) string
	// next returns the length in bytes of the first piece, at least 1.
	next func(s string) int
	// all returns all pieces.
	all func(s string) []string
	// cost is that of its regular expression.
	cost int
}

// The patterns of most tokenizers. Hand-written scanners match them many times
// faster than a backtracking regular expression. Llama 3 and Qwen 2 share a
// pattern, with a different number of digits in a word.
const (
	gpt2Pattern = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	llama3Start = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|`
	llama3End   = `| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

	llama3Pattern = llama3Start + `\p{N}{1,3}` + llama3End
	qwen2Pattern  = llama3Start + `\p{N}` + llama3End
)

// splitByPattern returns the pre-tokenizer "Split" for a regular expression.
func splitByPattern(pattern string, behavior string, invert bool) (preStep, error) {
	if behavior == "Isolated" && !invert {
		switch pattern {
		case gpt2Pattern:
			return preStep{next: nextGPT2}, nil
		case llama3Pattern:
			return preStep{next: func(s string) int { return nextLlama3(s, 3) }}, nil
		case qwen2Pattern:
			return preStep{next: func(s string) int { return nextLlama3(s, 1) }}, nil
		}
	}
	re, err := onig.Compile(pattern)
	if err != nil {
		return preStep{}, err
	}
	step, err := splitAt(re.FindAll, behavior, invert)
	step.cost = re.Cost()
	return step, err
}

// splitByString returns the pre-tokenizer "Split" for a literal string.
func splitByString(sep, behavior string, invert bool) (preStep, error) {
	if sep == "" {
		return preStep{}, fmt.Errorf("pre-tokenizer Split has an empty pattern")
	}
	return splitAt(func(s string) [][2]int { return findString(s, sep) }, behavior, invert)
}

// findString returns the ranges of a string in s.
func findString(s, sep string) (found [][2]int) {
	for at := 0; ; {
		i := strings.Index(s[at:], sep)
		if i < 0 {
			return found
		}
		found = append(found, [2]int{at + i, at + i + len(sep)})
		at += i + len(sep)
	}
}

// findRunes returns the range of each character for which is is true.
func findRunes(is func(rune) bool) func(s string) [][2]int {
	return func(s string) (found [][2]int) {
		for i, r := range s {
			if is(r) {
				found = append(found, [2]int{i, i + utf8.RuneLen(r)})
			}
		}
		return found
	}
}

// splitPart is a match of a split, or the text between two.
type splitPart struct {
	start, end int
	match      bool
}

// splitAt splits a text at the matches of find. Isolated makes each match a piece,
// Removed drops it, the Merged behaviors join it to a neighbor, Contiguous joins
// adjacent matches. A match without characters divides the text too. invert swaps
// matches and the text between them.
func splitAt(find func(string) [][2]int, behavior string, invert bool) (preStep, error) {
	switch behavior {
	case "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous":
	default:
		return preStep{}, fmt.Errorf("pre-tokenizer Split has behavior %q; known are "+
			"Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous", behavior)
	}
	return preStep{all: func(s string) (pieces []string) {
		var parts []splitPart
		at := 0
		for _, m := range find(s) {
			if at < m[0] {
				parts = append(parts, splitPart{at, m[0], invert})
			}
			parts = append(parts, splitPart{m[0], m[1], !invert})
			at = m[1]
		}
		if at < len(s) {
			parts = append(parts, splitPart{at, len(s), invert})
		}
		for _, p := range mergeParts(parts, behavior) {
			if p.start < p.end {
				pieces = append(pieces, s[p.start:p.end])
			}
		}
		return pieces
	}}, nil
}

// mergeParts applies the behavior of a split to its parts.
func mergeParts(parts []splitPart, behavior string) []splitPart {
	if behavior == "MergedWithNext" {
		slices.Reverse(parts)
	}
	out := parts[:0]
	previous := false
	for _, p := range parts {
		join := false
		switch behavior {
		case "Removed":
			if p.match {
				continue
			}
		case "Contiguous":
			join = p.match == previous
		case "MergedWithPrevious", "MergedWithNext":
			join = p.match && !previous
		}
		previous = p.match
		if n := len(out); join && n > 0 {
			out[n-1].start = min(out[n-1].start, p.start)
			out[n-1].end = max(out[n-1].end, p.end)
			continue
		}
		out = append(out, p)
	}
	if behavior == "MergedWithNext" {
		slices.Reverse(out)
	}
	return out
}

// nextDigits returns the pre-tokenizer "Digits". Each digit is a piece if
// individual is set, else each run of digits.
func nextDigits(individual bool) func(string) int {
	return func(s string) int {
		r, n := utf8.DecodeRuneInString(s)
		digit := isDigit(r)
		if digit && individual {
			return n
		}
		for n < len(s) {
			r, size := utf8.DecodeRuneInString(s[n:])
			if isDigit(r) != digit {
				break
			}
			n += size
		}
		return n
	}
}

// nextMark splits before every mark (the pre-tokenizer "Metaspace").
func nextMark(mark string) func(string) int {
	return func(s string) int {
		skip := 0
		if strings.HasPrefix(s, mark) {
			skip = len(mark)
		}
		if i := strings.Index(s[skip:], mark); i >= 0 && skip+i > 0 {
			return skip + i
		}
		return len(s)
	}
}

// run returns the end of the run of class c that starts at s[i].
func run(s string, i int, c class) int {
	for i < len(s) {
		if b := s[i]; b < utf8.RuneSelf {
			if asciiClass[b] != c {
				return i
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if classOf(r) != c {
			return i
		}
		i += size
	}
	return i
}

// at returns the class and size of the character at s[i], or size 0 at the end.
func at(s string, i int) (class, int) {
	if i >= len(s) {
		return other, 0
	}
	if b := s[i]; b < utf8.RuneSelf {
		return asciiClass[b], 1
	}
	r, size := utf8.DecodeRuneInString(s[i:])
	return classOf(r), size
}

// nextGPT2 matches gpt2Pattern at the start of s.
func nextGPT2(s string) int {
	if s[0] == '\'' {
		if n := contraction(s, false); n > 0 {
			return n
		}
	}
	i := 0
	if s[0] == ' ' {
		i = 1
	}
	if c, size := at(s, i); size > 0 && c != space {
		return run(s, i+size, c)
	}
	return spaces(s, run(s, 0, space))
}

// nextLlama3 matches llama3Pattern at the start of s, with words of at most
// maxDigits digits.
func nextLlama3(s string, maxDigits int) int {
	if s[0] == '\'' {
		if n := contraction(s, true); n > 0 {
			return n
		}
	}
	c, size := at(s, 0)
	switch {
	case c == letter:
		return run(s, size, letter)
	case c == number:
		n := size
		for count := 1; count < maxDigits; count++ {
			c, size := at(s, n)
			if size == 0 || c != number {
				break
			}
			n += size
		}
		return n
	}
	second, secondSize := at(s, size)
	if secondSize > 0 && second == letter && s[0] != '\r' && s[0] != '\n' {
		return run(s, size+secondSize, letter)
	}
	if c == other || s[0] == ' ' && secondSize > 0 && second == other {
		n := run(s, size, other)
		for n < len(s) && (s[n] == '\r' || s[n] == '\n') {
			n++
		}
		return n
	}
	end := run(s, size, space)
	if i := strings.LastIndexAny(s[:end], "\r\n"); i >= 0 {
		return i + 1
	}
	return spaces(s, end)
}

// spaces matches \s+(?!\S)|\s+ for white space that ends at end. The last
// character belongs to the word that follows, unless it is the only one.
func spaces(s string, end int) int {
	if end == len(s) {
		return end
	}
	_, last := utf8.DecodeLastRuneInString(s[:end])
	if end == last {
		return end
	}
	return end - last
}

// contraction matches 's|'t|'re|'ve|'m|'ll|'d. ignoreCase also matches the long s
// (U+017F). It returns the length of the match, or 0.
func contraction(s string, ignoreCase bool) int {
	lower := func(i int) byte {
		if i >= len(s) {
			return 0
		}
		if b := s[i]; ignoreCase && 'A' <= b && b <= 'Z' {
			return b + 'a' - 'A'
		}
		return s[i]
	}
	switch b := lower(1); {
	case b == 's' || b == 't' || b == 'm' || b == 'd':
		return 2
	case (b == 'r' || b == 'v') && lower(2) == 'e', b == 'l' && lower(2) == 'l':
		return 3
	case ignoreCase && strings.HasPrefix(s[1:], "ſ"):
		return 1 + len("ſ")
	}
	return 0
}
