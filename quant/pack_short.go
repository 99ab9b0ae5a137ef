package quant

import (
	"encoding/binary"
	"math"
)

// The kinds in blocks of 32.

func putHalf(dst []byte, x float64) { roundF16(dst[:2], []float32{float32(x)}) }

// encodeQ8_0 divides by a scale that maps the largest magnitude to 127, as ggml's reference does.
func encodeQ8_0(dst []byte, x, _ []float64) {
	largest := float32(0)
	for _, v := range x {
		largest = max(largest, float32(math.Abs(v)))
	}
	d := min(largest/127, 65504) // the largest float16
	inverse := float32(0)
	if d != 0 {
		inverse = 1 / d
	}
	roundF16(dst[:2], []float32{d})
	for i, v := range x {
		dst[2+i] = byte(int8(clamp(math.Round(float64(float32(v)*inverse)), -127, 127)))
	}
}

var fourBits, fiveBitsSigned = steps(-8, 7), steps(-16, 15)

// scaled fits a ladder to a block of 32 and returns the float16 scale.
func (l *ladder) scaled(q *[32]float64, x, w []float64) (scale float64) {
	scale = half16(l.fit(x, w))
	l.round(q[:], x, scale)
	return scale
}

func encodeQ4_0(dst []byte, x, w []float64) {
	var q [32]float64
	putHalf(dst, fourBits.scaled(&q, x, w))
	for i := range 16 {
		dst[2+i] = byte(q[i]+8) | byte(q[16+i]+8)<<4
	}
}

func encodeQ5_0(dst []byte, x, w []float64) {
	var q [32]float64
	putHalf(dst, fiveBitsSigned.scaled(&q, x, w))
	for i := range q {
		q[i] += 16
	}
	putFive(dst[2:], &q)
}

// putFive writes the fifth bits of 32 codes, then the other four.
func putFive(dst []byte, q *[32]float64) {
	var fifth uint32
	for i, c := range q {
		fifth |= uint32(c) >> 4 << i
	}
	binary.LittleEndian.PutUint32(dst, fifth)
	for i := range 16 {
		dst[4+i] = byte(q[i])&15 | byte(q[16+i])<<4
	}
}

// affineBlock fits codes with a scale and a minimum, which are float16, to a block of 32.
func (a affine) block(dst []byte, q *[32]float64, x, w []float64) {
	scale, minimum := a.fit(x, w)
	scale, minimum = half16(scale), half16(minimum)
	a.round(q[:], x, w, scale, minimum)
	putHalf(dst, scale)
	putHalf(dst[2:], minimum)
}

func encodeQ4_1(dst []byte, x, w []float64) {
	var q [32]float64
	affine{high: 15}.block(dst, &q, x, w)
	for i := range 16 {
		dst[4+i] = byte(q[i]) | byte(q[16+i])<<4
	}
}

func encodeQ5_1(dst []byte, x, w []float64) {
	var q [32]float64
	affine{high: 31}.block(dst, &q, x, w)
	putFive(dst[4:], &q)
}

// iq4Code is the code of each level of IQ4_NL and IQ4_XS, plus 128.
var iq4Code = func() (codes [256]byte) {
	for i, level := range iq4Levels {
		codes[int(level)+128] = byte(i)
	}
	return codes
}()

func putIQ4(dst []byte, q []float64) {
	for i := range 16 {
		dst[i] = iq4Code[int(q[i])+128] | iq4Code[int(q[16+i])+128]<<4
	}
}

func encodeIQ4_NL(dst []byte, x, w []float64) {
	var q [32]float64
	putHalf(dst, iq4Ladder.scaled(&q, x, w))
	putIQ4(dst[2:], q[:])
}

// fp4Nearest gives the code of a magnitude in quarter steps of E2M1's smallest step, 0 to 6.
func fp4Nearest(x float64) byte {
	switch { // the borders lie midway between 0, 0.5, 1, 1.5, 2, 3, 4 and 6
	case x < 0.25:
		return 0
	case x < 0.75:
		return 1
	case x < 1.25:
		return 2
	case x < 1.75:
		return 3
	case x < 2.5:
		return 4
	case x < 3.5:
		return 5
	case x < 5:
		return 6
	}
	return 7
}

// encodeMXFP4 tries the power of two that maps the largest magnitude to 4 to 8, and its neighbours.
func encodeMXFP4(dst []byte, x, w []float64) {
	largest := 0.0
	for _, v := range x {
		largest = max(largest, math.Abs(v))
	}
	_, exponent := math.Frexp(largest) // largest is 0.5 to 1 of 2^exponent
	best := math.Inf(1)
	var q, bestQ [32]byte
	for e := exponent - 4; e <= exponent-2; e++ {
		if e < -127 || e > 127 {
			continue
		}
		scale, off := math.Ldexp(1, e), 0.0
		for i, v := range x {
			q[i] = fp4Nearest(math.Abs(v) / scale)
			err := math.Abs(v) - scale*float64(fp4Levels[q[i]])/2
			off += w[i] * err * err
			if v < 0 && q[i] > 0 {
				q[i] |= 8
			}
		}
		if off < best {
			best, bestQ = off, q
			dst[0] = byte(e + 127)
		}
	}
	if math.IsInf(best, 1) { // all numbers are nearly 0
		dst[0] = 0
	}
	for i := range 16 {
		dst[1+i] = bestQ[i] | bestQ[16+i]<<4
	}
}
