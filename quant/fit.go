package quant

import "math"

// magic, added to a float64 of magnitude below 2^51 and subtracted again, rounds it to an integer.
const magic = 3 << 51

func nearest(x float64) float64 { return x + magic - magic }

func clamp(x, low, high float64) float64 {
	if x < low {
		return low
	}
	if x > high {
		return high
	}
	return x
}

// ratio is a/b, or 0 if b is not positive.
func ratio(a, b float64) float64 {
	if b > 0 {
		return a / b
	}
	return 0
}

// half16 rounds to a float16 and keeps it finite.
func half16(x float64) float64 {
	var b [2]byte
	roundF16(b[:], []float32{float32(clamp(x, -65504, 65504))})
	return float64(half(b[:]))
}

// A ladder is the levels that a block's codes stand for. Their differences grow or are all 1.
type ladder struct {
	low, high float64 // the first and the last level
	// nearest gives the level next to v in half steps from -128: [2(v+128)]; nil for all integers
	// from low to high.
	table *[512]float64
}

func steps(low, high float64) ladder { return ladder{low: low, high: high} }

var iq4Ladder = tabled(&iq4Levels)

func tabled(levels *[16]float32) ladder {
	l := ladder{low: float64(levels[0]), high: float64(levels[15]), table: new([512]float64)}
	for i := range l.table {
		v, best := float64(i)/2-128+0.25, math.Inf(1)
		for _, level := range levels {
			if off := math.Abs(v - float64(level)); off < best {
				best, l.table[i] = off, float64(level)
			}
		}
	}
	return l
}

// round writes the level next to each x/scale.
func (l *ladder) round(q, x []float64, scale float64) {
	inverse := 0.0
	if scale != 0 {
		inverse = 1 / scale
	}
	q = q[:len(x)]
	if l.table != nil {
		for i, v := range x {
			q[i] = l.table[int(clamp(v*inverse, -128, 127.5)*2+256)]
		}
		return
	}
	for i, v := range x {
		q[i] = clamp(nearest(v*inverse), l.low, l.high)
	}
}

// sums returns Σwxq and Σwq² of the levels next to each x·inverse.
func (l *ladder) sums(x, w []float64, inverse float64) (xq, qq float64) {
	w = w[:len(x)]
	if l.table != nil {
		for i, v := range x {
			q := l.table[int(clamp(v*inverse, -128, 127.5)*2+256)]
			wq := w[i] * q
			xq, qq = xq+wq*v, qq+wq*q
		}
		return xq, qq
	}
	low, high := l.low, l.high
	for i, v := range x {
		q := clamp(nearest(v*inverse), low, high)
		wq := w[i] * q
		xq, qq = xq+wq*v, qq+wq*q
	}
	return xq, qq
}

// fit finds a scale s that makes Σw(x-sq)² small, where q is the level next to x/s. It tries scales
// that map the largest magnitude near the first or the last level, and improves the best.
func (l *ladder) fit(x, w []float64) (scale float64) {
	largest := 0.0
	for _, v := range x {
		if math.Abs(v) > math.Abs(largest) {
			largest = v
		}
	}
	if math.Abs(largest) < 1e-30 {
		return 0
	}
	best, inverse := 0.0, 0.0
	try := func(inv float64) {
		if xq, qq := l.sums(x, w, inv); qq > 0 && xq*xq > best*qq {
			best, scale, inverse = xq*xq/qq, xq/qq, inv
		}
	}
	step := (l.high - l.low) / 15 * 0.13
	if l.table == nil {
		step = 0.13
	}
	for i := -7.0; i <= 9; i++ {
		try((l.low - i*step) / largest)
	}
	for i := -4.0; i <= 7; i++ {
		try((l.high + i*step) / largest)
	}
	for range 3 {
		before := inverse
		if scale != 0 {
			try(1 / scale)
		}
		if inverse == before {
			break
		}
	}
	return scale
}

// line is the best line x ≈ sq+m of a set of codes q.
type line struct{ scale, minimum, gain float64 }

// affine is codes 0 to high with a scale and a minimum.
type affine struct {
	high  float64
	below bool // the minimum is at most 0
}

// fit finds a scale and a minimum that make Σw(x-sq-m)² small, where q is the code next to (x-m)/s.
func (a affine) fit(x, w []float64) (scale, minimum float64) {
	low, high := x[0], x[0]
	var sw, sx float64
	for i, v := range x {
		if v < low {
			low = v
		} else if v > high {
			high = v
		}
		sw, sx = sw+w[i], sx+w[i]*v
	}
	if a.below && low > 0 {
		low = 0
	}
	if high-low < 1e-30 {
		return 0, low
	}
	best := line{gain: math.Inf(-1)}
	try := func(scale, minimum float64) {
		if got := a.solve(x, w, sw, sx, scale, minimum); got.gain > best.gain {
			best = got
		}
	}
	for i := -9.0; i <= 9; i++ {
		try((high-low)/(a.high+i*0.1), low)
	}
	for range 3 {
		before := best.gain
		if best.scale != 0 {
			try(best.scale, best.minimum)
		}
		if best.gain <= before {
			break
		}
	}
	return best.scale, best.minimum
}

// solve rounds x to codes and returns the best line of these. Its gain is Σwx² less the error.
func (a affine) solve(x, w []float64, sw, sx, scale, minimum float64) line {
	var sq, sqq, sxq float64
	inverse, high := 1/scale, a.high
	w = w[:len(x)]
	for i, v := range x {
		q := clamp(nearest((v-minimum)*inverse), 0, high)
		wq := w[i] * q
		sq, sqq, sxq = sq+wq, sqq+wq*q, sxq+wq*v
	}
	d := sw*sqq - sq*sq
	if d <= 0 {
		return line{gain: math.Inf(-1)}
	}
	l := line{scale: (sw*sxq - sx*sq) / d, minimum: (sqq*sx - sq*sxq) / d}
	if a.below && l.minimum > 0 {
		l.scale, l.minimum = sxq/sqq, 0
	}
	l.gain = l.scale*sxq + l.minimum*sx
	return l
}

// round writes the codes and returns Σw(x-sq-m)².
func (a affine) round(q, x, w []float64, scale, minimum float64) (off float64) {
	inverse := 0.0
	if scale != 0 {
		inverse = 1 / scale
	}
	q, w = q[:len(x)], w[:len(x)]
	for i, v := range x {
		c := clamp(nearest((v-minimum)*inverse), 0, a.high)
		q[i] = c
		e := v - scale*c - minimum
		off += w[i] * e * e
	}
	return off
}
