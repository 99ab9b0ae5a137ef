package dataset

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	arrays "github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	parquetfile "github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

// differences is a Parquet file of two columns, texts and numbers, in the given encoding of texts.
// Every fifth value is null.
func differences(t *testing.T, encoding parquet.Encoding, version parquet.DataPageVersion,
	texts []string, codec compress.Compression) []byte {
	t.Helper()
	schema := schemaOf(column("text", arrow.BinaryTypes.String),
		column("tokens", arrow.PrimitiveTypes.Int64))
	text := arrays.NewStringBuilder(memory.DefaultAllocator)
	number := arrays.NewInt64Builder(memory.DefaultAllocator)
	for i, s := range texts {
		if i%5 == 4 {
			text.AppendNull()
			number.AppendNull()
			continue
		}
		text.Append(s)
		number.Append(int64(i * i * i))
	}
	var out bytes.Buffer
	w, err := pqarrow.NewFileWriter(schema, &out, parquet.NewWriterProperties(
		parquet.WithDictionaryDefault(false), parquet.WithCompression(codec),
		parquet.WithEncodingFor("text", encoding), parquet.WithDataPageVersion(version),
		parquet.WithEncodingFor("tokens", parquet.Encodings.DeltaBinaryPacked)),
		pqarrow.DefaultWriterProps())
	if err == nil {
		err = w.Write(arrays.NewRecordBatch(schema, []arrow.Array{text.NewArray(),
			number.NewArray()}, int64(len(texts))))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestParquet_ReadsValuesStoredAsDifferences(t *testing.T) {
	lower(t, &maxValues, 1000) // some values at a time
	random := rand.New(rand.NewPCG(1, 2))
	texts := make([]string, 2000)
	for i := range texts {
		texts[i] = fmt.Sprintf("%0*d", random.IntN(60), i/7)
	}
	codecs := []compress.Compression{compress.Codecs.Zstd, compress.Codecs.Snappy,
		compress.Codecs.Gzip, compress.Codecs.Brotli, compress.Codecs.Lz4Raw,
		compress.Codecs.Uncompressed}
	for i, codec := range codecs {
		for _, encoding := range []parquet.Encoding{parquet.Encodings.DeltaByteArray,
			parquet.Encodings.DeltaLengthByteArray} {
			version := []parquet.DataPageVersion{parquet.DataPageV1, parquet.DataPageV2}[i%2]
			data := differences(t, encoding, version, texts, codec)
			var out bytes.Buffer
			if err := parquetToLines(data, Options{all: true}, &out); err != nil {
				t.Fatalf("%v %v: %v", codec, encoding, err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(lines) != len(texts) {
				t.Fatalf("%v %v: %d rows", codec, encoding, len(lines))
			}
			for i, line := range lines {
				var row struct {
					Text   *string
					Tokens *int
				}
				if err := json.Unmarshal([]byte(line), &row); err != nil {
					t.Fatal(err)
				}
				null := i%5 == 4
				if (row.Text == nil) != null || (row.Tokens == nil) != null ||
					!null && (*row.Text != texts[i] || *row.Tokens != i*i*i) {
					t.Fatalf("%v %v: row %d is %s", codec, encoding, i, line)
				}
			}
		}
	}
}

// What follows the lengths of texts is the texts.
func TestSkipDifferences_EndsWhereTheTextsBegin(t *testing.T) {
	for _, n := range []int{1, 2, 33, 128, 129, 1000, 4097} {
		texts := make([]string, n)
		size := 0
		for i := range texts {
			texts[i] = strings.Repeat("x", i*i%257)
			if i%5 != 4 {
				size += len(texts[i])
			}
		}
		for _, version := range []parquet.DataPageVersion{parquet.DataPageV1, parquet.DataPageV2} {
			data := differences(t, parquet.Encodings.DeltaLengthByteArray, version, texts,
				compress.Codecs.Zstd)
			r, err := parquetfile.NewParquetReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			pages, err := r.RowGroup(0).GetColumnPageReader(0)
			if err != nil || !pages.Next() {
				t.Fatal(err)
			}
			values, err := valuesOf(pages.Page().(parquetfile.DataPage),
				r.MetaData().Schema.Column(0))
			if err == nil {
				values, err = skipDifferences(values)
			}
			if err != nil || len(values) != size {
				t.Errorf("%d texts: %d bytes follow, %v; expected %d", n, len(values), err, size)
			}
			for cut := range 40 { // cut short anywhere
				skipDifferences(values[:min(cut, len(values))])
			}
		}
	}
}

func TestSkipDifferences_RefusesWhatNoWriterMakes(t *testing.T) {
	for _, header := range [][]uint64{{maxDeltaBlock * 2, 4, 10, 0}, {128, 0, 10, 0}, {0, 4, 10, 0},
		{128, 129, 10, 0}, {128, 4, maxDelta + 1, 0}, {128, 4, 10}, {128, 4, 10, 0}} {
		var data []byte
		for _, v := range header {
			data = binary.AppendUvarint(data, v)
		}
		if _, err := skipDifferences(data); err == nil {
			t.Errorf("%v is accepted", header)
		}
	}
}

func TestPageBudget_CountsPagesAndChunks(t *testing.T) {
	data := parquetBytes(t, schemaOf(column("text", arrow.BinaryTypes.String)), `[{"text":"abc"}]`)
	b := newPageBudget(len(data))
	b.openGroup()
	b.leaves = 2
	if err := b.openChunk(int64(len(data)) - 1); err != nil {
		t.Error(err)
	}
	if err := b.openChunk(2); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("got %v", err)
	}
	if err := b.openChunk(0); err == nil || !strings.Contains(err.Error(), "columns") {
		t.Errorf("got %v", err)
	}
	text := `[{"text":"` + strings.Repeat("x", 33<<20) + `"}]`
	long := parquetBytes(t, schemaOf(column("text", arrow.BinaryTypes.String)), text)
	if err := parquetToLines(long, Options{}, new(bytes.Buffer)); err == nil ||
		!strings.Contains(err.Error(), "too large for a file") {
		t.Errorf("got %v", err)
	}
	lower(t, &minUnpackLimit, 100) // a page counts more
	lower(t, &maxUnpackRatio, 0)
	var out bytes.Buffer
	if err := parquetToLines(data, Options{}, &out); !errors.Is(err, errUnpacks) {
		t.Errorf("got %v", err)
	}
}

// A page that unpacks to more than its header says is refused before it is unpacked.
func TestCodecs_MakeNoMoreThanAPageSays(t *testing.T) {
	plain := bytes.Repeat([]byte{'x'}, 1<<20)
	for _, kind := range []compress.Compression{compress.Codecs.Zstd, compress.Codecs.Snappy,
		compress.Codecs.Gzip, compress.Codecs.Brotli, compress.Codecs.Lz4Raw} {
		codec, err := compress.GetCodec(kind)
		if err != nil {
			t.Fatal(err)
		}
		packed := codec.Encode(nil, plain)
		got, err := compress.Decode(codec, make([]byte, len(plain)), packed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%v: %d bytes, %v", kind, len(got), err)
		}
		room := make([]byte, 100, len(plain)) // a buffer may have held a larger page
		if got, err := compress.Decode(codec, room, packed); err == nil {
			t.Errorf("%v: %d bytes in 100", kind, len(got))
		}
	}
}

// pyarrow writes a thousand values into a page, whatever their size.
func TestParquet_ReadsPagesOfLongTexts(t *testing.T) {
	text := strings.Repeat("long text ", 3_500_000)
	data := differences(t, parquet.Encodings.Plain, parquet.DataPageV1, []string{text, text},
		compress.Codecs.Uncompressed)
	var out bytes.Buffer
	if err := parquetToLines(data, Options{}, &out); err != nil || out.Len() < 2*len(text) {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}
