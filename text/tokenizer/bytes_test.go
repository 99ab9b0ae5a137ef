package tokenizer

import (
	"path/filepath"
	"strings"
	"testing"
)

// The bytes of a text's tokens, joined, are the text.
func TestBytes_JoinToTheText(t *testing.T) {
	folders, err := filepath.Glob("testdata/*/tokenizer.json")
	if err != nil || len(folders) == 0 {
		t.Fatal(folders, err)
	}
	tried := 0
	for _, file := range folders {
		tok, err := Open(filepath.Dir(file))
		if err != nil {
			continue // some are examples of what is refused
		}
		for _, text := range []string{"hello there", "a  b\n\nc", "äöü €", "日本語 😀",
			`{"a": [1, 2]}`} {
			if tok.Decode(tok.Encode("x "+text, false), true) != "x "+text {
				continue // the tokenizer changes texts
			}
			var joined strings.Builder
			for _, id := range tok.Encode("x "+text, false) {
				joined.Write(tok.Bytes(id))
			}
			if tried++; !strings.HasSuffix(joined.String(), text) {
				t.Errorf("%s: %q has the bytes %q", file, text, joined.String())
			}
		}
		for _, id := range tok.EOS() {
			if b := tok.Bytes(id); b != nil && tok.IsSpecial(id) {
				t.Errorf("%s: the special token %d has the bytes %q", file, id, b)
			}
		}
	}
	if tried < 5 {
		t.Errorf("only %d texts were tried", tried)
	}
}
