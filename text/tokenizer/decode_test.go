package tokenizer

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestDecoder_StreamedTextEqualsDecodedText(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		for _, c := range golden.Cases {
			// step 2 gives bytes that do not form characters
			for _, step := range []int{1, 2} {
				var ids []int32
				for i := 0; i < len(c.Special); i += step {
					ids = append(ids, c.Special[i])
				}
				d := tok.Decoder(false)
				var s strings.Builder
				for _, id := range ids {
					piece := d.Next(id)
					if strings.ToValidUTF8(piece, "") != piece {
						t.Fatalf("piece %q splits a character", piece)
					}
					s.WriteString(piece)
				}
				s.WriteString(d.Flush())
				if got, want := s.String(), tok.Decode(ids, false); got != want {
					t.Errorf("streamed %q, decoded %q", got, want)
				}
			}
		}
	})
}

func TestDecoder_WaitsForOneCharacterAtMost(t *testing.T) {
	tok, err := Open(filepath.Join(fixtures, "llama3"))
	if err != nil {
		t.Fatal(err)
	}
	d := tok.Decoder(true)
	shown := ""
	for _, id := range tok.Encode("Hello", false) {
		shown += d.Next(id)
	}
	if shown != "Hello" {
		t.Errorf("shown before Flush: %q", shown)
	}
}

// What follows a prompt is decoded as its continuation: the space before its first word stays.
func TestContinue_PromptAndTextAreTheWholeText(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		for _, c := range golden.Cases {
			whole := tok.Decode(c.Special, true)
			for cut := range c.Special {
				shown := tok.Decode(c.Special[:cut], true)
				if !strings.HasPrefix(whole, shown) {
					continue // the prompt ends inside a character
				}
				d := tok.Continue(c.Special[:cut], true)
				var text strings.Builder
				for _, id := range c.Special[cut:] {
					text.WriteString(d.Next(id))
				}
				text.WriteString(d.Flush())
				if shown+text.String() != whole {
					t.Errorf("%q and %q, of %q", shown, &text, whole)
				}
			}
		}
	})
}

func TestContinue_ReturnsTheCharacterInWhichThePromptEnds(t *testing.T) {
	tok, err := Open(filepath.Join(fixtures, "llama3"))
	if err != nil {
		t.Fatal(err)
	}
	var ids []int32
	for _, b := range []byte("é!") {
		id, ok := tok.ID(string(byteRune[b]))
		if !ok {
			t.Fatalf("no token for byte %x", b)
		}
		ids = append(ids, id)
	}
	d := tok.Continue(ids[:1], false)
	if got := d.Next(ids[1]) + d.Next(ids[2]) + d.Flush(); got != "é!" {
		t.Errorf("got %q", got)
	}
}

func TestDecoder_StagesMatchHuggingFace(t *testing.T) {
	tokens := []string{"▁He", "##llo", " .", "y</w>", "a</w>b", "a", "a", "<pad>", "|", " ", "  x ",
		"<0xC3>", "<0xA9>", "<0xFF>", "n't", " n't", " do not", "▁", "▁▁w"}
	for _, c := range []struct{ decoder, want string }{
		{`{"type":"WordPiece","prefix":"##","cleanup":true}`,
			"▁Hello . y</w> a</w>b a a <pad> |     x  <0xC3> <0xA9> <0xFF>n't n't  don't ▁ ▁▁w"},
		{`{"type":"BPEDecoder","suffix":"</w>"}`,
			"▁He##llo .y a baa<pad>|   x <0xC3><0xA9><0xFF>n't n't do not▁▁▁w"},
		{`{"type":"CTC","pad_token":"<pad>","word_delimiter_token":"|","cleanup":true}`,
			"▁He##llo.y</w>a</w>ba    x <0xC3><0xA9><0xFF>n'tn't don't▁▁▁w"},
		{`{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}`,
			"He##llo .y</w>a</w>baa<pad>|   x <0xC3><0xA9><0xFF>n't n't do not   w"},
		{`{"type":"Strip","content":" ","start":2,"stop":0}`,
			"▁He##llo.y</w>a</w>baa<pad>|x <0xC3><0xA9><0xFF>n'tn'tdo not▁▁▁w"},
		{`{"type":"Strip","content":" ","start":0,"stop":1}`,
			"▁He##llo .y</w>a</w>baa<pad>|  x<0xC3><0xA9><0xFF>n't n't do not▁▁▁w"},
		{`{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},` +
			`{"type":"Replace","pattern":{"String":"é"},"content":"e"}]}`,
			"▁He##llo .y</w>a</w>baa<pad>|   x \uFFFD\uFFFD\uFFFDn't n't do not▁▁▁w"},
	} {
		spec := newSpec(len(tokens))
		spec.Decoder = []byte(c.decoder)
		var ids []int32
		for i, token := range tokens {
			id, ok := spec.Model.Vocab[token]
			if !ok {
				id = int32(i)
				spec.Model.Vocab[token] = id
			}
			ids = append(ids, id)
		}
		tok, err := spec.build()
		if err != nil {
			t.Fatal(err)
		}
		if got := tok.Decode(ids, false); got != c.want {
			t.Errorf("%s gives\n%q, want\n%q", c.decoder, got, c.want)
		}
	}
}
