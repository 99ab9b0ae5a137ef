package tokenizer

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// decoderSpec is the decoder of a tokenizer.json, as its effect on each token and
// on the whole text.
type decoderSpec struct {
	byteLevel    bool        // tokens spell bytes; invalid UTF-8 in the text is replaced
	byteFallback bool        // a token such as <0x0A> is a byte
	replace      [][2]string // from, to: applied to each token
	mark         string      // Metaspace: becomes a space, or is dropped in the first token
	markKept     bool        // Metaspace: becomes a space in the first token too
	strip        string      // up to stripCount of these are removed from the start
	stripCount   int
	join         string // separates tokens, for files without a decoder
}

// pieceKind says how a token is decoded.
type pieceKind uint8

const (
	unusedPiece pieceKind = iota
	textPiece
	bytePiece    // one byte; a run of bytes must be valid UTF-8
	specialPiece // left out with skipSpecial
)

// setDecoding computes the text of each id. normalized holds the added tokens
// that are matched in normalized text, special the special tokens.
func (t *Tokenizer) setDecoding(normalized map[int32]string, special map[string]bool) {
	t.decodeKind = make([]pieceKind, len(t.tokens))
	t.decodeText = make([]string, len(t.tokens))
	for id, token := range t.tokens {
		if _, used := t.ids[token]; !used {
			continue
		}
		if n, ok := normalized[int32(id)]; ok {
			token = n
		}
		kind := textPiece
		if special[token] {
			kind = specialPiece
		}
		d := t.decoder
		for _, r := range d.replace {
			token = strings.ReplaceAll(token, r[0], r[1])
		}
		if d.byteFallback && len(token) == 6 && strings.HasPrefix(token, "<0x") && token[5] == '>' {
			if b, err := strconv.ParseUint(token[3:5], 16, 8); err == nil && kind != specialPiece {
				kind, token = bytePiece, string([]byte{byte(b)})
			}
		}
		if raw, ok := byteLevelBytes(token); ok && d.byteLevel {
			token = raw
		}
		t.decodeKind[id], t.decodeText[id] = kind, token
	}
}

// Decode returns the text of ids, without special tokens if skipSpecial is set.
// Bytes that do not form UTF-8 become U+FFFD. Ids that are not in the vocabulary
// are ignored.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	d := t.Decoder(skipSpecial)
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(d.Next(id))
	}
	b.WriteString(d.Flush())
	return b.String()
}

// Decoder decodes one token at a time, for text that is shown while it is
// generated. The returned text never ends inside a character. Together with
// Flush it equals what Decode returns for the same ids. A Decoder decodes one
// text, in one goroutine.
type Decoder struct {
	t           *Tokenizer
	skipSpecial bool
	started     bool   // a token was seen
	pending     []byte // bytes of an incomplete character or byte run
	strip       int    // how many strip strings may still be removed
}

// Decoder returns a decoder at the beginning of a text.
func (t *Tokenizer) Decoder(skipSpecial bool) *Decoder {
	return &Decoder{t: t, skipSpecial: skipSpecial, strip: t.decoder.stripCount}
}

// Next adds an id and returns the text that is now complete, often "".
func (d *Decoder) Next(id int32) string {
	t, spec := d.t, &d.t.decoder
	if id < 0 || int(id) >= len(t.decodeKind) {
		return ""
	}
	kind, piece := t.decodeKind[id], t.decodeText[id]
	if kind == unusedPiece || kind == specialPiece && d.skipSpecial {
		return ""
	}
	first := !d.started
	d.started = true
	if kind == bytePiece {
		d.pending = append(d.pending, piece...)
		return ""
	}
	if spec.mark != "" && strings.Contains(piece, spec.mark) {
		with := " "
		if first && !spec.markKept {
			with = ""
		}
		piece = strings.ReplaceAll(piece, spec.mark, with)
	}
	if spec.byteLevel {
		if len(d.pending) == 0 && utf8.ValidString(piece) {
			return piece
		}
		d.pending = append(d.pending, piece...)
		return d.validPrefix(false)
	}
	if spec.join != "" && !first {
		piece = spec.join + piece
	}
	return d.stripped(d.byteRun() + piece)
}

// Flush ends the text and returns what Next held back.
func (d *Decoder) Flush() string {
	if d.t.decoder.byteLevel {
		return d.validPrefix(true)
	}
	return d.stripped(d.byteRun())
}

// byteRun ends a run of byte tokens. It returns the run as text if it is valid
// UTF-8, else one U+FFFD for each byte.
func (d *Decoder) byteRun() string {
	s := string(d.pending)
	d.pending = d.pending[:0]
	if !utf8.ValidString(s) {
		return strings.Repeat("\uFFFD", len(s))
	}
	return s
}

// stripped removes the remaining strip strings from the start of s.
func (d *Decoder) stripped(s string) string {
	for d.strip > 0 && s != "" {
		rest, ok := strings.CutPrefix(s, d.t.decoder.strip)
		if !ok {
			d.strip = 0
			break
		}
		s = rest
		d.strip--
	}
	return s
}

// validPrefix removes the complete characters from pending and returns them. Of
// invalid bytes, each longest valid beginning of a character becomes one U+FFFD.
func (d *Decoder) validPrefix(atEnd bool) string {
	p := d.pending
	var out []byte
	for len(p) > 0 && (atEnd || utf8.FullRune(p)) {
		if r, size := utf8.DecodeRune(p); r != utf8.RuneError || size > 1 {
			out, p = append(out, p[:size]...), p[size:]
			continue
		}
		out, p = append(out, "\uFFFD"...), p[characterStart(p):]
	}
	d.pending = append(d.pending[:0], p...)
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
