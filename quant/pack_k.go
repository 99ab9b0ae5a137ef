package quant

import (
	"encoding/binary"
	"math"
)

// The kinds in blocks of 256. Their scales (and minima) are themselves levels of a float16.

// affineBlocks encodes 256 numbers in parts with a scale and a minimum each: x ≈ d·s·q - m·n, where
// s and n are integers of a part from 0 to limit.
type affineBlocks struct {
	affine
	limit float64
	width int // numbers in a part

	d, m     float64
	s, n     [16]float64
	q, trial [256]float64
}

// pack chooses everything. First each part gets its own scale and minimum. Then d and m, and the
// integers that multiply them, are improved in turn.
func (b *affineBlocks) pack(x, w []float64) {
	parts := 256 / b.width
	var scales, minima [16]float64
	most, deepest := 0.0, 0.0
	for j := range parts {
		at, to := j*b.width, (j+1)*b.width
		scale, minimum := b.fit(x[at:to], w[at:to])
		scales[j], minima[j] = max(scale, 0), max(-minimum, 0)
		most, deepest = max(most, scales[j]), max(deepest, minima[j])
	}
	b.d, b.m = half16(most/b.limit), half16(deepest/b.limit)
	for j := range parts {
		b.s[j] = clamp(nearest(ratio(scales[j], b.d)), 0, b.limit)
		b.n[j] = clamp(nearest(ratio(minima[j], b.m)), 0, b.limit)
	}
	off := b.choose(x, w)
	for range 4 {
		d, m, s, n, q := b.d, b.m, b.s, b.n, b.q
		b.refit(x, w)
		now := b.choose(x, w)
		if now >= off*(1-1e-4) {
			if now > off {
				b.d, b.m, b.s, b.n, b.q = d, m, s, n, q
			}
			return
		}
		off = now
	}
}

// choose improves the integers of each part for the present d and m, and sets the codes. It returns
// the weighted squared error.
func (b *affineBlocks) choose(x, w []float64) (total float64) {
	for j := range 256 / b.width {
		at, to := j*b.width, (j+1)*b.width
		px, pw, q, trial := x[at:to], w[at:to], b.q[at:to], b.trial[at:to]
		s, n := b.s[j], b.n[j]
		best := b.round(q, px, pw, b.d*s, -b.m*n)
		for _, step := range [...]float64{0, -1, 1} {
			ts := clamp(s+step, 0, b.limit)
			tn := n
			b.round(trial, px, pw, b.d*ts, -b.m*tn)
			for range 2 { // the best minimum for these codes, and codes for that
				var sw, sx, sq float64
				for i, v := range px {
					sw, sx, sq = sw+pw[i], sx+pw[i]*v, sq+pw[i]*trial[i]
				}
				better := clamp(nearest(ratio(ratio(b.d*ts*sq-sx, sw), b.m)), 0, b.limit)
				off := b.round(trial, px, pw, b.d*ts, -b.m*better)
				if off < best {
					best, b.s[j], b.n[j] = off, ts, better
					copy(q, trial)
				}
				if better == tn {
					break
				}
				tn = better
			}
		}
		total += best
	}
	return total
}

// refit sets d and m to the best for the present integers and codes.
func (b *affineBlocks) refit(x, w []float64) {
	var aa, ab, bb, ax, bx float64
	for i, v := range x {
		s, n := b.s[i/b.width]*b.q[i], -b.n[i/b.width]
		ws, wn := w[i]*s, w[i]*n
		aa, ab, bb, ax, bx = aa+ws*s, ab+ws*n, bb+wn*n, ax+ws*v, bx+wn*v
	}
	det := aa*bb - ab*ab
	if det > 1e-9*aa*bb {
		if d, m := (bb*ax-ab*bx)/det, (aa*bx-ab*ax)/det; d > 0 && m >= 0 {
			b.d, b.m = half16(d), half16(m)
		}
	} else if aa > 0 && ax > 0 && bb == 0 {
		b.d = half16(ax / aa)
	}
}

// scaledBlocks encodes 256 numbers in parts with a scale each: x ≈ d·s·q, where s is an integer of
// a part from low to high.
type scaledBlocks struct {
	levels    *ladder
	low, high float64
	width     int

	d        float64
	s        [16]float64
	q, trial [256]float64
}

func (b *scaledBlocks) pack(x, w []float64) {
	parts := 256 / b.width
	var scales [16]float64
	most := 0.0
	for j := range parts {
		at, to := j*b.width, (j+1)*b.width
		scales[j] = b.levels.fit(x[at:to], w[at:to])
		if math.Abs(scales[j]) > math.Abs(most) {
			most = scales[j]
		}
	}
	b.d = half16(most / b.low)
	for j := range parts {
		b.s[j] = 0
		if b.d != 0 {
			b.s[j] = clamp(nearest(scales[j]/b.d), b.low, b.high)
		}
	}
	off := b.choose(x, w)
	for range 4 {
		d, s, q := b.d, b.s, b.q
		b.refit(x, w)
		now := b.choose(x, w)
		if now >= off*(1-1e-4) {
			if now > off {
				b.d, b.s, b.q = d, s, q
			}
			return
		}
		off = now
	}
}

func (b *scaledBlocks) choose(x, w []float64) (total float64) {
	for j := range 256 / b.width {
		at, to := j*b.width, (j+1)*b.width
		px, pw, q, trial := x[at:to], w[at:to], b.q[at:to], b.trial[at:to]
		s, best := b.s[j], math.Inf(1)
		for _, step := range [...]float64{0, -1, 1, -2, 2} {
			ts := clamp(s+step, b.low, b.high)
			b.levels.round(trial, px, b.d*ts)
			if off := offBy(px, pw, trial, b.d*ts); off < best {
				best, b.s[j] = off, ts
				copy(q, trial)
			}
		}
		total += best
	}
	return total
}

