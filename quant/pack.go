package quant

import (
	"fmt"
	"math"
)

// An encoder writes one block. w has the weight of each number's squared error. An encoder has its
// own buffers.
type encoder func(dst []byte, x, w []float64)

// encoders make the encoders of kinds.
var encoders = map[string]func() encoder{
	"Q8_0":   func() encoder { return encodeQ8_0 },
	"Q4_0":   func() encoder { return encodeQ4_0 },
	"Q4_1":   func() encoder { return encodeQ4_1 },
	"Q5_0":   func() encoder { return encodeQ5_0 },
	"Q5_1":   func() encoder { return encodeQ5_1 },
	"IQ4_NL": func() encoder { return encodeIQ4_NL },
	"MXFP4":  func() encoder { return encodeMXFP4 },
	"Q2_K":   packQ2_K, "Q3_K": packQ3_K, "Q4_K": packQ4_K, "Q5_K": packQ5_K, "Q6_K": packQ6_K,
	"IQ4_XS": packIQ4_XS,
}

// Packs reports whether [Pack] takes the kind.
func Packs(kind string) bool { return encoders[kind] != nil }

// Pack encodes src, rows of `columns` numbers each, in blocks of a kind that [Packs]. columns must
// be a multiple of the kind's block. Scales, minima and codes are chosen to make the weighted sum
// of squared errors small. importance, if not nil, has a weight for each column, such as the mean
// square of what it is multiplied by; beside that, larger numbers weigh more. Q8_0 has the bits of
// ggml's reference. The work is shared among GOMAXPROCS goroutines. Pack fails for numbers that are
// not finite.
func Pack(kind string, src []float32, columns int, importance []float32) ([]byte, error) {
	t, _ := ByName(kind)
	switch {
	case !Packs(kind):
		return nil, fmt.Errorf("numbers are not written as %s", kind)
	case columns <= 0 || columns%t.Block != 0 || len(src)%columns != 0:
		return nil, fmt.Errorf("%d numbers in rows of %d cannot be written as %s, in blocks of %d",
			len(src), columns, kind, t.Block)
	case importance != nil && len(importance) != columns:
		return nil, fmt.Errorf("the importance of %d columns is for rows of %d", len(importance),
			columns)
	}
	for i, f := range importance {
		if !(f >= 0) || math.IsInf(float64(f), 0) {
			return nil, fmt.Errorf("the importance of column %d is %g", i, f)
		}
	}
	for i, x := range src {
		if x-x != 0 {
			return nil, fmt.Errorf("number %d of row %d is %g, which %s cannot hold", i%columns,
				i/columns, x, kind)
		}
	}
	dst := make([]byte, len(src)/t.Block*t.Bytes)
	share(len(src)/t.Block, max(decodeChunk/8/t.Block, 1), func(begin, end int) {
		encode := encoders[kind]()
		var x, w [256]float64
		for b := begin; b < end; b++ {
			at := b * t.Block
			for i, v := range src[at : at+t.Block] {
				x[i] = float64(v)
			}
			var part []float32
			if importance != nil {
				part = importance[at%columns : at%columns+t.Block]
			}
			weigh(w[:t.Block], x[:t.Block], part)
			encode(dst[b*t.Bytes:(b+1)*t.Bytes], x[:t.Block], w[:t.Block])
		}
	})
	return dst, nil
}

// weigh sets the weights of the errors of a block. Large numbers weigh more, up to a point: with
// these weights a model's outputs changed less than with even ones, and less than with squares.
func weigh(w, x []float64, importance []float32) {
	sum, total := 0.0, 0.0
	for _, v := range x {
		sum += v * v
	}
	mean := sum / float64(len(x))
	for i, v := range x {
		w[i] = math.Sqrt(2*mean + v*v)
		if importance != nil {
			w[i] *= float64(importance[i])
		}
		total += w[i]
	}
	switch {
	case total > 0 && !math.IsInf(total, 0):
	case importance != nil: // no text passed through these columns
		weigh(w, x, nil)
	default: // zeros
		for i := range w {
			w[i] = 1
		}
	}
}
