// Package tokenizer turns text into token ids and back, and renders chats with
// the tokenizer's chat template.
//
// A [Tokenizer] gives the same ids as Hugging Face's tokenizers library, token
// for token. Every source (a model folder, tokenizer.json, a SentencePiece
// tokenizer.model, the metadata of a GGUF file) is converted to a tokenizer.json
// in memory. So there is one implementation, and [Tokenizer.Save] always has a
// file to write. Encoding runs the stages of that file in order:
//
//	added tokens   "<|im_end|>" and the like are cut out of the raw text
//	normalizer     NFC; or " " becomes "▁" with one "▁" in front (Llama 2)
//	pre-tokenizer  the text is cut into words that no token crosses
//	model          byte-pair encoding of each word
//	post-processor adds the tokens that begin and end a text
package tokenizer

import (
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Tokenizer turns text into token ids and ids into text. It is immutable, and
// several goroutines may use it at once.
type Tokenizer struct {
	model      wordModel
	vocab      map[string]int32 // of the model, without the added tokens
	byteLevel  bool             // the model works on bytes, spelled by byteRune
	rawAdded   *matcher         // added tokens matched in the original text
	normAdded  *matcher         // added tokens matched in the normalized text
	normalize  []func(string) string
	pretoken   []preStep
	prefix     []int32 // ids that the post-processor adds before a text
	suffix     []int32 // and after it
	decoder    decoderSpec
	tokens     []string // by id, added tokens included; "" for an unused id
	ids        map[string]int32
	decodeKind []pieceKind // by id
	decodeText []string    // by id: text of the id
	scratch    sync.Pool   // *scratch

	bos, pad, unk int32 // -1 if there is none
	eos           []int32
	template      chatTemplate
	tools         chatTemplate      // for conversations with tools, if the source is not ""
	named         map[string]string // templates besides the default
	names         map[string]string // special tokens by role ("eos_token"), for templates
	added         []addedToken      // with their ids

	source source // for Save

	normalBudget, pretokenBudget budget // what normalize and pretoken may take
}

// wordModel turns the words that the pre-tokenizer makes into ids.
type wordModel interface {
	encode(out []int32, e *scratch, word string) []int32
}

// Encode returns the ids of s. With addSpecial it also adds the tokens of the
// post-processor (for Llama the beginning-of-text token). A special token that is
// spelled out in s, such as "<|im_end|>", becomes its id in either case. Bytes of
// s that are not UTF-8 are read as U+FFFD.
func (t *Tokenizer) Encode(s string, addSpecial bool) []int32 {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	out := make([]int32, 0, len(s)/3+4)
	if addSpecial {
		out = append(out, t.prefix...)
	}
	out = t.encodeParts(out, s, nil)
	if addSpecial {
		out = append(out, t.suffix...)
	}
	return out
}

// encodeParts appends the ids of s. It tells each part of s that it encodes by
// itself, and how many ids precede it in out.
func (t *Tokenizer) encodeParts(out []int32, s string, tell func(p part, before int)) []int32 {
	e := t.scratch.Get().(*scratch)
	defer func() {
		if cap(e.ids) <= maxScratch { // that of a very long word is not kept
			t.scratch.Put(e)
		}
	}()
	t.rawAdded.split(s, func(piece string, id int32, start, end int) {
		if tell != nil {
			tell(part{start, end, id >= 0}, len(out))
		}
		if id >= 0 {
			out = append(out, id)
			return
		}
		for _, f := range t.normalize {
			piece = f(piece)
		}
		t.normAdded.split(piece, func(piece string, id int32, at, _ int) {
			if id >= 0 {
				out = append(out, id)
				return
			}
			out = t.encodeWords(out, e, t.pretoken, piece, start == 0 && at == 0)
		})
	})
	return out
}

// EncodeStart returns the ids of the beginning of a longer text: like Encode with
// addSpecial, but without the tokens that the post-processor adds at the end.
func (t *Tokenizer) EncodeStart(s string) []int32 {
	ids := t.Encode(s, true)
	return ids[:len(ids)-len(t.suffix)]
}

// Continuation encodes given+target and cuts the ids where target begins. after holds
// the ids of target as they follow given, without the space that some tokenizers add
// before a text. A token that spans the border belongs to after.
func (t *Tokenizer) Continuation(given, target string) (before, after []int32) {
	ids := t.EncodeStart(given + target)
	n := CommonPrefix(t.EncodeStart(given), ids)
	return ids[:n:n], ids[n:]
}

// CommonPrefix returns how many leading elements a and b share.
func CommonPrefix[T comparable](a, b []T) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// encodeWords splits s with the first of steps and passes each piece to the other
// steps. Without steps, s is a word, and the model encodes it. first is true at
// the beginning of the input.
func (t *Tokenizer) encodeWords(out []int32, e *scratch, steps []preStep, s string,
	first bool,
) []int32 {
	if len(steps) == 0 {
		return t.model.encode(out, e, s)
	}
	step, rest := steps[0], steps[1:]
	if step.rewrite != nil {
		s = step.rewrite(s, first)
	}
	if step.next == nil {
		if step.all == nil {
			return t.encodeWords(out, e, rest, s, first)
		}
		for _, piece := range step.all(s) {
			out = t.encodeWords(out, e, rest, piece, first)
			first = false
		}
		return out
	}
	for len(s) > 0 {
		n := step.next(s)
		if len(rest) == 0 {
			out = t.model.encode(out, e, s[:n])
		} else {
			out = t.encodeWords(out, e, rest, s[:n], first)
		}
		s, first = s[n:], false
	}
	return out
}

// VocabSize returns the largest id, added tokens included, plus one. An embedding
// has at least that many rows.
func (t *Tokenizer) VocabSize() int { return len(t.tokens) }

// Fits reports whether the tokenizer can belong to a model whose embedding has so many
// rows. Added tokens and one in a hundred others may lack a row, as in some models. The
// caller must refuse their ids.
func (t *Tokenizer) Fits(rows int) bool {
	n := 0
	for _, id := range t.vocab {
		if int(id) >= rows {
			n++
		}
	}
	return n <= max(1, rows/100)
}

// Token returns the spelling of an id in the vocabulary ("Ġthe", "▁the",
// "<0x0A>"), or "" for an unused id.
func (t *Tokenizer) Token(id int32) string {
	if id < 0 || int(id) >= len(t.tokens) {
		return ""
	}
	return t.tokens[id]
}

// ID returns the id of a token, given its spelling in the vocabulary.
func (t *Tokenizer) ID(token string) (int32, bool) {
	id, ok := t.ids[token]
	return id, ok
}

// BOS returns the token that begins a text. ok is false if there is none.
func (t *Tokenizer) BOS() (id int32, ok bool) { return t.bos, t.bos >= 0 }

// EOS returns every id that ends a text or a turn: first the tokenizer's own
// end-of-text token, then the ids of generation_config.json and config.json.
func (t *Tokenizer) EOS() []int32 { return append([]int32(nil), t.eos...) }

// AddEOS adds ids to those that end a text or a turn: EOS lists them last. Ids that are not tokens
// are left out. It must not be called while another goroutine uses t.
func (t *Tokenizer) AddEOS(ids ...int32) {
	for _, id := range ids {
		t.addEOS(id)
	}
}

// IsEOS reports whether id ends a text or a turn.
func (t *Tokenizer) IsEOS(id int32) bool { return slices.Contains(t.eos, id) }

// Pad returns the padding token. ok is false if the tokenizer has none.
func (t *Tokenizer) Pad() (id int32, ok bool) { return t.pad, t.pad >= 0 }
