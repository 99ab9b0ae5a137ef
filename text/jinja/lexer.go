package jinja

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind int

const (
	tokenEOF tokenKind = iota
	tokenData
	tokenVariableBegin
	tokenVariableEnd
	tokenBlockBegin
	tokenBlockEnd
	tokenName
	tokenString
	tokenInteger
	tokenFloat
	tokenOperator
)

// token is one lexical unit. text holds data, a name, an operator, a decoded string or a number.
type token struct {
	kind tokenKind
	text string
	line int
}

// describe names a token as Jinja's errors do.
func (t token) describe() string {
	switch t.kind {
	case tokenEOF:
		return "end of template"
	case tokenData:
		return "template data"
	case tokenVariableBegin:
		return "begin of print statement"
	case tokenVariableEnd:
		return "end of print statement"
	case tokenBlockBegin:
		return "begin of statement block"
	case tokenBlockEnd:
		return "end of statement block"
	case tokenInteger:
		return "integer"
	case tokenFloat:
		return "float"
	case tokenString:
		return "string"
	}
	return t.text
}

type lexer struct {
	source string
	at     int
	line   int
	tokens []token
	// lineStart is set if the text before at ends with a newline, or at is 0.
	lineStart bool
	keepSpace bool // see Settings
}

// lex splits a template into tokens, with Jinja's rules for white space under trim_blocks and
// lstrip_blocks, or without both if keepSpace is set. It drops comments.
func lex(source string, keepSpace bool) []token {
	source = strings.ReplaceAll(source, "\r\n", "\n")
	source = strings.ReplaceAll(source, "\r", "\n")
	if !keepSpace {
		source = strings.TrimSuffix(source, "\n")
	}
	l := &lexer{source: source, line: 1, lineStart: true, keepSpace: keepSpace}
	for l.at < len(source) {
		l.data()
	}
	l.emit(tokenEOF, "")
	return l.tokens
}

func (l *lexer) emit(kind tokenKind, text string) {
	l.tokens = append(l.tokens, token{kind, text, l.line})
}

func (l *lexer) fail(format string, args ...any) {
	panic(&Error{Line: l.line, Message: fmt.Sprintf(format, args...)})
}

// advance moves to position end and counts lines.
func (l *lexer) advance(end int) {
	l.line += strings.Count(l.source[l.at:end], "\n")
	if end > l.at {
		l.lineStart = l.source[end-1] == '\n'
	}
	l.at = end
}

// data reads plain text up to the next tag, then that tag.
func (l *lexer) data() {
	rest := l.source[l.at:]
	next := -1
	for i := 0; i+1 < len(rest); i++ {
		if rest[i] == '{' && (rest[i+1] == '{' || rest[i+1] == '%' || rest[i+1] == '#') {
			next = i
			break
		}
	}
	if next < 0 {
		l.emit(tokenData, rest)
		l.advance(len(l.source))
		return
	}
	text, kind := rest[:next], rest[next+1]
	after := l.at + next + 2
	sign := byte(0)
	if after < len(l.source) && (l.source[after] == '-' || l.source[after] == '+') {
		sign = l.source[after]
		after++
	}
	switch {
	case sign == '-':
		text = strings.TrimRightFunc(text, isSpace)
	case sign != '+' && kind != '{':
		text = l.stripIndent(text)
	}
	if text != "" {
		l.emit(tokenData, text)
	}
	switch kind {
	case '#':
		l.comment(after)
	case '{':
		l.advance(after)
		l.emit(tokenVariableBegin, "{{")
		l.expression(tokenVariableEnd)
	case '%':
		if end, ok := l.rawBegin(after); ok {
			l.raw(end)
			return
		}
		l.advance(after)
		l.emit(tokenBlockBegin, "{%")
		l.expression(tokenBlockEnd)
	}
}

// stripIndent removes the white space between the last newline and a block tag.
func (l *lexer) stripIndent(text string) string {
	if l.keepSpace {
		return text
	}
	start := strings.LastIndexByte(text, '\n') + 1
	if start == 0 && !l.lineStart {
		return text
	}
	if strings.TrimLeftFunc(text[start:], isSpace) == "" {
		return text[:start]
	}
	return text
}

// closing returns the end of a tag's closing delimiter at position i, with the white space that the
// delimiter removes. newline says whether a plain delimiter removes a newline.
func (l *lexer) closing(i int, delimiter string, newline bool) (int, bool) {
	rest := l.source[i:]
	switch {
	case strings.HasPrefix(rest, "-"+delimiter):
		end := i + 1 + len(delimiter)
		for end < len(l.source) {
			r, size := utf8.DecodeRuneInString(l.source[end:])
			if !isSpace(r) {
				break
			}
			end += size
		}
		return end, true
	case newline && strings.HasPrefix(rest, "+"+delimiter):
		return i + 1 + len(delimiter), true
	case strings.HasPrefix(rest, delimiter):
		end := i + len(delimiter)
		if newline && !l.keepSpace && end < len(l.source) && l.source[end] == '\n' {
			end++
		}
		return end, true
	}
	return 0, false
}

