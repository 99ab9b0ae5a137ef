package tokenizer

import (
	"slices"
	"strings"
	"testing"
)

// Added tokens get the next ids, are matched in texts, and are saved with the tokenizer.
func TestExtend_AddsTokensOnce(t *testing.T) {
	base, err := Open("testdata/llama3")
	if err != nil {
		t.Fatal(err)
	}
	known := base.Token(300)
	size := base.VocabSize()
	more, ids, err := base.Extend(t.TempDir(), []string{"<lamp>", known, "fog horn", "<lamp>"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []int32{int32(size), 300, int32(size) + 1, int32(size)}; !slices.Equal(ids, want) {
		t.Errorf("the ids are %v, want %v", ids, want)
	}
	if more.VocabSize() != size+2 || base.VocabSize() != size {
		t.Errorf("the sizes are %d and %d", more.VocabSize(), base.VocabSize())
	}
	const text = "The <lamp> and the fog horn."
	got := more.Encode(text, false)
	if !slices.Contains(got, int32(size)) || !slices.Contains(got, int32(size)+1) ||
		more.Decode(got, true) != text {
		t.Errorf("%q is %v, and back %q", text, got, more.Decode(got, true))
	}
	dir := t.TempDir()
	if err := more.Save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.Encode(text, false), got) || !slices.Equal(again.EOS(), base.EOS()) {
		t.Errorf("the saved tokenizer gives %v, want %v", again.Encode(text, false), got)
	}
	if _, _, err := base.Extend(t.TempDir(), []string{""}); err == nil ||
		!strings.Contains(err.Error(), "empty token") {
		t.Errorf("error %v", err)
	}
	gaps, err := Open("testdata/smollm")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := gaps.Extend(t.TempDir(), []string{"<lamp>"}); err == nil ||
		!strings.Contains(err.Error(), "gaps") {
		t.Errorf("error %v", err)
	}
}
