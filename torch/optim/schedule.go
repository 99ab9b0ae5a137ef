package optim

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Kinds of a [Schedule].
const (
	Constant = "constant"
	Linear   = "linear"
	Cosine   = "cosine"
)

// Schedule is the learning rate as a function of the step. It rises linearly to Peak over the first
// Warmup steps, then falls to Min at step Steps in the way of its Kind, or stays constant.
type Schedule struct {
	Kind          string // Constant, Linear or Cosine
	Peak, Min     float64
	Warmup, Steps int
}

// Check returns an error if the schedule is invalid.
func (s Schedule) Check() error {
	kinds := []string{Constant, Linear, Cosine}
	switch {
	case !slices.Contains(kinds, s.Kind):
		return fmt.Errorf("unknown schedule %q: choose one of %s", s.Kind,
			strings.Join(kinds, ", "))
	case !(s.Peak > 0) || math.IsInf(s.Peak, 0):
		return fmt.Errorf("learning rate %g: it must be positive", s.Peak)
	case !(s.Min >= 0) || s.Min > s.Peak:
		return fmt.Errorf(
			"minimal learning rate %g: it must lie between 0 and the learning rate, %g", s.Min,
			s.Peak)
	case s.Warmup < 0:
		return fmt.Errorf("%d steps of warm-up: the number cannot be negative", s.Warmup)
	}
	return nil
}

// Rate returns the learning rate of a step, counted from 0. The first step of a warm-up has the
// rate Peak/Warmup.
func (s Schedule) Rate(step int) float64 {
	if step < s.Warmup {
		return s.Peak * float64(step+1) / float64(s.Warmup)
	}
	left := 1 - float64(step-s.Warmup)/float64(max(1, s.Steps-s.Warmup))
	switch left = max(0, left); s.Kind {
	case Linear:
		return s.Min + (s.Peak-s.Min)*left
	case Cosine:
		return s.Min + (s.Peak-s.Min)*(1-math.Cos(math.Pi*left))/2
	}
	return s.Peak
}
