package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"conquer/torch"
)

// timing is the time of one call in milliseconds: median and quartiles.
type timing struct{ median, low, high float64 }

// timingOf returns the median and the quartiles of samples, which it sorts.
func timingOf(samples []float64) timing {
	slices.Sort(samples)
	at := func(q float64) float64 {
		place := q * float64(len(samples)-1)
		i := int(place)
		j := min(i+1, len(samples)-1)
		return samples[i] + (place-float64(i))*(samples[j]-samples[i])
	}
	return timing{at(0.5), at(0.25), at(0.75)}
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// sampleMS is the least time of one sample in milliseconds. A sample makes as many calls as
// fit, so that the cost of the clock and of waiting for a GPU is negligible.
const sampleMS = 2

// warmUp is how long a GPU works before it is timed, because an idle GPU lowers its clock.
const warmUp = 300 * time.Millisecond

// warmUps is the number of calls before the first sample. The first loads kernels and
// touches memory; the last one gives the time of a call.
const warmUps = 3

// measure times call, whose argument counts the calls, in the given number of samples after
// a warm-up. On a GPU the calls of a sample are replayed from a CUDA graph, so that the
// device is measured and not the host's launches.
func measure(ctx context.Context, device torch.Device, repeats int, call func(i int)) (
	timing, error,
) {
	var began time.Time
	for range warmUps {
		began = time.Now()
		torch.Scoped(func() { call(0) })
		device.Synchronize()
	}
	count, calls := 0, 0
	sample := torch.NewCapture(device, func() {
		for range calls {
			count++
			torch.Scoped(func() { call(count) })
		}
	})
	defer sample.Free()
	return sampled(ctx, device, repeats, milliseconds(time.Since(began)), func(n int) float64 {
		for calls = n; device.IsCUDA() && !sample.Recorded(); {
			sample.Run()
		}
		device.Synchronize()
		began := time.Now()
		sample.Run()
		device.Synchronize()
		return milliseconds(time.Since(began))
	})
}

// sampled takes the given number of samples of a call that takes took milliseconds. sample
// makes the given number of calls, the same each time, and returns their milliseconds. A
// GPU works for warmUp before the first sample.
func sampled(ctx context.Context, device torch.Device, repeats int, took float64,
	sample func(calls int) float64,
) (timing, error) {
	calls := min(max(int(sampleMS/max(took, 1e-4)), 1), 200)
	for began := time.Now(); device.IsCUDA() && time.Since(began) < warmUp; {
		sample(calls)
	}
	samples := make([]float64, repeats)
	for i := range samples {
		if err := ctx.Err(); err != nil {
			return timing{}, err
		}
		samples[i] = sample(calls) / float64(calls)
	}
	return timingOf(samples), nil
}

// peak returns the bytes by which the memory of tensors on the device rises while f runs.
func peak(device torch.Device, f func()) int64 {
	device.Synchronize()
	before, _ := device.Memory()
	device.ResetPeak()
	torch.Scoped(f)
	device.Synchronize()
	_, most := device.Memory()
	return most - before
}

// fraction returns a/b, or 0 if b is 0.
func fraction(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// oneLine returns the reason for a row without figures if err is the failure of an
// operation. Any other error ends the benchmark.
func oneLine(err error) (string, bool) {
	var failed *torch.Error
	if !errors.As(err, &failed) {
		return "", false
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line, true
}

func checkPositive(name string, values ...int) error {
	for _, v := range values {
		if v < 1 {
			return fmt.Errorf("%s is %d, expected at least 1", name, v)
		}
	}
	return nil
}
