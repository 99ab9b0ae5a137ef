package tokenizer

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// lateMarks are the marks that are missing from the Unicode tables of Hugging
// Face's NFC, which are older than those of its regular expressions. Its NFC
// neither reorders nor composes them.
var lateMarks = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x07fd, 0x07fd, 1}, {0x0898, 0x089f, 1}, {0x08ca, 0x08d3, 1}, {0x09fe, 0x09fe, 1},
		{0x0c3c, 0x0c3c, 1}, {0x0d3b, 0x0d3c, 1}, {0x0eba, 0x0eba, 1}, {0x1715, 0x1715, 1},
		{0x1abf, 0x1ace, 1}, {0x1df6, 0x1dfa, 1}, {0xa82c, 0xa82c, 1},
	},
	R32: []unicode.Range32{
		{0x10d24, 0x10d27, 1}, {0x10eab, 0x10eac, 1}, {0x10efd, 0x10eff, 1}, {0x10f46, 0x10f50, 1},
		{0x10f82, 0x10f85, 1}, {0x11070, 0x11070, 1}, {0x1133b, 0x1133b, 1}, {0x1145e, 0x1145e, 1},
		{0x11839, 0x1183a, 1}, {0x11930, 0x11930, 1}, {0x1193d, 0x1193e, 1}, {0x11943, 0x11943, 1},
		{0x119e0, 0x119e0, 1}, {0x11a34, 0x11a34, 1}, {0x11a47, 0x11a47, 1}, {0x11a99, 0x11a99, 1},
		{0x11d42, 0x11d42, 1}, {0x11d44, 0x11d45, 1}, {0x11d97, 0x11d97, 1}, {0x11f41, 0x11f42, 1},
		{0x16ff0, 0x16ff1, 1}, {0x1e08f, 0x1e08f, 1}, {0x1e130, 0x1e136, 1}, {0x1e2ae, 0x1e2ae, 1},
		{0x1e2ec, 0x1e2ef, 1}, {0x1e4ec, 0x1e4ef, 1},
	},
}

// lateParts are the characters whose compatible parts these tables lack, and one whose
// canonical parts they lack.
var lateParts = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x32ff, 0x32ff, 1}, {0xa7f2, 0xa7f4, 1}, {0xab69, 0xab69, 1},
	},
	R32: []unicode.Range32{
		{0x10781, 0x10785, 1}, {0x10787, 0x107b0, 1}, {0x107b2, 0x107ba, 1}, {0x11938, 0x11938, 1},
		{0x1e030, 0x1e06d, 1}, {0x1f16c, 0x1f16c, 1}, {0x1fbf0, 0x1fbf9, 1},
	},
}

// nfc composes s canonically. It uses x/text, except for texts with lateMarks or
// with runs of more than 30 marks: x/text inserts a U+034F into such a run (the
// Stream-Safe format), Hugging Face does not.
func nfc(s string) string {
	isLate := func(r rune) bool { return r >= 0x7fd && unicode.Is(lateMarks, r) }
	if strings.IndexFunc(s, isLate) < 0 {
		out := norm.NFC.String(s)
		if strings.Count(out, "\u034F") == strings.Count(s, "\u034F") {
			return out
		}
	}
	return compose(decompose(s))
}

// nfd decomposes s canonically.
func nfd(s string) string { return string(decompose(s)) }

// markClass returns the canonical combining class of r.
func markClass(r rune) uint8 {
	if r < 0x300 || unicode.Is(lateMarks, r) {
		return 0
	}
	var b [utf8.UTFMax]byte
	return norm.NFD.Properties(b[:utf8.EncodeRune(b[:], r)]).CCC()
}

// decompose replaces each character by its canonical parts and sorts each run of
// marks by class.
func decompose(s string) []rune { return decomposeBy(norm.NFD, s) }

// decomposeBy is decompose with the parts of a form, NFD or NFKD.
func decomposeBy(form norm.Form, s string) []rune {
	var out []rune
	for _, r := range s {
		// One character is too short for x/text to insert a U+034F.
		if r >= 0x32ff && unicode.Is(lateParts, r) && (form == norm.NFKD || r == 0x11938) {
			out = append(out, r)
			continue
		}
		for _, part := range form.String(string(r)) {
			out = append(out, part)
		}
	}
	for i := 0; i < len(out); i++ {
		start := i
		for i < len(out) && markClass(out[i]) > 0 {
			i++
		}
		slices.SortStableFunc(out[start:i],
			func(a, b rune) int { return int(markClass(a)) - int(markClass(b)) })
	}
	return out
}

// compose joins each character to the last character of class 0 before it, unless
// a mark of the same or a higher class is between them.
func compose(in []rune) string {
	out := make([]rune, 0, len(in))
	starter, last := -1, uint8(0)
	for _, r := range in {
		class := markClass(r)
		blocked := last >= class && starter != len(out)-1
		if starter >= 0 && !blocked && !unicode.Is(lateMarks, r) {
			pair := []rune(norm.NFC.String(string(out[starter]) + string(r)))
			if len(pair) == 1 {
				out[starter] = pair[0]
				continue
			}
		}
		if class == 0 {
			starter = len(out)
		}
		last = class
		out = append(out, r)
	}
	return string(out)
}
