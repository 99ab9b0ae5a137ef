package checkpoint

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
	"Q8_0": decodeQ8_0,
	"Q4_K": decodeQ4_K, "Q5_K": decodeQ5_K, "Q6_K": decodeQ6_K,
}

// dequantize decodes rows of `columns` numbers of a ggml type into dst, whose element type is named
// as safetensors does: F32, or BF16 and F16, rounded to the nearest (even) value. Row r of the
// result is row source(r) of src; a nil source keeps the order. The work is shared among GOMAXPROCS
// goroutines.
func dequantize(dst []byte, dtype string, src []byte, kind string, rows, columns int,
	source func(int) int) error {
	decode, ok := decoders[kind]
	if !ok {
		return fmt.Errorf("the type %s is not decoded: expected F32, F16, BF16, Q4_0, Q4_1, "+
			"Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K", kind)
	}
	width := safetensorsBits[dtype] / 8
	t := ggmlByName[kind]
	srcRow, dstRow := columns/t.block*t.bytes, columns*width
	if columns%t.block != 0 || len(src) != rows*srcRow || len(dst) != rows*dstRow {
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
			in := src[from*srcRow+first/t.block*t.bytes : from*srcRow+last/t.block*t.bytes]
			out := dst[row*dstRow+first*width : row*dstRow+last*width]
			if dtype == "F32" {
				decode(float32s(out), in)
				continue
			}
			for n := last - first; n > 0; {
				part := buffer[:min(len(buffer), n)]
				step := len(part) / t.block * t.bytes
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

// float32s views bytes that are aligned to 4.
func float32s(b []byte) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

// uint16s views bytes that are aligned to 2.
func uint16s(b []byte) []uint16 {
	return unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/2)
}

// half reads a float16, keeping every bit of a NaN.
func half(b []byte) float32 {
	h := uint32(binary.LittleEndian.Uint16(b))
	sign, exponent, fraction := h&0x8000<<16, h>>10&0x1f, h&0x3ff
	switch {
	case exponent == 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	case exponent != 0:
		return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
	}
	f := float32(fraction) * 0x1p-24
	return math.Float32frombits(sign | math.Float32bits(f))
}

// roundBF16 rounds to nearest, ties to even, as libtorch does.
func roundBF16(dst []byte, src []float32) {
	out := uint16s(dst)[:len(src)]
	for i, f := range src {
		b := math.Float32bits(f)
		rounded := (b + 0x7fff + b>>16&1) >> 16
		if f != f {
			rounded = 0x7fc0
		}
		out[i] = uint16(rounded)
	}
}

// roundF16 rounds to nearest, ties to even, as libtorch does.
func roundF16(dst []byte, src []float32) {
	out := uint16s(dst)[:len(src)]
	for i, f := range src {
		b := math.Float32bits(f)
		sign := b >> 16 & 0x8000
		b &= 0x7fffffff
		h := (b + 0xfff + b>>13&1 - 112<<23) >> 13 // 112 is the difference of the exponents' biases
		if b-0x38800000 >= 0x47800000-0x38800000 {
			h = specialF16(b)
		}
		out[i] = uint16(sign | h)
	}
}

// specialF16 rounds the magnitudes that have no normal float16.
func specialF16(b uint32) uint32 {
	switch {
	case b > 0x7f800000: // NaN
		return 0x7e00
	case b >= 0x47800000: // 65536 and above
		return 0x7c00
	}
	// Below 2^-14 they are subnormal: adding 0.5 aligns the bits and rounds them.
	return math.Float32bits(math.Float32frombits(b)+0.5) - 0x3f000000
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

// scaleAndMin unpacks the j-th of eight six-bit scales and minima of a Q4_K or Q5_K block.
func scaleAndMin(scales []byte, j int) (scale, minimum float32) {
	if j < 4 {
		return float32(scales[j] & 63), float32(scales[j+4] & 63)
	}
	return float32(scales[j+4]&15 | scales[j-4]>>2&0x30),
		float32(scales[j+4]>>4 | scales[j]>>2&0x30)
}

func decodeQ4_K(dst []float32, src []byte) {
	for ; len(src) >= 144; dst, src = dst[256:], src[144:] {
		d, dmin, scales, qs := half(src), half(src[2:]), src[4:16], src[16:144]
		for j := range 8 {
			scale, minimum := scaleAndMin(scales, j)
			dl, ml := d*scale, dmin*minimum
			var value [16]float32
			for q := range value {
				value[q] = float32(dl*float32(q)) - ml
			}
			out, shift := dst[j*32:j*32+32:j*32+32], j%2*4
			for i, q := range qs[j/2*32 : j/2*32+32] {
				out[i] = value[q>>shift&15]
			}
		}
	}
}

func decodeQ5_K(dst []float32, src []byte) {
	for ; len(src) >= 176; dst, src = dst[256:], src[176:] {
		d, dmin, scales, fifth, qs := half(src), half(src[2:]), src[4:16], src[16:48], src[48:176]
		for j := range 8 {
			scale, minimum := scaleAndMin(scales, j)
			dl, ml := d*scale, dmin*minimum
			var value [32]float32
			for q := range value {
				value[q] = float32(dl*float32(q)) - ml
			}
			out, shift := dst[j*32:j*32+32:j*32+32], j%2*4
			for i, q := range qs[j/2*32 : j/2*32+32] {
				out[i] = value[q>>shift&15|fifth[i]>>j&1<<4]
			}
		}
	}
}

func decodeQ6_K(dst []float32, src []byte) {
	for ; len(src) >= 210; dst, src = dst[256:], src[210:] {
		low, high, scales, d := src[:128], src[128:192], src[192:208], half(src[208:])
		for j := range 8 { // 32 values each: bytes of one half of low and high, at this shift
			at, shift, shift2 := j/4*64+j%2*32, j%4/2*4, j%4*2
			dl := [2]float32{d * float32(int8(scales[2*j])), d * float32(int8(scales[2*j+1]))}
			out, top := dst[j*32:j*32+32:j*32+32], high[j/4*32:j/4*32+32]
			for i, q := range low[at : at+32] {
				out[i] = dl[i/16] * float32(int8(q>>shift&15|top[i]>>shift2&3<<4)-32)
			}
		}
	}
}
