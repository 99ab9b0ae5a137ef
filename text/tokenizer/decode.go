package tokenizer

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// decoderSpec is the decoder of a tokenizer.json, reduced to what it does to
// one token and to the whole.
type decoderSpec struct {
	byteLevel    bool        // tokens spell bytes; the whole is made valid UTF-8
	byteFallback bool        // <0x0A> is a byte
	replace      [][2]string // in each token
	mark         string      // Metaspace: this becomes a space, or nothing in the first token
	markKept     bool        // Metaspace: it becomes a space in the first token too
	strip        string      // up to stripCount of these are taken off the front
	stripCount   int
	join         string // stands between tokens (files that have no decoder)
}

type pieceKind uint8

const (
	unusedPiece pieceKind = iota
	textPiece
	bytePiece    // one byte of a run that must be valid UTF-8 as a whole
	specialPiece // left out on request
)

// setDecoding works out what each id contributes to decoded text.
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

// Decode returns the text of ids. With skipSpecial, special tokens are left
// out. Bytes that do not form UTF-8 become U+FFFD; ids that are not in the
// vocabulary are passed over.
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
// generated. What it has returned never ends inside a character, and all it
// returns, Flush included, is what Decode returns for the same ids. It serves
// one text and one goroutine.
type Decoder struct {
	t           *Tokenizer
	skipSpecial bool
	started     bool   // a token was seen
	pending     []byte // bytes that may yet become a character
	strip       int    // how much may still be taken off the front
}

// Decoder starts decoding a text from its beginning.
func (t *Tokenizer) Decoder(skipSpecial bool) *Decoder {
	return &Decoder{t: t, skipSpecial: skipSpecial, strip: t.decoder.stripCount}
}

// Next takes the next id and returns the text that is now certain, often none.
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

// Flush returns what was held back and ends the text.
func (d *Decoder) Flush() string {
	if d.t.decoder.byteLevel {
		return d.validPrefix(true)
	}
	return d.stripped(d.byteRun())
}

// byteRun ends a run of byte tokens: its text if it is UTF-8 as a whole, else
// one U+FFFD for each byte.
func (d *Decoder) byteRun() string {
	s := string(d.pending)
	d.pending = d.pending[:0]
	if !utf8.ValidString(s) {
		return strings.Repeat("\uFFFD", len(s))
	}
	return s
}

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

// validPrefix takes the complete characters off pending. Of bytes that cannot
// be a character, each longest start of one becomes a single U+FFFD.
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

// characterStart is the length of the longest start of p, at least 1, that
// some character's encoding could begin with.
func characterStart(p []byte) int {
	n := 1
	for n < len(p) && n < utf8.UTFMax && !utf8.FullRune(p[:n]) {
		n++
	}
	// FullRune is true as soon as p[:n] is an error too; then its last byte is
	// not part of the start.
	if n > 1 && utf8.FullRune(p[:n]) {
		n--
	}
	return n
}
