package main

import (
	"strings"
	"testing"
)

// However a text is cut into pieces, it is written like the whole text.
func TestIndented_PiecesGiveTheWholeText(t *testing.T) {
	text := " \n one\n\ntwo  three \n\t"
	const want = "one\n  \n  two  three"
	for first := range len(text) {
		for second := first; second <= len(text); second++ {
			var out strings.Builder
			w := indented{out: &out}
			for _, piece := range []string{text[:first], text[first:second], text[second:]} {
				w.write(piece)
				if !strings.HasPrefix(want, out.String()) {
					t.Fatalf("cut at %d and %d: %q", first, second, out.String())
				}
			}
			if out.String() != want {
				t.Fatalf("cut at %d and %d: %q, want %q", first, second, out.String(), want)
			}
		}
	}
}
