package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// words returns the pieces into which the pre-tokenizer divides a text.
func words(steps []preStep, s string) (pieces []string) {
	pieces = []string{s}
	for _, step := range steps {
		var next []string
		for _, piece := range pieces {
			switch {
			case step.all != nil:
				next = append(next, step.all(piece)...)
			case step.next != nil:
				for len(piece) > 0 {
					n := step.next(piece)
					next, piece = append(next, piece[:n]), piece[n:]
				}
			default:
				next = append(next, piece)
			}
		}
		pieces = next
	}
	return pieces
}

// The pre-tokenizers of GGUF files divide texts as llama.cpp divides them. testdata holds
// the pieces of its unicode_regex_split; GGUF_PRE names another file of them.
func TestFromGGUF_PreTokenizersMatchLlamaCpp(t *testing.T) {
	path := os.Getenv("GGUF_PRE")
	if path == "" {
		path = filepath.Join(fixtures, "gguf_pre.json")
	}
	var golden []struct {
		Pre   string
		Cases []struct {
			Text   string
			Pieces []string
		}
	}
	readTestJSON(t, path, &golden)
	tested := map[string]bool{}
	for _, g := range golden {
		tested[g.Pre] = true
		meta := map[string]any{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": g.Pre,
			"tokenizer.ggml.tokens": []string{"a"}}
		tok, err := FromGGUF(meta)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range g.Cases {
			if got := words(tok.pretoken, c.Text); !slices.Equal(got, c.Pieces) {
				t.Errorf("%q divides %q into %q, want %q", g.Pre, c.Text, got, c.Pieces)
			}
		}
	}
	for _, pre := range ggufPres {
		if !tested[pre.names[0]] {
			t.Errorf("%s has no test", pre.names[0])
		}
	}
	meta := map[string]any{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "kimi-k2",
		"tokenizer.ggml.tokens": []string{"a"}}
	if _, err := FromGGUF(meta); err == nil || !strings.Contains(err.Error(), `"kimi-k2"`) {
		t.Errorf("error %v", err)
	}
}

// A tokenizer.json with the pattern of its model is exported under llama.cpp's name.
func TestGGUF_NamesThePreTokenizer(t *testing.T) {
	for _, pre := range ggufPres {
		for _, form := range append(originalForms[pre.names[0]], pre.json()) {
			spec := newSpec(256)
			for b, r := range byteRune {
				spec.Model.Vocab[string(r)] = int32(b)
			}
			spec.Model.IgnoreMerges, spec.PreTokenizer = pre.ignoreMerges, form
			tok, err := spec.build()
			if err != nil {
				t.Fatal(err)
			}
			tok.source.spec = spec
			meta, err := tok.GGUF(256)
			if err != nil {
				t.Fatal(err)
			}
			want := pre.names[0]
			if want == "glm4" {
				want = "llama-bpe" // the same patterns
			}
			if got := meta["tokenizer.ggml.pre"]; got != want {
				t.Errorf("%s is named %q", pre.names[0], got)
			}
		}
	}
}
