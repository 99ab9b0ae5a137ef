package tokenizer

import "slices"

// pieceKind says how an id is decoded.
type pieceKind uint8

const (
	unusedPiece  pieceKind = iota // not a token: left out
	textPiece                     // its text goes through the decoder
	specialPiece                  // the same, but left out with skipSpecial
)

// setDecoding computes the text of each id as it enters the decoder. normalized
// holds the added tokens that are matched in normalized text, special the special
// tokens.
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
		t.decodeKind[id] = textPiece
		if special[token] {
			t.decodeKind[id] = specialPiece
		}
		t.decodeText[id] = t.decoder.single(token)
	}
}

// Decode returns the text of ids, without special tokens if skipSpecial is set.
// Bytes that do not form UTF-8 become U+FFFD. Ids that are not in the vocabulary
// are ignored.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	d := t.Decoder(skipSpecial)
	for _, id := range ids {
		d.add(id)
	}
	return d.Flush()
}

// Decoder decodes one token at a time, for text that is shown while it is
// generated. The returned text never ends inside a character. Together with
// Flush it equals what Decode returns for the same ids. A Decoder decodes one
// text, in one goroutine.
type Decoder struct {
	t           *Tokenizer
	skipSpecial bool
	shown       []int32            // special tokens that are not skipped
	push        func(token string) // passes a token through the stages into text
	ends        []func()           // ends the stages, first to last
	text        []byte             // not returned yet
	known       string             // a continuation: text that the prompt has shown already
}

// Decoder returns a decoder at the beginning of a text.
func (t *Tokenizer) Decoder(skipSpecial bool) *Decoder {
	d := &Decoder{t: t, skipSpecial: skipSpecial}
	d.push = func(piece string) { d.text = append(d.text, piece...) }
	stages := t.decoder.stages
	d.ends = make([]func(), len(stages))
	for i := len(stages) - 1; i >= 0; i-- {
		s, out := stages[i](), d.push
		d.push = func(token string) { s.token(token, out) }
		d.ends[i] = func() { s.end(out) }
	}
	return d
}

// Continue returns a decoder of the text that follows the ids of a prompt. The text
// of the prompt and what the decoder returns are together the text of all ids. So
// the space before the first new word is kept, which a decoder at the beginning of
// a text removes in SentencePiece models. If the prompt ends inside a character,
// the decoder returns the whole character.
func (t *Tokenizer) Continue(prompt []int32, skipSpecial bool) *Decoder {
	d := t.Decoder(skipSpecial)
	for _, id := range prompt {
		d.add(id)
	}
	sent := len(d.text)
	d.text = d.text[:0]
	d.known = t.Decode(prompt, skipSpecial)[sent:]
	return d
}

// Show makes the decoder return the text of some special tokens although it skips the others.
func (d *Decoder) Show(ids ...int32) { d.shown = append(d.shown, ids...) }

// Next adds an id and returns the text that is now complete, often "".
func (d *Decoder) Next(id int32) string {
	d.add(id)
	return d.take()
}

// Flush ends the text and returns what Next held back.
func (d *Decoder) Flush() string {
	for _, end := range d.ends {
		end()
	}
	return d.take()
}

func (d *Decoder) add(id int32) {
	if id < 0 || int(id) >= len(d.t.decodeKind) {
		return
	}
	if k := d.t.decodeKind[id]; k == unusedPiece || k == specialPiece && d.skipSpecial &&
		!slices.Contains(d.shown, id) {
		return
	}
	d.push(d.t.decodeText[id])
}

// take returns the text so far, without what the prompt has shown.
func (d *Decoder) take() string {
	s := string(d.text)
	d.text = d.text[:0]
	if d.known != "" && s != "" {
		n := CommonPrefix([]byte(d.known), []byte(s))
		if d.known = d.known[n:]; n < len(s) {
			d.known = "" // the text goes on, or differs
		}
		s = s[n:]
	}
	return s
}

// decoderSpec is the decoder of a tokenizer.json.
type decoderSpec struct {
	// first lists the stages that change each token by itself, before all others.
	first []func(token string) string
	// stages makes the other stages. Each decodes one text.
	stages []func() decodeStage
	// fused is true if the stages before pass on pieces of one token.
	fused bool
}

// decodeStage is a stage that remembers something of the tokens before.
type decodeStage interface {
	token(token string, out func(string))
	end(out func(string)) // passes on what token held back
}

// single applies the first stages to a token.
func (d *decoderSpec) single(token string) string {
	for _, f := range d.first {
		token = f(token)
	}
	return token
}

// each adds a stage that changes each token by itself.
func (d *decoderSpec) each(f func(token string) string) {
	if len(d.stages) == 0 {
		d.first = append(d.first, f)
		return
	}
	d.add(func() decodeStage { return eachToken(f) })
}

// add adds a stage that needs whole tokens.
func (d *decoderSpec) add(stage func() decodeStage) {
	if d.fused {
		d.stages = append(d.stages, func() decodeStage { return new(collect) })
		d.fused = false
	}
	d.stages = append(d.stages, stage)
}

// addPieces adds a stage that also works on the pieces of a token.
func (d *decoderSpec) addPieces(stage func() decodeStage) {
	d.stages = append(d.stages, stage)
}
