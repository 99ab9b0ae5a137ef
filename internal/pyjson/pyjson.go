// Package pyjson makes standard JSON of what Python's json module writes: Python has the bare words
// NaN, Infinity and -Infinity, which JSON does not.
package pyjson

import (
	"bytes"
	"fmt"
)

// words are Python's names of the numbers that JSON does not have, longest first.
var words = []string{"-Infinity", "Infinity", "NaN"}

// Standard returns text with each bare word as the object {"__float__": "Infinity"}, which is how
// transformers 5 writes it. Text without such words is returned as it is. Other errors of syntax
// stay for the parser to find.
func Standard(text []byte) []byte {
	if !bytes.Contains(text, []byte("Infinity")) && !bytes.Contains(text, []byte("NaN")) {
		return text
	}
	out := make([]byte, 0, len(text)+64)
	inString := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case inString && c == '\\' && i+1 < len(text):
			out = append(out, c)
			i++
			c = text[i]
		case c == '"':
			inString = !inString
		case !inString:
			if word := wordAt(text[i:]); word != "" {
				out = fmt.Appendf(out, `{"__float__": %q}`, word)
				i += len(word) - 1
				continue
			}
		}
		out = append(out, c)
	}
	return out
}

// wordAt is the bare word at the beginning of text, or "".
func wordAt(text []byte) string {
	for _, word := range words {
		if rest, ok := bytes.CutPrefix(text, []byte(word)); ok &&
			(len(rest) == 0 || bytes.IndexByte([]byte(",]} \t\r\n"), rest[0]) >= 0) {
			return word
		}
	}
	return ""
}
