package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A tokenizer that went through a GGUF file's metadata gives Hugging Face's ids still, but where the format has no word
// for what it does.
func TestATokenizerComesBackFromGGUFMetadata(t *testing.T) {
	written := 0
	eachFixture(t, func(t *testing.T, path string, tok *Tokenizer, golden *goldenFile) {
		name, rows := filepath.Base(path), tok.VocabSize()+5
		meta, err := tok.GGUF(rows)
		if name == "regexp" {
			if err == nil || !strings.Contains(err.Error(), "pre-tokenizer") {
				t.Errorf("error %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		written++
		if n := len(meta["tokenizer.ggml.tokens"].([]string)); n != rows {
			t.Errorf("%d tokens for %d rows", n, rows)
		}
		back, err := FromGGUF(meta)
		if err != nil {
			t.Fatal(err)
		}
		if back.VocabSize() != tok.VocabSize() || back.ChatTemplate() != tok.ChatTemplate() || back.bos != tok.bos || back.pad != tok.pad {
			t.Errorf("%d tokens, bos %d, pad %d; expected %d, %d, %d", back.VocabSize(), back.bos, back.pad, tok.VocabSize(), tok.bos, tok.pad)
		}
		if n := min(len(tok.eos), 3); !slices.Equal(back.eos, tok.eos[:n]) {
			t.Errorf("ends %v, expected %v", back.eos, tok.eos)
		}
		// GGUF does not tell that a space is put in front of a text only, nor that an added token takes the spaces beside it.
		if name == "metaspace" || name == "gpt2" {
			return
		}
		checkIDs(t, back, golden)
	})
	if written < 6 {
		t.Errorf("only %d fixtures were written", written)
	}
	tok, err := Open(fixtures + "/smollm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.GGUF(tok.VocabSize() - 1); err == nil || !strings.Contains(err.Error(), "rows") {
		t.Errorf("error %v", err)
	}
}

func TestLlama3sListOfRanksIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokenizer.model")
	os.WriteFile(path, []byte("IQ== 0\nIg== 1\nIw== 2\n"), 0o644)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "Llama 3") || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}
