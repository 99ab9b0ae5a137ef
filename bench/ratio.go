package bench

import (
	"fmt"
	"math"
)

// Times are the median and the quartiles of the times of some runs.
type Times struct {
	Median, Low, High float64
	Runs              int
}

// Times returns the times of a row.
func (r SSDRow) Times() Times { return Times{r.MedianMS, r.LowMS, r.HighMS, r.Repeats} }

// Times returns the times of a row, from the prompt to the last token.
func (r ChunksRow) Times() Times { return Times{r.TotalMS, r.LowMS, r.HighMS, r.Repeats} }

// Ratio is the ratio of two medians. Low and High are the limits that the quartiles leave it: the
// intervals between the quartiles, divided (Moore, Interval Analysis, 1966). They describe the
// spread of the runs and need no assumption about its form; they are no confidence interval.
type Ratio struct {
	Value, Low, High float64
	Runs             int // of the side with fewer runs
}

// Over returns how many times as long t takes as other.
func (t Times) Over(other Times) Ratio {
	return Ratio{t.Median / other.Median, t.Low / other.High, t.High / other.Low,
		min(t.Runs, other.Runs)}
}

// Single reports whether a side was run once, so that there are no limits.
func (r Ratio) Single() bool {
	return r.Runs < 2 || math.IsNaN(r.Low) || math.IsNaN(r.High) || math.IsInf(r.High, 0) ||
		r.Low <= 0
}

// Overlap reports whether the quartiles of both sides overlap, so that the difference may be noise.
func (r Ratio) Overlap() bool { return !r.Single() && r.Low <= 1 && r.High >= 1 }

// String formats the ratio with its limits.
func (r Ratio) String() string {
	switch {
	case r.Single():
		return fmt.Sprintf("%.2f (one run)", r.Value)
	case r.Overlap():
		return fmt.Sprintf("%.2f (%.2f–%.2f, overlap)", r.Value, r.Low, r.High)
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", r.Value, r.Low, r.High)
}
