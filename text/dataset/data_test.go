package dataset

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	arrays "github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"conquer/text/tokenizer"
)

// arrowBytes is a file of record batches made of JSON: a list of rows each.
func arrowBytes(t testing.TB, stream bool, schema *arrow.Schema, batches ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	var w interface {
		Write(arrow.RecordBatch) error
		Close() error
	}
	if stream {
		w = ipc.NewWriter(&out, ipc.WithSchema(schema))
	} else {
		f, err := ipc.NewFileWriter(&out, ipc.WithSchema(schema))
		if err != nil {
			t.Fatal(err)
		}
		w = f
	}
	for _, batch := range batches {
		rec, _, err := arrays.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(batch))
		if err == nil {
			err = w.Write(rec)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// parquetBytes is a compressed Parquet file with a row group for each batch.
func parquetBytes(t testing.TB, schema *arrow.Schema, batches ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := pqarrow.NewFileWriter(schema, &out, parquet.NewWriterProperties(parquet.WithCompression(compress.Codecs.Zstd)), pqarrow.DefaultWriterProps())
	if err != nil {
		t.Fatal(err)
	}
	for _, batch := range batches {
		rec, _, err := arrays.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(batch))
		if err == nil {
			err = w.Write(rec)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func schemaOf(fields ...arrow.Field) *arrow.Schema { return arrow.NewSchema(fields, nil) }

func column(name string, of arrow.DataType) arrow.Field {
	return arrow.Field{Name: name, Type: of, Nullable: true}
}

var messagesType = arrow.ListOf(arrow.StructOf(column("content", arrow.BinaryTypes.String), column("role", arrow.BinaryTypes.String)))

// sameSamples demands that two data sets have the same samples, in order.
func sameSamples(t *testing.T, what string, got, want *Dataset) {
	t.Helper()
	if len(got.Samples) != len(want.Samples) {
		t.Fatalf("%s: %d samples, want %d", what, len(got.Samples), len(want.Samples))
	}
	for i, s := range got.Samples {
		if w := want.Samples[i]; !slices.Equal(s.IDs, w.IDs) || !slices.Equal(s.Labels, w.Labels) {
			t.Errorf("%s: sample %d is %v %v, want %v %v", what, i, s.IDs, s.Labels, w.IDs, w.Labels)
		}
	}
}

func TestColumnsHoldTheSameSamplesAsLines(t *testing.T) {
	tok := chars(t, chatML)
	text := arrow.BinaryTypes.String
	for _, c := range []struct {
		what   string
		schema *arrow.Schema
		rows   []string
	}{
		{"instructions", schemaOf(column("id", arrow.PrimitiveTypes.Int64), column("instruction", text), column("input", text), column("output", text)),
			[]string{`{"id":1,"instruction":"Add","input":"1 2","output":"3"}`, `{"instruction":"Hi \"you\"","output":"Höi"}`, `{"instruction":"x","input":"","output":"y"}`}},
		{"chats", schemaOf(column("messages", messagesType)),
			[]string{`{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}`,
				`{"messages":[{"role":"user","content":"e"},{"role":"assistant","content":"f"}]}`, `{"messages":[{"role":"assistant","content":""}]}`}},
		{"texts", schemaOf(column("text", arrow.BinaryTypes.LargeString)), []string{`{"text":"one"}`, `{"text":""}`, `{"text":"three\nlines\n"}`}},
		{"tokens", schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))), []string{`{"tokens":[65,66,67]}`, `{"tokens":[]}`, `{"tokens":[68,3]}`}},
		{"tokens of 64 bits", schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int64))), []string{`{"tokens":[65]}`, `{"tokens":[68,69,70,71]}`, `{"tokens":[72]}`}},
	} {
		want := load(t, writeTestFile(t, "d.jsonl", strings.Join(c.rows, "\n")), tok, Options{MaxLength: 40})
		batches := []string{"[" + strings.Join(c.rows[:2], ",") + "]", "[" + c.rows[2] + "]"}
		for name, data := range map[string][]byte{
			"d.arrow":   arrowBytes(t, false, c.schema, batches...),
			"s.arrow":   arrowBytes(t, true, c.schema, batches...),
			"d.parquet": parquetBytes(t, c.schema, batches...),
		} {
			got := load(t, writeTestFile(t, name, string(data)), tok, Options{MaxLength: 40})
			sameSamples(t, c.what+" in "+name, got, want)
			if got.Report != want.Report {
				t.Errorf("%s in %s: %s, want %s", c.what, name, got.Report, want.Report)
			}
		}
	}
}

