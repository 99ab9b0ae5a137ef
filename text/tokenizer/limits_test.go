package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// withStages is a tokenizer.json of a few letters with other members.
func withStages(rest string) string {
	return `{"model":{"type":"BPE","vocab":{"a":0,"b":1,"aa":2,"▁":3},"merges":["a a"]}` + rest +
		"}"
}

func sequence(kind, stages string) string {
	list := map[string]string{"normalizer": "normalizers", "pre_tokenizer": "pretokenizers",
		"decoder": "decoders"}[kind]
	return `,"` + kind + `":{"type":"Sequence","` + list + `":[` + stages + `]}`
}

func splitStage(pattern string) string {
	quoted, _ := json.Marshal(pattern)
	return `{"type":"Split","pattern":{"Regex":` + string(quoted) + `},"behavior":"Isolated"}`
}

func repeated(n int, item string) string {
	return strings.TrimSuffix(strings.Repeat(item+",", n), ",")
}

func TestOpen_RefusesWhatWouldTakeTooMuch(t *testing.T) {
	replace := `{"type":"Replace","pattern":{"String":"a"},"content":"aaaa"}`
	ids := repeated(2000, "0")
	for name, c := range map[string]struct{ file, want string }{
		"a chain of normalizers": {withStages(sequence("normalizer", repeated(40, replace))),
			"more than 128 times longer"},
		"a chain of prefixes": {withStages(sequence("normalizer",
			repeated(40, `{"type":"Prepend","prepend":"aaaa"}`))), "more than 128 times longer"},
		"a long mark": {withStages(sequence("pre_tokenizer", `{"type":"Metaspace",`+
			`"replacement":"`+strings.Repeat("a", 200)+`"}`)), "more than 128 times longer"},
		"bytes spelled many times": {withStages(sequence("pre_tokenizer",
			repeated(9, `{"type":"ByteLevel"}`))), "more than 128 times longer"},
		"an empty match": {withStages(sequence("normalizer", `{"type":"Replace","pattern":`+
			`{"Regex":"(?=a)"},"content":"`+strings.Repeat("a", 200)+`"}`)),
			"more than 128 times longer"},
		"a chain of decoders": {withStages(sequence("decoder", repeated(40, replace))),
			"decoder: the stages can make"},
		"an empty suffix": {withStages(sequence("decoder",
			repeated(40, `{"type":"BPEDecoder","suffix":""}`))), "decoder: the stages can make"},
		"many patterns": {withStages(sequence("pre_tokenizer",
			repeated(90, splitStage("a*b|a")))), "steps for each byte"},
		"patterns on a longer text": {withStages(sequence("normalizer",
			`{"type":"Replace","pattern":{"String":"a"},"content":"`+strings.Repeat("a", 100)+
				`"},{"type":"Replace","pattern":{"Regex":"a{1,20}b"},"content":""}`)),
			"steps for each byte"},
		"a large pattern": {withStages(sequence("pre_tokenizer", splitStage("(a{90}|b){90}"))),
			`pre_tokenizer: regular expression "(a{90}|b){90}": it expands to more than`},
		"nested Sequences": {withStages(`,"normalizer":` +
			strings.Repeat(`{"type":"Sequence","normalizers":[`, 99) + strings.Repeat(`]}`, 99)),
			"more than 16 Sequences inside each other"},
		"many stages": {withStages(sequence("normalizer", repeated(200, `{"type":"Strip"}`))),
			"more than 100 stages"},
		"a long stage": {withStages(`,"normalizer":{"type":"` + strings.Repeat("x", 2<<20) + `"}`),
			"normalizer: it has 2097163 bytes"},
		"many ids around a text": {withStages(`,"post_processor":{"type":"TemplateProcessing",` +
			`"single":[{"SpecialToken":{"id":"x"}}],"special_tokens":{"x":{"ids":[` + ids + `]}}}`),
			"adds more than 1024 tokens"},
		"an unknown id around a text": {withStages(`,"post_processor":{"type":` +
			`"BertProcessing","cls":["x",4],"sep":["x",-1]}`), "lacks cls or sep"},
		"a large id around a text": {withStages(`,"post_processor":{"type":` +
			`"BertProcessing","cls":["x",9],"sep":["x",0]}`), "adds token 9, the vocabulary has 4"},
		"many added tokens": {withStages(`,"added_tokens":[` + repeated(maxAdded+1, "0") + `]`),
			"262145 added tokens, expected at most 262144"},
		"a long added token": {withStages(`,"added_tokens":[{"id":4,"content":"` +
			strings.Repeat("x", 2000) + `"}]`), "has 2000 bytes, expected at most 1024"},
		"many tokens": {`{"model":{"type":"BPE","vocab":{` + repeated(maxVocab+1, `"":0`) + `}}}`,
			"1048577 tokens, expected at most 1048576"},
		"many pieces": {`{"model":{"type":"Unigram","vocab":[` + repeated(maxVocab+1, "0") + `]}}`,
			"1048577 tokens, expected at most 1048576"},
		"many merges": {`{"model":{"type":"BPE","vocab":{"a":0},"merges":[` +
			repeated(maxVocab+1, "0") + `]}}`, "1048577 merges, expected at most 1048576"},
		"a large id": {`{"model":{"type":"BPE","vocab":{"a":1152921504606846976}}}`,
			"cannot unmarshal"},
		"a negative id": {`{"model":{"type":"BPE","vocab":{"a":-1}}}`, "has id -1"},
		"a long token of WordPiece": {`{"model":{"type":"WordPiece","unk_token":"` +
			strings.Repeat("x", 2000) + `","vocab":{"` + strings.Repeat("x", 2000) + `":0}}}`,
			"has 2000 bytes, expected at most 1024"},
		"a large tokenizer.model": {"\n" + strings.Repeat("\x00", maxModel), "at most 16777216"},
	} {
		_, err := parseFile([]byte(c.file), new(folderInfo))
		if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 500 {
			t.Errorf("%s: %.300v, want %q", name, err, c.want)
		}
	}
}

