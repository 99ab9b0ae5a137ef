package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// The tokens from the one that holds the first byte of a part of a text to the one that holds its
// last byte decode to text with that part, and without either of them part of it is missing.
func TestEncodeAt_FindsTheTokensOfAPart(t *testing.T) {
	draw := rand.New(rand.NewPCG(3, 4))
	words := []string{"Hello", " ", "  ", "\n", "</s>", "<s>", "don't", "\t", "12345",
		"<|im_end|>", ".", "the house", "wörld", "日本語", "👩‍👩‍👧", "ﬁ"}
	for _, name := range []string{"gpt2", "llama2", "llama3", "metaspace", "qwen2", "smollm",
		"sentencepiece"} {
		tok, err := Open("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			var b strings.Builder
			for range 1 + draw.IntN(12) {
				b.WriteString(words[draw.IntN(len(words))])
			}
			s := b.String()
			start := draw.IntN(len(s))
			end := start + 1 + draw.IntN(len(s)-start)
			for !utf8.RuneStart(s[start]) {
				start--
			}
			for end < len(s) && !utf8.RuneStart(s[end]) {
				end++
			}
			ids, tokens := tok.EncodeAt(s, true, []int{start, end - 1, len(s)})
			if want := tok.Encode(s, true); !slices.Equal(ids, want) {
				t.Fatalf("%s: %q is %v, want %v", name, s, ids, want)
			}
			if tokens[2] != len(ids)-len(tok.suffix) {
				t.Fatalf("%s: %q ends at token %d of %d", name, s, tokens[2], len(ids))
			}
			from, to := tokens[0], tokens[1]+1
			part := s[start:end]
			if unknown := tok.unk; slices.Contains(ids, unknown) {
				continue // its text is lost
			}
			// Decode drops or adds spaces at the start and beside special tokens.
			tight := func(s string) string { return strings.ReplaceAll(s, " ", "") }
			got := tok.Decode(ids[from:to], false)
			if !strings.Contains(tight(got), tight(part)) {
				t.Fatalf("%s: %q: %q is in tokens %d to %d, %q", name, s, part, from, to, got)
			}
			if len(part) != utf8.RuneCountInString(part) || strings.TrimSpace(part) != part {
				continue
			}
			for _, less := range [][]int32{ids[from+1 : to], ids[from : to-1]} {
				if got := tight(tok.Decode(less, false)); len(got) >= len(tight(part)) &&
					tight(tok.Decode(ids[from:from+1], false)) != "" &&
					strings.Contains(got, tight(part)) {
					t.Fatalf("%s: %q: %q needs only %q", name, s, part, got)
				}
			}
		}
	}
}
