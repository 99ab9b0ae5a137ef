package tokenizer

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const fixtures = "testdata"

// chars is the character tokenizer.
func chars(t testing.TB) *Tokenizer {
	t.Helper()
	tok, err := Open(CharTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func writeTestFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

type goldenFile struct {
	Cases []struct {
		Text           string
		Plain, Special []int32
		Decoded        string
		Skipped        string
	}
	Chats []struct {
		Messages []Message
		Generate bool
		Want     *string // nil where the template refuses the conversation
	}
}

func eachFixture(t *testing.T, f func(t *testing.T, dir string, tok *Tokenizer, golden *goldenFile)) {
	dirs, _ := filepath.Glob(filepath.Join(fixtures, "*", "golden.json"))
	if len(dirs) < 8 {
		t.Fatalf("%d fixtures in %s", len(dirs), fixtures)
	}
	for _, path := range dirs {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			tok, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			golden := new(goldenFile)
			readTestJSON(t, path, golden)
			f(t, dir, tok, golden)
		})
	}
}

func checkIDs(t *testing.T, tok *Tokenizer, golden *goldenFile) {
	t.Helper()
	for _, c := range golden.Cases {
		if got := tok.Encode(c.Text, false); !slices.Equal(got, c.Plain) {
			t.Errorf("%q gives %v, want %v", c.Text, got, c.Plain)
		}
		if got := tok.Encode(c.Text, true); !slices.Equal(got, c.Special) {
			t.Errorf("%q gives %v with special tokens, want %v", c.Text, got, c.Special)
		}
	}
}

func TestIDsAndTextsAreHuggingFaces(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		checkIDs(t, tok, golden)
		for _, c := range golden.Cases {
			if got := tok.Decode(c.Special, false); got != c.Decoded {
				t.Errorf("%v is %q, want %q", c.Special, got, c.Decoded)
			}
			if got := tok.Decode(c.Special, true); got != c.Skipped {
				t.Errorf("%v without special tokens is %q, want %q", c.Special, got, c.Skipped)
			}
		}
	})
}

func TestAContinuationHasTheTokensOfTheWholeText(t *testing.T) {
	const given, target = "In other words,", " round the tower"
	eachFixture(t, func(t *testing.T, dir string, tok *Tokenizer, _ *goldenFile) {
		before, after := tok.Continuation(given, target)
		whole := tok.Encode(given+target, true)
		if ids := append(slices.Clone(before), after...); !slices.Equal(ids, whole[:len(whole)-len(tok.suffix)]) {
			t.Errorf("%v, of the whole text %v", ids, whole)
		}
		if got := tok.Decode(before, true); got != given {
			t.Errorf("before the border lies %q", got)
		}
		if twice := slices.Equal(after, tok.Encode(target, false)); twice && (filepath.Base(dir) == "llama2" || filepath.Base(dir) == "sentencepiece") {
			t.Errorf("%v has a second space", after)
		}
	})
}

func TestChatsAreRenderedAsTransformersDoes(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		for _, c := range golden.Chats {
			got, err := tok.Chat(c.Messages, c.Generate)
			if (err != nil) != (c.Want == nil) || err == nil && got != *c.Want {
				t.Errorf("%v gives %q, %v", c.Messages, got, err)
			}
		}
	})
}

func TestTextStreamedTokenByTokenIsTheDecodedText(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		for _, c := range golden.Cases {
			// every second id as well: bytes that form no character
			for _, step := range []int{1, 2} {
				var ids []int32
				for i := 0; i < len(c.Special); i += step {
					ids = append(ids, c.Special[i])
				}
				d := tok.Decoder(false)
				var s strings.Builder
				for _, id := range ids {
					piece := d.Next(id)
					if strings.ToValidUTF8(piece, "") != piece {
						t.Fatalf("piece %q splits a character", piece)
					}
					s.WriteString(piece)
				}
				s.WriteString(d.Flush())
				if got, want := s.String(), tok.Decode(ids, false); got != want {
					t.Errorf("streamed %q, decoded %q", got, want)
				}
			}
		}
	})
}

