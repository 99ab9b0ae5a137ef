package dataset

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow"
	arrays "github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	flatbuffers "github.com/google/flatbuffers/go"

	"conquer/text/tokenizer"
)

// arrowFile is a file of Arrow record batches, read in place. Each row is a
// record. If the column tokens holds numbers rather than lists of numbers, each
// batch is one document, as in foundation-model-stack's shards. A position is
// the number of a row or a batch.
type arrowFile struct {
	name    string
	opts    Options
	reader  *ipc.FileReader
	memory  *boundedMemory
	bytes   int64   // size of the file
	columns []int   // columns that belong to a record
	starts  []int64 // first row of each batch, then the row count; nil if a batch is a document

	indexed  bool         // the rows were read once
	unpacked atomic.Int64 // bytes of the rows that were read until then

	mu     sync.Mutex // guards the last batch, which may have been decompressed
	number int
	batch  arrow.RecordBatch
}

var errNesting = fmt.Errorf("columns are nested more than %d deep", maxNesting)

func openArrow(name string, data []byte, opts Options, maps *mappings) (file, error) {
	// A stream, the format of Hugging Face's cached data sets, has no index.
	if bytes.HasPrefix(data, []byte("\xFF\xFF\xFF\xFF")) {
		stream := data
		var err error
		data, err = maps.unpack(len(stream), func(w io.Writer) error {
			return indexStream(stream,
				w)
		})
		if err != nil {
			return nil, err
		}
	}
	if err := checkFooter(data); err != nil {
		return nil, err
	}
	mem := newBounded(unpackLimit(len(data)))
	r, err := openBatches(data, mem)
	if err != nil {
		return nil, err
	}
	f := &arrowFile{name: name, opts: opts, reader: r, memory: mem, bytes: int64(len(data)),
		number: -1}
	fields := r.Schema().Fields()
	f.columns, err = pickColumns(opts, len(fields), func(i int) string { return fields[i].Name })
	if err != nil {
		return nil, err
	}
	for _, i := range f.columns {
		if !opts.all && opts.Columns.target(fields[i].Name) == "tokens" &&
			arrow.IsInteger(fields[i].Type.ID()) {
			return f, nil
		}
	}
	f.starts = []int64{0}
	for i := range r.NumRecords() {
		batch, err := f.readBatch(i)
		if err != nil {
			return nil, err
		}
		f.starts = append(f.starts, f.starts[i]+batch.NumRows())
	}
	mem.uncount()
	return f, nil
}

// openBatches opens an Arrow file in place. The reader that does so panics if the file has
// dictionaries, and swaps the bytes of big-endian numbers where they are, each time that it reads
// them; such files are read with another one, which copies each batch.
func openBatches(data []byte, mem memory.Allocator) (r *ipc.FileReader, err error) {
	if isBigEndian(data) {
		return ipc.NewFileReader(bytes.NewReader(data), ipc.WithAllocator(mem))
	}
	inPlace := guarded(func() (err error) {
		r, err = ipc.NewMappedFileReader(data, ipc.WithAllocator(mem))
		return err
	})
	if inPlace == nil {
		return r, nil
	}
	if _, panicked := inPlace.(damage); !panicked {
		return nil, inPlace
	}
	return ipc.NewFileReader(bytes.NewReader(data), ipc.WithAllocator(mem))
}

// isBigEndian reports whether the schema in a file's footer, which was checked, says so.
func isBigEndian(data []byte) bool {
	size := int(binary.LittleEndian.Uint32(data[len(data)-tail:]))
	footer := data[len(data)-tail-size : len(data)-tail]
	root := flatbuffers.Table{Bytes: footer, Pos: flatbuffers.GetUOffsetT(footer)}
	at := flatbuffers.UOffsetT(root.Offset(6))
	if at == 0 {
		return false
	}
	schema := flatbuffers.Table{Bytes: footer, Pos: root.Indirect(root.Pos + at)}
	return schema.GetInt16Slot(4, 0) != 0
}

// tail is what ends a file: the length of the footer, "ARROW1".
const tail = 4 + 6

// checkFooter checks the schema in the footer of a file.
func checkFooter(data []byte) error {
	if len(data) < tail {
		return errors.New("not an Arrow file")
	}
	size := int(binary.LittleEndian.Uint32(data[len(data)-tail:]))
	if size < 4 || size > len(data)-tail {
		return errors.New("not an Arrow file, or cut short")
	}
	footer := data[len(data)-tail-size : len(data)-tail]
	if err := checkBatches(footer, len(data)); err != nil {
		return err
	}
	return checkSchema(footer, 6)
}

