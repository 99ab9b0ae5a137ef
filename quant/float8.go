package quant

import "math"

// Float8 is a matrix of numbers of 8 bits with four of exponent (E4M3, without infinities). Tiles
// of it, which may be rows or all of it, share a scale. The last tiles may be cut off.
type Float8 struct {
	Rows, Columns         int
	TileRows, TileColumns int
	Data                  []byte    // [Rows, Columns]
	Scales                []float32 // [ceil(Rows/TileRows), ceil(Columns/TileColumns)]
}

// Values writes the numbers [Rows, Columns]: products rounded once to float32.
func (f *Float8) Values(dst []float32) {
	across := (f.Columns + f.TileColumns - 1) / f.TileColumns
	share(f.Rows, rowShare, func(begin, end int) {
		for r := begin; r < end; r++ {
			scales := f.Scales[r/f.TileRows*across:]
			data, out := f.Data[r*f.Columns:(r+1)*f.Columns], dst[r*f.Columns:]
			for t := 0; t*f.TileColumns < f.Columns; t++ {
				first, last := t*f.TileColumns, min((t+1)*f.TileColumns, f.Columns)
				for i := first; i < last; i++ {
					out[i] = e4m3[data[i]] * scales[t]
				}
			}
		}
	})
}

// e4m3 holds the value of each number of 8 bits with four bits of exponent.
var e4m3 = func() (values [256]float32) {
	for b := range values {
		exponent, fraction := b>>3&15, float64(b&7)
		value := math.Ldexp(1+fraction/8, exponent-7)
		switch {
		case exponent == 0:
			value = math.Ldexp(fraction, -9)
		case b&0x7f == 0x7f:
			value = math.NaN()
		}
		if b >= 0x80 {
			value = -value
		}
		values[b] = float32(value)
	}
	return values
}()

// Exponents decodes numbers that are powers of two, such as F8_E8M0 stores them.
func Exponents(dst []float32, src []byte) {
	for i, b := range src {
		dst[i] = float32(math.Ldexp(1, int(b)-127))
		if b == 255 {
			dst[i] = float32(math.NaN())
		}
	}
}
