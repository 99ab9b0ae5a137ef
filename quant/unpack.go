package quant

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// decodeChunk is the number of elements that one goroutine decodes before it takes more work.
const decodeChunk = 1 << 16

// decoders turns whole blocks of ggml's types into float32, exactly as ggml and the gguf Python
// package do. The conversions float32(…) round each product before the sum, because a fused
// multiply-add would differ in the last bit.
var decoders = map[string]func(dst []float32, src []byte){
	"F32": decodeF32, "F16": decodeF16, "BF16": decodeBF16,
	"Q4_0": decodeQ4_0, "Q4_1": decodeQ4_1, "Q5_0": decodeQ5_0, "Q5_1": decodeQ5_1,
	"Q8_0": decodeQ8_0, "Q2_K": decodeQ2_K, "Q3_K": decodeQ3_K, "Q4_K": decodeQ4_K,
	"Q5_K": decodeQ5_K, "Q6_K": decodeQ6_K, "IQ4_NL": decodeIQ4_NL, "IQ4_XS": decodeIQ4_XS,
	"MXFP4": decodeMXFP4,
}

// Unpacks reports whether [Unpack] and [UnpackRows] take the kind.
func Unpacks(kind string) bool { return decoders[kind] != nil }

// Unpack decodes src, whole blocks of a kind that [Unpacks], into the numbers of dst.
func Unpack(dst []float32, kind string, src []byte) { decoders[kind](dst, src) }

// UnpackRows decodes rows of `columns` numbers of a kind into dst, whose element type is named as
// safetensors does: F32, or BF16 and F16, rounded to the nearest (even) value. Row r of the result
// is row source(r) of src; a nil source keeps the order. The work is shared among GOMAXPROCS
// goroutines.
func UnpackRows(dst []byte, dtype string, src []byte, kind string, rows, columns int,
	source func(int) int) error {
	decode, ok := decoders[kind]
	if !ok {
		return fmt.Errorf("the type %s is not decoded: expected one of %s", kind, Unpacked)
	}
	width := 2
	if dtype == "F32" {
		width = 4
	}
	t, _ := ByName(kind)
	srcRow, dstRow := columns/t.Block*t.Bytes, columns*width
	if columns%t.Block != 0 || len(src) != rows*srcRow || len(dst) != rows*dstRow {
		return fmt.Errorf("%d bytes of %s for %d bytes of %s are not %d rows of %d", len(src),
			kind, len(dst), dtype, rows, columns)
	}
	// Work is divided into parts of a row or groups of rows, so that long and short rows are shared
	// evenly.
	partColumns := min(columns, decodeChunk)
	partsPerRow := (columns + partColumns - 1) / max(partColumns, 1)
	parts := rows * partsPerRow
	share(parts, max(decodeChunk/max(partColumns, 1), 1), func(begin, end int) {
		var buffer [256]float32
		for part := begin; part < end; part++ {
			row, first := part/partsPerRow, part%partsPerRow*partColumns
			last := min(first+partColumns, columns)
			from := row
			if source != nil {
				from = source(row)
			}
			in := src[from*srcRow+first/t.Block*t.Bytes : from*srcRow+last/t.Block*t.Bytes]
			out := dst[row*dstRow+first*width : row*dstRow+last*width]
			if dtype == "F32" {
				decode(float32s(out), in)
				continue
			}
			for n := last - first; n > 0; {
				part := buffer[:min(len(buffer), n)]
				step := len(part) / t.Block * t.Bytes
				decode(part, in[:step])
				if dtype == "BF16" {
					roundBF16(out, part)
				} else {
					roundF16(out, part)
				}
				in, out, n = in[step:], out[len(part)*2:], n-len(part)
			}
		}
	})
	return nil
}

// share calls f over [0, n) in steps, from GOMAXPROCS goroutines.
func share(n, step int, f func(begin, end int)) {
	workers := min(runtime.GOMAXPROCS(0), (n+step-1)/step)
	if workers <= 1 {
		f(0, n)
		return
	}
	var next atomic.Int64
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for {
				end := int(next.Add(int64(step)))
				if end-step >= n {
					return
				}
				f(end-step, min(end, n))
			}
		})
	}
	group.Wait()
}

// Floats views bytes that are aligned to 4 as float32.
func Floats(b []byte) []float32 { return float32s(b) }

// Bytes views numbers as bytes.
func Bytes(f []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 4*len(f))
}

// float32s views bytes that are aligned to 4.
func float32s(b []byte) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

// uint16s views bytes that are aligned to 2.
func uint16s(b []byte) []uint16 {
	return unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/2)
}

func decodeF32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func decodeF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = half(src[2*i:])
	}
}

func decodeBF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

// The four- and five-bit types have so few values per block that a table is cheaper than computing
// each.

func decodeQ4_0(dst []float32, src []byte) {
	for ; len(src) >= 18; dst, src = dst[32:], src[18:] {
		d := half(src)
		var value [16]float32
		for q := range value {
			value[q] = d * float32(q-8)
		}
		nibbles(dst, src[2:18], &value)
	}
}

func decodeQ4_1(dst []float32, src []byte) {
	for ; len(src) >= 20; dst, src = dst[32:], src[20:] {
		d, m := half(src), half(src[2:])
		var value [16]float32
		for q := range value {
			value[q] = float32(d*float32(q)) + m
		}
		nibbles(dst, src[4:20], &value)
	}
}

// nibbles writes 32 values: the low halves of 16 bytes, then the high halves.
func nibbles(dst []float32, qs []byte, value *[16]float32) {
	low, high, qs := dst[:16:16], dst[16:32:32], qs[:16]
	for j, q := range qs {
		low[j] = value[q&15]
		high[j] = value[q>>4]
	}
}

func decodeQ5_0(dst []float32, src []byte) {
	for ; len(src) >= 22; dst, src = dst[32:], src[22:] {
		d := half(src)
		var value [32]float32
		for q := range value {
			value[q] = d * float32(q-16)
		}
		fiveBits(dst, src[6:22], binary.LittleEndian.Uint32(src[2:]), &value)
	}
}

func decodeQ5_1(dst []float32, src []byte) {
	for ; len(src) >= 24; dst, src = dst[32:], src[24:] {
		d, m := half(src), half(src[2:])
		var value [32]float32
		for q := range value {
			value[q] = float32(d*float32(q)) + m
		}
		fiveBits(dst, src[8:24], binary.LittleEndian.Uint32(src[4:]), &value)
	}
}

// fiveBits is nibbles with a fifth bit for each value in fifth.
func fiveBits(dst []float32, qs []byte, fifth uint32, value *[32]float32) {
	low, high, qs := dst[:16:16], dst[16:32:32], qs[:16]
	for j, q := range qs {
		low[j] = value[uint32(q&15)|fifth<<4&16]
		high[j] = value[uint32(q>>4)|fifth>>12&16]
		fifth >>= 1
	}
}

func decodeQ8_0(dst []float32, src []byte) {
	for ; len(src) >= 34; dst, src = dst[32:], src[34:] {
		d := half(src)
		out := dst[:32:32]
		for j, q := range src[2:34] {
			out[j] = float32(int8(q)) * d
		}
	}
}
