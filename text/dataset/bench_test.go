package dataset

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"conquer/text/tokenizer"
)

// benchTokenizer is the tokenizer to measure with: the one at the path that
// TEXT_BENCH holds, else a small one.
func benchTokenizer(b *testing.B) *tokenizer.Tokenizer {
	b.Helper()
	path := os.Getenv("TEXT_BENCH")
	if path == "" {
		path = "../tokenizer/testdata/llama3"
	}
	tok, err := tokenizer.Open(path)
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

// BenchmarkBatcher measures Load and one epoch, in MB/s of content, for 4 MB of
// text or its tokens in each file format. The cache of records is full.
func BenchmarkBatcher(b *testing.B) {
	tok := benchTokenizer(b)
	source := strings.Split(goSource(b), "\n\n")
	var records, listed, flat strings.Builder
	var flats []string
	var content strings.Builder
	tokens := 0
	for i := 0; content.Len() < 4<<20; i++ {
		text := source[i%len(source)]
		content.WriteString(text)
		line, _ := json.Marshal(map[string]string{"text": text})
		records.Write(append(line, '\n'))
		ids := tok.Encode(text, false)
		tokens += len(ids)
		line, _ = json.Marshal(map[string][]int32{"tokens": ids})
		listed.Write(append(line, '\n'))
		flat.Reset()
		for _, id := range ids {
			fmt.Fprintf(&flat, ",{\"tokens\":%d}", id)
		}
		if flat.Len() > 0 {
			flats = append(flats, "["+flat.String()[1:]+"]")
		}
	}
	asList := func(lines string) string {
		return "[" + strings.ReplaceAll(strings.TrimSpace(lines), "\n", ",") + "]"
	}
	text, list := schemaOf(column("text", arrow.BinaryTypes.String)),
		schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32)))
	for _, c := range []struct {
		name, data string
		bytes      int
	}{
		{"text.txt", content.String(), content.Len()},
		{"text.jsonl", records.String(), content.Len()},
		{"text.arrow", string(arrowBytes(b, false, text, asList(records.String()))), content.Len()},
		{"text.parquet", string(parquetBytes(b, text, asList(records.String()))), content.Len()},
		{"tokens.arrow", string(arrowBytes(b, false, list, asList(listed.String()))), 4 * tokens},
		{"shard.arrow", string(arrowBytes(b, false,
			schemaOf(column("tokens", arrow.PrimitiveTypes.Uint32)), flats...)), 4 * tokens},
	} {
		path := writeTestFile(b, c.name, c.data)
		b.Run("open/"+c.name, func(b *testing.B) {
			b.SetBytes(int64(c.bytes))
			for b.Loop() {
				if _, err := Load(path, tok, Options{MaxLength: 512}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("epoch/"+c.name, func(b *testing.B) {
			d, err := Load(path, tok, Options{MaxLength: 512})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(c.bytes))
			for b.Loop() {
				cache := d.sources[0].(*reader).cache
				cache.records, cache.tokens = nil, maxCached
				batches, err := NewBatcher(d, BatchOptions{Rows: 8, Length: 512, Pack: true})
				if err != nil {
					b.Fatal(err)
				}
				for batch := (Batch{}); !batch.Last; {
					if batch, err = batches.Next(); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkLoad_Chats reads and labels chats of ten messages.
func BenchmarkLoad_Chats(b *testing.B) {
	tok := withSpecial(b, imTemplate)
	const turn = `{"role":"user","content":"A question of a person, of some words."},` +
		`{"role":"assistant","content":"An answer, which is a little longer than the question ` +
		`was."}`
	line := `{"messages":[` + strings.Repeat(turn+",", 4) + turn + "]}\n"
	path := writeTestFile(b, "a.jsonl", strings.Repeat(line, 1000))
	for b.Loop() {
		d, err := Load(path, tok, Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(1000 * len(line)))
		d.Close()
	}
}
