package nn

import (
	"fmt"
	"math"

	"conquer/torch"
)

// RotaryConfig describes rotary position embedding as a Hugging Face config does.
type RotaryConfig struct {
	Dims  int     // R, the number of dimensions of a head that are rotated
	Theta float64 // rope_theta
	// Scaling is rope_scaling's type: "" or "default" for none, "linear", or "llama3".
	Scaling          string
	Factor           float64
	LowFreqFactor    float64 // llama3
	HighFreqFactor   float64 // llama3
	OriginalPosition int     // llama3: original_max_position_embeddings
}

// Rotary is a table of the cosines and sines of the first positions. It grows when later positions
// are asked for.
type Rotary struct {
	frequencies []float32 // [R/2]
	cos, sin    torch.Tensor
	length      int
	device      torch.Device
	// outgrown holds the tables that were replaced by larger ones: a recorded graph may still read
	// them. Together they are no larger than the one in use.
	outgrown []torch.Tensor
}

// NewRotary makes the embedding of a config.
func NewRotary(c RotaryConfig) (*Rotary, error) {
	if c.Dims <= 0 || c.Dims%2 != 0 {
		return nil, fmt.Errorf("rotary embedding over %d dimensions: the number must be even and "+
			"positive", c.Dims)
	}
	r := &Rotary{frequencies: make([]float32, c.Dims/2)}
	for i := range r.frequencies {
		f := 1 / math.Pow(c.Theta, float64(2*i)/float64(c.Dims))
		switch c.Scaling {
		case "", "default":
		case "linear":
			f /= c.Factor
		case "llama3":
			f = c.llama3(f)
		default:
			return nil, fmt.Errorf("rope_scaling type %q is not supported: expected default, "+
				"linear or llama3", c.Scaling)
		}
		r.frequencies[i] = float32(f)
	}
	return r, nil
}

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

// Range returns the cosines and sines of positions [start, start+length): [1, length, R/2],
// float32.
func (r *Rotary) Range(start, length int, device torch.Device) (cos, sin torch.Tensor) {
	r.grow(start+length, device)
	return r.cos.Narrow(0, start, length).Unsqueeze(0), r.sin.Narrow(0, start, length).Unsqueeze(0)
}

// At returns the cosines and sines of positions (int64 [B,L], all below limit): [B, L, R/2],
// float32.
func (r *Rotary) At(positions torch.Tensor, limit int) (cos, sin torch.Tensor) {
	r.grow(limit, positions.Device())
	shape := append(positions.Shape(), len(r.frequencies))
	flat := positions.Reshape(-1)
	return r.cos.IndexSelect(0, flat).View(shape...), r.sin.IndexSelect(0, flat).View(shape...)
}

// grow makes the table hold at least length positions on device.
func (r *Rotary) grow(length int, device torch.Device) {
	if r.length >= length && r.device == device && r.cos.Defined() {
		return
	}
	if r.cos.Defined() {
		r.outgrown = append(r.outgrown, r.cos, r.sin)
	}
	r.length, r.device = max(256, 1<<bits(length-1)), device
	torch.NoGrad(func() {
		torch.Scoped(func() {
			positions := torch.Arange(0, r.length, torch.Float32, torch.CPU).Unsqueeze(1)
			angles := positions.Mul(torch.From(r.frequencies, len(r.frequencies)))
			r.cos, r.sin = angles.Cos().ToDevice(device).Contiguous().Own(),
				angles.Sin().ToDevice(device).Contiguous().Own()
		})
	})
}

func bits(n int) (b int) {
	for ; n > 0; n >>= 1 {
		b++
	}
	return b
}

// Free frees the table.
func (r *Rotary) Free() {
	r.cos.Free()
	r.sin.Free()
	for i := range r.outgrown {
		r.outgrown[i].Free()
	}
	r.outgrown, r.length = nil, 0
}
