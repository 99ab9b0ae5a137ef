package bench

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"conquer/torch"
)

// New returns results that describe the machine and the run but have no rows.
func New(kind, command, version string, device torch.Device) (*Results, error) {
	r := &Results{Kind: kind, Command: command, Time: time.Now().UTC().Truncate(time.Second)}
	r.Versions = Versions{Conquer: version, Libtorch: "2.11.0", Go: runtime.Version()}
	r.Machine = Machine{CPU: processor(), Cores: runtime.NumCPU(), MemoryBytes: memory(),
		Device: device.String()}
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

// processor returns the name of the CPU.
func processor() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok &&
			strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// memory returns the bytes of the machine's memory, or 0 if the system does not say.
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

// ceilings are those that this process has measured, by device.
var ceilings sync.Map

// MeasureCeilings measures the best rates of libtorch's own operations on the device: the
// sum of a tensor larger than the caches, and GEMMs of square matrices. The best of a few
// runs counts. A process measures a device once.
func MeasureCeilings(device torch.Device) (c Ceilings, err error) {
	if known, ok := ceilings.Load(device); ok {
		return known.(Ceilings), nil
	}
	if c, err = measureCeilings(device); err == nil {
		ceilings.Store(device, c)
	}
	return c, err
}

func measureCeilings(device torch.Device) (c Ceilings, err error) {
	bytes, side := 256<<20, 1024
	if device.IsCUDA() {
		bytes, side = 4<<30, 8192
	}
	best := func(f func()) float64 {
		least, first := 0.0, time.Now()
		for i := 0; ; i++ {
			took := time.Since(first)
			if i >= 5 && took > 300*time.Millisecond || i >= 2 && took > 2*time.Second {
				return least
			}
			began := time.Now()
			torch.Scoped(f)
			device.Synchronize()
			seconds := time.Since(began).Seconds()
			if i == 1 || seconds < least { // run 0 touches memory for the first time
				least = seconds
			}
		}
	}
	err = torch.Run(func() error {
		torch.NoGrad(func() {
			torch.Scoped(func() {
				big := torch.Ones([]int{bytes / 4}, torch.Float32, device)
				c.ReadGBPerS = float64(bytes) / 1e9 / best(func() { big.Sum() })
			})
			gemm := func(dtype torch.DType) float64 {
				a := torch.Randn([]int{side, side}, torch.Float32, device).To(dtype)
				flops := 2 * float64(side) * float64(side) * float64(side)
				return flops / 1e9 / best(func() { a.Matmul(a) })
			}
			torch.Scoped(func() { c.F32GFlopPerS = gemm(torch.Float32) })
			torch.Scoped(func() { c.BF16GFlopPerS = gemm(torch.BFloat16) })
		})
		return nil
	})
	return c, err
}

// rate returns the ceiling of GEMMs in the dtype.
func (c Ceilings) rate(dtype torch.DType) float64 {
	if dtype == torch.Float32 {
		return c.F32GFlopPerS
	}
	return c.BF16GFlopPerS
}
