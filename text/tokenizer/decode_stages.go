package tokenizer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// buildDecoder sets the stages of the decoder.
func (spec *fileSpec) buildDecoder(t *Tokenizer) error {
	d := &t.decoder
	if len(spec.Decoder) == 0 || string(spec.Decoder) == "null" {
		d.add(func() decodeStage { return new(joinTokens) })
	}
	b := new(budget)
	err := eachStage("decoder", spec.Decoder, func(c *stage) error {
		empty := func(s *string) bool { return s != nil && *s == "" }
		switch {
		case c.Type == "ByteLevel": // a byte may become U+FFFD
			b.grow(3)
		case c.Type == "WordPiece", c.Type == "Metaspace" && c.Replacement == "",
			c.Type == "BPEDecoder" && empty(c.Suffix), c.Type == "CTC" && empty(c.WordDelimiter):
			b.grow(2) // a space, between any two characters if what it replaces is empty
		}
		switch c.Type {
		case "ByteLevel":
			d.each(func(token string) string {
				if raw, ok := byteLevelBytes(token); ok {
					return raw
				}
				return token
			})
			d.add(func() decodeStage { return new(utf8Text) })
			d.fused = true
		case "ByteFallback":
			d.add(func() decodeStage { return new(byteRuns) })
		case "Fuse":
			d.fused = true
		case "Replace":
			replace, err := c.replacer(b)
			if err != nil {
				return err
			}
			d.each(replace)
		case "Metaspace":
			mark, kept := c.Replacement, c.scheme() == "never"
			d.add(func() decodeStage { return &marks{mark: mark, started: kept} })
		case "Strip":
			return d.addStrip(c)
		case "WordPiece":
			prefix, clean := "##", c.Cleanup == nil || *c.Cleanup
			if c.Prefix != nil {
				prefix = *c.Prefix
			}
			d.add(func() decodeStage { return &wordPieces{prefix: prefix, cleanup: clean} })
		case "BPEDecoder":
			suffix := "</w>"
			if c.Suffix != nil {
				suffix = *c.Suffix
			}
			d.add(func() decodeStage { return &wordEnds{suffix: suffix} })
		case "CTC":
			s := ctc{pad: "<pad>", delimiter: "|", cleanup: c.Cleanup == nil || *c.Cleanup}
			if c.PadToken != nil {
				s.pad = *c.PadToken
			}
			if c.WordDelimiter != nil {
				s.delimiter = *c.WordDelimiter
			}
			d.add(func() decodeStage {
				return &ctc{pad: s.pad, delimiter: s.delimiter,
					cleanup: s.cleanup}
			})
		default:
			return unsupported(c.Type,
				"BPEDecoder, ByteFallback, ByteLevel, CTC, Fuse, Metaspace, "+
					"Replace, Sequence, Strip, WordPiece")
		}
		return nil
	})
	size := 0
	for _, token := range t.tokens {
		size += len(token)
	}
	if err == nil {
		err = errors.Join(b.check(), b.checkOn(size, "the vocabulary"))
	}
	if err != nil {
		return fmt.Errorf("decoder: %w", err)
	}
	return nil
}

// addStrip adds the decoder Strip. It removes up to Start characters from the
// beginning of each token and up to Stop from its end.
func (d *decoderSpec) addStrip(c *stage) error {
	if utf8.RuneCountInString(c.Content) != 1 {
		return fmt.Errorf("the decoder Strip has content %q, expected one character", c.Content)
	}
	content, start, stop := c.Content, c.Start, c.Stop
	if d.fused && stop == 0 {
		d.addPieces(func() decodeStage { return &stripStart{content, start} })
		return nil
	}
	d.each(func(token string) string {
		for range start {
			var ok bool
			if token, ok = strings.CutPrefix(token, content); !ok {
				break
			}
		}
		for range stop {
			var ok bool
			if token, ok = strings.CutSuffix(token, content); !ok {
				break
			}
		}
		return token
	})
	return nil
}

// eachToken is a stage without memory.
type eachToken func(token string) string

func (f eachToken) token(token string, out func(string)) { out(f(token)) }
func (f eachToken) end(func(string))                     {}

// collect joins pieces to one token.
type collect struct{ text strings.Builder }

func (c *collect) token(piece string, _ func(string)) { c.text.WriteString(piece) }
func (c *collect) end(out func(string))               { out(c.text.String()) }

// joinTokens separates tokens by spaces, for files without a decoder.
type joinTokens struct{ started bool }

func (j *joinTokens) token(token string, out func(string)) {
	if j.started {
		token = " " + token
	}
	j.started = true
	out(token)
}

func (j *joinTokens) end(func(string)) {}

// marks is the decoder Metaspace: a mark becomes a space, or is dropped in the
// first token.
type marks struct {
	mark    string
	started bool
}

