package dataset

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/endian"
	flatbuffers "github.com/google/flatbuffers/go"
)

// blocksOf returns the places of the batches in the footer of an Arrow file, 24 bytes each.
func blocksOf(data []byte) []byte {
	end := len(data) - 10
	footer := data[end-int(binary.LittleEndian.Uint32(data[end:])) : end]
	root := flatbuffers.Table{Bytes: footer, Pos: flatbuffers.GetUOffsetT(footer)}
	at := flatbuffers.UOffsetT(root.Offset(10))
	start := root.Vector(at)
	return footer[start : int(start)+24*root.VectorLen(at)]
}

func TestArrow_BatchesDoNotOverlap(t *testing.T) {
	schema := schemaOf(column("text", arrow.BinaryTypes.String))
	batches := []string{`[{"text":"` + strings.Repeat("x", 5000) + `"}]`}
	for range 9 {
		batches = append(batches, `[{"text":"a"}]`)
	}
	data := arrowBytes(t, false, schema, batches...)
	if err := checkFooter(data); err != nil {
		t.Error(err)
	}
	blocks := blocksOf(data)
	for i := 1; i < 10; i++ {
		copy(blocks[i*24:], blocks[:24]) // each batch is the first one
	}
	_, err := Load(writeTestFile(t, "a.arrow", string(data)), chars(t, ""), Options{})
	if err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("got %v", err)
	}
	binary.LittleEndian.PutUint64(blocks[16:], 1<<63) // a negative size
	if err := checkFooter(data); err == nil {
		t.Error("a negative size is accepted")
	}
}

func TestArrow_ColumnsAreNotNestedDeep(t *testing.T) {
	nested := func(depth int) []byte {
		var inner arrow.DataType = arrow.PrimitiveTypes.Int32
		for range depth {
			inner = arrow.ListOf(inner)
		}
		return arrowBytes(t, false, schemaOf(column("tokens", inner)))
	}
	if err := checkFooter(nested(maxNesting - 4)); err != nil {
		t.Error(err)
	}
	if err := checkFooter(nested(maxNesting + 4)); err != errNesting {
		t.Errorf("got %v", err)
	}
}

func TestBoundedMemory_CountsUntilAFileIsOpen(t *testing.T) {
	refused := func(b *boundedMemory, size int) bool {
		return guarded(func() error { b.Allocate(size); return nil }) != nil
	}
	b := newBounded(1000)
	if refused(b, 600) || !refused(b, 600) {
		t.Error("buffers of 1,200 bytes together are not refused, or one of 600 is")
	}
	b.uncount()
	if refused(b, 900) || !refused(b, 1001) || !refused(b, -1) {
		t.Error("a buffer of 900 bytes is refused, or one of 1,001")
	}
	old := b.Allocate(900)
	if guarded(func() error { b.Reallocate(2000, old); return nil }) == nil {
		t.Error("a buffer grows to 2,000 bytes")
	}
}

// counted counts how often records are read.
type counted struct {
	file
	reads int
}

func (c *counted) record(at int64) (record, error) {
	c.reads++
	return c.file.record(at)
}

// A record that makes many samples is encoded once for those that follow each other, however large
// it is.
func TestDataset_ReadsALongRecordOnce(t *testing.T) {
	lower(t, &maxCached, 100)
	numbers := strings.TrimSuffix(strings.Repeat("65,", 2000), ",")
	for name, data := range map[string]string{
		"a.jsonl": `{"tokens":[` + numbers + "]}\n" + `{"tokens":[` + numbers + "]}",
		"b.jsonl": `{"text":"` + strings.Repeat("long ", 400) + `"}`,
		"a.arrow": string(arrowBytes(t, false,
			schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))),
			`[{"tokens":[`+numbers+`]}]`)),
	} {
		d, err := Load(writeTestFile(t, name, data), chars(t, ""), Options{MaxLength: 16})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s := d.sources[0].(*reader)
		c := &counted{file: s.file}
		s.file = c
		if d.Len() < 100 {
			t.Fatalf("%s: %d samples", name, d.Len())
		}
		for i := range d.Len() {
			if sample, err := d.At(i); err != nil || len(sample.IDs) == 0 {
				t.Fatal(err)
			}
		}
		if c.reads > 2 {
			t.Errorf("%s: records were read %d times", name, c.reads)
		}
	}
}

// Rows may claim the same values. What they claim counts before it is read as JSON.
func TestArrow_CountsValuesThatRowsShare(t *testing.T) {
	data := arrowBytes(t, false, schemaOf(column("text", arrow.BinaryTypes.String)),
		`[{"text":"`+strings.Repeat("x", 5<<20)+`"},{"text":"b"}]`)
	if err := guarded(func() error {
		f, err := openArrow("a.arrow", data, Options{longest: 4 << 20}, new(mappings))
		if err == nil {
			_, err = f.record(0)
		}
		return err
	}); err == nil || !strings.Contains(err.Error(), "more than 4194304 bytes") {
		t.Errorf("got %v", err)
	}
	lower(t, &minUnpackLimit, 3<<20)
	lower(t, &maxUnpackRatio, 0)
	f := &arrowFile{bytes: 1000}
	if f.spend(2<<20) != nil || f.spend(2<<20) != errUnpacks {
		t.Error("4 MiB of 3 are not refused, or 2 are")
	}
}

// Big-endian numbers are swapped once, however often they are read.
func TestArrow_ReadsBigEndianFilesAgain(t *testing.T) {
	schema := schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32))).
		WithEndianness(endian.BigEndian)
	data := arrowBytes(t, false, schema, `[{"tokens":[65,66]},{"tokens":[67]}]`)
	swap := map[string]string{"\x41\x00\x00\x00\x42\x00\x00\x00\x43\x00\x00\x00": "" +
		"\x00\x00\x00\x41\x00\x00\x00\x42\x00\x00\x00\x43",
		"\x00\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00": "" +
			"\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03"}
	for little, big := range swap {
		if bytes.Count(data, []byte(little)) != 1 {
			t.Fatalf("%x is not once in the file", little)
		}
		data = bytes.Replace(data, []byte(little), []byte(big), 1)
	}
	d, err := Load(writeTestFile(t, "a.arrow", string(data)), chars(t, ""), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 3 {
		if s, err := d.At(0); err != nil || len(s.IDs) < 2 || s.IDs[0] != 65 || s.IDs[1] != 66 {
			t.Errorf("got %v, %v", s.IDs, err)
		}
	}
}
