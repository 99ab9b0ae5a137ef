package tokenizer

import (
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"conquer/text/onig"
)

// buildNormalizer sets the normalizers.
func (spec *fileSpec) buildNormalizer(t *Tokenizer) error {
	return eachStage("normalizer", spec.Normalizer, func(c *stage) error {
		f, err := c.normalizer(&t.normalBudget)
		t.normalize = append(t.normalize, f)
		return err
	})
}

// normalizer returns the function of a stage and adds what it may take to b.
func (c *stage) normalizer(b *budget) (f func(string) string, err error) {
	switch c.Type {
	case "NFC", "NFD", "BertNormalizer":
		b.grow(3)
	case "NFKC", "NFKD":
		b.grow(11)
	case "Prepend":
		b.grow(1 + len(c.Prepend))
	case "Lowercase", "ByteLevel":
		b.grow(2)
	}
	switch c.Type {
	case "NFC":
		return nfc, nil
	case "NFD":
		return nfd, nil
	case "NFKC":
		return func(s string) string { return compose(decomposeBy(norm.NFKD, s)) }, nil
	case "NFKD":
		return func(s string) string { return string(decomposeBy(norm.NFKD, s)) }, nil
	case "Prepend":
		prefix := c.Prepend
		return func(s string) string {
			if s == "" {
				return s
			}
			return prefix + s
		}, nil
	case "Replace":
		return c.replacer(b)
	case "Lowercase":
		return lowercase, nil
	case "Strip":
		left, right := c.StripLeft, c.StripRight
		return func(s string) string {
			if left {
				s = strings.TrimLeftFunc(s, unicode.IsSpace)
			}
			if right {
				s = strings.TrimRightFunc(s, unicode.IsSpace)
			}
			return s
		}, nil
	case "StripAccents":
		return removeRunes(isMark), nil
	case "BertNormalizer":
		return c.bert(), nil
	case "ByteLevel":
		return spellBytes, nil
	}
	return nil, unsupported(c.Type, "BertNormalizer, ByteLevel, Lowercase, NFC, NFD, NFKC, NFKD, "+
		"Prepend, Replace, Sequence, Strip, StripAccents")
}

// replacer returns the function of a stage Replace and adds what it may take to b.
func (c *stage) replacer(b *budget) (func(string) string, error) {
	to := c.Content
	grow := func(least int) { // bytes of what is replaced
		if least == 0 {
			b.grow(1 + len(to))
			return
		}
		b.grow((len(to) + least - 1) / least)
	}
	switch {
	case c.Pattern.String != nil && *c.Pattern.String != "":
		from := *c.Pattern.String
		grow(len(from))
		return func(s string) string { return strings.ReplaceAll(s, from, to) }, nil
	case c.Pattern.Regex == nil:
		return nil, fmt.Errorf("%s has no pattern", c.Type)
	}
	re, err := onig.Compile(*c.Pattern.Regex)
	if err != nil {
		return nil, err
	}
	b.match(re.Cost())
	grow(re.MinLength())
	return func(s string) string {
		if s == "" {
			return s
		}
		var b strings.Builder
		at := 0
		for _, m := range re.FindAll(s) {
			b.WriteString(s[at:m[0]])
			b.WriteString(to)
			at = m[1]
		}
		b.WriteString(s[at:])
		return b.String()
	}, nil
}

// removeRunes returns a function that drops the characters for which drop is true.
func removeRunes(drop func(rune) bool) func(string) string {
	return func(s string) string {
		return strings.Map(func(r rune) rune {
			if drop(r) {
				return -1
			}
			return r
		}, s)
	}
}

// isMark reports whether StripAccents drops r.
func isMark(r rune) bool { return unicode.Is(unicode.M, r) != unicode.Is(otherMarks, r) }

// lowercase lowers each character by itself.
func lowercase(s string) string {
	// Of all letters only this one has a lower case of two characters.
	return strings.Map(lowerRune, strings.ReplaceAll(s, "İ", "i\u0307"))
}

// lowerRune is unicode.ToLower with the letters of Unicode 17, as Rust has them.
func lowerRune(r rune) rune {
	switch {
	case r < 0x1c89:
	case r == 0xa7cb:
		return 0x264
	case r == 0xa7dc:
		return 0x19b
	case r == 0x1c89 || r == 0xa7cc || r == 0xa7ce || r == 0xa7d2 || r == 0xa7d4 || r == 0xa7da:
		return r + 1
	case r >= 0x10d50 && r <= 0x10d65:
		return r + 0x20
	case r >= 0x16ea0 && r <= 0x16eb8:
		return r + 0x1b
	}
	return unicode.ToLower(r)
}

// bert returns the normalizer of BERT: clean text, space around Chinese characters, no
// accents, lower case.
func (c *stage) bert() func(string) string {
	is := func(b *bool, missing bool) bool {
		if b == nil {
			return missing
		}
		return *b
	}
	clean, chinese, lower := is(c.CleanText, true), is(c.ChineseChars, true), is(c.Lowercase, true)
	accents := is(c.StripAccents, lower)
	return func(s string) string {
		if clean {
			s = strings.Map(func(r rune) rune {
				switch {
				case r == '\t' || r == '\n' || r == '\r':
					return ' '
				case r == 0 || r == '\uFFFD' || isOther(r):
					return -1
				case unicode.IsSpace(r):
					return ' '
				}
				return r
			}, s)
		}
		if chinese {
			var b strings.Builder
			for _, r := range s {
				if isChinese(r) {
					b.WriteString(" " + string(r) + " ")
					continue
				}
				b.WriteRune(r)
			}
			s = b.String()
		}
		if accents {
			s = removeRunes(isNonspacing)(nfd(s))
		}
		if lower {
			s = lowercase(s)
		}
		return s
	}
}

// isNonspacing reports whether the normalizer of BERT drops r as an accent.
func isNonspacing(r rune) bool {
	return unicode.Is(unicode.Mn, r) != unicode.Is(otherNonspacing, r)
}

// isOther reports whether r is a control, format or private character.
func isOther(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co) != unicode.Is(otherControls, r)
}

func isChinese(r rune) bool {
	return r >= 0x4E00 && r <= 0x9FFF || r >= 0x3400 && r <= 0x4DBF || r >= 0x20000 &&
		r <= 0x2A6DF ||
		r >= 0x2A700 && r <= 0x2B73F || r >= 0x2B740 && r <= 0x2B81F || r >= 0x2B920 &&
		r <= 0x2CEAF ||
		r >= 0xF900 && r <= 0xFAFF || r >= 0x2F800 && r <= 0x2FA1F
}

// spellBytes writes the bytes of s as the characters of byte-level vocabularies.
func spellBytes(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteRune(byteRune[s[i]])
	}
	return b.String()
}
