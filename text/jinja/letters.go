package jinja

// This file has Python's classes and cases of letters.

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// specialUpper are the characters whose upper case has several.
var specialUpper = map[rune]string{'ß': "SS", 'ŉ': "ʼN", 'ǰ': "J̌", 'ΐ': "Ϊ́", 'ΰ': "Ϋ́", 'և': "ԵՒ",
	'ẖ': "H̱", 'ẗ': "T̈", 'ẘ': "W̊", 'ẙ': "Y̊", 'ẚ': "Aʾ", 'ﬀ': "FF", 'ﬁ': "FI", 'ﬂ': "FL",
	'ﬃ': "FFI", 'ﬄ': "FFL", 'ﬅ': "ST", 'ﬆ': "ST"}

func all(f func(rune) bool) func(string) bool {
	return func(s string) bool {
		return s != "" && strings.IndexFunc(s, func(c rune) bool { return !f(c) }) < 0
	}
}

// isDigitNo reports superscripts and the like, which isdigit accepts and isdecimal does not.
func isDigitNo(c rune) bool {
	return c == '²' || c == '³' || c == '¹' || c == '⁰' || c >= '⁴' && c <= '⁹' ||
		c >= '₀' && c <= '₉' || c >= '①' && c <= '⑨' || c >= '❶' && c <= '❾'
}

func isIdentifier(s string) bool {
	for i, c := range s {
		if c != '_' && !unicode.IsLetter(c) && (i == 0 || !unicode.IsDigit(c)) {
			return false
		}
	}
	return s != ""
}

func hasCase(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool {
		return unicode.IsUpper(c) || unicode.IsLower(c) || unicode.IsTitle(c)
	}) >= 0
}

func upperSimple(s string) string { return strings.Map(unicode.ToUpper, s) }

func lowerSimple(s string) string { return strings.Map(unicode.ToLower, s) }

func isTitle(s string) bool {
	cased, previous := false, false
	for _, c := range s {
		switch {
		case unicode.IsUpper(c) || unicode.IsTitle(c):
			if previous {
				return false
			}
			previous, cased = true, true
		case unicode.IsLower(c):
			if !previous {
				return false
			}
			previous, cased = true, true
		default:
			previous = false
		}
	}
	return cased
}

func upper(s string) string {
	var b strings.Builder
	for _, c := range s {
		if special, ok := specialUpper[c]; ok {
			b.WriteString(special)
		} else {
			b.WriteRune(unicode.ToUpper(c))
		}
	}
	return b.String()
}

// lower is str.lower: a capital sigma at the end of a word becomes a final one.
func lower(s string) string {
	if !strings.ContainsAny(s, "Σİ") {
		return lowerSimple(s)
	}
	runes := []rune(s)
	cased := func(c rune) bool {
		return unicode.IsUpper(c) || unicode.IsLower(c) ||
			unicode.IsTitle(c)
	}
	ignorable := func(c rune) bool {
		return unicode.Is(unicode.Mn, c) || unicode.Is(unicode.Me, c) ||
			unicode.Is(unicode.Cf, c) || unicode.Is(unicode.Lm, c) || unicode.Is(unicode.Sk, c) ||
			strings.ContainsRune("'.:·‘’", c)
	}
	var b strings.Builder
	for i, c := range runes {
		switch {
		case c == 'İ':
			b.WriteString("i̇")
		case c != 'Σ':
			b.WriteRune(unicode.ToLower(c))
		default:
			before, after := i-1, i+1
			for before >= 0 && ignorable(runes[before]) {
				before--
			}
			for after < len(runes) && ignorable(runes[after]) {
				after++
			}
			if before >= 0 && cased(runes[before]) &&
				(after == len(runes) || !cased(runes[after])) {
				b.WriteRune('ς')
			} else {
				b.WriteRune('σ')
			}
		}
	}
	return b.String()
}

func casefold(s string) string {
	s = strings.NewReplacer("ß", "ss", "ẞ", "ss", "ς", "σ").Replace(s)
	return lowerSimple(s)
}

func swapcase(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case unicode.IsUpper(c):
			b.WriteString(lower(string(c)))
		case unicode.IsLower(c):
			b.WriteString(upper(string(c)))
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

func titleCase(c rune) string {
	if special, ok := specialUpper[c]; ok {
		first, size := utf8.DecodeRuneInString(special)
		return string(first) + lowerSimple(special[size:])
	}
	return string(unicode.ToTitle(c))
}

func capitalize(s string) string {
	if s == "" {
		return s
	}
	first, size := utf8.DecodeRuneInString(s)
	return titleCase(first) + lower(s)[len(lower(s[:size])):]
}

// titleMethod is str.title: a letter after anything but a letter becomes title case.
func titleMethod(s string) string {
	var b strings.Builder
	previous := false
	for _, c := range s {
		cased := unicode.IsUpper(c) || unicode.IsLower(c) || unicode.IsTitle(c)
		if cased && !previous {
			b.WriteString(titleCase(c))
		} else {
			b.WriteRune(unicode.ToLower(c))
		}
		previous = cased
	}
	return b.String()
}
