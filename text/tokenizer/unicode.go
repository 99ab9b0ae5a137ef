package tokenizer

import (
	"slices"
	"strings"
	"unicode"
)

// unicode16 holds the characters that Unicode 16 added to Unicode 15, by category.
// Hugging Face's regular expressions use Unicode 16, the tables of Go 1.26
// Unicode 15.
var unicode16 = map[string][][2]rune{
	"Ll": {{0x1c8a, 0x1c8a}, {0xa7cd, 0xa7cd}, {0xa7db, 0xa7db}, {0x10d70, 0x10d85}},
	"Lm": {{0x10d4e, 0x10d4e}, {0x10d6f, 0x10d6f}, {0x16d40, 0x16d42}, {0x16d6b, 0x16d6c}},
	"Lo": {
		{0x105c0, 0x105f3}, {0x10d4a, 0x10d4d}, {0x10d4f, 0x10d4f}, {0x10ec2, 0x10ec4},
		{0x11380, 0x11389}, {0x1138b, 0x1138b}, {0x1138e, 0x1138e}, {0x11390, 0x113b5},
		{0x113b7, 0x113b7}, {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0},
		{0x13460, 0x143fa}, {0x16100, 0x1611d}, {0x16d43, 0x16d6a}, {0x18cff, 0x18cff},
		{0x1e5d0, 0x1e5ed}, {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d},
	},
	"Lu": {{0x1c89, 0x1c89}, {0xa7cb, 0xa7cc}, {0xa7da, 0xa7da}, {0xa7dc, 0xa7dc},
		{0x10d50, 0x10d65}},
	"Mc": {
		{0x113b8, 0x113ba}, {0x113c2, 0x113c2}, {0x113c5, 0x113c5}, {0x113c7, 0x113ca},
		{0x113cc, 0x113cd}, {0x113cf, 0x113cf}, {0x1171e, 0x1171e}, {0x1612a, 0x1612c},
	},
	"Mn": {
		{0x897, 0x897}, {0x10d69, 0x10d6d}, {0x10efc, 0x10efc}, {0x113bb, 0x113c0},
		{0x113ce, 0x113ce}, {0x113d0, 0x113d0}, {0x113d2, 0x113d2}, {0x113e1, 0x113e2},
		{0x11f5a, 0x11f5a}, {0x1611e, 0x16129}, {0x1612d, 0x1612f}, {0x1e5ee, 0x1e5ef},
	},
	"Nd": {
		{0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9}, {0x16130, 0x16139},
		{0x16d70, 0x16d79}, {0x1ccf0, 0x1ccf9}, {0x1e5f1, 0x1e5fa},
	},
	"Pd": {{0x10d6e, 0x10d6e}},
	"Po": {
		{0x1b4e, 0x1b4f}, {0x1b7f, 0x1b7f}, {0x113d4, 0x113d5}, {0x113d7, 0x113d8},
		{0x11be1, 0x11be1}, {0x16d6d, 0x16d6f}, {0x1e5ff, 0x1e5ff},
	},
	"Sm": {{0x10d8e, 0x10d8f}},
	"So": {
		{0x2427, 0x2429}, {0x2ffc, 0x2fff}, {0x31e4, 0x31e5}, {0x31ef, 0x31ef}, {0x1cc00, 0x1ccef},
		{0x1cd00, 0x1ceb3}, {0x1f8b2, 0x1f8bb}, {0x1f8c0, 0x1f8c1}, {0x1fa89, 0x1fa89},
		{0x1fa8f, 0x1fa8f}, {0x1fabe, 0x1fabe}, {0x1fac6, 0x1fac6}, {0x1fadc, 0x1fadc},
		{0x1fadf, 0x1fadf}, {0x1fae9, 0x1fae9}, {0x1fbcb, 0x1fbef},
	},
}

var (
	letters16 = table16("L")
	marks16   = table16("M")
	numbers16 = table16("N")
	// The Digits pre-tokenizer uses Rust's standard library, which has Unicode 17.
	digits17 = &unicode.RangeTable{R32: []unicode.Range32{{0x11de0, 0x11de9, 1},
		{0x16ff4, 0x16ff6, 1}}}
)

// ranges16 lists the additions to a category ("Lu") or a group of categories
// ("L").
func ranges16(category string) (all [][2]rune) {
	for name, ranges := range unicode16 {
		if strings.HasPrefix(name, category) {
			all = append(all, ranges...)
		}
	}
	slices.SortFunc(all, func(a, b [2]rune) int { return int(a[0] - b[0]) })
	return all
}

func table16(category string) *unicode.RangeTable {
	t := new(unicode.RangeTable)
	for _, r := range ranges16(category) {
		if r[1] < 0x10000 {
			t.R16 = append(t.R16, unicode.Range16{Lo: uint16(r[0]), Hi: uint16(r[1]), Stride: 1})
		} else {
			t.R32 = append(t.R32, unicode.Range32{Lo: uint32(r[0]), Hi: uint32(r[1]), Stride: 1})
		}
	}
	return t
}

// withUnicode16 adds the characters of unicode16 to every \p{…} of a pattern, for
// a regular expression engine with Go's tables.
func withUnicode16(pattern string) string {
	var b strings.Builder
	inClass := false
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\' && i+1 < len(pattern):
			name, _, closed := strings.Cut(pattern[i+2:], "}")
			if pattern[i+1] != 'p' || !closed || !strings.HasPrefix(name, "{") {
				b.WriteString(pattern[i : i+2])
				i++
				continue
			}
			class := pattern[i:i+2] + name + "}"
			i += len(class) - 1
			for _, r := range ranges16(name[1:]) {
				class += string(r[0]) + "-" + string(r[1])
			}
			if !inClass {
				class = "[" + class + "]"
			}
			b.WriteString(class)
		case c == '[':
			inClass = true
			b.WriteByte(c)
		case c == ']':
			inClass = false
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
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
