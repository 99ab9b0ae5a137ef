package eval

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dlclark/regexp2/v2"
)

var errArguments = errors.New("expected a pattern, a replacement and, if wanted, a number of " +
	"replacements")

// pattern is a regular expression of Python's module re.
type pattern struct {
	source   string
	compiled *regexp2.Regexp
}

// patternTime bounds a match: patterns backtrack.
const patternTime = 5 * time.Second

// classes are Python's classes of characters. regexp2 has the syntax of .NET, whose classes differ.
var classes = map[byte]string{'s': `\s\x1c-\x1f`, 'w': `\p{L}\p{N}_`, 'd': `\p{Nd}`}

// compilePattern compiles a pattern of Python's syntax. That of .NET differs in named groups, the
// end of a text and the characters of some classes.
func compilePattern(source string) (*pattern, error) {
	var b strings.Builder
	inClass := false
	for i := 0; i < len(source); i++ {
		c := source[i]
		switch {
		case c == '\\' && i+1 < len(source):
			i++
			b.WriteString(escaped(source[i], inClass))
		case strings.HasPrefix(source[i:], "(?P<") && !inClass:
			b.WriteString("(?<")
			i += len("(?P<") - 1
		case strings.HasPrefix(source[i:], "(?P=") && !inClass:
			end := strings.IndexByte(source[i:], ')')
			if end < 0 {
				return nil, fmt.Errorf("pattern %q: missing )", source)
			}
			fmt.Fprintf(&b, `\k<%s>`, source[i+len("(?P="):i+end])
			i += end
		case c == '[' && !inClass:
			inClass = true
			b.WriteByte(c)
			if strings.HasPrefix(source[i+1:], "^") {
				b.WriteByte('^')
				i++
			}
			if strings.HasPrefix(source[i+1:], "]") { // first in a class, it is a member
				b.WriteString(`\]`)
				i++
			}
		case c == '[':
			b.WriteString(`\[`)
		default:
			inClass = inClass && c != ']'
			b.WriteByte(c)
		}
	}
	compiled, err := regexp2.Compile(b.String(), regexp2.OptionMaintainCaptureOrder())
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", source, err)
	}
	compiled.MatchTimeout = patternTime
	return &pattern{source, compiled}, nil
}

// escaped translates a backslash and a character.
func escaped(c byte, inClass bool) string {
	if set, ok := classes[c]; ok {
		if inClass {
			return set
		}
		return "[" + set + "]"
	}
	if set, ok := classes[c|0x20]; ok && !inClass && c != c|0x20 {
		return "[^" + set + "]"
	}
	if c == 'Z' && !inClass {
		return `\z`
	}
	return `\` + string(c)
}

// find returns what re.findall does: for each match the whole of it or its group, or a list of its
// groups if it has several.
func (p *pattern) find(text string) (found [][]string, err error) {
	m, err := p.compiled.FindStringMatch(text)
	for ; m != nil && err == nil; m, err = p.compiled.FindNextMatch(m) {
		groups := m.Groups()
		if len(groups) > 1 {
			groups = groups[1:]
		}
		var list []string
		for _, g := range groups {
			list = append(list, g.String())
		}
		found = append(found, list)
	}
	return found, p.explain(err)
}

// replace is re.sub for at most count matches, all if count is 0. The replacement may refer to
// groups as \1 and \g<1>.
func (p *pattern) replace(text, with string, count int) (string, error) {
	if count == 0 {
		count = -1
	}
	var failed error
	s, err := p.compiled.ReplaceFunc(text, func(m regexp2.Match) string {
		s, err := expand(&m, with)
		if err != nil {
			failed = err
		}
		return s
	}, -1, count)
	if err == nil {
		err = failed
	}
	return s, p.explain(err)
}

// expand writes a replacement for a match.
func expand(m *regexp2.Match, with string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(with); i++ {
		if with[i] != '\\' || i+1 == len(with) {
			b.WriteByte(with[i])
			continue
		}
		i++
		name := ""
		switch c := with[i]; {
		case c >= '1' && c <= '9':
			end := i + 1
			for end < len(with) && end < i+2 && with[end] >= '0' && with[end] <= '9' {
				end++
			}
			name, i = with[i:end], end-1
		case strings.HasPrefix(with[i:], "g<") && strings.IndexByte(with[i:], '>') > 0:
			end := strings.IndexByte(with[i:], '>')
			name, i = with[i+2:i+end], i+end
		case c == 'n':
			b.WriteByte('\n')
			continue
		case c == 't':
			b.WriteByte('\t')
			continue
		case c == '\\':
			b.WriteByte('\\')
			continue
		default:
			return "", fmt.Errorf("replacement %q: \\%c is not supported", with, c)
		}
		g := m.GroupByName(name)
		if n, err := strconv.Atoi(name); err == nil {
			g = m.GroupByNumber(n)
		}
		if g == nil {
			return "", fmt.Errorf("replacement %q: there is no group %s", with, name)
		}
		b.WriteString(g.String())
	}
	return b.String(), nil
}

func (p *pattern) explain(err error) error {
	if err != nil {
		err = fmt.Errorf("pattern %q: %w", p.source, err)
	}
	return err
}
