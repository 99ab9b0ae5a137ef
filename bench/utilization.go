package bench

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"conquer/torch"
)

// usage measures the utilization of the CPU and the GPU.
type usage struct {
	began   time.Time
	cpu     time.Duration
	sampler *exec.Cmd
	samples chan []float64
}

// watch starts measuring. The GPU's utilization comes from the driver, through nvidia-smi.
func watch(device torch.Device) *usage {
	u := &usage{}
	if device.IsCUDA() {
		u.sampler = exec.Command("nvidia-smi", "--query-gpu=utilization.gpu",
			"--format=csv,noheader,nounits", "--loop-ms=100",
			"--id="+identifier(int(device), os.Getenv("CUDA_VISIBLE_DEVICES")))
		if out, err := u.sampler.StdoutPipe(); err != nil || u.sampler.Start() != nil {
			u.sampler = nil
		} else {
			u.samples = make(chan []float64, 1)
			go func() { u.samples <- percentages(out) }()
		}
	}
	u.began, u.cpu = time.Now(), processorTime()
	return u
}

// identifier returns the index or UUID of a CUDA device for nvidia-smi, which numbers all GPUs
// of a machine, while CUDA numbers the visible ones. Both use the same order if all GPUs are
// of one model or CUDA_DEVICE_ORDER is PCI_BUS_ID.
func identifier(device int, visible string) string {
	if list := strings.Split(visible, ","); visible != "" && device < len(list) {
		return strings.TrimSpace(list[device])
	}
	return strconv.Itoa(device)
}

// stop returns the utilization of all cores and of the GPU, each from 0 to 1. gpu is nil if the
// driver gave no value.
func (u *usage) stop() (cpu float64, gpu *float64) {
	cpu = (processorTime() - u.cpu).Seconds() / (time.Since(u.began).Seconds() * float64(
		runtime.NumCPU()))
	if u.sampler == nil {
		return cpu, nil
	}
	u.sampler.Process.Signal(os.Interrupt)
	samples := <-u.samples
	u.sampler.Wait()
	if len(samples) == 0 {
		return cpu, nil
	}
	mean := 0.0
	for _, s := range samples {
		mean += s / 100 / float64(len(samples))
	}
	return cpu, &mean
}

// percentages reads one number a line and ignores other lines.
func percentages(r io.Reader) (list []float64) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if v, err := strconv.ParseFloat(strings.TrimSpace(lines.Text()), 64); err == nil {
			list = append(list, v)
		}
	}
	return list
}

// processorTime returns the CPU time of all threads of this process.
func processorTime() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
