package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
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
	"github.com/klauspost/compress/zstd"
)

// hostileData is a file of data that wants the program to take time or memory.
type hostileData struct {
	name, file string // the name of the case and of the file
	write      func(w io.Writer) error
	want       string // part of the refusal, or "" if the file is not refused
}

// unpacksTo writes n times a text, compressed.
func unpacksTo(n int, text string, pack func(io.Writer) (io.WriteCloser, error)) func(
	io.Writer) error {
	return func(w io.Writer) error {
		z, err := pack(w)
		for i := 0; i < n && err == nil; i++ {
			_, err = io.WriteString(z, text)
		}
		if err == nil {
			err = z.Close()
		}
		return err
	}
}

func gzipped(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }

func zstandard(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

// oneText is a record batch of a column with the given number of texts, which are all the same.
func oneText(text string, rows int) arrow.RecordBatch {
	b := arrays.NewStringBuilder(memory.DefaultAllocator)
	for range rows {
		b.Append(text)
	}
	schema := arrow.NewSchema([]arrow.Field{{Name: "text", Type: arrow.BinaryTypes.String}}, nil)
	return arrays.NewRecordBatch(schema, []arrow.Array{b.NewArray()}, int64(rows))
}

// wide is a record batch of a column of messages with n members, none of which has a value.
func wide(n, rows int) arrow.RecordBatch {
	var fields []arrow.Field
	for i := range n {
		fields = append(fields, arrow.Field{Name: fmt.Sprint("m", i), Nullable: true,
			Type: arrow.PrimitiveTypes.Int32})
	}
	kind := arrow.StructOf(fields...)
	b := arrays.NewStructBuilder(memory.DefaultAllocator, kind)
	for range rows {
		b.AppendNull()
	}
	schema := arrow.NewSchema([]arrow.Field{{Name: "messages", Type: kind, Nullable: true}}, nil)
	return arrays.NewRecordBatch(schema, []arrow.Array{b.NewArray()}, int64(rows))
}

// inParquet writes a record batch as a Parquet file.
func inParquet(make func() arrow.RecordBatch, dictionary bool) func(io.Writer) error {
	return func(w io.Writer) error {
		batch := make()
		f, err := pqarrow.NewFileWriter(batch.Schema(), w, parquet.NewWriterProperties(
			parquet.WithCompression(compress.Codecs.Zstd),
			parquet.WithDictionaryDefault(dictionary)), pqarrow.DefaultWriterProps())
		if err == nil {
			err = f.Write(batch)
		}
		if err == nil {
			err = f.Close()
		}
		return err
	}
}

// inArrow writes a record batch as a compressed Arrow file.
func inArrow(make func() arrow.RecordBatch) func(io.Writer) error {
	return func(w io.Writer) error {
		batch := make()
		f, err := ipc.NewFileWriter(w, ipc.WithSchema(batch.Schema()), ipc.WithZstd())
		if err == nil {
			err = f.Write(batch)
		}
		if err == nil {
			err = f.Close()
		}
		return err
	}
}

const unpacksMore = "unpacks to more than 100 times its size"

var hostileDataFiles = []hostileData{
	{"gzip: a text", "a.txt.gz", unpacksTo(80, strings.Repeat("a b ", 1<<18), gzipped),
		unpacksMore},
	{"zstd: a text", "a.txt.zst", unpacksTo(80, strings.Repeat("a b ", 1<<18), zstandard),
		unpacksMore},
	{"gzip: a record", "a.jsonl.gz", unpacksTo(20, strings.Repeat("long", 1<<18), gzipped),
		"the record has more than"},
	{"gzip: empty records", "a.jsonl.gz", unpacksTo(80, strings.Repeat(`{"text":""}`+"\n", 95326),
		gzipped), unpacksMore},
	{"gzip: nested lists", "a.json.gz", unpacksTo(10, strings.Repeat("[", 1<<20), gzipped),
		"a.json.gz"},
	{"tar: archives in an archive", "a.tar.gz", func(w io.Writer) error {
		var inner bytes.Buffer
		if err := unpacksTo(100, strings.Repeat("a b ", 1<<18), gzipped)(&inner); err != nil {
			return err
		}
		z := gzip.NewWriter(w)
		t := tar.NewWriter(z)
		for i := range 5 {
			t.WriteHeader(&tar.Header{Name: fmt.Sprintf("%d.txt.gz", i), Mode: 0o666,
				Size: int64(inner.Len())})
			t.Write(inner.Bytes())
		}
		t.Close()
		return z.Close()
	}, unpacksMore},
	{"parquet: one text in each row", "a.parquet", inParquet(func() arrow.RecordBatch {
		return oneText(strings.Repeat("x", 1<<16), 1100)
	}, true), unpacksMore},
	{"parquet: a long page", "a.parquet", inParquet(func() arrow.RecordBatch {
		return oneText(strings.Repeat("x", 3<<20), 20)
	}, false), "too large for a file"},
	{"parquet: many columns", "a.parquet", inParquet(func() arrow.RecordBatch {
		return wide(1100, 1)
	}, false), "consist of more than 1024 columns"},
	{"parquet: columns of nothing", "a.parquet", inParquet(func() arrow.RecordBatch {
		return wide(1000, 70_000)
	}, false), unpacksMore},
	{"arrow: a batch", "a.arrow", inArrow(func() arrow.RecordBatch {
		return oneText(strings.Repeat("x", 1<<20), 70)
	}), "its buffers may have"},
	{"arrow: rows of nothing", "a.arrow", inArrow(func() arrow.RecordBatch {
		return oneText("", 300_000)
	}), unpacksMore},
	{"csv: many columns", "a.csv", func(w io.Writer) error {
		_, err := io.WriteString(w, numbered(100_000, "c%d", ",")+"\n"+
			strings.Repeat(strings.Repeat(",", 99_999)+"\n", 10))
		return err
	}, "no known layout"},
}

// TestHostile_DataIsRefusedOrBounded describes each of hostileDataFiles. -v prints a table of what
// that took.
func TestHostile_DataIsRefusedOrBounded(t *testing.T) {
	skipProcesses(t)
	dir := t.TempDir()
	usualFile := filepath.Join(dir, "usual.jsonl")
	put(t, usualFile, `{"text":"a text"}`)
	describe := func(t *testing.T, path string) hostileRun {
		data := []string{"data", "--tokenizer", "char_tokenizer", "--sequence_length", "256",
			"--data_path"}
		return runHostile(t, slices.Concat(data, []string{usualFile, nextCommand}, data,
			[]string{path})...)
	}
	usual := describe(t, usualFile)
	if usual.code != 0 || usual.peak == 0 {
		t.Fatalf("%+v", usual)
	}
	for _, d := range hostileDataFiles {
		t.Run(d.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := d.write(&b); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), d.file)
			put(t, path, b.String())
			r := describe(t, path)
			t.Logf("%.1f MB: %.2f seconds and %.0f MB more than a usual file", float64(b.Len())/1e6,
				r.seconds-usual.seconds, float64(r.peak-usual.peak)/1e6)
			r.check(t, usual, b.Len(), d.want)
		})
	}
}
