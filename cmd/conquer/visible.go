package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"
)

// obeyed reports whether a terminal obeys a character instead of showing it, or shows the
// characters after it in another order.
func obeyed(r rune) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case r < ' ', r >= 0x7f && r < 0xa0: // C0, DEL and C1
		return true
	}
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 // bidirectional text
}

// visible returns a text of a model, or with names from its files, for a terminal: characters that
// a terminal obeys, and bytes that are not UTF-8, are escapes such as \x1b. Line breaks and tabs
// stay.
func visible(text string) string {
	var b strings.Builder
	rest := 0 // what is not yet in b
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if invalid := r == utf8.RuneError && size == 1; invalid || obeyed(r) {
			b.WriteString(text[rest:i])
			switch {
			case invalid:
				fmt.Fprintf(&b, `\x%02x`, text[i])
			case r < 0x100:
				fmt.Fprintf(&b, `\x%02x`, r)
			default:
				fmt.Fprintf(&b, `\u%04x`, r)
			}
			rest = i + size
		}
		i += size
	}
	return b.String() + text[rest:]
}

// visibleWriter writes what is written to it as visible returns it. A character may be written in
// parts.
type visibleWriter struct {
	out  io.Writer
	held []byte // the beginning of a character
}

func (w *visibleWriter) Write(p []byte) (int, error) {
	data := slices.Concat(w.held, p)
	whole := len(data)
	for i := len(data) - 1; i >= max(0, len(data)-utf8.UTFMax); i-- {
		if utf8.RuneStart(data[i]) {
			if !utf8.FullRune(data[i:]) {
				whole = i
			}
			break
		}
	}
	w.held = data[whole:]
	_, err := io.WriteString(w.out, visible(string(data[:whole])))
	return len(p), err
}

// textOutput is where a model's text is printed: what is piped to another program has its bytes as
// they are.
func textOutput() io.Writer {
	if isTerminal(os.Stdout) {
		return &visibleWriter{out: stdout}
	}
	return stdout
}

// messageSize is the maximum size of a message, which may hold names and values of a file.
const messageSize = 4000

// message returns an error or a note for a terminal: visible, and without its middle if it is long.
func message(text string) string {
	if len(text) > messageSize {
		const part = messageSize/2 - 50
		first, last := part, len(text)-part
		for ; !utf8.RuneStart(text[first]) && first > part-utf8.UTFMax; first-- {
		}
		for ; !utf8.RuneStart(text[last]) && last < len(text)-part+utf8.UTFMax; last++ {
		}
		text = fmt.Sprintf("%s … (%d bytes are left out) … %s", text[:first], last-first,
			text[last:])
	}
	return visible(text)
}

// note prints a message, which may hold names and values of a model's files, on standard error.
func note(format string, args ...any) {
	io.WriteString(os.Stderr, message(fmt.Sprintf(format, args...)))
}