func (l *lexer) comment(start int) {
	for i := start; i < len(l.source); i++ {
		if end, ok := l.closing(i, "#}", true); ok {
			l.advance(end)
			return
		}
	}
	l.fail("Missing end of comment tag")
}

func (l *lexer) skipSpace(i int) int {
	for i < len(l.source) {
		r, size := utf8.DecodeRuneInString(l.source[i:])
		if !isSpace(r) {
			break
		}
		i += size
	}
	return i
}

// rawBegin recognizes the rest of {% raw %} at position i.
func (l *lexer) rawBegin(i int) (int, bool) {
	i = l.skipSpace(i)
	if !strings.HasPrefix(l.source[i:], "raw") {
		return 0, false
	}
	return l.closing(l.skipSpace(i+3), "%}", false)
}

// raw copies text up to {% endraw %}.
func (l *lexer) raw(start int) {
	l.advance(start)
	for i := start; i < len(l.source); i++ {
		if !strings.HasPrefix(l.source[i:], "{%") {
			continue
		}
		after, sign := i+2, byte(0)
		if after < len(l.source) && (l.source[after] == '-' || l.source[after] == '+') {
			sign = l.source[after]
			after++
		}
		after = l.skipSpace(after)
		if !strings.HasPrefix(l.source[after:], "endraw") {
			continue
		}
		end, ok := l.closing(l.skipSpace(after+6), "%}", true)
		if !ok {
			continue
		}
		text := l.source[start:i]
		switch {
		case sign == '-':
			text = strings.TrimRightFunc(text, isSpace)
		case sign != '+':
			text = l.stripIndent(text)
		}
		l.emit(tokenData, text)
		l.advance(end)
		return
	}
	l.fail("Missing end of raw directive")
}

