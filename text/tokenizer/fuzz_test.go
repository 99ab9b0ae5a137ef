package tokenizer

import (
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
	f.Add(data)
	f.Add(data[:300])
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

func FuzzOpen_FolderFiles(f *testing.F) {
	f.Add([]byte(`{"eos_token":{"content":"</s>"},"extra_special_tokens":{"image":"<i>"},`+
		`"added_tokens_decoder":{"7":{"content":"<x>","special":true}}}`),
		[]byte(`{"pad_token":"<p>","additional_special_tokens":["<a>"]}`))
	f.Fuzz(func(t *testing.T, config, special []byte) {
		about := new(folderInfo)
		for _, data := range [][]byte{config, special} {
			fields, err := parseFields(data)
			if err == nil {
				err = about.setConfig(fields)
			}
			if err != nil {
				return
			}
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
