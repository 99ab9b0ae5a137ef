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

	"github.com/apache/arrow-go/v18/arrow"
	arrays "github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	flatbuffers "github.com/google/flatbuffers/go"
)

// arrowFile is a file of Arrow record batches, read where it lies in memory.
// Its documents are either its rows or, where the column tokens holds numbers
// rather than lists of them, its batches: so foundation-model-stack writes its
// shards.
type arrowFile struct {
	name    string
	layout  Layout
	reader  *ipc.FileReader
	bytes   int64   // the file's size
	columns []int   // those of a record
	starts  []int64 // the first row of each batch, and how many rows there are; nil where a batch is a document

	mu     sync.Mutex // guards the batch that was read last, which may have been decompressed
	number int
	batch  arrow.RecordBatch
}

// The columns that records are made of, and pairs.
var (
	recordColumns = []string{"messages", "instruction", "input", "output", "system", "tokens", "text"}
	pairColumns   = []string{"prompt", "chosen", "rejected", "system"}
	chatColumns   = []string{"messages", "prompt", "chosen", "rejected"} // of messages, where they are lists
)

// mostBuffer is the largest buffer that a decoder is given: a damaged file may
// ask for any.
const mostBuffer = 2 << 30

type boundedMemory struct{ memory.Allocator }

func (b boundedMemory) Allocate(size int) []byte {
	if size < 0 || size > mostBuffer {
		panic(fmt.Sprintf("it asks for a buffer of %d bytes", size))
	}
	return b.Allocator.Allocate(size)
}

func (b boundedMemory) Reallocate(size int, old []byte) []byte {
	if size < 0 || size > mostBuffer {
		panic(fmt.Sprintf("it asks for a buffer of %d bytes", size))
	}
	return b.Allocator.Reallocate(size, old)
}

var bounded = boundedMemory{memory.NewGoAllocator()}

func openArrow(name string, data []byte, layout Layout, maps *mappings) (file, error) {
	if bytes.HasPrefix(data, []byte("\xFF\xFF\xFF\xFF")) { // a stream, which has no index: Hugging Face's data sets are kept so
		var err error
		if data, err = maps.unpacked(len(data), func(w io.Writer) error { return fromStream(data, w) }); err != nil {
			return nil, err
		}
	}
	if err := checkFooter(data); err != nil {
		return nil, err
	}
	r, err := ipc.NewMappedFileReader(data, ipc.WithAllocator(bounded))
	if err != nil {
		return nil, err
	}
	f := &arrowFile{name: name, layout: layout, reader: r, bytes: int64(len(data)), number: -1}
	fields := r.Schema().Fields()
	if f.columns, err = pickColumns(layout, len(fields), func(i int) string { return fields[i].Name }); err != nil {
		return nil, err
	}
	for _, i := range f.columns {
		if fields[i].Name == "tokens" && arrow.IsInteger(fields[i].Type.ID()) {
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
	return f, nil
}

// checkFooter checks the schema in a file's footer.
func checkFooter(data []byte) error {
	const tail = 4 + 6 // the footer's length, ARROW1
	if len(data) < tail {
		return errors.New("not an Arrow file")
	}
	size := int(binary.LittleEndian.Uint32(data[len(data)-tail:]))
	if size < 4 || size > len(data)-tail {
		return errors.New("not an Arrow file, or cut short")
	}
	return checkSchema(data[len(data)-tail-size:len(data)-tail], 6)
}

// checkSchema follows the schema in slot of the flatbuffer in data, for the
// decoder believes what it says about lengths. It panics where that points
// outside.
func checkSchema(data []byte, slot flatbuffers.VOffsetT) error {
	fields := 0
	var check func(t flatbuffers.Table, lists ...flatbuffers.VOffsetT) error
	check = func(t flatbuffers.Table, lists ...flatbuffers.VOffsetT) error {
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
				item := flatbuffers.Table{Bytes: data, Pos: t.Indirect(t.Vector(at) + flatbuffers.UOffsetT(4*k))}
				if i > 0 { // metadata
					continue
				}
				if err := check(item, 14, 16); err != nil { // a field's children, its metadata
					return err
				}
			}
		}
		return nil
	}
	root := flatbuffers.Table{Bytes: data, Pos: flatbuffers.GetUOffsetT(data)}
	if at := flatbuffers.UOffsetT(root.Offset(slot)); at != 0 {
		return check(flatbuffers.Table{Bytes: data, Pos: root.Indirect(root.Pos + at)}, 6, 8) // the schema's fields, its metadata
	}
	return nil
}

