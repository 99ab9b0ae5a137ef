package main

import (
	"io"
	"strings"
)

// indented writes a text as it grows, each line after the first indented, without the white space
// around the text.
type indented struct {
	out   io.Writer
	begun bool
	space string // white space that is written if more text follows
}

// write adds a piece of text.
func (w *indented) write(piece string) {
	text := w.space + piece
	if !w.begun {
		text = strings.TrimLeft(text, whiteSpace)
	}
	shown := strings.TrimRight(text, whiteSpace)
	w.begun = w.begun || shown != ""
	w.space = text[len(shown):]
	io.WriteString(w.out, strings.ReplaceAll(shown, "\n", "\n  "))
}

const whiteSpace = " \t\n\v\f\r"
