package tokenizer

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exercise runs the methods that a damaged file could break.
func exercise(tok *Tokenizer) {
	ids := tok.Encode("Hello <s> 1234 ▁ é\x00 世界", true)
	tok.Decode(ids, false)
	for id := range int32(min(tok.VocabSize(), 300)) {
		tok.Decode([]int32{id}, true)
	}
	if _, err := json.Marshal(tok.source.spec); err != nil {
		panic(err)
	}
	tok.GGUF(tok.VocabSize())
}

func FuzzOpen_TokenizerJSON(f *testing.F) {
	f.Add([]byte(`{"added_tokens":[{"id":3,"content":"<s>","special":true,"lstrip":true}],` +
		`"normalizer":{"type":"NFC"},` +
		`"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split",` +
		`"pattern":{"Regex":"\\d+"},"behavior":"Isolated"},{"type":"ByteLevel"}]},` +
		`"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},` +
		`{"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[3]}}},` +
		`"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},` +
		`"merges":["a b"]}}`))
	f.Add([]byte(`{"normalizer":{"type":"Prepend","prepend":"▁"},` +
		`"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first",` +
		`"split":true},"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},` +
		`{"type":"Strip","content":" ","start":1}]},` +
		`"model":{"type":"BPE","unk_token":"u","byte_fallback":true,"vocab":{"u":0,"▁":1,` +
		`"<0x0A>":2},"merges":[]}}`))
	f.Add([]byte(`{"normalizer":{"type":"BertNormalizer"},` +
		`"pre_tokenizer":{"type":"BertPreTokenizer"},` +
		`"post_processor":{"type":"BertProcessing","sep":["[SEP]",1],"cls":["[CLS]",2]},` +
		`"decoder":{"type":"WordPiece","prefix":"##"},"model":{"type":"WordPiece",` +
		`"unk_token":"[UNK]","vocab":{"[UNK]":0,"[SEP]":1,"[CLS]":2,"h":3,"##ello":4}}}`))
	f.Add([]byte(`{"normalizer":{"type":"Replace","pattern":{"Regex":"(?=e)|[[:space:]&&[^ ]]+"},` +
		`"content":"_"},"pre_tokenizer":{"type":"Metaspace","replacement":"▁"},` +
		`"model":{"type":"Unigram","unk_id":0,"byte_fallback":true,` +
		`"vocab":[["u",0],["▁",-1],["<0x0A>",-3.5],["He",-2]]}}`))
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

func FuzzOpen_TokenizerModel(f *testing.F) {
	data, err := os.ReadFile(filepath.Join(fixtures, "sentencepiece", "tokenizer.model"))
	if err != nil {
		f.Fatal(err)
	}
	// Some pieces and the settings of the model: all of it would be large for the fuzzer.
	var small []byte
	for pieces := 0; len(data) > 0; {
		size, n := binary.Uvarint(data[1:])
		if n <= 0 || 1+n+int(size) > len(data) {
			f.Fatal("the model is not made of fields with a length")
		}
		if data[0] != 1<<3|2 || pieces < 20 {
			small = append(small, data[:1+n+int(size)]...)
		}
		if data[0] == 1<<3|2 {
			pieces++
		}
		data = data[1+n+int(size):]
	}
	f.Add(small)
	f.Add(small[:len(small)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		if tok, err := parseFile(data, new(folderInfo)); err == nil {
			exercise(tok)
		}
	})
}

func FuzzFromGGUF(f *testing.F) {
	f.Add("gpt2", "smollm", "a\nb\nab\n<s>", "a b", []byte{1, 1, 1, 3}, uint32(3))
	f.Add("llama", "", "<unk>\n<s>\n▁\na\n▁a", "", []byte{2, 3, 1, 1, 1}, uint32(1))
	f.Fuzz(func(t *testing.T, model, pre, tokens, merges string, types []byte, bos uint32) {
		meta := map[string]any{
			"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre,
			"tokenizer.ggml.tokens":       strings.Split(tokens, "\n"),
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

func FuzzTokenizer_EncodeDecode(f *testing.F) {
	var toks []*Tokenizer
	for _, name := range []string{"gpt2", "llama3", "smollm", "qwen2", "regexp", "metaspace",
		"llama2"} {
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
		// llama3 has a token for every byte, so every text is restored
		want := strings.ToValidUTF8(s, "\uFFFD")
		if !strings.ContainsAny(want, "<w") {
			if got := toks[1].Decode(toks[1].Encode(want, false), false); got != want {
				t.Errorf("%q comes back as %q", want, got)
			}
		}
	})
}

// The files beside a tokenizer name its special tokens and chat templates.
func FuzzOpen_FolderFiles(f *testing.F) {
	dir := f.TempDir()
	f.Add([]byte(`{"eos_token":{"content":"</s>"},"extra_special_tokens":{"image":"<i>"},`+
		`"added_tokens_decoder":{"7":{"content":"<x>","special":true}},"chat_template":"{{ 1 }}"}`),
		[]byte(`{"pad_token":"<p>","additional_special_tokens":["<a>"]}`), []byte(`{"<y>":9}`),
		[]byte(`{"eos_token_id":[1,2],"bos_token_id":0,"pad_token_id":null}`))
	f.Add([]byte(`dn_id`), []byte(`[1]`), []byte(`7`), []byte(`null`))
	f.Add([]byte(`{"tokenizer_class":"LlamaTokenizerFast","legacy":false,"add_bos_token":true,`+
		`"chat_template":[{"name":"default","template":"{% if a %}"},{"name":"tool_use",`+
		`"template":""}]}`), []byte(`{}`), []byte(`{"a":1,"b":1}`), []byte(`{"eos_token_id":-1}`))
	f.Fuzz(func(t *testing.T, config, special, added, generation []byte) {
		for name, data := range map[string][]byte{"tokenizer_config.json": config,
			"special_tokens_map.json": special, "added_tokens.json": added,
			"generation_config.json": generation} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		about, err := readFolder(dir)
		if err != nil {
			if !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error does not name the file in one line: %v", err)
			}
			return
		}
		spec := newSpec(1)
		spec.Model.Vocab["a"] = 0
		about.addTo(spec)
		if tok, err := spec.build(); err == nil {
			about.apply(tok)
			exercise(tok)
		}
	})
}
