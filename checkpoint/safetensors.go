package checkpoint

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"

	"conquer/internal/budget"
)

// maxSafetensorsHeader is the longest header that the reference implementation reads.
const maxSafetensorsHeader = 100_000_000

// maxRank is the largest accepted rank of a tensor (PyTorch's limit is 64).
const maxRank = 64

// safetensorsBits gives the bits of one element for each dtype of the format.
var safetensorsBits = map[string]int{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
	"F8_E5M2FNUZ": 8,
	"F4":          4, "F6_E2M3": 6, "F6_E3M2": 6,
	"U16": 16, "I16": 16, "F16": 16, "BF16": 16,
	"U32": 32, "I32": 32, "F32": 32,
	"U64": 64, "I64": 64, "F64": 64, "C64": 64,
}

// record is one tensor's place in a file.
type record struct {
	name   string
	dtype  string // safetensors' or ggml's name of the stored type
	shape  []int
	offset int // of the first byte in the file
	bytes  int

	strides []int // of a PyTorch tensor that is not contiguous, else nil
}

// parseSafetensors reads the header of the safetensors file in data and checks it as the format
// demands: https://github.com/huggingface/safetensors. Tensors must cover the bytes behind the
// header exactly, without gaps or overlaps. The records are ordered by their offsets. What they
// take is taken from the budget.
func parseSafetensors(data []byte, left *budget.Budget) ([]record, map[string]string,
	error) {
	if len(data) < 8 {
		return nil, nil, fmt.Errorf("the file has %d bytes, a safetensors file has at least 8",
			len(data))
	}
	length := binary.LittleEndian.Uint64(data)
	if length > maxSafetensorsHeader {
		return nil, nil, fmt.Errorf("the header claims %d bytes, expected at most %d: not a "+
			"safetensors file?", length, maxSafetensorsHeader)
	}
	if length > uint64(len(data)-8) {
		return nil, nil, fmt.Errorf("the header claims %d bytes, but only %d follow: truncated?",
			length, len(data)-8)
	}
	start := 8 + int(length)
	header := data[8:start]
	if len(header) == 0 || header[0] != '{' {
		return nil, nil, fmt.Errorf("the header does not begin with '{': not a safetensors file?")
	}
	// a record, its place in a checkpoint, and the entries of maps by its name
	c := budget.Count(header)
	if err := left.Take(len(header) + 4*c.StringBytes + 32*c.Values + 512*c.Objects); err != nil {
		return nil, nil, fmt.Errorf("header of %d bytes: %w", length, err)
	}
	var records []record
	metadata := map[string]string{}
	err := strictObject(header, func(d *json.Decoder, key string) error {
		if key == "__metadata__" {
			return eachKey(d, key, func(k string) (err error) {
				metadata[k], err = stringValue(d, key)
				return err
			})
		}
		r, err := parseRecord(d, key)
		if err != nil {
			return fmt.Errorf("tensor %.80q: %w", key, err)
		}
		r.offset += start
		records = append(records, r)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("header: %w", err)
	}
	slices.SortStableFunc(records, func(a, b record) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.bytes, b.bytes))
	})
	next := start
	for _, r := range records {
		end := r.offset + r.bytes
		if end > len(data) {
			return nil, nil, fmt.Errorf("tensor %.80q: its data ends at byte %d of the file, "+
				"which has %d: truncated?", r.name, end, len(data))
		}
		if r.offset != next {
			what := "leaves a gap behind"
			if r.offset < next {
				what = "overlaps"
			}
			return nil, nil, fmt.Errorf("tensor %.80q: its data_offsets begin at %d, expected "+
				"%d: it %s its neighbour", r.name, r.offset-start, next-start, what)
		}
		next = end
	}
	if next != len(data) {
		return nil, nil, fmt.Errorf("%d bytes behind the last tensor belong to no tensor",
			len(data)-next)
	}
	return records, metadata, nil
}

// parseRecord reads one {"dtype", "shape", "data_offsets"} object. The offset is relative to the
// header's end.
func parseRecord(d *json.Decoder, name string) (record, error) {
	r := record{name: name}
	var offsets []int
	var found int
	err := eachKey(d, "description", func(key string) (err error) {
		found++
		switch key {
		case "dtype":
			r.dtype, err = stringValue(d, key)
		case "shape":
			r.shape, err = naturals(d, key, maxRank)
		case "data_offsets":
			offsets, err = naturals(d, key, 2)
		default:
			err = fmt.Errorf("unknown key %.40q, expected dtype, shape and data_offsets", key)
		}
		return err
	})
	if err != nil {
		return r, err
	}
	if found != 3 || len(offsets) != 2 {
		return r, fmt.Errorf("expected dtype, shape and two data_offsets")
	}
	width, ok := safetensorsBits[r.dtype]
	if !ok {
		return r, fmt.Errorf("unknown dtype %.40q", r.dtype)
	}
	size, ok := sizeInBits(r.shape, width)
	if !ok || size%8 != 0 {
		return r, fmt.Errorf("%s of shape %v has no whole number of bytes below 2^63", r.dtype,
			r.shape)
	}
	begin, end := offsets[0], offsets[1]
	if end < begin || end > 1<<62 {
		return r, fmt.Errorf("data_offsets [%d, %d] are not a range", begin, end)
	}
	if end-begin != size/8 {
		return r, fmt.Errorf("data_offsets hold %d bytes, but %s of shape %v takes %d", end-begin,
			r.dtype, r.shape, size/8)
	}
	r.offset, r.bytes = begin, end-begin
	return r, nil
}

// sizeInBits multiplies width by the dimensions and reports whether the result fits an int.
func sizeInBits(shape []int, width int) (int, bool) {
	size := uint64(width)
	for _, n := range shape {
		if n == 0 {
			return 0, true
		}
	}
	for _, n := range shape {
		high, low := bits.Mul64(size, uint64(n))
		if high != 0 || low > 1<<62 {
			return 0, false
		}
		size = low
	}
	return int(size), true
}

// safetensorsHeader lays out tensors one after another and returns the bytes before the first: the
// length and the JSON, padded with spaces so that the data is aligned to 8 bytes. It sets the
// records' offsets, relative to the data.
func safetensorsHeader(records []record) ([]byte, error) {
	type description struct {
		Dtype   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	var b bytes.Buffer
	b.Write(make([]byte, 8))
	b.WriteString(`{"__metadata__":{"format":"pt"}`)
	offset := 0
	for i := range records {
		r := &records[i]
		r.offset = offset
		offset += r.bytes
		name, err := json.Marshal(r.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(description{r.dtype, append([]int{}, r.shape...),
			[2]int{r.offset, offset}})
		if err != nil {
			return nil, err
		}
		b.WriteByte(',')
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	header := b.Bytes()
	if len(header)-8 > maxSafetensorsHeader {
		return nil, fmt.Errorf("%d tensors need a header of %d bytes, a safetensors file has at "+
			"most %d", len(records), len(header)-8, maxSafetensorsHeader)
	}
	binary.LittleEndian.PutUint64(header, uint64(len(header)-8))
	return header, nil
}