func offBy(x, w, q []float64, scale float64) (off float64) {
	for i, v := range x {
		e := v - scale*q[i]
		off += w[i] * e * e
	}
	return off
}

func (b *scaledBlocks) refit(x, w []float64) {
	var qq, qx float64
	for i, v := range x {
		s := b.s[i/b.width] * b.q[i]
		qq, qx = qq+w[i]*s*s, qx+w[i]*s*v
	}
	if qq > 0 && qx != 0 {
		b.d = half16(qx / qq)
	}
}

func packQ2_K() encoder {
	b := affineBlocks{affine: affine{high: 3, below: true}, limit: 15, width: 16}
	return func(dst []byte, x, w []float64) {
		b.pack(x, w)
		for j := range 16 {
			dst[j] = byte(b.s[j]) | byte(b.n[j])<<4
		}
		putTwoBits(dst[16:80], &b.q)
		putHalf(dst[80:], b.d)
		putHalf(dst[82:], b.m)
	}
}

// putTwoBits writes the low two bits of 256 codes as Q2_K and Q3_K have them.
func putTwoBits(dst []byte, q *[256]float64) {
	clear(dst)
	for i, c := range q {
		g := i / 16 // 16 numbers each, as in decodeQ2_K
		dst[g/8*32+g%2*16+i%16] |= byte(c) & 3 << (g % 8 / 2 * 2)
	}
}

func packQ3_K() encoder {
	levels := steps(-4, 3)
	b := scaledBlocks{levels: &levels, low: -32, high: 31, width: 16}
	return func(dst []byte, x, w []float64) {
		b.pack(x, w)
		third, qs, scales := dst[:32], dst[32:96], dst[96:108]
		clear(third)
		clear(scales)
		var low [256]float64
		for i, c := range b.q {
			low[i] = c + 4
			if c >= 0 {
				low[i] = c
				third[i/16%2*16+i%16] |= 1 << (i / 32)
			}
		}
		putTwoBits(qs, &low)
		for g, s := range b.s[:] {
			code := byte(s + 32)
			scales[g%8] |= code & 15 << (g / 8 * 4)
			scales[8+g%4] |= code >> 4 << (g / 4 * 2)
		}
		putHalf(dst[108:], b.d)
	}
}

// putScales writes eight six-bit scales and minima; see scaleAndMin.
func (b *affineBlocks) putScales(dst []byte) {
	for j := range 4 {
		s, n, s4, n4 := byte(b.s[j]), byte(b.n[j]), byte(b.s[j+4]), byte(b.n[j+4])
		dst[j] = s | s4>>4<<6
		dst[j+4] = n | n4>>4<<6
		dst[j+8] = s4&15 | n4<<4
	}
}

func packQ4_K() encoder {
	b := affineBlocks{affine: affine{high: 15, below: true}, limit: 63, width: 32}
	return func(dst []byte, x, w []float64) {
		b.pack(x, w)
		putHalf(dst, b.d)
		putHalf(dst[2:], b.m)
		b.putScales(dst[4:])
		for i := range 128 {
			at := i/32*64 + i%32
			dst[16+i] = byte(b.q[at]) | byte(b.q[at+32])<<4
		}
	}
}

func packQ5_K() encoder {
	b := affineBlocks{affine: affine{high: 31, below: true}, limit: 63, width: 32}
	return func(dst []byte, x, w []float64) {
		b.pack(x, w)
		putHalf(dst, b.d)
		putHalf(dst[2:], b.m)
		b.putScales(dst[4:])
		fifth, qs := dst[16:48], dst[48:]
		clear(fifth)
		for i, c := range b.q {
			fifth[i%32] |= byte(c) >> 4 << (i / 32)
		}
		for i := range 128 {
			at := i/32*64 + i%32
			qs[i] = byte(b.q[at])&15 | byte(b.q[at+32])<<4
		}
	}
}

func packQ6_K() encoder {
	levels := steps(-32, 31)
	b := scaledBlocks{levels: &levels, low: -128, high: 127, width: 16}
	return func(dst []byte, x, w []float64) {
		b.pack(x, w)
		low, high := dst[:128], dst[128:192]
		clear(dst[:192])
		for i, c := range b.q {
			code, j := byte(c+32), i/32 // as in decodeQ6_K
			low[j/4*64+j%2*32+i%32] |= code & 15 << (j % 4 / 2 * 4)
			high[j/4*32+i%32] |= code >> 4 << (j % 4 * 2)
		}
		for g, s := range b.s[:] {
			dst[192+g] = byte(int8(s))
		}
		putHalf(dst[208:], b.d)
	}
}

func packIQ4_XS() encoder {
	b := scaledBlocks{levels: &iq4Ladder, low: -32, high: 31, width: 32}
	return func(dst []byte, x, w []float64) {
		b.pack(x, w)
		putHalf(dst, b.d)
		var high uint16
		clear(dst[4:8])
		for j, s := range b.s[:8] {
			code := byte(s + 32)
			dst[4+j/2] |= code & 15 << (j % 2 * 4)
			high |= uint16(code>>4) << (2 * j)
			putIQ4(dst[8+j*16:], b.q[j*32:])
		}
		binary.LittleEndian.PutUint16(dst[2:], high)
	}
}
