package tokenizer

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOpen_GenerationConfigAddsEOS(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		data, err := os.ReadFile(filepath.Join(fixtures, "llama3", name))
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, name), data, 0o666)
	}
	os.WriteFile(filepath.Join(dir, "generation_config.json"),
		[]byte(`{"eos_token_id": [1, 4, 99999], "bos_token_id": 0}`), 0o666)
	tok, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.EOS(); !slices.Equal(got, []int32{4, 1}) {
		t.Errorf("EOS is %v, want the tokenizer's 4, then 1", got)
	}
	if id, ok := tok.BOS(); id != 0 || !ok {
		t.Errorf("BOS is %d, %t", id, ok)
	}
	if _, ok := tok.Pad(); ok {
		t.Error("a pad token appeared")
	}
}

func TestOpen_CharTokenizerMapsCharactersToCodes(t *testing.T) {
	tok := chars(t)
	want := []int32{2, 'a', 0xff, 0, 0, 0, 2}
	if got := tok.Encode("aÿ\x00Ā€\x02", true); !slices.Equal(got, want) {
		t.Errorf("ids %v, want %v", got, want)
	}
	if got := tok.Decode([]int32{'a', 0xe9, 3, 255}, false); got != "aé\x03ÿ" ||
		tok.VocabSize() != 256 {
		t.Errorf("decoded %q, vocabulary of %d", got, tok.VocabSize())
	}
}

func TestOpen_LegacyFalsePrefixesOnlyTheText(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(fixtures, "sentencepiece", "tokenizer.model"))
	if err != nil {
		t.Fatal(err)
	}
	for legacy, want := range map[string]string{"true": "▁a</s>▁a", "false": "▁a</s>a"} {
		path := writeTestFile(t, "tokenizer.model", string(data))
		os.WriteFile(filepath.Join(filepath.Dir(path), "tokenizer_config.json"),
			[]byte(`{"legacy": `+legacy+`, "add_bos_token": false}`), 0o666)
		tok, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, id := range tok.Encode("a</s>a", true) {
			got += tok.Token(id)
		}
		if got != want {
			t.Errorf("legacy %s: %s, want %s", legacy, got, want)
		}
	}
}

func TestOpen_ErrorsNameFileAndProblem(t *testing.T) {
	valid, err := os.ReadFile(filepath.Join(fixtures, "llama2", "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	pieces, err := os.ReadFile(filepath.Join(fixtures, "sentencepiece", "tokenizer.model"))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(from, to string) string {
		if !bytes.Contains(valid, []byte(from)) {
			t.Fatalf("the fixture has no %q", from)
		}
		return string(bytes.Replace(valid, []byte(from), []byte(to), 1))
	}
	for _, c := range []struct{ name, content, want string }{
		{"tokenizer.json", `{"model":`, "not JSON"},
		{"tokenizer.json", `{"model":{"type":"Nothing"}}`,
			`type "Nothing" is not supported; known are BPE`},
		{"tokenizer.json", edit(`"type":"Prepend"`, `"type":"Precompiled"`),
			`normalizer: type "Precompiled" is not supported`},
		{"tokenizer.json", edit(`"type":"Fuse"`, `"type":"Nothing"`),
			`decoder: type "Nothing"`},
		{"tokenizer.json", edit(`"unk_token":"<unk>"`, `"unk_token":"<no>"`),
			`unk_token "<no>" is not in the vocabulary`},
		{"tokenizer.json", edit(`"merges":[`, `"merges":[["never","seen"],`),
			`merge 0 joins "never" and "seen"`},
		{"tokenizer.json", edit(`"<s>":1`, `"<s>":2000000000`), `has id 2000000000`},
		{"tokenizer.json", edit(`"merges":[`, `"merges":["a b c",`), `merge "a b c"`},
		{"tokenizer.model", "hello",
			`it is text that begins with "hello",` +
				` neither a tokenizer.json nor a SentencePiece model`},
		{"tokenizer.model", "", "it is empty"},
		{"tokenizer.model", "version https://git-lfs.github.com/spec/v1\nsize 5\n", "git lfs pull"},
		{"tokenizer.json", "version https://git-lfs.github.com/spec/v1\nsize 5\n", "git lfs pull"},
		{"tokenizer.json", "<!doctype html><html></html>", "HTML page"},
		{"tokenizer.json", `{"error":"Repository not found"}`, "Repository not found"},
		{"tokenizer.model", "\x1f\x8b\x08\x00\x00\x00", "gzip -d"},
		{"tokenizer.model", "\x01\x02\x03", "neither JSON nor a SentencePiece model"},
		{"tokenizer.model", "\x1a\x00", "neither JSON nor a SentencePiece model, which has pieces"},
		{"tokenizer.model", string(pieces[:len(pieces)/2]),
			"a SentencePiece model that is cut off after"},
		// The content decides the format, not the name.
		{"foo.model", string(valid[:2000]),
			"looks like a tokenizer.json, but is not JSON: unexpected end of JSON input (at " +
				"byte 2000 of 2000)"},
		{"tok.txt", "\n  " + string(valid[:1000]),
			"looks like a tokenizer.json, but is not JSON: unexpected end of JSON input (at " +
				"byte 1003 of 1003)"},
		{"foo.model", "\n{\n" + string(valid[1:1000]),
			"looks like a tokenizer.json, but is not JSON"},
		{"foo.model", "\xEF\xBB\xBF" + string(valid), "byte order mark"},
		{"vocab.json", `{"a": 1, "b": 2}`,
			"it is JSON, but not a tokenizer.json: it has no model with a vocabulary"},
		{"merges.json", `["a b", "c d"]`, "it is text that begins with"},
		{"model.gguf", "GGUF\x03\x00\x00\x00", "it is a GGUF file"},
	} {
		_, err := Open(writeTestFile(t, c.name, c.content))
		if err == nil || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), c.name) {
			t.Errorf("%s %.60q: error %v, want %q", c.name, c.content, err, c.want)
		}
	}
	if _, err := Open(writeTestFile(t, "tok.txt", "\n\n"+string(valid))); err != nil {
		t.Errorf("a tokenizer.json under another name: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil ||
		!strings.Contains(err.Error(), "neither tokenizer.json nor tokenizer.model") {
		t.Errorf("empty folder: %v", err)
	}
	for _, c := range []struct {
		meta map[string]any
		want string
	}{
		{nil, "tokenizer.ggml.tokens has 0 entries"},
		{map[string]any{"tokenizer.ggml.tokens": []int32{1}}, "expected a []string"},
		{map[string]any{"tokenizer.ggml.tokens": []string{"a"}, "tokenizer.ggml.model": "bert"},
			`tokenizer.ggml.model is "bert"`},
		{map[string]any{"tokenizer.ggml.tokens": []string{"a"}, "tokenizer.ggml.model": "gpt2",
			"tokenizer.ggml.pre": "nothing"}, `tokenizer.ggml.pre is "nothing"`},
		{map[string]any{"tokenizer.ggml.tokens": []string{"a"},
			"tokenizer.ggml.scores": []float32{1, 2}}, "2 entries for 1 tokens"},
	} {
		if _, err := FromGGUF(c.meta); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("GGUF %v: %v", c.meta, err)
		}
	}
}

func TestOpen_NamesLlama3RankFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokenizer.model")
	os.WriteFile(path, []byte("IQ== 0\nIg== 1\nIw== 2\n"), 0o644)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "Llama 3") ||
		!strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}
