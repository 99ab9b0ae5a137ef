package tokenizer

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBPE_BothMergesAgree(t *testing.T) {
	// Short words use mergeShort, long words mergeLong.
	tok, err := Open(filepath.Join(fixtures, "gpt2"))
	if err != nil {
		t.Fatal(err)
	}
	e := newScratch().(*scratch)
	for _, s := range []string{"a", "=", " ", "ab", "err", "the", "return nil"} {
		for n := 1; n < 60; n++ {
			word := strings.Repeat(s, n)
			e.ids = tok.model.(*bpe).symbols(e.ids[:0], word)
			long := tok.model.(*bpe).mergeLong(nil, e)
			e.ids = tok.model.(*bpe).symbols(e.ids[:0], word)
			if short := tok.model.(*bpe).mergeShort(e); !slices.Equal(long, short) {
				t.Fatalf("%q: heap %v, scan %v", word, long, short)
			}
		}
	}
}
