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

// Quantized numbers must be near the numbers.
func FuzzPack(f *testing.F) {
	f.Add([]byte{1, 2, 3, 200}, false, uint8(3))
	f.Add([]byte{128}, true, uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, four bool, scale uint8) {
		if len(data) == 0 {
			return
		}
		src := make([]float32, 64)
		for i := range src {
			src[i] = float32(int8(data[i%len(data)])) * float32(math.Ldexp(1, int(scale%16)-8))
		}
		kind, levels := "Q8_0", 127.0
		if four {
			kind, levels = "Q4_0", 8
		}
		packed, err := Pack(kind, src)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, len(src))
		decoders[kind](got, packed)
		for at := 0; at < len(src); at += 32 {
			largest := 0.0
			for _, x := range src[at : at+32] {
				largest = max(largest, math.Abs(float64(x)))
			}
			for i := at; i < at+32; i++ {
				// Half a step, or a whole one where 4 bits end at 7; the scale is a float16.
				most := largest/levels*map[bool]float64{false: 0.6, true: 1.05}[four] + 1e-7
				if off := math.Abs(float64(got[i] - src[i])); !(off <= most) {
					t.Fatalf("%s: %g became %g, off by more than %g", kind, src[i], got[i], most)
				}
			}
		}
	})
}
