package quant

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
)

// Quantizing must lose no more than ggml's quantizers, measured with the same weights.
func TestPack_LosesNoMoreThanGGML(t *testing.T) {
	var expected struct {
		Columns            int
		Values, Importance []byte
		Errors             map[string][2]float64
	}
	text, err := os.ReadFile("testdata/errors.json")
	if err == nil {
		err = json.Unmarshal(text, &expected)
	}
	if err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) []float32 {
		values := make([]float32, len(b)/4)
		Unpack(values, "F32", b)
		return values
	}
	values, importance := read(expected.Values), read(expected.Importance)
	for kind := range encoders {
		block, _ := ByName(kind)
		for i, weights := range [][]float32{nil, importance} {
			packed, err := Pack(kind, values, expected.Columns, weights)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]float32, len(values))
			Unpack(got, kind, packed)
			off := 0.0
			for at := 0; at < len(got); at += block.Block {
				sum := 0.0
				for _, v := range values[at : at+block.Block] {
					sum += float64(v) * float64(v)
				}
				for j := at; j < at+block.Block; j++ {
					v := float64(values[j])
					w := math.Sqrt(2*sum/float64(block.Block) + v*v)
					if weights != nil {
						w *= float64(weights[j%expected.Columns])
					}
					off += w * (float64(got[j]) - v) * (float64(got[j]) - v)
				}
			}
			theirs := expected.Errors[kind][i]
			if !(off <= theirs*1.0001) {
				t.Errorf("%s, importance %t: the error is %g, and %g in ggml", kind, i == 1, off,
					theirs)
			}
			t.Logf("%-6s importance %t: %.3f of ggml's error", kind, i == 1, off/theirs)
		}
	}
}

func TestPack_RefusesWhatItCannotWrite(t *testing.T) {
	nan := slices.Repeat([]float32{1}, 64)
	nan[40] = float32(math.NaN())
	for _, test := range []struct {
		kind       string
		src        []float32
		columns    int
		importance []float32
		want       string
	}{
		{"Q4_K", make([]float32, 64), 64, nil, "blocks of 256"},
		{"IQ1_S", make([]float32, 256), 256, nil, "IQ1_S"},
		{"Q4_0", nan, 32, nil, "number 8 of row 1"},
		{"Q4_0", make([]float32, 32), 32, make([]float32, 31), "31 columns"},
		{"Q4_0", make([]float32, 32), 32, slices.Repeat([]float32{-1}, 32), "column 0"},
	} {
		_, err := Pack(test.kind, test.src, test.columns, test.importance)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, expected %q", test.kind, err, test.want)
		}
	}
}

func TestPack_OfZerosAndUnusedColumnsIsFinite(t *testing.T) {
	values := make([]float32, 512)
	for i := range 256 {
		values[256+i] = float32(i)
	}
	for kind := range encoders {
		packed, err := Pack(kind, values, 256, make([]float32, 256))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, len(values))
		Unpack(got, kind, packed)
		for i, x := range got {
			if math.Abs(float64(x-values[i])) > 64 || i < 256 && math.Abs(float64(x)) > 0 {
				t.Fatalf("%s: number %d is %g, expected %g", kind, i, x, values[i])
			}
		}
	}
}

func BenchmarkPack(b *testing.B) {
	values := make([]float32, 1<<20)
	for i := range values {
		values[i] = float32(math.Sin(float64(i) * float64(i)))
	}
	for _, kind := range []string{"Q4_0", "Q4_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
		"IQ4_XS"} {
		b.Run(kind, func(b *testing.B) {
			b.SetBytes(int64(len(values)))
			for b.Loop() {
				if _, err := Pack(kind, values, 1024, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
