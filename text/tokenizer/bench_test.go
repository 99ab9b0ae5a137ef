package tokenizer

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// benchTokenizer returns the tokenizer at the path TEXT_BENCH (for Open, or a
// .gguf.json of metadata), else a small one from testdata.
func benchTokenizer(b *testing.B) *Tokenizer {
	b.Helper()
	path := os.Getenv("TEXT_BENCH")
	var tok *Tokenizer
	var err error
	switch {
	case path == "":
		tok, err = Open("testdata/llama3")
	case strings.HasSuffix(path, ".gguf.json"):
		tok, err = FromGGUF(readGGUFMeta(b, path))
	default:
		tok, err = Open(path)
	}
	if err != nil {
		b.Fatal(err)
	}
	return tok
}

// goSource returns Go source text: English comments and code.
func goSource(b *testing.B) string {
	b.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skip("no Go toolchain here: ", err)
	}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(root)), "src", "net", "http",
		"*.go"))
	var s strings.Builder
	for _, f := range files {
		data, _ := os.ReadFile(f)
		s.Write(data)
	}
	if s.Len() == 0 {
		b.Skip("no Go sources here")
	}
	return s.String()
}

func BenchmarkEncode_GoSource(b *testing.B) {
	tok, text := benchTokenizer(b), goSource(b)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Encode(text, false)
	}
}

func BenchmarkDecode_GoSource(b *testing.B) {
	tok, text := benchTokenizer(b), goSource(b)
	ids := tok.Encode(text, false)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Decode(ids, false)
	}
}

func BenchmarkChat(b *testing.B) {
	tok := benchTokenizer(b)
	if tok.ChatTemplate() == "" {
		tok.template.source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
	}
	messages := []Message{{Role: "user", Content: "Hello"},
		{Role: "assistant", Content: "Hi"}, {Role: "user", Content: "Bye"}}
	for b.Loop() {
		if _, err := tok.Chat(messages, true); err != nil {
			b.Fatal(err)
		}
	}
}
