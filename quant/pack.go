package quant

import (
	"fmt"
	"math"
)

// encoders turn whole blocks of 32 numbers into ggml's quantized types, bit for bit as ggml's
// reference and the gguf Python package do.
var encoders = map[string]func(dst []byte, src []float32){"Q8_0": encodeQ8_0, "Q4_0": encodeQ4_0}

// Packs reports whether [Pack] takes the kind.
func Packs(kind string) bool { return encoders[kind] != nil }

// Pack encodes src, rows of a multiple of 32 numbers each. The work is shared among GOMAXPROCS
// goroutines.
func Pack(kind string, src []float32) ([]byte, error) {
	encode := encoders[kind]
	t, _ := ByName(kind)
	if encode == nil || len(src)%t.Block != 0 {
		return nil, fmt.Errorf("%d numbers cannot be written as %s", len(src), kind)
	}
	dst := make([]byte, len(src)/t.Block*t.Bytes)
	share(len(src)/t.Block, decodeChunk/t.Block, func(begin, end int) {
		encode(dst[begin*t.Bytes:end*t.Bytes], src[begin*t.Block:end*t.Block])
	})
	return dst, nil
}

// encodeQ8_0 divides by a scale that maps the largest magnitude to 127.
func encodeQ8_0(dst []byte, src []float32) {
	for ; len(src) >= 32; dst, src = dst[34:], src[32:] {
		largest := float32(0)
		for _, x := range src[:32] {
			largest = max(largest, float32(math.Abs(float64(x))))
		}
		d := largest / 127
		inverse := float32(0)
		if d != 0 {
			inverse = 1 / d
		}
		roundF16(dst[:2], []float32{d})
		for i, x := range src[:32] {
			dst[2+i] = byte(int8(math.Round(float64(float32(x * inverse)))))
		}
	}
}

// encodeQ4_0 maps the number of the largest magnitude, with its sign, to -8. The sum is rounded
// once, like the fused multiply-add to which ggml's reference is compiled.
func encodeQ4_0(dst []byte, src []float32) {
	for ; len(src) >= 32; dst, src = dst[18:], src[32:] {
		largest := src[0]
		for _, x := range src[1:32] {
			if math.Abs(float64(x)) > math.Abs(float64(largest)) {
				largest = x
			}
		}
		d := largest / -8
		inverse := float32(0)
		if d != 0 {
			inverse = 1 / d
		}
		roundF16(dst[:2], []float32{d})
		level := func(x float32) byte {
			return byte(min(max(int32(float32(float64(x)*float64(inverse)+8.5)), 0), 15))
		}
		for i := range 16 {
			dst[2+i] = level(src[i]) | level(src[16+i])<<4
		}
	}
}