// operators in the order of their length.
var operators = []string{"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
	"(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";"}

// expression reads the tokens of a tag, and its closing delimiter.
func (l *lexer) expression(end tokenKind) {
	delimiter, newline := "}}", false
	if end == tokenBlockEnd {
		delimiter, newline = "%}", true
	}
	var open []byte
	for l.at < len(l.source) {
		if len(open) == 0 {
			if after, ok := l.closing(l.at, delimiter, newline); ok {
				l.emit(end, delimiter)
				l.advance(after)
				return
			}
		}
		c, size := utf8.DecodeRuneInString(l.source[l.at:])
		switch {
		case isSpace(c):
			l.advance(l.at + size)
		case c >= '0' && c <= '9' && l.number():
		case c == '_' || unicode.IsLetter(c) || unicode.IsDigit(c):
			l.name()
		case c == '\'' || c == '"':
			l.quoted(byte(c))
		default:
			open = l.operator(open)
		}
	}
}

func (l *lexer) operator(open []byte) []byte {
	rest := l.source[l.at:]
	for _, op := range operators {
		if !strings.HasPrefix(rest, op) {
			continue
		}
		switch op {
		case "(":
			open = append(open, ')')
		case "[":
			open = append(open, ']')
		case "{":
			open = append(open, '}')
		case ")", "]", "}":
			if len(open) == 0 {
				l.fail("unexpected '%s'", op)
			}
			if expected := open[len(open)-1]; expected != op[0] {
				l.fail("unexpected '%s', expected '%c'", op, expected)
			}
			open = open[:len(open)-1]
		}
		l.emit(tokenOperator, op)
		l.advance(l.at + len(op))
		return open
	}
	r, _ := utf8.DecodeRuneInString(rest)
	l.fail("unexpected char %s at %d", repr(string(r)), utf8.RuneCountInString(l.source[:l.at]))
	return nil
}

func (l *lexer) name() {
	end := l.at
	for end < len(l.source) {
		r, size := utf8.DecodeRuneInString(l.source[end:])
		if r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.Is(unicode.Mn, r) {
			break
		}
		end += size
	}
	l.emit(tokenName, l.source[l.at:end])
	l.advance(end)
}

// digits returns the end of a run of digits of a base with single underscores between them.
func digits(s string, i int, valid func(byte) bool) int {
	if i >= len(s) || !valid(s[i]) {
		return i
	}
	for i < len(s) {
		switch {
		case valid(s[i]):
			i++
		case s[i] == '_' && i+1 < len(s) && valid(s[i+1]):
			i += 2
		default:
			return i
		}
	}
	return i
}

func decimal(c byte) bool { return c >= '0' && c <= '9' }

// number reads an integer or a float. Attributes such as the 0.1 of x.0.1 are integers.
func (l *lexer) number() bool {
	s, start := l.source, l.at
	afterDot := start > 0 && s[start-1] == '.'
	if s[start] == '0' && start+1 < len(s) {
		valid := map[byte]func(byte) bool{
			'b': func(c byte) bool { return c == '0' || c == '1' },
			'o': func(c byte) bool { return c >= '0' && c <= '7' },
			'x': func(c byte) bool {
				return decimal(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
			},
		}[s[start+1]|0x20]
		if valid != nil && start+2 < len(s) {
			from := start + 2
			if s[from] == '_' {
				from++
			}
			if end := digits(s, from, valid); end > from {
				l.emit(tokenInteger, strings.ReplaceAll(s[start:end], "_", ""))
				l.advance(end)
				return true
			}
		}
	}
	end := digits(s, start, decimal)
	whole := end
	if !afterDot {
		if end+1 < len(s) && s[end] == '.' && decimal(s[end+1]) {
			end = digits(s, end+1, decimal)
		}
		if end < len(s) && s[end]|0x20 == 'e' {
			exponent := end + 1
			if exponent < len(s) && (s[exponent] == '+' || s[exponent] == '-') {
				exponent++
			}
			if after := digits(s, exponent, decimal); after > exponent {
				end = after
			}
		}
	}
	if end > whole {
		l.emit(tokenFloat, strings.ReplaceAll(s[start:end], "_", ""))
		l.advance(end)
		return true
	}
	text := strings.ReplaceAll(s[start:whole], "_", "")
	if len(text) > 1 && text[0] == '0' && strings.Trim(text, "0") != "" {
		// Jinja reads the zeros and then the rest as a second number.
		zeros := len(text) - len(strings.TrimLeft(text, "0"))
		text, whole = text[:zeros], start+zeros
	}
	l.emit(tokenInteger, text)
	l.advance(whole)
	return true
}

// quoted reads a string literal.
func (l *lexer) quoted(quote byte) {
	for i := l.at + 1; i < len(l.source); i++ {
		switch l.source[i] {
		case '\\':
			i++
		case quote:
			l.emit(tokenString, l.unescape(l.source[l.at+1:i]))
			l.advance(i + 1)
			return
		}
	}
	l.fail("unexpected char %s at %d", repr(string(quote)), utf8.RuneCountInString(l.source[:l.at]))
}

var simpleEscapes = map[byte]string{'\n': "", '\\': "\\", '\'': "'", '"': "\"", 'a': "\a",
	'b': "\b",
	'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v"}

// unescape decodes Python's escapes of a string literal.
func (l *lexer) unescape(s string) string {
	if !strings.Contains(s, "\\") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if plain, ok := simpleEscapes[s[i]]; ok {
			b.WriteString(plain)
			continue
		}
		switch c := s[i]; {
		case c >= '0' && c <= '7':
			end := i
			for end < len(s) && end < i+3 && s[end] >= '0' && s[end] <= '7' {
				end++
			}
			n, _ := strconv.ParseUint(s[i:end], 8, 32)
			b.WriteRune(rune(n))
			i = end - 1
		case c == 'x' || c == 'u' || c == 'U':
			width := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
			n, ok := hex(s, i+1, width)
			if !ok {
				l.fail("truncated \\%c escape in a string", c)
			}
			i += width
			// Two surrogates make one character.
			if n >= 0xd800 && n < 0xdc00 && strings.HasPrefix(s[i+1:], "\\u") {
				if low, ok := hex(s, i+3, 4); ok && low >= 0xdc00 && low < 0xe000 {
					n = 0x10000 + (n-0xd800)<<10 + (low - 0xdc00)
					i += 6
				}
			}
			if n > unicode.MaxRune {
				l.fail("illegal Unicode character in a string")
			}
			b.WriteRune(rune(n))
		case c == 'N':
			l.fail("\\N escapes are not supported")
		default:
			b.WriteByte('\\')
			r, size := utf8.DecodeRuneInString(s[i:])
			b.WriteRune(r)
			i += size - 1
		}
	}
	return b.String()
}

func hex(s string, start, width int) (uint64, bool) {
	if start+width > len(s) {
		return 0, false
	}
	n, err := strconv.ParseUint(s[start:start+width], 16, 64)
	return n, err == nil
}

// isSpace is Python's str.isspace for one character.
func isSpace(r rune) bool {
	switch {
	case r >= '\t' && r <= '\r', r >= 0x1c && r <= ' ', r == 0x85, r == 0xa0, r == 0x1680,
		r >= 0x2000 && r <= 0x200a, r == 0x2028, r == 0x2029, r == 0x202f, r == 0x205f, r == 0x3000:
		return true
	}
	return false
}