func (m *marks) token(token string, out func(string)) {
	with := " "
	if !m.started {
		with = ""
	}
	m.started = true
	out(strings.ReplaceAll(token, m.mark, with))
}

func (m *marks) end(func(string)) {}

// stripStart removes up to count copies of content from the start of a token that
// comes in pieces.
type stripStart struct {
	content string
	count   int
}

func (s *stripStart) token(piece string, out func(string)) {
	for s.count > 0 && piece != "" {
		rest, ok := strings.CutPrefix(piece, s.content)
		if !ok {
			s.count = 0
			break
		}
		piece = rest
		s.count--
	}
	out(piece)
}

func (s *stripStart) end(func(string)) {}

// byteRuns is the decoder ByteFallback: a run of tokens such as <0x0A> becomes text
// if its bytes are valid UTF-8, else one U+FFFD for each byte.
type byteRuns struct{ run []byte }

func (b *byteRuns) token(token string, out func(string)) {
	if len(token) == 6 && strings.HasPrefix(token, "<0x") && token[5] == '>' {
		if n, err := strconv.ParseUint(token[3:5], 16, 8); err == nil {
			b.run = append(b.run, byte(n))
			return
		}
	}
	b.end(out)
	out(token)
}

func (b *byteRuns) end(out func(string)) {
	if len(b.run) == 0 {
		return
	}
	s := string(b.run)
	b.run = b.run[:0]
	if utf8.ValidString(s) {
		out(s)
		return
	}
	for range len(s) {
		out("\uFFFD")
	}
}

// utf8Text joins the bytes of tokens to characters.
type utf8Text struct{ pending []byte }

func (u *utf8Text) token(piece string, out func(string)) {
	if len(u.pending) == 0 && utf8.ValidString(piece) {
		out(piece)
		return
	}
	u.pending = append(u.pending, piece...)
	out(u.complete(false))
}

func (u *utf8Text) end(out func(string)) { out(u.complete(true)) }

// complete removes the complete characters from pending and returns them. Of
// invalid bytes, each longest valid beginning of a character becomes one U+FFFD.
func (u *utf8Text) complete(atEnd bool) string {
	p := u.pending
	var out []byte
	for len(p) > 0 && (atEnd || utf8.FullRune(p)) {
		if r, size := utf8.DecodeRune(p); r != utf8.RuneError || size > 1 {
			out, p = append(out, p[:size]...), p[size:]
			continue
		}
		out, p = append(out, "\uFFFD"...), p[characterStart(p):]
	}
	u.pending = append(u.pending[:0], p...)
	return string(out)
}

// characterStart returns the length of the longest prefix of p that can begin a
// character's encoding, at least 1.
func characterStart(p []byte) int {
	n := 1
	for n < len(p) && n < utf8.UTFMax && !utf8.FullRune(p[:n]) {
		n++
	}
	// FullRune is also true if p[:n] is invalid; then its last byte does not
	// belong to the prefix.
	if n > 1 && utf8.FullRune(p[:n]) {
		n--
	}
	return n
}

// wordPieces is the decoder WordPiece: a token with the prefix continues the word
// before, any other begins a new one.
type wordPieces struct {
	prefix           string
	cleanup, started bool
}

func (w *wordPieces) token(token string, out func(string)) {
	if w.started {
		if rest, ok := strings.CutPrefix(token, w.prefix); ok {
			token = rest
		} else {
			token = " " + token
		}
	}
	w.started = true
	if w.cleanup {
		token = cleanUp(token)
	}
	out(token)
}

func (w *wordPieces) end(func(string)) {}

// cleanUp removes the spaces that a split of English text leaves.
func cleanUp(s string) string {
	for _, r := range [][2]string{
		{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"},
		{" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
	} {
		s = strings.ReplaceAll(s, r[0], r[1])
	}
	return s
}

// wordEnds is the decoder BPEDecoder: the suffix that ends a word becomes a space,
// except in the last token.
type wordEnds struct {
	suffix string
	held   string
	holds  bool
}

func (w *wordEnds) token(token string, out func(string)) {
	if w.holds {
		out(strings.ReplaceAll(w.held, w.suffix, " "))
	}
	w.held, w.holds = token, true
}

func (w *wordEnds) end(out func(string)) {
	if w.holds {
		out(strings.ReplaceAll(w.held, w.suffix, ""))
	}
	w.holds = false
}

// ctc is the decoder CTC: of equal neighbors one is kept, and pad is removed.
type ctc struct {
	pad, delimiter   string
	cleanup, started bool
	last             string
}

func (c *ctc) token(token string, out func(string)) {
	if c.started && token == c.last {
		return
	}
	c.started, c.last = true, token
	token = strings.ReplaceAll(token, c.pad, "")
	if c.cleanup {
		token = strings.ReplaceAll(cleanUp(token), c.delimiter, " ")
	}
	if token != "" {
		out(token)
	}
}

func (c *ctc) end(func(string)) {}