func TestOpen_RefusesFilesThatAreNoFiles(t *testing.T) {
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json", "config.json",
		"special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
		"chat_template.json", "additional_chat_templates/x.jinja"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o777)
		os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte(withStages("")), 0o666)
		os.Remove(path)
		if err := syscall.Mkfifo(path, 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "it is a pipe") ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		os.Remove(path)
		if f, err := os.Create(path); err != nil || f.Truncate(maxFile+1) != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "expected at most") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpen_RefusesManyEnds(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte(withStages("")), 0o666)
	os.WriteFile(filepath.Join(dir, "generation_config.json"),
		[]byte(`{"eos_token_id":[`+repeated(2000, "1")+`]}`), 0o666)
	_, err := Open(dir)
	if err == nil || !strings.Contains(err.Error(), "a list of 2000 token ids, expected at most") {
		t.Error(err)
	}
}

// Encoding takes time in proportion to the text, whatever the tokenizer is.
func TestTokenizer_EncodesHostileTextsSoon(t *testing.T) {
	units := func(n int, unit, pattern string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, pattern, strings.Repeat(unit, i+1), i)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	for name, file := range map[string]string{
		"bpe": withStages(""),
		"unigram": `{"model":{"type":"Unigram","unk_id":0,"vocab":[` +
			units(300, "a", `["%s",-%d],`) + `]}}`,
		"wordpiece": `{"model":{"type":"WordPiece","unk_token":"a","max_input_chars_per_word":` +
			`1000000,"vocab":{` + units(300, "a", `"%s":%d,`) + `,"##ab":300}}}`,
		"added tokens": withStages(`,"added_tokens":[{"id":4,"content":"` +
			strings.Repeat("a", 500) + `b"}]`),
		"white space": withStages(`,"added_tokens":[{"id":4,"content":" ","lstrip":true,` +
			`"rstrip":true}]`),
		"patterns": withStages(sequence("pre_tokenizer", splitStage("(?=a*b)a|(?>a*)b|a++b|a"))),
	} {
		tok, err := parseFile([]byte(file), new(folderInfo))
		if err != nil {
			t.Fatal(name, err)
		}
		began := time.Now()
		for _, text := range []string{strings.Repeat("a", 50000), strings.Repeat(" ", 50000)} {
			tok.Decode(tok.Encode(text, true), false)
		}
		// A free core needs less than half a second.
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: %v", name, took)
		}
	}
}

// A long text without special tokens is asked for the tokens at each of its bytes.
func TestEncodeAt_TakesLinearTime(t *testing.T) {
	for _, name := range []string{"gpt2", "llama2", "llama3", "qwen2", "sentencepiece",
		CharTokenizer} {
		path := name
		if name != CharTokenizer {
			path = "testdata/" + name
		}
		tok, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("Hello world, it's 1234 \n é ", 2000)
		if name == CharTokenizer {
			text = strings.Repeat("Hello 世界, unknown ☃☃. ", 2000)
		}
		var offsets []int
		for i := range len(text) {
			offsets = append(offsets, len(text)-1-i)
		}
		began := time.Now()
		_, at := tok.EncodeAt(text, false, offsets)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: %v", name, took)
		}
		slices.Reverse(at)
		if !slices.IsSorted(at) || name == CharTokenizer &&
			at[len("Hello 世界, ")] != len("Hello XY, ") {
			t.Errorf("%s: the tokens are not in order", name)
		}
	}
}

func TestMembers_CountsWhatIsInAListOrAnObject(t *testing.T) {
	for raw, want := range map[string]int{"[]": 0, "{ }": 0, "[1]": 1, `["a,b","\"",3]`: 3,
		`[[1,2],[3,4]]`: 2, `{"a":1,"b":{"c":2,"d":[3,4]}}`: 2, ` [ {} , [] ]`: 2, "null": 0, "": 0,
		`["\\","]"]`: 2} {
		if got := members(json.RawMessage(raw)); got != want {
			t.Errorf("%s has %d, want %d", raw, got, want)
		}
	}
}

func TestPrefixes_FindsEachStringThatBeginsAText(t *testing.T) {
	p := newPrefixes([]string{"b", "a", "", "ab", "abc", "b", "ac", "\xff", "\x00"})
	for text, want := range map[string]string{"abcd": "a ab abc", "acab": "a ac", "b": "b", "c": "",
		"": "", "\xff\xff": "\xff", "\x00": "\x00", "aab": "a"} {
		var got []string
		p.each(text, func(index, length int) {
			if p.sorted[index] != text[:length] {
				t.Errorf("%q: %q of %d bytes", text, p.sorted[index], length)
			}
			got = append(got, text[:length])
		})
		if strings.Join(got, " ") != want {
			t.Errorf("%q begins with %q, want %s", text, got, want)
		}
	}
}
