package tokenizer

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSave_ReopensAsTheSameTokenizer(t *testing.T) {
	eachFixture(t, func(t *testing.T, dir string, tok *Tokenizer, golden *goldenFile) {
		out := t.TempDir()
		if err := tok.Save(out); err != nil {
			t.Fatal(err)
		}
		again, err := Open(out)
		if err != nil {
			t.Fatal(err)
		}
		checkIDs(t, again, golden)
		if again.ChatTemplate() != tok.ChatTemplate() || !slices.Equal(again.EOS(), tok.EOS()) ||
			again.bos != tok.bos {
			t.Error("template or special tokens differ")
		}
		want, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
		if err != nil {
			return // generated
		}
		if got, _ := os.ReadFile(filepath.Join(out, "tokenizer.json")); !bytes.Equal(got, want) {
			t.Error("tokenizer.json is not the file that was opened")
		}
	})
}

func TestSave_CharTokenizer(t *testing.T) {
	dir := t.TempDir()
	if err := chars(t).Save(dir); err != nil {
		t.Fatal(err)
	}
	// transformers refuses null in place of a list
	if data, _ := os.ReadFile(filepath.Join(dir, "tokenizer.json")); !bytes.Contains(data,
		[]byte(`"added_tokens": []`)) || !bytes.Contains(data, []byte(`"merges": []`)) {
		t.Error("empty lists are not written as []")
	}
	tok, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tok.Encode("aé", true), []int32{2, 'a', 0xe9}; !slices.Equal(got, want) {
		t.Errorf("ids %v, want %v", got, want)
	}
}
