package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Tokenizers of every kind of stage give the ids and texts that Hugging Face gives.
// TEXT_KINDS names another file that tools/fixtures/text_kinds.py wrote.
func TestTokenizer_KindsMatchHuggingFace(t *testing.T) {
	path := os.Getenv("TEXT_KINDS")
	if path == "" {
		path = filepath.Join(fixtures, "kinds.json")
	}
	var kinds []struct {
		Name  string
		Spec  json.RawMessage
		Cases []struct {
			Text, Decoded, Skipped string
			Plain, Special         []int32
		}
	}
	readTestJSON(t, path, &kinds)
	for _, k := range kinds {
		t.Run(k.Name, func(t *testing.T) {
			spec, err := parseSpec(k.Spec)
			if err != nil {
				t.Fatal(err)
			}
			tok, err := spec.build()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range k.Cases {
				if got := tok.Encode(c.Text, false); !slices.Equal(got, c.Plain) {
					t.Errorf("%q gives %v, want %v", c.Text, got, c.Plain)
				}
				if got := tok.Encode(c.Text, true); !slices.Equal(got, c.Special) {
					t.Errorf("%q gives %v with special tokens, want %v", c.Text, got, c.Special)
				}
				if got := tok.Decode(c.Special, false); got != c.Decoded {
					t.Errorf("%v is %q, want %q", c.Special, got, c.Decoded)
				}
				if got := tok.Decode(c.Special, true); got != c.Skipped {
					t.Errorf("%v without special tokens is %q, want %q", c.Special, got, c.Skipped)
				}
				var streamed strings.Builder
				d := tok.Decoder(false)
				for _, id := range c.Special {
					streamed.WriteString(d.Next(id))
				}
				if streamed.WriteString(d.Flush()); streamed.String() != c.Decoded {
					t.Errorf("%v streamed is %q, want %q", c.Special, &streamed, c.Decoded)
				}
			}
		})
	}
}