// As foundation-model-stack's data loaders read and its tests write them: a
// record batch a document, of a column of plain integers.
func TestABatchOfTokensIsADocument(t *testing.T) {
	dir := t.TempDir()
	schema := schemaOf(column("tokens", arrow.PrimitiveTypes.Uint32))
	os.Mkdir(filepath.Join(dir, "meta"), 0o777)
	os.WriteFile(filepath.Join(dir, "meta", "counts.csv"), []byte("dataset/filename,documents,tokens\n/shard.arrow,2,5\n"), 0o666)
	data := arrowBytes(t, false, schema, `[{"tokens":65},{"tokens":66},{"tokens":67}]`, `[{"tokens":68},{"tokens":3}]`)
	os.WriteFile(filepath.Join(dir, "shard.arrow"), data, 0o666)
	d := load(t, dir, chars(t, ""), Options{MaxLength: 3})
	want := &Dataset{}
	for _, ids := range [][]int32{{65, 66, 67}, {67, 3}, {68, 3}} {
		want.Samples = append(want.Samples, Sample{IDs: ids, Labels: ids})
	}
	sameSamples(t, "documents", d, want)
	if d.Report.Records != 2 || d.Report.Skipped != 1 {
		t.Errorf("report: %s", d.Report)
	}
}

func archive(t testing.TB, members ...[2]string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, m := range members {
		w.WriteHeader(&tar.Header{Name: m[0], Mode: 0o644, Size: int64(len(m[1])), Typeflag: tar.TypeReg})
		w.Write([]byte(m[1]))
	}
	w.Close()
	z.Close()
	return writeTestFile(t, "data.tar.gz", b.String())
}

