package quant

import (
	"encoding/binary"
	"math"
)

// iq4Levels are the levels of IQ4_NL and IQ4_XS.
var iq4Levels = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89,
	113}

// fp4Levels are twice the values of E2M1.
var fp4Levels = [16]float32{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

// levels is a table of scaled levels.
func levels(scale float32, of *[16]float32) (value [16]float32) {
	for q, level := range of {
		value[q] = scale * level
	}
	return value
}

func decodeIQ4_NL(dst []float32, src []byte) {
	for ; len(src) >= 18; dst, src = dst[32:], src[18:] {
		value := levels(half(src), &iq4Levels)
		nibbles(dst, src[2:18], &value)
	}
}

func decodeIQ4_XS(dst []float32, src []byte) {
	for ; len(src) >= 136; dst, src = dst[256:], src[136:] {
		d, high, low, qs := half(src), binary.LittleEndian.Uint16(src[2:]), src[4:8], src[8:136]
		for j := range 8 {
			scale := int(low[j/2]>>(j%2*4)&15) | int(high>>(2*j)&3)<<4
			value := levels(d*float32(scale-32), &iq4Levels)
			nibbles(dst[j*32:], qs[j*16:j*16+16], &value)
		}
	}
}

func decodeMXFP4(dst []float32, src []byte) {
	for ; len(src) >= 17; dst, src = dst[32:], src[17:] {
		value := levels(float32(math.Ldexp(1, int(src[0])-128)), &fp4Levels)
		nibbles(dst, src[1:17], &value)
	}
}
