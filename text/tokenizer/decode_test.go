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
