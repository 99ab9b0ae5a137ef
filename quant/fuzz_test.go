package quant

import (
	"math"
	"slices"
	"testing"
)

// Blocks of any bytes must decode in every type, wherever they are cut and in any order of rows,
// to the same numbers.
func FuzzUnpack(f *testing.F) {
	var kinds []string
	for kind := range decoders {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for i := range kinds {
		f.Add(i, uint8(2), []byte{0x3c, 1, 0x80, 0xff, 0x7c, 0, 0x12, byte(i)})
	}
	f.Fuzz(func(t *testing.T, kind int, rows uint8, data []byte) {
		name := kinds[uint(kind)%uint(len(kinds))]
		n := int(rows)%4 + 1
		b, _ := ByName(name)
		if len(data) == 0 {
			return
		}
		blocks := min((len(data)-1)/(b.Bytes*n)+1, 8) // in a row
		src := make([]byte, n*blocks*b.Bytes)
		for i := range src {
			src[i] = data[i%len(data)]
		}
		columns := blocks * b.Block
		decoded := func(dtype string, source func(int) int) []byte {
			dst := make([]byte, n*columns*map[string]int{"F32": 4, "F16": 2, "BF16": 2}[dtype])
			for i := range dst {
				dst[i] = 0xa5
			}
			if err := UnpackRows(dst, dtype, src, name, n, columns, source); err != nil {
				t.Fatal(err)
			}
			return dst
		}
		all := float32s(decoded("F32", nil))
		reversed := float32s(decoded("F32", func(row int) int { return n - 1 - row }))
		half, brain := decoded("F16", nil), decoded("BF16", nil)
		var one, want [2]byte
		for i, x := range all {
			if math.Float32bits(x) == 0xa5a5a5a5 && name != "F32" {
				t.Fatalf("%s: number %d is not written", name, i)
			}
			if y := reversed[(n-1-i/columns)*columns+i%columns]; math.Float32bits(x) !=
				math.Float32bits(y) {
				t.Fatalf("%s: number %d is %g, and %g in another order of rows", name, i, x, y)
			}
			copy(one[:], half[2*i:])
			if roundF16(want[:], []float32{x}); x == x && one != want {
				t.Fatalf("%s: %g became %x in float16, expected %x", name, x, one, want)
			}
			copy(one[:], brain[2*i:])
			if roundBF16(want[:], []float32{x}); x == x && one != want {
				t.Fatalf("%s: %g became %x in bfloat16, expected %x", name, x, one, want)
			}
		}
		if err := UnpackRows(make([]byte, 4*n*columns), "F32", src[1:], name, n, columns,
			nil); err == nil {
			t.Fatalf("%s: a truncated row was decoded", name)
		}
	})
}

// Finite numbers must be quantized to finite numbers, and others refused.
func FuzzPack(f *testing.F) {
	var kinds []string
	for kind := range encoders {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for i := range kinds {
		f.Add(i, []byte{1, 2, 3, 200, 0, 0, 128, 63}, []byte{1, 0, 7})
		f.Add(i, []byte{255, 255, 127, 127, 1, 0, 0, 0}, []byte{})
	}
	f.Fuzz(func(t *testing.T, kind int, data, weights []byte) {
		name := kinds[uint(kind)%uint(len(kinds))]
		if len(data) == 0 {
			return
		}
		const columns = 256
		src, finite := make([]float32, 2*columns), true
		for i := range src {
			var bits uint32
			for j := range 4 {
				bits |= uint32(data[(4*i+j)%len(data)]) << (8 * j)
			}
			src[i] = math.Float32frombits(bits)
			finite = finite && src[i]-src[i] == 0
		}
		var importance []float32
		for i := 0; len(weights) > 0 && i < columns; i++ {
			importance = append(importance, float32(weights[i%len(weights)]))
		}
		packed, err := Pack(name, src, columns, importance)
		if finite != (err == nil) {
			t.Fatalf("%s, finite numbers %t: %v", name, finite, err)
		}
		if err != nil {
			return
		}
		got := make([]float32, len(src))
		Unpack(got, name, packed)
		for i, x := range got {
			if x-x != 0 && math.Abs(float64(src[i])) < 60000 {
				t.Fatalf("%s: %g became %g", name, src[i], x)
			}
		}
	})
}
