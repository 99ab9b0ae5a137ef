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

// usage watches how busy the processor and the GPU are while something runs.
type usage struct {
	began   time.Time
	cpu     time.Duration
	sampler *exec.Cmd
	samples chan []float64
}

// watch begins. The GPU's share comes from the driver's own sampling, through nvidia-smi.
func watch(device torch.Device) *usage {
	u := &usage{}
	if device.IsCUDA() {
		u.sampler = exec.Command("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100",
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

// identifier names a device for nvidia-smi, which counts all of a machine's GPUs, where CUDA counts those that are visible: an
// index or a UUID. CUDA and nvidia-smi count alike where GPUs are, or CUDA_DEVICE_ORDER is PCI_BUS_ID.
func identifier(device int, visible string) string {
	if list := strings.Split(visible, ","); visible != "" && device < len(list) {
		return strings.TrimSpace(list[device])
	}
	return strconv.Itoa(device)
}

// stop returns the shares, from 0 to 1: of all cores, and of the GPU (nil where the driver said nothing).
func (u *usage) stop() (cpu float64, gpu *float64) {
	cpu = (processorTime() - u.cpu).Seconds() / (time.Since(u.began).Seconds() * float64(runtime.NumCPU()))
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

// percentages reads one number a line, until the end; what is none is passed over.
func percentages(r io.Reader) (list []float64) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if v, err := strconv.ParseFloat(strings.TrimSpace(lines.Text()), 64); err == nil {
			list = append(list, v)
		}
	}
	return list
}

// processorTime is what all threads of this process have used.
func processorTime() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