func TestDamagedFilesGiveOneLineThatNamesTheFileAndTheRow(t *testing.T) {
	tok := chars(t, chatML)
	list, text := arrow.ListOf(arrow.PrimitiveTypes.Int32), arrow.BinaryTypes.String
	good := arrowBytes(t, false, schemaOf(column("tokens", list)), `[{"tokens":[65,66]},{"tokens":[67]}]`)
	pq := parquetBytes(t, schemaOf(column("text", text)), `[{"text":"abc"},{"text":"def"}]`)
	for _, c := range []struct{ name, content, want string }{
		{"a.arrow", "", "a.arrow: "},
		{"a.arrow", "ARROW1", "a.arrow: "},
		{"a.arrow", string(good[:len(good)/2]), "a.arrow: "},
		{"a.arrow", string(good[:len(good)-1]), "a.arrow: "},
		{"a.arrow", string(arrowBytes(t, true, schemaOf(column("text", text)), `[{"text":"abc"}]`)[:200]), "a.arrow: "},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", list)), `[{"tokens":[65]},{"tokens":[67,256]}]`)), "a.arrow: row 2: token 2 is 256, the tokenizer's vocabulary has 256"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", list)), `[{"tokens":[-1]}]`)), "a.arrow: row 1: token 1 is -1"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", list)), `[{"tokens":[1,null]}]`)), "a.arrow: row 1: column \"tokens\": token 2 is null"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", arrow.PrimitiveTypes.Uint32)), `[{"tokens":65}]`, `[{"tokens":4000000000}]`)), "a.arrow: row 2: column \"tokens\": token 1 is 4000000000"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", text)), `[{"tokens":"x"}]`)), "a.arrow: row 1: column \"tokens\": its type is utf8, expected token ids"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", arrow.ListOf(text))), `[{"tokens":["x"]}]`)), "its values are utf8"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("text", list)), `[{"text":[1]}]`)), `a.arrow: row 1: field "text" is [1], expected a string`},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("question", text)), `[{"question":"x"}]`)), `a.arrow: no known layout has the columns ["question"]`},
		{"a.parquet", "", "a.parquet: "},
		{"a.parquet", string(pq[:len(pq)-1]), "a.parquet: "},
		{"a.parquet", "PAR1" + string(pq[len(pq)/2:]), "a.parquet: "},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("text", arrow.PrimitiveTypes.Float64)), `[{"text":1}]`)), `a.parquet: row 1: column "text": its type is DOUBLE`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("text", list)), `[{"text":[1]}]`)), `a.parquet: row 1: column "text.list.element" is not what`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("text", text)), `[{"text":"x"},{"text":null}]`)), `a.parquet: row 2: no known layout`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("tokens", list)), `[{"tokens":[1]},{"tokens":[1,null]}]`)), `a.parquet: row 2: field "tokens" is [1,null]`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("tokens", list)), `[{"tokens":[256]}]`)), `a.parquet: row 1: token 1 is 256`},
		{"a.jsonl", "{\"tokens\":[1,2]}\n{\"tokens\":[1.5]}", `a.jsonl:2: field "tokens" is [1.5]`},
		{"a.jsonl", "{\"tokens\":[1,2]}\n{\"tokens\":[1000]}", `a.jsonl:2: token 1 is 1000`},
		{"a.jsonl", "{\"text\":\"x\"}\n{\"text\":\"y", `a.jsonl:2: not JSON`},
		{"a.tar.gz", "not gzip", "a.tar.gz: "},
	} {
		_, err := Load(writeTestFile(t, c.name, c.content), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s with %.60q: error %v, want %q", c.name, c.content, err, c.want)
		}
	}
}

func TestAnArchiveWritesNothingAndItsBombsAreNotUnpacked(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	path := archive(t, [2]string{"../../outside.txt", "abc"}, [2]string{"/etc/absolute.txt", "def"})
	d := load(t, path, chars(t, ""), Options{})
	if len(d.Samples) != 2 {
		t.Errorf("%d samples, want 2", len(d.Samples))
	}
	for _, name := range []string{"outside.txt", "../outside.txt"} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), name)); err == nil {
			t.Error("a file was written beside the archive")
		}
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("%d files are left in TMPDIR", len(left))
	}
	var out bytes.Buffer
	l := &limited{f: nil, left: 10}
	if _, err := l.Write(make([]byte, 11)); err == nil || !strings.Contains(err.Error(), "unpack it by hand") {
		t.Errorf("got %v (%d)", err, out.Len())
	}
}

func TestALongTextIsReadInBlocksAndLearnedOnce(t *testing.T) {
	tok := chars(t, "")
	draw := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for b.Len() < 3*blockBytes {
		fmt.Fprintf(&b, "%d", draw.Uint64())
		b.WriteString([]string{" ", "\n", "é", ""}[draw.IntN(4)])
	}
	long := strings.Repeat("ü", blockBytes) // no line or word ends in it
	for _, content := range []string{b.String(), long} {
		d := load(t, writeTestFile(t, "a.txt", content), tok, Options{MaxLength: 500})
		targets := []int32{d.Samples[0].IDs[0]}
		for _, s := range d.Samples {
			targets = append(targets, s.Labels[1:]...)
		}
		if got := tok.Decode(targets, false); got != "\x02"+content+"\x03" {
			t.Errorf("%d bytes are learned of %d", len(got), len(content))
		}
		if d.Report.Records != 1 {
			t.Errorf("report: %s", d.Report)
		}
	}
}

func TestWhatDoesNotFitIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	var b strings.Builder
	for i := range 300 {
		fmt.Fprintf(&b, "{\"text\":\"record %d\"}\n", i)
	}
	os.WriteFile(filepath.Join(dir, "a.jsonl"), []byte(b.String()), 0o666)
	os.WriteFile(filepath.Join(dir, "b.json"), []byte("[{\"text\":\"x\"},\n {\"text\":\"y\"}]"), 0o666)
	os.WriteFile(filepath.Join(dir, "c.txt"), []byte("a text"), 0o666)
	lazy, err := Load(dir, chars(t, ""), Options{MaxLength: 6})
	if err != nil {
		t.Fatal(err)
	}
	want := inMemory(t, lazy)
	for _, s := range lazy.shards {
		s.kept.units, s.kept.tokens = nil, mostKept // nothing fits
	}
	sameSamples(t, "read again", inMemory(t, lazy), want)
	if len(lazy.shards[0].kept.units) > 1 {
		t.Errorf("%d records are kept", len(lazy.shards[0].kept.units))
	}

	// Two halves are the whole, whatever reads them.
	train, valid, err := lazy.Split(0.3, 1)
	if err != nil {
		t.Fatal(err)
	}
	memTrain, memValid, _ := want.Split(0.3, 1)
	sameSamples(t, "train", inMemory(t, train), memTrain)
	sameSamples(t, "validation", inMemory(t, valid), memValid)
	if train.Report != memTrain.Report || train.Hash() == valid.Hash() || train.Hash() == lazy.Hash() {
		t.Errorf("split: %s and %s", train.Report, memTrain.Report)
	}
	both := new(Dataset)
	both.Append(lazy)
	both.Append(train)
	want.Append(memTrain)
	sameSamples(t, "both", inMemory(t, both), want)
	if both.Report.Samples != both.Len() {
		t.Errorf("%s, but %d samples", both.Report, both.Len())
	}
	if err := lazy.CheckVocabulary(121); err == nil || !strings.Contains(err.Error(), "b.json:2 holds token 121") {
		t.Errorf("vocabulary: %v", err)
	}
	if err := lazy.CheckVocabulary(122); err != nil {
		t.Error(err)
	}
}

func TestAFileThatIsCutShortInUseIsAnError(t *testing.T) {
	path := writeTestFile(t, "a.jsonl", strings.Repeat("{\"text\":\"some record\"}\n", 10000))
	d, err := Load(path, chars(t, ""), Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.shards[0].kept.units, d.shards[0].kept.tokens = nil, mostKept
	b, err := NewBatcher(d, BatchOptions{Rows: 4, Length: 40, InOrder: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	for range 10000 {
		if _, err = b.Next(); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "a.jsonl: byte ") && !strings.Contains(err.Error(), "a.jsonl:1") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

// Whatever way a step's rows are divided among ranks and passes, the step has
// the same samples, across the ends of epochs too.
func TestEveryWorldSeesTheSameSamplesInTheSameSteps(t *testing.T) {
	seed := rand.Uint64()
	d := numbered(int(20+seed%40), 9)
	steps := func(opts BatchOptions) (list [][]int32) {
		opts.Length, opts.Seed, opts.Pad = 16, seed, -1
		ranks := make([]*Batcher, opts.World)
		for r := range ranks {
			opts.Rank = r
			var err error
			if ranks[r], err = NewBatcher(d, opts); err != nil {
				t.Fatal(err)
			}
		}
		for range 30 {
			var ids []int32
			for range opts.Passes {
				for _, b := range ranks {
					ids = append(ids, next(t, b).IDs...)
				}
			}
			list = append(list, ids)
			for _, b := range ranks {
				if b.State() != ranks[0].State() {
					t.Fatal("ranks are at different positions")
				}
			}
		}
		return list
	}
	for _, pack := range []bool{false, true} {
		want := steps(BatchOptions{Rows: 8, World: 1, Passes: 1, Pack: pack})
		for _, c := range [][3]int{{4, 2, 1}, {4, 1, 2}, {1, 4, 2}, {2, 2, 2}, {1, 8, 1}} {
			got := steps(BatchOptions{Rows: c[0], World: c[1], Passes: c[2], Pack: pack})
			for i := range want {
				if !slices.Equal(got[i], want[i]) {
					t.Fatalf("seed %d, pack %t, %d rows on %d ranks in %d passes: step %d differs", seed, pack, c[0], c[1], c[2], i)
				}
			}
		}
	}
}

// fuzzFile reads everything in a file of the given name and content.
func fuzzFile(t *testing.T, tok *tokenizer.Tokenizer, name string, data []byte) {
	d, err := Load(writeTestFile(t, name, string(data)), tok, Options{MaxLength: 16})
	if err != nil {
		if !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error does not name the file in one line: %v", err)
		}
		return
	}
	for i := range d.Len() {
		if s, err := d.At(i); err != nil || len(s.IDs) > 16 || len(s.Labels) != len(s.IDs) {
			t.Errorf("sample %d: %v %v", i, s, err)
		}
	}
}

// Decoders that believe a damaged file ask for more memory than there is, which no recover catches.
func TestColumnsWithAFewBytesChangedGiveErrorsAtMost(t *testing.T) {
	list, chat := schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))), schemaOf(column("messages", messagesType))
	rows, turns := `[{"tokens":[65,66]},{"tokens":[]}]`, `[{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}]`
	tok := chars(t, chatML)
	for name, data := range map[string][]byte{
		"list.arrow": arrowBytes(t, false, list, rows), "stream.arrow": arrowBytes(t, true, list, rows), "chat.arrow": arrowBytes(t, false, chat, turns),
		"list.parquet": parquetBytes(t, list, rows), "chat.parquet": parquetBytes(t, chat, turns),
	} {
		for range 150 {
			changed := slices.Clone(data)
			for range 1 + rand.IntN(4) {
				changed[rand.IntN(len(changed))] = []byte{0, 1, 127, 255, byte(rand.Uint32())}[rand.IntN(5)]
			}
			fuzzFile(t, tok, name, changed)
		}
	}
}

