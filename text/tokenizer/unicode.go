package tokenizer

import (
	"unicode"

	"conquer/text/onig"
)

// What Unicode 16 added to the tables of Go 1.26.
var (
	letters16 = table16("L")
	marks16   = table16("M")
	numbers16 = table16("N")
	// The Digits pre-tokenizer uses Rust's standard library, which has Unicode 17.
	digits17 = &unicode.RangeTable{R32: []unicode.Range32{{0x11de0, 0x11de9, 1},
		{0x16ff4, 0x16ff6, 1}}}
)

func table16(category string) *unicode.RangeTable {
	t := new(unicode.RangeTable)
	for _, r := range onig.Unicode16(category) {
		if r[1] < 0x10000 {
			t.R16 = append(t.R16, unicode.Range16{Lo: uint16(r[0]), Hi: uint16(r[1]), Stride: 1})
		} else {
			t.R32 = append(t.R32, unicode.Range32{Lo: uint32(r[0]), Hi: uint32(r[1]), Stride: 1})
		}
	}
	return t
}

// class is a class of characters.
type class uint8

const (
	other  class = iota
	letter       // \p{L}
	number       // \p{N}
	space        // \s
)

var asciiClass = func() (t [128]class) {
	for c := range t {
		t[c] = classOfRune(rune(c))
	}
	return t
}()

// classOf returns the class of a character.
func classOf(r rune) class {
	if r < 128 {
		return asciiClass[r]
	}
	return classOfRune(r)
}

func classOfRune(r rune) class {
	switch {
	case unicode.IsLetter(r) || unicode.Is(letters16, r):
		return letter
	case unicode.IsNumber(r) || unicode.Is(numbers16, r):
		return number
	case unicode.IsSpace(r):
		return space
	}
	return other
}

func isDigit(r rune) bool {
	return classOf(r) == number || unicode.Is(digits17, r)
}

// isWord reports whether r matches \w of Rust's regular expressions. All numbers
// that Unicode 16 added are decimal digits.
func isWord(r rune) bool {
	return classOf(r) == letter || unicode.In(r, unicode.Nl, unicode.Nd, unicode.M, unicode.Pc,
		unicode.Other_Alphabetic, unicode.Join_Control, numbers16, marks16)
}
