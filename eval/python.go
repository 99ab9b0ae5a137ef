package eval

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

// This file has methods of Python's str that Go's packages do otherwise.

// isSpace is Python's str.isspace for one character.
func isSpace(c rune) bool { return unicode.IsSpace(c) || c >= 0x1c && c <= 0x1f }

func trimSpace(s string) string      { return strings.TrimFunc(s, isSpace) }
func trimSpaceRight(s string) string { return strings.TrimRightFunc(s, isSpace) }

func endsInSpace(s string) bool {
	c, size := utf8.DecodeLastRuneInString(s)
	return size > 0 && isSpace(c)
}

func beginsWithSpace(s string) bool {
	c, size := utf8.DecodeRuneInString(s)
	return size > 0 && isSpace(c)
}

// countWords is len(re.split(r"\s+", s)).
func countWords(s string) int {
	words, inside := 1, false
	for _, c := range s {
		if isSpace(c) && !inside {
			words++
		}
		inside = isSpace(c)
	}
	return words
}

// lower is str.lower.
func lower(s string) string { return cases.Lower(language.Und).String(s) }

// capitalize is str.capitalize: the first character in title case, the others in lower case.
func capitalize(s string) string {
	_, size := utf8.DecodeRuneInString(s)
	// The rest alone would lower a final sigma at its beginning differently.
	rest := strings.TrimPrefix(lower("x"+s[size:]), "x")
	return cases.Title(language.Und, cases.NoLower).String(s[:size]) + rest
}

// isDigits is str.isdigit for the texts that int can read too.
func isDigits(s string) bool {
	return s != "" && strings.IndexFunc(s, func(c rune) bool { return c < '0' || c > '9' }) < 0
}

// kindOf names the type of a document's value as Python does.
func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "None"
	case bool:
		return "bool"
	case int:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case []any:
		return "list"
	}
	return fmt.Sprintf("%T", v)
}
