package generate

import (
	"strings"

	"conquer/text/tokenizer"
)

// stream turns a row's tokens into text and finds stop strings. Text that could be
// the beginning of a stop string is held back until that is decided.
type stream struct {
	decoder *tokenizer.Decoder
	stops   []string
	held    string
	text    strings.Builder
	emit    func(piece string) // may be nil
}

// next adds a token and reports whether a stop string is complete.
func (s *stream) next(id int32) bool { return s.take(s.decoder.Next(id)) }

// flush ends the text and reports whether a stop string is at its end.
func (s *stream) flush() bool {
	if s.take(s.decoder.Flush()) {
		return true
	}
	s.put(s.held)
	s.held = ""
	return false
}

// take adds a piece of text and reports whether a stop string is complete.
func (s *stream) take(piece string) bool {
	if piece == "" {
		return false
	}
	s.held += piece
	first := -1
	for _, stop := range s.stops {
		if i := strings.Index(s.held, stop); i >= 0 && (first < 0 || i < first) {
			first = i
		}
	}
	if first >= 0 {
		s.put(s.held[:first])
		s.held = ""
		return true
	}
	n := len(s.held) - s.undecided()
	s.put(s.held[:n])
	s.held = s.held[n:]
	return false
}

// undecided returns the length of the longest suffix of the held text that is a
// prefix of a stop string.
func (s *stream) undecided() int {
	longest := 0
	for _, stop := range s.stops {
		for n := min(len(stop)-1, len(s.held)); n > longest; n-- {
			if strings.HasSuffix(s.held, stop[:n]) {
				longest = n
			}
		}
	}
	return longest
}

// put adds text that is certain.
func (s *stream) put(piece string) {
	if piece == "" {
		return
	}
	s.text.WriteString(piece)
	if s.emit != nil {
		s.emit(piece)
	}
}
