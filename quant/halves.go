package quant

import (
	"encoding/binary"
	"math"
)

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
