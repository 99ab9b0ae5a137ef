package plan

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"conquer/internal/cgroup"
)

// HostMemory is what processes can use of a machine's memory, in bytes. A field is negative if the
// system does not tell.
type HostMemory struct {
	Limit     int64 // of the control group that holds this process, as a container has
	Total     int64 // of the machine
	Available int64 // on the machine, without swapping
	Swap      int64 // free
}

// ReadHostMemory reads the state of this machine.
func ReadHostMemory() HostMemory {
	h := readMeminfo(os.DirFS("/proc"))
	if limit, ok := cgroup.Memory(); ok {
		h.Limit = limit
	}
	return h
}

// readMeminfo reads the file meminfo of the folder proc.
func readMeminfo(proc fs.FS) HostMemory {
	h := HostMemory{-1, -1, -1, -1}
	text, err := fs.ReadFile(proc, "meminfo")
	if err != nil {
		return h
	}
	for line := range strings.Lines(string(text)) { // MemAvailable:   12345 kB
		key, value, _ := strings.Cut(line, ":")
		number, unit, _ := strings.Cut(strings.TrimSpace(value), " ")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || unit != "kB" || n < 0 {
			continue
		}
		switch key {
		case "MemTotal":
			h.Total = n << 10
		case "MemAvailable":
			h.Available = n << 10
		case "SwapFree":
			h.Swap = n << 10
		}
	}
	return h
}

// most is what processes can use at most, with what sets the limit. ok is false if nothing tells.
func (h HostMemory) most() (bytes float64, why string, ok bool) {
	swap := float64(max(0, h.Swap))
	switch {
	case h.Limit >= 0 && (h.Available < 0 || h.Limit < h.Available):
		return float64(h.Limit) + swap, "the limit of this process's control group or container",
			true
	case h.Available >= 0:
		return float64(h.Available) + swap, "the machine's memory in /proc/meminfo", true
	}
	return 0, "", false
}

// Check compares the memory that the processes of a run need on this machine with what they can
// use. state is what they hold from the first step on, and peak the most at one moment. The error
// says that the state alone is too large, and warning that the peak is.
func (h HostMemory) Check(processes int, state, peak float64) (warning string, err error) {
	most, why, ok := h.most()
	if !ok || processes < 1 {
		return "", nil
	}
	each := ""
	if processes > 1 {
		each = fmt.Sprintf(" in %d processes", processes)
	}
	state, peak = state*float64(processes), peak*float64(processes)
	const remedy = "--lora_rank 16, a --dtype of 16 bits with --stochastic_rounding, fewer " +
		"processes, or a smaller model"
	switch {
	case state > most:
		return "", fmt.Errorf("the weights, gradients and optimizer%s need %.2f GB of host "+
			"memory, and %.2f GB can be used (%s): use %s", each, state/1e9, most/1e9, why, remedy)
	case peak > most:
		return fmt.Sprintf("a step needs about %.2f GB of host memory%s, and %.2f GB can be used "+
			"(%s): if the system ends the run, use a smaller --batch_size with --accumulate, "+
			"--recompute block, %s", peak/1e9, each, most/1e9, why, remedy), nil
	}
	return "", nil
}