// checkBatches refuses a footer whose dictionaries and batches claim more bytes than the file has:
// several may claim the same ones, each of which costs its size.
func checkBatches(footer []byte, file int) error {
	const block = 24 // offset, length of the metadata, length of the body: 8 bytes each
	root := flatbuffers.Table{Bytes: footer, Pos: flatbuffers.GetUOffsetT(footer)}
	left := int64(file)
	for _, slot := range []flatbuffers.VOffsetT{8, 10} { // dictionaries, batches
		at := flatbuffers.UOffsetT(root.Offset(slot))
		if at == 0 {
			continue
		}
		start, n := root.Vector(at), root.VectorLen(at)
		if n > len(footer)/block {
			return fmt.Errorf("the file is damaged: its footer has a list of %d", n)
		}
		for i := range n {
			pos := start + flatbuffers.UOffsetT(i*block)
			meta, body := int64(root.GetInt32(pos+8)), root.GetInt64(pos+16)
			if meta < 1 || meta > left || body < 0 || body > left-meta {
				return errors.New("the file is damaged: its batches overlap or lie outside")
			}
			left -= meta + body
		}
	}
	return nil
}

// maxNesting is how deep columns may be nested.
const maxNesting = 64

// checkSchema checks the lengths in the schema at slot of the flatbuffer in data,
// because the decoder trusts them. It panics if an offset points outside data.
func checkSchema(data []byte, slot flatbuffers.VOffsetT) error {
	fields, depth := 0, 0
	var check func(t flatbuffers.Table, lists ...flatbuffers.VOffsetT) error
	check = func(t flatbuffers.Table, lists ...flatbuffers.VOffsetT) error {
		if depth++; depth > maxNesting {
			return errNesting
		}
		defer func() { depth-- }()
		for i, list := range lists {
			at := flatbuffers.UOffsetT(t.Offset(list))
			if at == 0 {
				continue
			}
			n := t.VectorLen(at)
			if fields += n; n < 0 || fields > len(data)/4 {
				return fmt.Errorf("the file is damaged: its schema has a list of %d", n)
			}
			for k := range n {
				pos := t.Indirect(t.Vector(at) + flatbuffers.UOffsetT(4*k))
				if i > 0 { // metadata
					continue
				}
				item := flatbuffers.Table{Bytes: data, Pos: pos}
				if err := check(item, 14, 16); err != nil { // children and metadata of a field
					return err
				}
			}
		}
		return nil
	}
	root := flatbuffers.Table{Bytes: data, Pos: flatbuffers.GetUOffsetT(data)}
	if at := flatbuffers.UOffsetT(root.Offset(slot)); at != 0 {
		schema := flatbuffers.Table{Bytes: data, Pos: root.Indirect(root.Pos + at)}
		return check(schema, 6, 8) // fields and metadata of the schema
	}
	return nil
}

// indexStream writes an Arrow stream as an Arrow file, which has an index.
func indexStream(data []byte, to io.Writer) error {
	const head = 4 + 4 // a marker, the length of the schema
	if len(data) < head || int(binary.LittleEndian.Uint32(data[4:])) > len(data)-head {
		return errors.New("not an Arrow stream, or cut short")
	}
	schema := data[head : head+int(binary.LittleEndian.Uint32(data[4:]))]
	if err := checkSchema(schema, 8); err != nil {
		return err
	}
	mem := newBounded(unpackLimit(len(data)))
	r, err := ipc.NewReader(bytes.NewReader(data), ipc.WithAllocator(mem))
	if err != nil {
		return err
	}
	w, err := ipc.NewFileWriter(to, ipc.WithSchema(r.Schema()), ipc.WithAllocator(mem))
	if err != nil {
		return err
	}
	for r.Next() {
		if err := w.Write(r.RecordBatch()); err != nil {
			return err
		}
	}
	if r.Err() != nil {
		return r.Err()
	}
	return w.Close()
}

// readBatch returns batch i and keeps it for the next call.
func (f *arrowFile) readBatch(i int) (batch arrow.RecordBatch, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.number != i {
		f.number = -1
		if f.batch, err = f.reader.RecordBatchAt(i); err != nil {
			return nil, fmt.Errorf("batch %d: %w", i+1, err)
		}
		f.number = i
	}
	return f.batch, nil
}

func (f *arrowFile) scan(take func(at int64) error) error {
	for at := range f.positions() {
		if err := take(at); err != nil {
			return err
		}
	}
	f.indexed = true
	f.memory.uncount() // batches are unpacked again when they are needed
	return nil
}

// minRow is what a row counts at least. Columns of one repeated value hold any number of rows in a
// few bytes.
const minRow = 256

// spend counts bytes of a row, as unpacking a Parquet file does.
func (f *arrowFile) spend(bytes int) error {
	if f.indexed {
		return nil
	}
	if f.unpacked.Add(int64(bytes)) > unpackLimit(int(f.bytes)) {
		return errUnpacks
	}
	return nil
}

