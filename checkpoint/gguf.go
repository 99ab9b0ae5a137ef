package checkpoint

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"unsafe"

	"conquer/internal/budget"
	"conquer/quant"
)

// The types of GGUF metadata values.
const (
	ggufUint8 = iota
	ggufInt8
	ggufUint16
	ggufInt16
	ggufUint32
	ggufInt32
	ggufFloat32
	ggufBool
	ggufString
	ggufArray
	ggufUint64
	ggufInt64
	ggufFloat64
)

// maxGGUFNesting is the depth to which arrays of arrays are read. Files in use have none; ggml
// refuses them.
const maxGGUFNesting = 4

// ggufFile is the header of a GGUF file.
type ggufFile struct {
	version  uint32
	metadata map[string]any
	records  []record // names and dtypes as ggml has them, shapes in PyTorch's order: rows first
}

// parseGGUF reads the header of the GGUF file in data, version 2 or 3 and little-endian:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count is compared with the
// remaining bytes before anything is allocated for it, and what is allocated is taken from the
// budget.
func parseGGUF(data []byte, left *budget.Budget) (*ggufFile, error) {
	r := &ggufReader{data: data, budget: left}
	if string(r.take(4)) != "GGUF" {
		return nil, fmt.Errorf("the file does not begin with GGUF")
	}
	f := &ggufFile{version: r.uint32(), metadata: map[string]any{}}
	if r.err == nil && f.version != 2 && f.version != 3 {
		if swapped := bits.ReverseBytes32(f.version); swapped == 2 || swapped == 3 {
			return nil, fmt.Errorf("the file is big-endian, expected little-endian")
		}
		return nil, fmt.Errorf("GGUF version %d, expected 2 or 3", f.version)
	}
	tensors := r.count("tensors", 24) // name length, rank, type and offset
	pairs := r.count("metadata", 13)  // key length, type and one byte
	for i := 0; i < pairs && r.err == nil; i++ {
		at := r.at
		key := r.string()
		r.allow(96) // an entry of the map
		value := r.value(r.uint32(), 0)
		if r.err != nil {
			return nil, fmt.Errorf("metadata %d of %d (%.80q) at byte %d: %w", i+1, pairs, key, at,
				r.err)
		}
		if _, twice := f.metadata[key]; twice {
			return nil, fmt.Errorf("the metadata key %.80q appears twice", key)
		}
		f.metadata[key] = value
	}
	names := map[string]bool{}
	for i := 0; i < tensors && r.err == nil; i++ {
		at := r.at
		r.allow(512) // a record, its place in a checkpoint, and entries of maps by its name
		t := r.tensor()
		if r.err != nil {
			return nil, fmt.Errorf("tensor %.80q (%d of %d, described at byte %d): %w", t.name,
				i+1, tensors, at, r.err)
		}
		if names[t.name] {
			return nil, fmt.Errorf("tensor %.80q appears twice", t.name)
		}
		names[t.name] = true
		f.records = append(f.records, t)
	}
	if r.err != nil {
		return nil, r.err
	}
	return f, f.place(r.at, len(data))
}