func TestStreamingDoesNotWaitLongerThanACharacter(t *testing.T) {
	tok, err := Open(filepath.Join(fixtures, "llama3"))
	if err != nil {
		t.Fatal(err)
	}
	d := tok.Decoder(true)
	shown := ""
	for _, id := range tok.Encode("Hello", false) {
		shown += d.Next(id)
	}
	if shown != "Hello" {
		t.Errorf("shown before Flush: %q", shown)
	}
}

func TestOneTokenizerServesManyGoroutines(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for _, c := range golden.Cases {
					if !slices.Equal(tok.Encode(c.Text, true), c.Special) {
						t.Errorf("%q differs", c.Text)
					}
					if len(golden.Chats) > 0 {
						tok.Chat(golden.Chats[0].Messages, true)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestASavedTokenizerIsTheSame(t *testing.T) {
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
		if again.ChatTemplate() != tok.ChatTemplate() || !slices.Equal(again.EOS(), tok.EOS()) || again.bos != tok.bos {
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

// asGGUF is the metadata a GGUF file has for a tokenizer from the fixtures.
func asGGUF(t testing.TB, name, model, pre string) map[string]any {
	t.Helper()
	tok, err := Open(filepath.Join(fixtures, name))
	if err != nil {
		t.Fatal(err)
	}
	meta := map[string]any{
		"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tok.tokens,
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
	// The scores of SentencePiece's BPE fall from one piece to the next.
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

func TestGGUFMetadataGivesTheSameIDs(t *testing.T) {
	for _, c := range []struct{ name, model, pre string }{
		{"llama3", "gpt2", "llama-bpe"}, {"smollm", "gpt2", "smollm"}, {"qwen2", "gpt2", "qwen2"}, {"sentencepiece", "llama", "default"},
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

func TestGenerationConfigAddsTheTokensThatEndATurn(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		data, err := os.ReadFile(filepath.Join(fixtures, "llama3", name))
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, name), data, 0o666)
	}
	os.WriteFile(filepath.Join(dir, "generation_config.json"), []byte(`{"eos_token_id": [1, 4, 99999], "bos_token_id": 0}`), 0o666)
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

func TestCharacterTokensAreTheirCodes(t *testing.T) {
	tok := chars(t)
	if got, want := tok.Encode("aÿ\x00Ā€\x02", true), []int32{2, 'a', 0xff, 0, 0, 0, 2}; !slices.Equal(got, want) {
		t.Errorf("ids %v, want %v", got, want)
	}
	if got := tok.Decode([]int32{'a', 0xe9, 3, 255}, false); got != "aé\x03ÿ" || tok.VocabSize() != 256 {
		t.Errorf("decoded %q, vocabulary of %d", got, tok.VocabSize())
	}
}

func TestLegacyFalsePutsASpaceInFrontOfTheTextOnly(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(fixtures, "sentencepiece", "tokenizer.model"))
	if err != nil {
		t.Fatal(err)
	}
	for legacy, want := range map[string]string{"true": "▁a</s>▁a", "false": "▁a</s>a"} {
		path := writeTestFile(t, "tokenizer.model", string(data))
		os.WriteFile(filepath.Join(filepath.Dir(path), "tokenizer_config.json"), []byte(`{"legacy": `+legacy+`, "add_bos_token": false}`), 0o666)
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

func TestTheCharacterTokenizerCanBeSaved(t *testing.T) {
	dir := t.TempDir()
	if err := chars(t).Save(dir); err != nil {
		t.Fatal(err)
	}
	// transformers refuses null where a list is expected
	if data, _ := os.ReadFile(filepath.Join(dir, "tokenizer.json")); !bytes.Contains(data, []byte(`"added_tokens": []`)) || !bytes.Contains(data, []byte(`"merges": []`)) {
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

func TestInvalidUTF8IsReadAsReplacementCharacters(t *testing.T) {
	tok, err := Open(filepath.Join(fixtures, "llama3"))
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Decode(tok.Encode("a\xffb", false), false); got != "a\uFFFDb" {
		t.Errorf("got %q", got)
	}
}

func TestErrorsNameTheFileAndTheProblem(t *testing.T) {
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
		{"tokenizer.json", `{"model":{"type":"Unigram"}}`, `type "Unigram" is not supported; known are BPE`},
		{"tokenizer.json", edit(`"type":"Prepend"`, `"type":"BertNormalizer"`), `normalizer: type "BertNormalizer" is not supported`},
		{"tokenizer.json", edit(`"type":"Fuse"`, `"type":"WordPiece"`), `decoder: type "WordPiece"`},
		{"tokenizer.json", edit(`"unk_token":"<unk>"`, `"unk_token":"<no>"`), `unk_token "<no>" is not in the vocabulary`},
		{"tokenizer.json", edit(`"merges":[`, `"merges":[["never","seen"],`), `merge 0 joins "never" and "seen"`},
		{"tokenizer.json", edit(`"<s>":1`, `"<s>":2000000000`), `has id 2000000000`},
		{"tokenizer.json", edit(`"merges":[`, `"merges":["a b c",`), `merge "a b c"`},
		{"tokenizer.model", "hello", `it is text that begins with "hello", neither a tokenizer.json nor a SentencePiece model`},
		{"tokenizer.model", "", "the file is empty"},
		{"tokenizer.model", "\x01\x02\x03", "neither JSON nor a SentencePiece model"},
		{"tokenizer.model", "\x1a\x00", "neither JSON nor a SentencePiece model, which has pieces"},
		{"tokenizer.model", string(pieces[:len(pieces)/2]), "a SentencePiece model that is cut off after"},
		// What a file is does not depend on what it is called.
		{"foo.model", string(valid[:2000]), "looks like a tokenizer.json, but is not JSON: unexpected end of JSON input (at byte 2000 of 2000)"},
		{"tok.txt", "\n  " + string(valid[:1000]), "looks like a tokenizer.json, but is not JSON: unexpected end of JSON input (at byte 1003 of 1003)"},
		{"foo.model", "\n{\n" + string(valid[1:1000]), "looks like a tokenizer.json, but is not JSON"},
		{"foo.model", "\xEF\xBB\xBF" + string(valid), "byte order mark"},
		{"vocab.json", `{"a": 1, "b": 2}`, "it is JSON, but not a tokenizer.json: it has no model with a vocabulary"},
		{"merges.json", `["a b", "c d"]`, "it is text that begins with"},
		{"model.gguf", "GGUF\x03\x00\x00\x00", "it is a GGUF file"},
	} {
		_, err := Open(writeTestFile(t, c.name, c.content))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s %.60q: error %v, want %q", c.name, c.content, err, c.want)
		}
	}
	if _, err := Open(writeTestFile(t, "tok.txt", "\n\n"+string(valid))); err != nil {
		t.Errorf("a whole tokenizer.json of another name: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "neither tokenizer.json nor tokenizer.model") {
		t.Errorf("empty folder: %v", err)
	}
	for _, c := range []struct {
		meta map[string]any
		want string
	}{
		{nil, "tokenizer.ggml.tokens has 0 entries"},
		{map[string]any{"tokenizer.ggml.tokens": []int32{1}}, "expected a []string"},
		{map[string]any{"tokenizer.ggml.tokens": []string{"a"}, "tokenizer.ggml.model": "bert"}, `tokenizer.ggml.model is "bert"`},
		{map[string]any{"tokenizer.ggml.tokens": []string{"a"}, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}, `tokenizer.ggml.pre is "tekken"`},
		{map[string]any{"tokenizer.ggml.tokens": []string{"a"}, "tokenizer.ggml.scores": []float32{1, 2}}, "2 entries for 1 tokens"},
	} {
		if _, err := FromGGUF(c.meta); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("GGUF %v: %v", c.meta, err)
		}
	}
}

func TestChat_ErrorsNameTheTemplate(t *testing.T) {
	for template, want := range map[string]string{
		"{{ raise_exception('no such role') }}": "chat template: ",
		"{% if %}":                              "chat template: ",
		"":                                      ErrNoChatTemplate.Error(),
	} {
		tok := chars(t)
		tok.template.source = template
		if _, err := tok.Chat(nil, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", template, err, want)
		}
	}
}

func TestLongRunsOfEqualPairsMergeLeftmostFirst(t *testing.T) {
	// Both ways of merging must agree; which one is used depends on length.
	tok, err := Open(filepath.Join(fixtures, "gpt2"))
	if err != nil {
		t.Fatal(err)
	}
	e := newScratch().(*scratch)
	for _, s := range []string{"a", "=", " ", "ab", "err", "the", "return nil"} {
		for n := 1; n < 60; n++ {
			word := strings.Repeat(s, n)
			e.ids = tok.model.symbols(e.ids[:0], word)
			long := tok.model.mergeLong(nil, e)
			e.ids = tok.model.symbols(e.ids[:0], word)
			if short := tok.model.mergeShort(e); !slices.Equal(long, short) {
				t.Fatalf("%q: heap %v, scan %v", word, long, short)
			}
		}
	}
}

// exercise runs what a damaged file might break.
func exercise(tok *Tokenizer) {
	ids := tok.Encode("Hello <s> 1234 ▁ é\x00 世界", true)
	tok.Decode(ids, false)
	for id := range int32(min(tok.VocabSize(), 300)) {
		tok.Decode([]int32{id}, true)
	}
	if _, err := json.Marshal(tok.source.spec); err != nil {
		panic(err)
	}
}

func FuzzTokenizerJSON(f *testing.F) {
	f.Add([]byte(`{"added_tokens":[{"id":3,"content":"<s>","special":true,"lstrip":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\d+"},"behavior":"Isolated"},{"type":"ByteLevel"}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[3]}}},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}`))
	f.Add([]byte(`{"normalizer":{"type":"Prepend","prepend":"▁"},"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true},"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Strip","content":" ","start":1}]},"model":{"type":"BPE","unk_token":"u","byte_fallback":true,"vocab":{"u":0,"▁":1,"<0x0A>":2},"merges":[]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		spec, err := parseSpec(data)
		if err != nil {
			return
		}
		if tok, err := spec.build(); err == nil {
			exercise(tok)
		}
	})
}

func FuzzTokenizerModel(f *testing.F) {
	data, err := os.ReadFile(filepath.Join(fixtures, "sentencepiece", "tokenizer.model"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:300])
	f.Fuzz(func(t *testing.T, data []byte) {
		if tok, err := parseFile(data, new(folderInfo)); err == nil {
			exercise(tok)
		}
	})
}

func FuzzGGUFMetadata(f *testing.F) {
	f.Add("gpt2", "smollm", "a\nb\nab\n<s>", "a b", []byte{1, 1, 1, 3}, uint32(3))
	f.Add("llama", "", "<unk>\n<s>\n▁\na\n▁a", "", []byte{2, 3, 1, 1, 1}, uint32(1))
	f.Fuzz(func(t *testing.T, model, pre, tokens, merges string, types []byte, bos uint32) {
		meta := map[string]any{
			"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": strings.Split(tokens, "\n"),
			"tokenizer.ggml.bos_token_id": bos, "tokenizer.ggml.unknown_token_id": uint64(bos) + 1,
		}
		if merges != "" {
			meta["tokenizer.ggml.merges"] = strings.Split(merges, "\n")
		}
		kinds, scores := make([]int32, len(types)), make([]float32, len(types))
		for i, b := range types {
			kinds[i], scores[i] = int32(int8(b)), float32(i)
		}
		meta["tokenizer.ggml.token_type"], meta["tokenizer.ggml.scores"] = kinds, scores
		if tok, err := FromGGUF(meta); err == nil {
			exercise(tok)
		}
	})
}

func FuzzEncodeDecode(f *testing.F) {
	var toks []*Tokenizer
	for _, name := range []string{"gpt2", "llama3", "smollm", "qwen2", "regexp", "metaspace", "llama2"} {
		tok, err := Open(filepath.Join(fixtures, name))
		if err != nil {
			f.Fatal(err)
		}
		toks = append(toks, tok)
	}
	f.Add("Hello, world 123 's \u0301\xff<r>  ")
	f.Fuzz(func(t *testing.T, s string) {
		for _, tok := range toks {
			tok.Decode(tok.Encode(s, true), true)
		}
		// gpt2's bytes are all there, so nothing but NFC-free text is lost
		want := strings.ToValidUTF8(s, "\uFFFD")
		if !strings.ContainsAny(want, "<w") {
			if got := toks[1].Decode(toks[1].Encode(want, false), false); got != want {
				t.Errorf("%q comes back as %q", want, got)
			}
		}
	})
}