func FuzzRecords(f *testing.F) {
	for _, s := range []string{`[{"text":"x"},{"instruction":"a","output":"b"}]`, `{"messages":[{"role":"assistant","content":"x"}]}`, "[", "{}\n{", "[{\"text\":null}]", `{"tokens":[1,2]}`} {
		f.Add(0, []byte(s))
		f.Add(1, []byte(s))
	}
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, kind int, data []byte) {
		fuzzFile(t, tok, []string{"a.json", "a.jsonl", "a.txt"}[uint(kind)%3], data)
	})
}

func FuzzArrow(f *testing.F) {
	for _, stream := range []bool{false, true} {
		f.Add(arrowBytes(f, stream, schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))), `[{"tokens":[65,66]},{"tokens":[]}]`, `[{"tokens":[67,3,5]}]`))
		f.Add(arrowBytes(f, stream, schemaOf(column("tokens", arrow.PrimitiveTypes.Uint32)), `[{"tokens":65},{"tokens":66}]`, `[{"tokens":67}]`))
		f.Add(arrowBytes(f, stream, schemaOf(column("messages", messagesType)), `[{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}]`))
	}
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, data []byte) { fuzzFile(t, tok, "a.arrow", data) })
}

func FuzzParquet(f *testing.F) {
	f.Add(parquetBytes(f, schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))), `[{"tokens":[65,66]},{"tokens":[]}]`, `[{"tokens":[67,3,5]}]`))
	f.Add(parquetBytes(f, schemaOf(column("text", arrow.BinaryTypes.String)), `[{"text":"abc"},{"text":"abc"}]`))
	f.Add(parquetBytes(f, schemaOf(column("messages", messagesType)), `[{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}]`))
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, data []byte) { fuzzFile(t, tok, "a.parquet", data) })
}

