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
	// WSD is warm-up, a stable rate, and a fall over the last steps (Hu et al., arXiv 2404.06395).
	WSD = "wsd"
	// Restarts is Cosine several times in a row (Loshchilov and Hutter, arXiv 1608.03983).
	Restarts = "restarts"
)

// Schedules lists the kinds of schedules.
var Schedules = []string{Constant, Linear, Cosine, WSD, Restarts}

// Schedule is the learning rate as a function of the step. It rises linearly from 0 to Peak over
// the first Warmup steps, then falls to Min at step Steps in the way of its Kind, or stays
// constant. The rates are those of the schedules of transformers.
type Schedule struct {
	Kind          string // of Schedules
	Peak, Min     float64
	Warmup, Steps int
	Decay         int // WSD: the steps of the fall, along a cosine; 0 means a tenth of Steps
	Cycles        int // Restarts: how often the rate falls; 0 means 2
}

// Check returns an error if the schedule is invalid.
func (s Schedule) Check() error {
	switch {
	case !slices.Contains(Schedules, s.Kind):
		return fmt.Errorf("--schedule: unknown schedule %q: choose one of %s", s.Kind,
			strings.Join(Schedules, ", "))
	case !(s.Peak > 0) || math.IsInf(s.Peak, 0):
		return fmt.Errorf("--learning_rate is %g, expected a number above 0", s.Peak)
	case !(s.Min >= 0) || s.Min > s.Peak:
		return fmt.Errorf(
			"--min_learning_rate is %g, expected 0 to --learning_rate, which is %g", s.Min,
			s.Peak)
	case s.Warmup < 0:
		return fmt.Errorf("--warmup_steps is %d, expected 0 or more", s.Warmup)
	case s.Decay < 0 || s.Cycles < 0:
		return fmt.Errorf("--decay_steps is %d and --cycles is %d: neither can be negative",
			s.Decay, s.Cycles)
	case s.Decay > 0 && s.Kind != WSD:
		return fmt.Errorf("--decay_steps is for --schedule %s, not %s: leave it out", WSD, s.Kind)
	case s.Cycles > 0 && s.Kind != Restarts:
		return fmt.Errorf("--cycles is for --schedule %s, not %s: leave it out", Restarts, s.Kind)
	}
	return nil
}

// Rate returns the learning rate of a step, counted from 0. The first step of a warm-up has the
// rate 0.
func (s Schedule) Rate(step int) float64 {
	if step < s.Warmup {
		return s.Peak * float64(step) / float64(s.Warmup)
	}
	done := float64(step-s.Warmup) / float64(max(1, s.Steps-s.Warmup))
	done = min(1, done)
	switch s.Kind {
	case Linear:
		return s.Min + (s.Peak-s.Min)*(1-done)
	case Cosine:
		return s.cosine(done)
	case WSD:
		fall := s.Decay
		if fall == 0 {
			fall = max(1, s.Steps/10)
		}
		fall = min(fall, max(1, s.Steps-s.Warmup))
		return s.cosine(min(1, max(0, float64(step-(s.Steps-fall))/float64(fall))))
	case Restarts:
		if done == 1 {
			return s.Min
		}
		cycles := s.Cycles
		if cycles == 0 {
			cycles = 2
		}
		_, part := math.Modf(done * float64(cycles))
		return s.cosine(part)
	}
	return s.Peak
}

// cosine falls from Peak at 0 to Min at 1.
func (s Schedule) cosine(done float64) float64 {
	return s.Min + (s.Peak-s.Min)*(1+math.Cos(math.Pi*done))/2
}