// place turns the records' offsets, relative to the data section, into offsets in the file. It
// checks that the data is aligned, inside the file and free of overlaps. headerEnd is the end of
// the descriptions.
func (f *ggufFile) place(headerEnd, size int) error {
	alignment := 32
	if v, ok := f.metadata["general.alignment"]; ok {
		n, ok := v.(uint32)
		if !ok || n < 8 || n > 1<<20 || n&(n-1) != 0 {
			return fmt.Errorf("general.alignment is %v, expected a power of two from 8 to 2^20", v)
		}
		alignment = int(n)
	}
	start := (headerEnd + alignment - 1) / alignment * alignment
	for i := range f.records {
		t := &f.records[i]
		if t.offset%alignment != 0 {
			return fmt.Errorf("tensor %.80q: its offset %d is not a multiple of the alignment %d",
				t.name, t.offset, alignment)
		}
		if start > size || t.offset > size-start || t.bytes > size-start-t.offset {
			return fmt.Errorf("tensor %.80q: its %d bytes at offset %d of the data end behind "+
				"the file, whose data has %d bytes: truncated?",
				t.name, t.bytes, t.offset, max(size-start, 0))
		}
		t.offset += start
	}
	ordered := slices.Clone(f.records)
	slices.SortStableFunc(ordered, func(a, b record) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(ordered); i++ {
		if before, t := ordered[i-1], ordered[i]; before.offset+before.bytes > t.offset {
			return fmt.Errorf("tensor %.80q: its data overlaps that of %.80q", t.name, before.name)
		}
	}
	return nil
}

// ggufReader reads a file's bytes in order. After the first failure it keeps the reason and returns
// zeros.
type ggufReader struct {
	data   []byte
	at     int
	budget *budget.Budget
	err    error
}

// allow takes bytes from the budget for what is made of the file's.
func (r *ggufReader) allow(bytes int) {
	if r.err == nil {
		r.err = r.budget.Take(bytes)
	}
}

func (r *ggufReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *ggufReader) left() int { return len(r.data) - r.at }

// take returns the next n bytes of the file itself, or nil.
func (r *ggufReader) take(n int) []byte {
	if r.err == nil && n > r.left() {
		r.fail("the file ends at byte %d, expected %d more bytes at byte %d: truncated?",
			len(r.data), n, r.at)
	}
	if r.err != nil {
		return nil
	}
	b := r.data[r.at : r.at+n]
	r.at += n
	return b
}

func (r *ggufReader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *ggufReader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// count reads the number of items that take at least `least` bytes each.
func (r *ggufReader) count(what string, least int) int {
	n := r.uint64()
	if r.err == nil && n > uint64(r.left()/least) {
		r.fail("%s: a count of %d cannot fit in the %d bytes left: truncated?", what, n, r.left())
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

func (r *ggufReader) string() string {
	n := r.count("string", 1)
	r.allow(n)
	return string(r.take(n))
}

// tensor reads one description. Its offset is relative to the data section.
func (r *ggufReader) tensor() record {
	t := record{name: r.string()}
	rank := r.uint32()
	if rank > 4 {
		r.fail("%d dimensions, expected at most 4", rank)
		return t
	}
	t.shape = make([]int, rank)
	for i := range t.shape {
		n := r.uint64()
		if n == 0 && r.err == nil || n > 1<<62 {
			r.fail("dimension %d is %d, expected 1 to 2^62", i, n)
		}
		t.shape[len(t.shape)-1-i] = int(n)
	}
	number, offset := r.uint32(), r.uint64()
	if r.err != nil {
		return t
	}
	kind, ok := quant.ByNumber(int(number))
	if !ok {
		r.fail("unknown type %d", number)
		return t
	}
	t.dtype = kind.Name
	row := 1
	if rank > 0 {
		row = t.shape[rank-1]
	}
	if row%kind.Block != 0 {
		r.fail("rows of %d, expected a multiple of %d for %s", row, kind.Block, kind.Name)
		return t
	}
	size, ok := sizeInBits(t.shape, 8*kind.Bytes)
	if !ok || offset > 1<<62 {
		r.fail("%s of shape %v at offset %d exceeds 2^62 bits", kind.Name, t.shape, offset)
		return t
	}
	t.offset, t.bytes = int(offset), size/8/kind.Block
	return t
}

// value reads a metadata value as the Go type of its width. Arrays become slices, arrays of arrays
// []any.
func (r *ggufReader) value(kind uint32, depth int) any {
	switch kind {
	case ggufBool:
		if b := r.take(1); b != nil {
			if b[0] > 1 {
				r.fail("a bool is %d, expected 0 or 1", b[0])
			}
			return b[0] == 1
		}
		return false
	case ggufString:
		return r.string()
	case ggufArray:
		return r.array(depth)
	}
	width := ggufWidth(kind)
	if width == 0 {
		r.fail("unknown value type %d", kind)
		return nil
	}
	b := r.take(width)
	if b == nil {
		return nil
	}
	switch kind {
	case ggufUint8:
		return b[0]
	case ggufInt8:
		return int8(b[0])
	case ggufUint16:
		return binary.LittleEndian.Uint16(b)
	case ggufInt16:
		return int16(binary.LittleEndian.Uint16(b))
	case ggufUint32:
		return binary.LittleEndian.Uint32(b)
	case ggufInt32:
		return int32(binary.LittleEndian.Uint32(b))
	case ggufFloat32:
		return math.Float32frombits(binary.LittleEndian.Uint32(b))
	case ggufUint64:
		return binary.LittleEndian.Uint64(b)
	case ggufInt64:
		return int64(binary.LittleEndian.Uint64(b))
	default:
		return math.Float64frombits(binary.LittleEndian.Uint64(b))
	}
}

// ggufWidth is the size of a number or bool in bytes, 0 for other types.
func ggufWidth(kind uint32) int {
	switch kind {
	case ggufUint8, ggufInt8, ggufBool:
		return 1
	case ggufUint16, ggufInt16:
		return 2
	case ggufUint32, ggufInt32, ggufFloat32:
		return 4
	case ggufUint64, ggufInt64, ggufFloat64:
		return 8
	}
	return 0
}

func (r *ggufReader) array(depth int) any {
	kind := r.uint32()
	if depth == maxGGUFNesting {
		r.fail("arrays are nested more than %d deep", maxGGUFNesting)
	}
	least := ggufWidth(kind)
	switch {
	case kind == ggufString:
		least = 8
	case kind == ggufArray:
		least = 12
	case least == 0:
		r.fail("unknown value type %d in an array", kind)
	}
	if r.err != nil {
		return nil
	}
	n := r.count("array", least)
	switch kind {
	case ggufUint8:
		return ggufNumbers[uint8](r, n)
	case ggufInt8:
		return ggufNumbers[int8](r, n)
	case ggufUint16:
		return ggufNumbers[uint16](r, n)
	case ggufInt16:
		return ggufNumbers[int16](r, n)
	case ggufUint32:
		return ggufNumbers[uint32](r, n)
	case ggufInt32:
		return ggufNumbers[int32](r, n)
	case ggufFloat32:
		return ggufNumbers[float32](r, n)
	case ggufUint64:
		return ggufNumbers[uint64](r, n)
	case ggufInt64:
		return ggufNumbers[int64](r, n)
	case ggufFloat64:
		return ggufNumbers[float64](r, n)
	case ggufBool:
		return ggufList(r, n, 1, func() bool { return r.value(kind, depth+1) == true })
	case ggufString:
		return ggufList(r, n, 16, r.string)
	default:
		return ggufList(r, n, 40, func() any { return r.value(kind, depth+1) })
	}
}

// ggufNumbers reads n numbers, whose bytes are there.
func ggufNumbers[T any](r *ggufReader, n int) []T {
	bytes := r.take(n * int(unsafe.Sizeof(*new(T))))
	if r.allow(len(bytes)); r.err != nil {
		return nil
	}
	list := make([]T, n)
	if _, err := binary.Decode(bytes, binary.LittleEndian, list); err != nil {
		r.fail("%w", err)
	}
	return list
}

// ggufList reads n values, each of which takes size bytes beside what read takes.
func ggufList[T any](r *ggufReader, n, size int, read func() T) []T {
	if r.allow(n * size); r.err != nil {
		return nil
	}
	list := make([]T, 0, n)
	for i := 0; i < n; i++ {
		v := read()
		if r.err != nil {
			return nil
		}
		list = append(list, v)
	}
	return list
}
