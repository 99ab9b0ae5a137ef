package tokenizer

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// asGGUF returns the metadata that a GGUF file has for a tokenizer of the fixtures.
func asGGUF(t testing.TB, name, model, pre string) map[string]any {
	t.Helper()
	tok, err := Open(filepath.Join(fixtures, name))
	if err != nil {
		t.Fatal(err)
	}
	meta := map[string]any{
		"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre,
		"tokenizer.ggml.tokens":   tok.tokens,
		"tokenizer.chat_template": tok.ChatTemplate(),
	}
	for key, id := range map[string]int32{"bos": tok.bos, "unknown": tok.unk, "padding": tok.pad} {
		if id >= 0 {
			meta["tokenizer.ggml."+key+"_token_id"] = uint32(id)
		}
	}
	for _, id := range tok.EOS() {
		meta["tokenizer.ggml.eos_token_id"] = uint32(id)
	}
	types := make([]int32, len(tok.tokens))
	for id := range types {
		types[id] = 1
		if tok.decodeKind[id] == specialPiece {
			types[id] = ggufControl
		}
	}
	meta["tokenizer.ggml.token_type"] = types
	var spec fileSpec
	if model == "gpt2" {
		readTestJSON(t, filepath.Join(fixtures, name, "tokenizer.json"), &spec)
		var merges []string
		for _, m := range spec.Model.Merges {
			merges = append(merges, m[0]+" "+m[1])
		}
		meta["tokenizer.ggml.merges"] = merges
		return meta
	}
	// In SentencePiece BPE, the score of each piece is lower than that of the previous one.
	scores := make([]float32, len(tok.tokens))
	for id, token := range tok.tokens {
		if id > 2 {
			scores[id] = -float32(id - 259)
		}
		if id > 2 && len(token) == 6 && strings.HasPrefix(token, "<0x") {
			types[id], scores[id] = pieceByte, 0
		}
	}
	types[0] = ggufUnknown
	meta["tokenizer.ggml.scores"] = scores
	return meta
}

func TestFromGGUF_GivesTheSameIDs(t *testing.T) {
	for _, c := range []struct{ name, model, pre string }{
		{"llama3", "gpt2", "llama-bpe"}, {"smollm", "gpt2", "smollm"}, {"qwen2", "gpt2", "qwen2"},
		{"sentencepiece", "llama", "default"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, err := FromGGUF(asGGUF(t, c.name, c.model, c.pre))
			if err != nil {
				t.Fatal(err)
			}
			golden := new(goldenFile)
			readTestJSON(t, filepath.Join(fixtures, c.name, "golden.json"), golden)
			checkIDs(t, tok, golden)
			if len(golden.Chats) > 0 && tok.ChatTemplate() == "" {
				t.Error("the chat template is lost")
			}
			out := t.TempDir()
			if err := tok.Save(out); err != nil {
				t.Fatal(err)
			}
			saved, err := Open(out)
			if err != nil {
				t.Fatal(err)
			}
			checkIDs(t, saved, golden)
		})
	}
}

// A tokenizer from its own GGUF metadata gives the same ids, unless GGUF cannot represent it.
func TestGGUF_RoundTripKeepsIDs(t *testing.T) {
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
		if back.VocabSize() != tok.VocabSize() || back.ChatTemplate() != tok.ChatTemplate() ||
			back.bos != tok.bos || back.pad != tok.pad {
			t.Errorf("%d tokens, bos %d, pad %d; expected %d, %d, %d", back.VocabSize(), back.bos,
				back.pad, tok.VocabSize(), tok.bos, tok.pad)
		}
		if n := min(len(tok.eos), 3); !slices.Equal(back.eos[:n], tok.eos[:n]) {
			t.Errorf("ends %v, expected %v", back.eos, tok.eos)
		}
		// GGUF cannot represent a space that is added only at the beginning of a text, nor an added
		// token that matches the white space around it.
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
	if _, err := tok.GGUF(tok.VocabSize() / 2); err == nil ||
		!strings.Contains(err.Error(), "rows") {
		t.Errorf("error %v", err)
	}
	// One token more than the model has rows is left out.
	rows := tok.VocabSize() - 1
	meta, err := tok.GGUF(rows)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := FromGGUF(meta); err != nil || back.VocabSize() != rows {
		t.Errorf("%v, want %d tokens", err, rows)
	}
}

// Files whose metadata name only </s> end a turn at the tokens that llama.cpp knows by name.
func TestFromGGUF_EndsAtKnownNames(t *testing.T) {
	for _, c := range []struct{ names, want string }{
		{"<|eot_id|> <|eom_id|> x", "</s> <|eot_id|> <|eom_id|>"},
		{"<|im_end|> <|end|>", "</s> <|im_end|> <|end|>"},
		{"<|return|> <|call|> <|end|>", "</s> <|return|> <|call|>"},
		{"<|end|> <|calls|> <|flush|>", "</s> <|calls|> <|flush|>"},
		{"<|end|> <|flush|>", "</s> <|end|> <|flush|>"},
		{"<|tool_response> <turn|>", "<|tool_response> <turn|>"},
		{"<|file_sep|> <fim-pad> <|fim_pad|> <reponame>", "</s> <fim-pad> <reponame> <|file_sep|>"},
	} {
		meta := map[string]any{"tokenizer.ggml.model": "llama",
			"tokenizer.ggml.eos_token_id": uint32(2),
			"tokenizer.ggml.tokens": append([]string{"<unk>", "<s>", "</s>", "▁", "a"},
				strings.Fields(c.names)...)}
		n := len(meta["tokenizer.ggml.tokens"].([]string))
		meta["tokenizer.ggml.scores"] = make([]float32, n)
		types := slices.Repeat([]int32{1}, n)
		types[0], types[1], types[2] = ggufUnknown, ggufControl, ggufControl
		meta["tokenizer.ggml.token_type"] = types
		tok, err := FromGGUF(meta)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, id := range tok.EOS() {
			got = append(got, tok.Token(id))
		}
		if !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: ends %v, want %s", c.names, got, c.want)
		}
		// A token of that name is one, though the file gives it the type of text.
		name := strings.Fields(c.names)[0]
		if ids := tok.Encode("a"+name, false); tok.Token(ids[len(ids)-1]) != name {
			t.Errorf("%s becomes %v", name, ids)
		}
	}
}
