package llama

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"testing"

	"conquer/torch/nn"
)

// divisorsOf computes the divisors as convert_hf_to_gguf.py does for Llama 3.1 and 3.2.
func divisorsOf(factor float64) []float32 {
	list := make([]float32, 64)
	for i := range list {
		wavelength := 2 * math.Pi * math.Pow(500000, float64(i)/64)
		list[i] = 1
		if wavelength > 8192 {
			list[i] = float32(factor)
		} else if wavelength >= 8192/4 {
			smooth := (8192/wavelength - 1) / 3
			list[i] = float32(1 / ((1-smooth)/factor + smooth))
		}
	}
	return list
}

func TestLlama3Divisors_AgreeWithTheConverter(t *testing.T) {
	for _, factor := range []float64{8, 32, 1} {
		c := nn.RotaryConfig{Dims: 128, Theta: 500000, Factor: factor, LowFreqFactor: 1,
			HighFreqFactor:   4,
			OriginalPosition: 8192}
		got, want := llama3Divisors(c), divisorsOf(factor)
		for i := range want {
			if math.Abs(float64(got[i]/want[i])-1) > 1e-6 {
				t.Errorf("factor %v: divisor %d is %v, expected %v", factor, i, got[i], want[i])
			}
		}
	}
}

func TestFFNSize_IsWhatMetasCodeComputes(t *testing.T) {
	for range 2000 {
		width, inner := 1+rand.IntN(9000), 1+rand.IntN(40000)
		multiple, multiplier := ffnSize(width, inner)
		hidden := 2 * 4 * width / 3
		if multiplier != nil {
			text, _ := json.Marshal(multiplier)
			var m float64
			json.Unmarshal(text, &m)
			hidden = int(m * float64(hidden))
		}
		if got := multiple * ((hidden + multiple - 1) / multiple); got != inner {
			t.Errorf("width %d: %d by %d and %v, expected %d", width, got, multiple, multiplier,
				inner)
		}
	}
	// Llama 2 70B's own
	if multiple, multiplier := ffnSize(8192, 28672); multiple != 4096 || *multiplier != 1.3 {
		t.Errorf("%d, %v", multiple, *multiplier)
	}
}