func fromStream(data []byte, to io.Writer) error {
	const head = 4 + 4 // a mark, the schema's length
	if len(data) < head || int(binary.LittleEndian.Uint32(data[4:])) > len(data)-head {
		return errors.New("not an Arrow stream, or cut short")
	}
	if err := checkSchema(data[head:head+int(binary.LittleEndian.Uint32(data[4:]))], 8); err != nil {
		return err
	}
	r, err := ipc.NewReader(bytes.NewReader(data), ipc.WithAllocator(bounded))
	if err != nil {
		return err
	}
	w, err := ipc.NewFileWriter(to, ipc.WithSchema(r.Schema()), ipc.WithAllocator(bounded))
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

// pickColumns finds the columns of a record.
func pickColumns(layout Layout, n int, name func(int) string) (picked []int, err error) {
	var names []string
	for i := range n {
		names = append(names, name(i))
	}
	columns := recordColumns
	found := layoutOf(layout, func(name string) bool { return slices.Contains(names, name) })
	if found == Preference {
		columns = pairColumns
	}
	for i, name := range names {
		if slices.Contains(columns, name) {
			picked = append(picked, i)
		}
	}
	if found == AnyLayout {
		return nil, fmt.Errorf("no known layout has the columns %q; %s", names, knownLayouts)
	}
	return picked, nil
}

// readBatch returns batch i.
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
	for at := range f.documents() {
		if err := take(at); err != nil {
			return err
		}
	}
	return nil
}

// documents is how many there are.
func (f *arrowFile) documents() int64 {
	n := int64(f.reader.NumRecords())
	if f.starts != nil {
		n = f.starts[n]
	}
	return n
}

// passed takes all documents to be of one size.
func (f *arrowFile) passed(at int64) int64 {
	if at < 0 {
		return f.bytes
	}
	return f.bytes / max(1, f.documents()) * at
}

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
	object := map[string]any{}
	for _, i := range f.columns {
		column := batch.Column(i)
		switch name := batch.ColumnName(i); {
		case row < 0 && name != "tokens", row >= 0 && column.IsNull(row):
		case name == "tokens":
			r.layout = Tokens
			if r.ids, err = tokensOf(column, row); err != nil {
				return r, fmt.Errorf("column %q: %w", name, err)
			}
			object[name] = []int32{}
		default:
			value := column.GetOneForMarshal(row)
			if text, ok := value.([]byte); ok {
				value = string(text)
			}
			object[name] = value
		}
	}
	if layoutOf(f.layout, func(name string) bool { _, ok := object[name]; return ok }) == Tokens && (f.layout == AnyLayout || f.layout == Tokens) {
		return r, nil
	}
	text, err := json.Marshal(object)
	if err != nil {
		return r, err
	}
	return parseRecord(text, f.layout)
}

// tokensOf is a column's list in a row, or for row -1 all of the column.
func tokensOf(column arrow.Array, row int) ([]int32, error) {
	from, to := int64(0), int64(column.Len())
	if row >= 0 {
		list, ok := column.(arrays.ListLike)
		if !ok {
			return nil, fmt.Errorf("its type is %s, expected token ids: integers or lists of them", column.DataType())
		}
		from, to = list.ValueOffsets(row)
		column = list.ListValues()
	}
	if from < 0 || from > to || to > int64(column.Len()) {
		return nil, fmt.Errorf("the file is damaged: a list from %d to %d of %d values", from, to, column.Len())
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
		return slices.Clone(c.Int32Values()[from:to]), nil // the file may go, a sample may not
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

func toIDs[T int8 | int16 | int64 | uint8 | uint16 | uint32 | uint64](values []T) ([]int32, error) {
	ids := make([]int32, len(values))
	for i, v := range values {
		if uint64(v) > math.MaxInt32 {
			return nil, fmt.Errorf("token %d is %d, which no vocabulary has", i+1, v)
		}
		ids[i] = int32(v)
	}
	return ids, nil
}
