package nn

import (
	"fmt"
	"math"
)

// Frequencies are the angles between neighbouring positions of a sequence of the given length,
// which matters for "dynamic" and "longrope" only: [R/2].
func (c RotaryConfig) Frequencies(length int) ([]float32, error) {
	list := make([]float32, c.Dims/2)
	theta := c.Theta
	if c.Scaling == "dynamic" {
		n := float64(max(length, c.MaxPosition)) / float64(c.MaxPosition)
		theta *= math.Pow(c.Factor*n-(c.Factor-1), float64(c.Dims)/float64(c.Dims-2))
	}
	long := c.ShortFactors
	if length > c.OriginalPosition {
		long = c.LongFactors
	}
	low, high := c.ramp()
	for i := range list {
		f := 1 / math.Pow(theta, float64(2*i)/float64(c.Dims))
		switch c.Scaling {
		case "", "default", "dynamic":
		case "linear":
			f /= c.Factor
		case "llama3":
			f = c.llama3(f)
		case "yarn":
			slow := math.Min(math.Max((float64(i)-low)/(high-low), 0), 1)
			f = f/c.Factor*slow + f*(1-slow)
		case "longrope":
			if len(long) != len(list) {
				return nil, fmt.Errorf("rope_scaling: longrope has %d factors, expected half of "+
					"a head's %d dimensions", len(long), c.Dims)
			}
			f /= long[i]
		default:
			return nil, fmt.Errorf("rope_scaling type %q is not supported: expected %s", c.Scaling,
				RotaryScalings)
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("rope_scaling of type %q with rope_theta %g gives frequencies "+
				"that are no numbers", c.Scaling, c.Theta)
		}
		list[i] = float32(f)
	}
	return list, nil
}

// RotaryScalings names the types of scaling.
const RotaryScalings = "default, linear, llama3, yarn, dynamic or longrope"

// llama3 divides low frequencies by Factor, keeps high ones, and interpolates between (Llama 3.1's
// model card).
func (c RotaryConfig) llama3(f float64) float64 {
	wavelength := 2 * math.Pi / f
	original := float64(c.OriginalPosition)
	switch {
	case wavelength < original/c.HighFreqFactor:
		return f
	case wavelength > original/c.LowFreqFactor:
		return f / c.Factor
	}
	smooth := (original/wavelength - c.LowFreqFactor) / (c.HighFreqFactor - c.LowFreqFactor)
	return (1-smooth)*f/c.Factor + smooth*f
}

// ramp returns between which frequencies YaRN (Peng et al., arXiv 2309.00071) goes over from those
// that are kept to those that are divided by Factor: the ones that turn BetaFast and BetaSlow times
// within OriginalPosition.
func (c RotaryConfig) ramp() (low, high float64) {
	if c.Scaling != "yarn" {
		return 0, 1
	}
	turning := func(times float64) float64 {
		return float64(c.Dims) * math.Log(float64(c.OriginalPosition)/(times*2*math.Pi)) /
			(2 * math.Log(c.Theta))
	}
	low, high = turning(c.BetaFast), turning(c.BetaSlow)
	if !c.Fractional {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = math.Max(low, 0), math.Min(high, float64(c.Dims-1))
	if low == high {
		high += 0.001
	}
	return low, high
}

// YarnAttention is the factor of cosines and sines that YaRN has unless a config gives another.
func YarnAttention(factor, scale float64) float64 {
	if factor <= 1 {
		return 1
	}
	return 0.1*scale*math.Log(factor) + 1
}
