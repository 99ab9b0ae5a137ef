package dataset

import (
	"bytes"
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
)

// arrowBytes returns an Arrow file or stream. Each batch is a JSON list of rows.
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
		rec, _, err := arrays.RecordFromJSON(memory.DefaultAllocator, schema,
			strings.NewReader(batch))
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

// parquetBytes returns a compressed Parquet file with one row group a batch.
func parquetBytes(t testing.TB, schema *arrow.Schema, batches ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := pqarrow.NewFileWriter(schema, &out,
		parquet.NewWriterProperties(parquet.WithCompression(compress.Codecs.Zstd)),
		pqarrow.DefaultWriterProps())
	if err != nil {
		t.Fatal(err)
	}
	for _, batch := range batches {
		rec, _, err := arrays.RecordFromJSON(memory.DefaultAllocator, schema,
			strings.NewReader(batch))
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

var messagesType = arrow.ListOf(
	arrow.StructOf(column("content", arrow.BinaryTypes.String),
		column("role", arrow.BinaryTypes.String)),
)

// sameSamples fails unless both data sets have the same samples, in order.
func sameSamples(t *testing.T, what string, got, want *Dataset) {
	t.Helper()
	if len(got.Samples) != len(want.Samples) {
		t.Fatalf("%s: %d samples, want %d", what, len(got.Samples), len(want.Samples))
	}
	for i, s := range got.Samples {
		if w := want.Samples[i]; !slices.Equal(s.IDs, w.IDs) || !slices.Equal(s.Labels, w.Labels) ||
			s.Second != w.Second || s.Rating != w.Rating {
			t.Errorf("%s: sample %d is %+v, want %+v", what, i, s, w)
		}
	}
}

func TestLoad_ColumnsGiveTheSamplesOfLines(t *testing.T) {
	tok := chars(t, chatML)
	text := arrow.BinaryTypes.String
	for _, c := range []struct {
		what   string
		schema *arrow.Schema
		rows   []string
	}{
		{"instructions", schemaOf(column("id", arrow.PrimitiveTypes.Int64),
			column("instruction", text), column("input", text), column("output", text)),
			[]string{`{"id":1,"instruction":"Add","input":"1 2","output":"3"}`,
				`{"instruction":"Hi \"you\"","output":"Höi"}`,
				`{"instruction":"x","input":"","output":"y"}`}},
		{"chats", schemaOf(column("messages", messagesType)),
			[]string{`{"messages":[{"role":"user","content":"a"},{"role":"assistant",` +
				`"content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}`,
				`{"messages":[{"role":"user","content":"e"},{"role":"assistant","content":"f"}]}`,
				`{"messages":[{"role":"assistant","content":""}]}`}},
		{"texts", schemaOf(column("text", arrow.BinaryTypes.LargeString)),
			[]string{`{"text":"one"}`, `{"text":""}`, `{"text":"three\nlines\n"}`}},
		{"tokens", schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))),
			[]string{`{"tokens":[65,66,67]}`, `{"tokens":[]}`, `{"tokens":[68,3]}`}},
		{"tokens of 64 bits", schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int64))),
			[]string{`{"tokens":[65]}`, `{"tokens":[68,69,70,71]}`, `{"tokens":[72]}`}},
	} {
		want := mustLoad(t, writeTestFile(t, "d.jsonl", strings.Join(c.rows, "\n")), tok,
			Options{MaxLength: 40})
		batches := []string{"[" + strings.Join(c.rows[:2], ",") + "]", "[" + c.rows[2] + "]"}
		for name, data := range map[string][]byte{
			"d.arrow":   arrowBytes(t, false, c.schema, batches...),
			"s.arrow":   arrowBytes(t, true, c.schema, batches...),
			"d.parquet": parquetBytes(t, c.schema, batches...),
		} {
			got := mustLoad(t, writeTestFile(t, name, string(data)), tok, Options{MaxLength: 40})
			sameSamples(t, c.what+" in "+name, got, want)
			if got.Report != want.Report {
				t.Errorf("%s in %s: %s, want %s", c.what, name, got.Report, want.Report)
			}
		}
	}
}

// foundation-model-stack's shards hold one document a record batch, as a column
// of integers.
func TestLoad_ArrowBatchOfTokensIsADocument(t *testing.T) {
	dir := t.TempDir()
	schema := schemaOf(column("tokens", arrow.PrimitiveTypes.Uint32))
	os.Mkdir(filepath.Join(dir, "meta"), 0o777)
	os.WriteFile(filepath.Join(dir, "meta", "counts.csv"),
		[]byte("dataset/filename,documents,tokens\n/shard.arrow,2,5\n"), 0o666)
	data := arrowBytes(t, false, schema, `[{"tokens":65},{"tokens":66},{"tokens":67}]`,
		`[{"tokens":68},{"tokens":3}]`)
	os.WriteFile(filepath.Join(dir, "shard.arrow"), data, 0o666)
	d := mustLoad(t, dir, chars(t, ""), Options{MaxLength: 3})
	want := &Dataset{}
	for _, ids := range [][]int32{{65, 66, 67}, {67, 3}, {68, 3}} {
		want.Samples = append(want.Samples, Sample{IDs: ids, Labels: ids})
	}
	sameSamples(t, "documents", d, want)
	if d.Report.Records != 2 || d.Report.Skipped != 1 {
		t.Errorf("report: %s", d.Report)
	}
}

// A decoder that trusts a damaged file can run out of memory, which recover does not catch.
func TestLoad_DamagedColumnsDoNotPanic(t *testing.T) {
	list, chat := schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))),
		schemaOf(column("messages", messagesType))
	rows, turns := `[{"tokens":[65,66]},{"tokens":[]}]`,
		`[{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}]`
	tok := chars(t, chatML)
	for name, data := range map[string][]byte{
		"list.arrow": arrowBytes(t, false, list, rows), "stream.arrow": arrowBytes(t, true, list,
			rows), "chat.arrow": arrowBytes(t, false, chat, turns),
		"list.parquet": parquetBytes(t, list, rows), "chat.parquet": parquetBytes(t, chat, turns),
	} {
		for range 150 {
			changed := slices.Clone(data)
			for range 1 + rand.IntN(4) {
				changed[rand.IntN(len(changed))] = []byte{0, 1, 127, 255,
					byte(rand.Uint32())}[rand.IntN(5)]
			}
			fuzzFile(t, tok, name, changed)
		}
	}
}
