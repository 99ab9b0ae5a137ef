package text

import "unicode"

// Hugging Face's regular expressions follow Unicode 16, Go 1.26's tables
// Unicode 15. These are the letters and numbers that came between.
var letters16 = &unicode.RangeTable{
	R16: []unicode.Range16{{0x1c89, 0x1c8a, 1}, {0xa7cb, 0xa7cd, 1}, {0xa7da, 0xa7dc, 1}},
	R32: []unicode.Range32{
		{0x105c0, 0x105f3, 1}, {0x10d4a, 0x10d65, 1}, {0x10d6f, 0x10d85, 1}, {0x10ec2, 0x10ec4, 1},
		{0x11380, 0x11389, 1}, {0x1138b, 0x1138b, 1}, {0x1138e, 0x1138e, 1}, {0x11390, 0x113b5, 1},
		{0x113b7, 0x113b7, 1}, {0x113d1, 0x113d1, 1}, {0x113d3, 0x113d3, 1}, {0x11bc0, 0x11be0, 1},
		{0x13460, 0x143fa, 1}, {0x16100, 0x1611d, 1}, {0x16d40, 0x16d6c, 1}, {0x18cff, 0x18cff, 1},
		{0x1e5d0, 0x1e5ed, 1}, {0x1e5f0, 0x1e5f0, 1}, {0x2ebf0, 0x2ee5d, 1},
	},
}

var numbers16 = &unicode.RangeTable{
	R32: []unicode.Range32{
		{0x10d40, 0x10d49, 1}, {0x116d0, 0x116e3, 1}, {0x11bf0, 0x11bf9, 1}, {0x16130, 0x16139, 1},
		{0x16d70, 0x16d79, 1}, {0x1ccf0, 0x1ccf9, 1}, {0x1e5f1, 0x1e5fa, 1},
	},
}

// The Digits pre-tokenizer asks Rust's standard library, which is one version
// of Unicode further still.
var digitsExtra = &unicode.RangeTable{
	R32: []unicode.Range32{{0x11de0, 0x11de9, 1}, {0x16ff4, 0x16ff6, 1}},
}

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

// classOf is the class of a character, quickly.
func classOf(r rune) class {
	if r < 128 {
		return asciiClass[r]
	}
	return classOfRune(r)
}

func classOfRune(r rune) class {
	switch {
	case unicode.IsLetter(r) || r > 128 && unicode.Is(letters16, r):
		return letter
	case unicode.IsNumber(r) || r > 128 && unicode.Is(numbers16, r):
		return number
	case unicode.IsSpace(r):
		return space
	}
	return other
}

func isDigit(r rune) bool {
	return classOf(r) == number || r > 128 && unicode.Is(digitsExtra, r)
}

// isWord is \w of Rust's regular expressions.
func isWord(r rune) bool {
	return classOf(r) == letter || unicode.In(r, unicode.Nl, unicode.Nd, unicode.M, unicode.Pc,
		unicode.Other_Alphabetic, unicode.Join_Control) || unicode.Is(numbers16, r) && !unicode.Is(unicode.No, r)
}
