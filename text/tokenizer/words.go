package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// wordsAndSymbols is the pre-tokenizer Whitespace: runs of word characters, and runs of
// other characters that are not white space.
func wordsAndSymbols(s string) (pieces []string) {
	kind := func(r rune) int {
		switch {
		case isWord(r):
			return 1
		case unicode.IsSpace(r):
			return 0
		}
		return 2
	}
	start, last := 0, 0
	for i, r := range s {
		if k := kind(r); k != last {
			if last != 0 {
				pieces = append(pieces, s[start:i])
			}
			start, last = i, k
		}
	}
	if last != 0 {
		pieces = append(pieces, s[start:])
	}
	return pieces
}

// bertWords is the pre-tokenizer of BERT: words between white space, each punctuation
// character by itself.
func bertWords(s string) (pieces []string) {
	for _, word := range strings.Fields(s) {
		start := 0
		for i, r := range word {
			if !isPunctuation(r) {
				continue
			}
			if start < i {
				pieces = append(pieces, word[start:i])
			}
			start = i + utf8.RuneLen(r)
			pieces = append(pieces, word[i:start])
		}
		if start < len(word) {
			pieces = append(pieces, word[start:])
		}
	}
	return pieces
}

// isPunctuation reports whether r is punctuation of Unicode or of ASCII, which also has
// symbols such as "$".
func isPunctuation(r rune) bool {
	if r < utf8.RuneSelf {
		return r > ' ' && r < 0x7f && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}
	return unicode.IsPunct(r) != unicode.Is(otherPunctuation, r)
}

// spellBytes makes ByteLevel, the last pre-tokenizer, write bytes as characters, for
// models that do not work on bytes.
func (t *Tokenizer) spellBytes() {
	t.byteLevel = false
	t.pretoken = append(t.pretoken, preStep{rewrite: func(s string, _ bool) string {
		return spellBytes(s)
	}})
}
