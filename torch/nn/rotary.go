package nn

import (
	"fmt"

	"conquer/torch"
)

// RotaryConfig describes rotary position embedding as a Hugging Face config does.
type RotaryConfig struct {
	Dims  int     // R, the number of dimensions of a head that are rotated
	Theta float64 // rope_theta
	// Scaling is rope_scaling's type: "" or "default" for none, "linear", "llama3", "yarn",
	// "dynamic" or "longrope".
	Scaling          string
	Factor           float64 // of all but longrope
	LowFreqFactor    float64 // llama3
	HighFreqFactor   float64 // llama3
	OriginalPosition int     // llama3, yarn, longrope: original_max_position_embeddings
	// AttentionFactor multiplies the cosines and sines; 0 means 1.
	AttentionFactor    float64
	BetaFast, BetaSlow float64 // yarn
	Fractional         bool    // yarn: truncate is false
	MaxPosition        int     // dynamic: max_position_embeddings
	// longrope: divisors of the frequencies, of passes up to OriginalPosition and of longer ones
	ShortFactors, LongFactors []float64 // [R/2]
}

// Rotary is a table of the cosines and sines of the first positions. It grows when later positions
// are asked for. If the frequencies depend on the length of the sequence, as those of "dynamic" and
// "longrope" do, each pass computes its own instead. Keys in a cache keep the frequencies that they
// were rotated with, as in transformers.
type Rotary struct {
	config      RotaryConfig
	frequencies []float32 // [R/2]
	cos, sin    torch.Tensor
	byLength    torch.Tensor // [length,R/2]: the frequencies of sequences of each length
	length      int          // rows of the tables
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
	if c.Scaling == "dynamic" && c.Dims == 2 {
		return nil, fmt.Errorf("dynamic rope_scaling needs heads of more than 2 dimensions")
	}
	if c.AttentionFactor == 0 {
		c.AttentionFactor = 1
	}
	frequencies, err := c.Frequencies(1)
	if err != nil {
		return nil, err
	}
	return &Rotary{config: c, frequencies: frequencies}, nil
}

// Range returns the cosines and sines of positions [start, start+length): [1, length, R/2],
// float32.
func (r *Rotary) Range(start, length int, device torch.Device) (cos, sin torch.Tensor) {
	if r.Varies() {
		positions := torch.Arange(start, start+length, torch.Int64, device).Unsqueeze(0)
		return r.of(positions, r.at(start+length, device))
	}
	r.grow(start+length, device)
	return r.cos.Narrow(0, start, length).Unsqueeze(0), r.sin.Narrow(0, start, length).Unsqueeze(0)
}

// At returns the cosines and sines of positions (int64 [B,L], all below limit): [B, L, R/2],
// float32.
func (r *Rotary) At(positions torch.Tensor, limit int) (cos, sin torch.Tensor) {
	if r.Varies() {
		length := limit
		if limit > r.bound() {
			length = int(torch.Item[int64](positions.Max())) + 1
		}
		return r.of(positions, r.at(length, positions.Device()))
	}
	r.grow(limit, positions.Device())
	shape := append(positions.Shape(), len(r.frequencies))
	flat := positions.Reshape(-1)
	return r.cos.IndexSelect(0, flat).View(shape...), r.sin.IndexSelect(0, flat).View(shape...)
}

// Step is At for one token of each sequence (positions: int64 [B,1]). last (int64 [B or 1,1], below
// limit) is the position by which a sequence's frequencies are chosen. It does not wait for the
// device.
func (r *Rotary) Step(positions, last torch.Tensor, limit int) (cos, sin torch.Tensor) {
	if !r.Varies() {
		return r.At(positions, limit)
	}
	r.grow(limit, positions.Device())
	return r.of(positions, r.byLength.IndexSelect(0, last.View(-1)).Unsqueeze(1))
}

// Varies reports whether the frequencies depend on the length of a sequence.
func (r *Rotary) Varies() bool {
	return r.config.Scaling == "dynamic" || r.config.Scaling == "longrope"
}

// at returns the frequencies of a sequence of a length as a tensor, [R/2].
func (r *Rotary) at(length int, device torch.Device) torch.Tensor {
	return torch.From(r.ofLength(length), len(r.frequencies)).ToDevice(device)
}

// ofLength returns the frequencies of a sequence of a length.
func (r *Rotary) ofLength(length int) []float32 {
	list, err := r.config.Frequencies(length)
	if err != nil {
		panic(&torch.Error{Op: "rotary", Message: err.Error()})
	}
	return list
}

// of returns the scaled cosines and sines of positions [B,L]: [B,L,R/2].
func (r *Rotary) of(positions, frequencies torch.Tensor) (cos, sin torch.Tensor) {
	angles := positions.To(torch.Float32).Unsqueeze(-1).Mul(frequencies)
	return angles.Cos().MulScalar(r.config.AttentionFactor),
		angles.Sin().MulScalar(r.config.AttentionFactor)
}

// bound is the length up to which all sequences have the same frequencies.
func (r *Rotary) bound() int { return max(r.config.MaxPosition, r.config.OriginalPosition) }

// table lists the frequencies of sequences of 1, 2, … tokens.
func (r *Rotary) table() []float32 {
	table := make([]float32, 0, r.length*len(r.frequencies))
	for i := range r.length {
		one := r.frequencies
		if same := r.config.Scaling == "longrope" && i > r.bound(); same {
			one = table[len(table)-len(one):]
		} else if i+1 > r.bound() {
			one = r.ofLength(i + 1)
		}
		table = append(table, one...)
	}
	return table
}

// grow makes the tables hold at least length positions on device.
func (r *Rotary) grow(length int, device torch.Device) {
	if r.length >= length && r.device == device && (r.cos.Defined() || r.byLength.Defined()) {
		return
	}
	for _, table := range []torch.Tensor{r.cos, r.sin, r.byLength} {
		if table.Defined() {
			r.outgrown = append(r.outgrown, table)
		}
	}
	r.length, r.device = max(256, 1<<bits(length-1)), device
	torch.NoGrad(func() {
		torch.Scoped(func() {
			if r.Varies() {
				table := torch.From(r.table(), r.length, len(r.frequencies))
				r.byLength = table.ToDevice(device).Own()
				return
			}
			positions := torch.Arange(0, r.length, torch.Int64, torch.CPU).Unsqueeze(0)
			cos, sin := r.of(positions, torch.From(r.frequencies, len(r.frequencies)))
			r.cos = cos.Squeeze(0).ToDevice(device).Contiguous().Own()
			r.sin = sin.Squeeze(0).ToDevice(device).Contiguous().Own()
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
	r.byLength.Free()
	for i := range r.outgrown {
		r.outgrown[i].Free()
	}
	r.outgrown, r.length = nil, 0
}
