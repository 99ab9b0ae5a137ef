package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"conquer/torch"
)

// timing is how long one call took, in milliseconds.
type timing struct{ median, low, high float64 }

// timingOf takes the median and the quartiles of samples.
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

// What one sample is to take: of a shorter call as many as fit are made in it, so that the clock does not count, nor, where
// the calls are one stretch, the wait for a GPU at the end.
const sampleMS = 2

// How long a GPU works before it is timed: at rest it lowers its clock, and takes a while to raise it.
const warmUp = 300 * time.Millisecond

// Calls before any is timed: the first loads kernels and touches memory, the last one says how long a call takes.
const warmUps = 3

// measure times call, whose argument counts the calls, `repeats` times after a warm-up. On a GPU the calls of a sample are
// replayed from a CUDA graph, so that what is measured is the device's work, not the host's launches.
func measure(ctx context.Context, device torch.Device, repeats int, call func(i int)) (timing, error) {
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

// sampled takes `repeats` samples of a call that took so many milliseconds when it was warm. sample makes as many calls as it
// is told, always the same number, and returns the milliseconds of all. A GPU works for a while before the first that counts.
func sampled(ctx context.Context, device torch.Device, repeats int, took float64, sample func(calls int) float64) (timing, error) {
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

// peak is how far tensors' memory on the device rises while f runs.
func peak(device torch.Device, f func()) int64 {
	device.Synchronize()
	before, _ := device.Memory()
	device.ResetPeak()
	torch.Scoped(f)
	device.Synchronize()
	_, most := device.Memory()
	return most - before
}

// New begins the results of a benchmark: what is known before it runs.
func New(kind, command, version string, device torch.Device) (*Results, error) {
	r := &Results{Kind: kind, Command: command, Time: time.Now().UTC().Truncate(time.Second)}
	r.Versions = Versions{Conquer: version, Libtorch: "2.11.0", Go: runtime.Version()}
	r.Machine = Machine{CPU: processor(), Cores: runtime.NumCPU(), MemoryBytes: memory(), Device: device.String()}
	err := torch.Run(func() error {
		r.Machine.Threads = torch.Threads()
		if device.IsCUDA() {
			r.Machine.GPU = device.Info().Name
		}
		return nil
	})
	if data, err := os.ReadFile("/proc/driver/nvidia/version"); err == nil && device.IsCUDA() {
		line, _, _ := strings.Cut(string(data), "\n")
		r.Machine.Driver = strings.TrimSpace(strings.TrimPrefix(line, "NVRM version:"))
	}
	return r, err
}

// processor is the name of the CPU.
func processor() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// memory is the bytes of the machine's memory, 0 where the system does not say.
func memory() int64 {
	data, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "MemTotal:" {
			kilobytes, _ := strconv.ParseInt(fields[1], 10, 64)
			return kilobytes << 10
		}
	}
	return 0
}

// MeasureCeilings finds out what the device gives at best, by libtorch's own operations: the sum of a tensor that no cache
// holds, and products of square matrices. The best of a few runs counts.
func MeasureCeilings(device torch.Device) (c Ceilings, err error) {
	bytes, side := 256<<20, 1024
	if device.IsCUDA() {
		bytes, side = 4<<30, 8192
	}
	best := func(f func()) float64 {
		least, first := 0.0, time.Now()
		for i := 0; i < 5 || time.Since(first) < 300*time.Millisecond; i++ {
			began := time.Now()
			torch.Scoped(f)
			device.Synchronize()
			if took := time.Since(began).Seconds(); i == 1 || took < least { // the one before touches memory for the first time
				least = took
			}
		}
		return least
	}
	err = torch.Run(func() error {
		torch.NoGrad(func() {
			torch.Scoped(func() {
				big := torch.Ones([]int{bytes / 4}, torch.Float32, device)
				c.ReadGBPerS = float64(bytes) / 1e9 / best(func() { big.Sum() })
			})
			product := func(dtype torch.DType) float64 {
				a := torch.Randn([]int{side, side}, torch.Float32, device).To(dtype)
				flops := 2 * float64(side) * float64(side) * float64(side)
				return flops / 1e9 / best(func() { a.Matmul(a) })
			}
			torch.Scoped(func() { c.F32GFlopPerS = product(torch.Float32) })
			torch.Scoped(func() { c.BF16GFlopPerS = product(torch.BFloat16) })
		})
		return nil
	})
	return c, err
}

// rate is the ceiling that products of the dtype go by.
func (c Ceilings) rate(dtype torch.DType) float64 {
	if dtype == torch.Float32 {
		return c.F32GFlopPerS
	}
	return c.BF16GFlopPerS
}

func fraction(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// oneLine is why a row has no figures: an operation's failure. Any other error ends the benchmark.
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
