package torch

// #include "conquer.h"
import "C"

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Device is where a tensor lives: CPU, or a CUDA device by index.
type Device int

// CPU is the device of tensors in main memory.
const CPU Device = -1

// CUDA is the GPU of the given index.
func CUDA(index int) Device { return Device(index) }

// IsCUDA reports whether d is a GPU.
func (d Device) IsCUDA() bool { return d >= 0 }

func (d Device) String() string {
	if d == CPU {
		return "cpu"
	}
	return "cuda:" + strconv.Itoa(int(d))
}

// ErrNoDriver is wrapped by LoadCUDA's error on a machine without an NVIDIA driver.
var ErrNoDriver = errors.New("no NVIDIA driver here (libcuda.so.1 does not load)")

// LoadCUDA makes GPUs available. Call it before anything else asks for a GPU, because libtorch
// caches the first answer. Later calls are cheap. The error names what is missing: driver, library
// or device.
func LoadCUDA() error {
	switch C.cq_cuda_load() {
	case 0:
		return nil
	case 2:
		return fmt.Errorf("no CUDA device can be used: %w", ErrNoDriver)
	}
	return fmt.Errorf("no CUDA device can be used: %s", C.GoString(C.cq_last_error()))
}

// ParseDevice parses "cpu", "cuda", "cuda:1", or "" (a GPU if one is usable, else the CPU; LoadCUDA
// says why). It loads CUDA if needed.
func ParseDevice(name string) (Device, error) {
	switch {
	case name == "cpu":
		return CPU, nil
	case name == "":
		if LoadCUDA() == nil {
			return CUDA(0), nil
		}
		return CPU, nil
	case name == "cuda" || strings.HasPrefix(name, "cuda:"):
		if err := LoadCUDA(); err != nil {
			return CPU, err
		}
		index := 0
		if suffix, ok := strings.CutPrefix(name, "cuda:"); ok {
			var err error
			if index, err = strconv.Atoi(suffix); err != nil || index < 0 {
				return CPU, fmt.Errorf("unknown device %q: use cpu, cuda or cuda:N", name)
			}
		}
		if count := int(C.cq_cuda_device_count()); index >= count {
			return CPU, fmt.Errorf("there is no device %s: this machine has %d", name, count)
		}
		return CUDA(index), nil
	}
	return CPU, fmt.Errorf("unknown device %q: use cpu, cuda or cuda:N", name)
}

// DeviceInfo describes a GPU. Memory is in bytes. Allocated and Peak count the tensors of this
// process.
type DeviceInfo struct {
	Name                         string
	Major, Minor                 int // compute capability
	Multiprocessors              int
	Total, Free, Allocated, Peak int64
}

// Devices lists the usable GPUs, none before LoadCUDA succeeded.
func Devices() []DeviceInfo {
	list := make([]DeviceInfo, int(C.cq_cuda_device_count()))
	for i := range list {
		list[i] = Device(i).Info()
	}
	return list
}

// Info describes a GPU.
func (d Device) Info() DeviceInfo {
	var info C.cq_cuda_info
	check(C.cq_cuda_describe(C.int(d), &info), "describe "+d.String())
	return DeviceInfo{
		Name:            C.GoString(&info.name[0]),
		Major:           int(info.major),
		Minor:           int(info.minor),
		Multiprocessors: int(info.multiprocessors),
		Total:           int64(info.total_bytes),
		Free:            int64(info.free_bytes),
		Allocated:       int64(info.allocated_bytes),
		Peak:            int64(info.peak_allocated_bytes),
	}
}

// Synchronize waits for all work queued on d. On the CPU no work is ever queued.
func (d Device) Synchronize() {
	if d.IsCUDA() {
		check(C.cq_cuda_synchronize(C.int(d)), "synchronize "+d.String())
	}
}

// Memory returns the bytes that tensors on d hold now, and their maximum since the process began or
// since ResetPeak. Views of mapped files do not count.
func (d Device) Memory() (now, peak int64) {
	if d.IsCUDA() {
		info := d.Info()
		return info.Allocated, info.Peak
	}
	var n, m C.int64_t
	C.cq_cpu_memory(&n, &m)
	return int64(n), int64(m)
}

// ResetPeak starts a new measurement of d's peak memory.
func (d Device) ResetPeak() {
	if d.IsCUDA() {
		check(C.cq_cuda_reset_peak(C.int(d)), "reset peak "+d.String())
		return
	}
	C.cq_cpu_reset_peak()
}