func FuzzArchive(f *testing.F) {
	for _, members := range [][][2]string{{{"a.txt", "abc"}, {"b/c.jsonl", "{\"text\":\"x\"}\n"}}, {{"../x.json", "[]"}}} {
		data, err := os.ReadFile(archive(f, members...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, data []byte) { fuzzFile(t, tok, "a.tar.gz", data) })
}

// Progress rises to the size of all files, whatever they are; once a data set is closed its files are unmapped, and reading says
// so, also what was split from it, while a batch that is being read ahead is let finish.
func TestADataSetSaysHowFarItIsAndLetsGoOfItsFiles(t *testing.T) {
	tok := chars(t, chatML)
	dir := t.TempDir()
	var lines, list []string
	for i := range 3000 {
		line := fmt.Sprintf(`{"text":"%d %s"}`, i, strings.Repeat("x", 40))
		lines, list = append(lines, line), append(list, line)
	}
	schema := schemaOf(column("text", arrow.BinaryTypes.String))
	batch := "[" + strings.Join(list, ",") + "]"
	for name, content := range map[string]string{
		"a.jsonl": strings.Join(lines, "\n"), "b.json": batch, "c.txt": strings.Repeat("a line of text\n", 20000),
		"d.arrow": string(arrowBytes(t, false, schema, batch)), "e.parquet": string(parquetBytes(t, schema, batch)),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
		mapped := func() int {
			maps, err := os.ReadFile("/proc/self/maps")
			if err != nil {
				t.Skip(err)
			}
			return strings.Count(string(maps), path) + strings.Count(string(maps), "conquer-data-")
		}
		last, total, calls := int64(0), int64(0), 0
		d, err := Load(path, tok, Options{MaxLength: 100, Progress: func(done, of int64) error {
			if done < last || done > of || total != 0 && of != total {
				t.Errorf("%s: %d of %d after %d of %d", name, done, of, last, total)
			}
			last, total, calls = done, of, calls+1
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if last != total || total == 0 || calls < 2 {
			t.Errorf("%s: ends at %d of %d, told %d times", name, last, total, calls)
		}
		if mapped() == 0 {
			t.Errorf("%s is not mapped", name)
		}
		enough, heard := errors.New("enough"), 0
		if d, err := Load(path, tok, Options{MaxLength: 100, Progress: func(int64, int64) error { heard++; return enough }}); !errors.Is(err, enough) || heard != 1 {
			t.Errorf("%s: told to stop %d times, reading gave %v and %v", name, heard, d, err)
		}
		part, _, err := d.Split(0.5, 1)
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewBatcher(part, BatchOptions{Rows: 8, Length: 100})
		if err != nil {
			t.Fatal(err)
		}
		next(t, b)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n := mapped(); n != 0 {
			t.Errorf("%s: %d mappings are left", name, n)
		}
		for _, set := range []*Dataset{d, part} {
			if _, err := set.At(0); err == nil || !strings.Contains(err.Error(), "closed") {
				t.Errorf("%s: a closed data set gave %v", name, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatHasNoEndOrIsNotThereIsNamed(t *testing.T) {
	if _, err := ReadFile("/dev/zero"); err == nil || err.Error() != "open /dev/zero: a device, expected a file or a pipe" {
		t.Error(err)
	}
	if _, err := Load("/dev/zero", chars(t, ""), Options{}); err == nil || !strings.Contains(err.Error(), "/dev/zero: a device") {
		t.Error(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	write.WriteString("through a pipe")
	write.Close()
	if text, err := ReadFile(fmt.Sprint("/dev/fd/", read.Fd())); err != nil || string(text) != "through a pipe" {
		t.Errorf("%q, %v", text, err)
	}
	dir := t.TempDir()
	link := filepath.Join(dir, "link.txt")
	if err := os.Symlink("gone.txt", link); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, chars(t, ""), Options{}); err == nil || !strings.Contains(err.Error(), link+" is a link to gone.txt, which is not there") {
		t.Error(err)
	}
}

func TestOneIsNotMany(t *testing.T) {
	if got := (Report{Records: 1, Samples: 2, Tokens: 1, Skipped: 1}).String(); got != "2 samples from 1 record, 1 token, 0 of them targets, 1 file skipped (not text)" {
		t.Error(got)
	}
}