// positions returns the number of records.
func (f *arrowFile) positions() int64 {
	n := int64(f.reader.NumRecords())
	if f.starts != nil {
		n = f.starts[n]
	}
	return n
}

// offset assumes that all records have the same size.
func (f *arrowFile) offset(at int64) int64 { return f.bytes / max(1, f.positions()) * at }

func (f *arrowFile) title() string { return f.name }

func (f *arrowFile) size() int64 { return f.bytes }

func (f *arrowFile) where(at int64) string { return fmt.Sprintf("%s: row %d", f.name, at+1) }

func (f *arrowFile) record(at int64) (r record, err error) {
	number, row := int(at), -1
	if f.starts != nil {
		number, _ = slices.BinarySearch(f.starts, at+1)
		number--
		row = int(at - f.starts[number])
	}
	batch, err := f.readBatch(number)
	if err != nil {
		return r, err
	}
	fields, size := jsonFields{}, 0
	for _, i := range f.columns {
		column := batch.Column(i)
		name := batch.ColumnName(i)
		tokens := f.opts.Columns.target(name) == "tokens"
		switch {
		case row < 0 && !tokens, row >= 0 && column.IsNull(row):
			continue
		case tokens:
			if r.ids, err = tokensOf(column, row); err != nil {
				return r, fmt.Errorf("column %q: %w", name, err)
			}
			fields[name] = json.RawMessage("[]") // replaced by r.ids
			if len(r.ids) > 0 {
				fields[name] = json.RawMessage("[0]")
			}
			continue
		}
		value := limited{most: f.opts.most()}
		if err := writeArrow(&value, column, row); err != nil {
			return r, fmt.Errorf("column %q: %w", name, err)
		}
		if size += value.Len(); size > value.most {
			return r, errTooLong(value.most)
		}
		if value.String() == "null" {
			continue
		}
		if err := f.spend(value.Len()); err != nil { // before the JSON is read
			return r, err
		}
		if fields[name], err = tokenizer.DropNulls(value.Bytes()); err != nil {
			return r, err
		}
	}
	if err := f.spend(max(4*len(r.ids), minRow-size)); err != nil {
		return r, err
	}
	f.opts.Columns.rename(fields)
	if fields.layout(f.opts.Layout) == Tokens && checkLayout(Tokens, f.opts.Layout) == nil {
		r.layout = Tokens
		return r, nil
	}
	r, err = fields.record(f.opts.Layout)
	if err != nil {
		var names []string
		for _, field := range f.reader.Schema().Fields() {
			names = append(names, field.Name)
		}
		err = f.opts.Columns.explain(err, names)
	}
	return r, err
}

// tokensOf returns the list in a row of a column, or, for row -1, the whole
// column.
func tokensOf(column arrow.Array, row int) ([]int32, error) {
	from, to := int64(0), int64(column.Len())
	if row >= 0 {
		list, ok := column.(arrays.ListLike)
		if !ok {
			return nil, fmt.Errorf(
				"its type is %s, expected token ids: integers or lists of integers",
				column.DataType())
		}
		from, to = list.ValueOffsets(row)
		column = list.ListValues()
	}
	if from < 0 || from > to || to > int64(column.Len()) {
		return nil, fmt.Errorf("the file is damaged: a list from %d to %d of %d values",
			from, to, column.Len())
	}
	if column.NullN() > 0 {
		for i := from; i < to; i++ {
			if column.IsNull(int(i)) {
				return nil, fmt.Errorf("token %d is null", i-from+1)
			}
		}
	}
	switch c := column.(type) {
	case *arrays.Int32:
		return slices.Clone(c.Int32Values()[from:to]), nil // a sample outlives the mapping
	case *arrays.Uint32:
		return toIDs(c.Uint32Values()[from:to])
	case *arrays.Int64:
		return toIDs(c.Int64Values()[from:to])
	case *arrays.Uint64:
		return toIDs(c.Uint64Values()[from:to])
	case *arrays.Uint16:
		return toIDs(c.Uint16Values()[from:to])
	case *arrays.Int16:
		return toIDs(c.Int16Values()[from:to])
	case *arrays.Uint8:
		return toIDs(c.Uint8Values()[from:to])
	case *arrays.Int8:
		return toIDs(c.Int8Values()[from:to])
	}
	return nil, fmt.Errorf("its values are %s, expected token ids: integers", column.DataType())
}

// toIDs converts integers of other types to ids.
func toIDs[T int8 | int16 | int64 | uint8 | uint16 | uint32 | uint64](values []T) ([]int32, error) {
	ids := make([]int32, len(values))
	for i, v := range values {
		if uint64(v) > math.MaxInt32 {
			return nil, fmt.Errorf("token %d is %d, larger than any vocabulary", i+1, v)
		}
		ids[i] = int32(v)
	}
	return ids, nil
}
