package report

import (
	"fmt"
	"os"
	"strings"

	"conquer/torch"
)

// Memory returns the memory in use now and at its peak, in bytes: on the CPU what the process has
// resident, on a GPU what libtorch has allocated. It returns 0 if the system does not tell.
func Memory(d torch.Device) (now, peak int64) {
	if d.IsCUDA() {
		info := d.Info()
		return info.Allocated, info.Peak
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			now = kib << 10
		} else if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			peak = kib << 10
		}
	}
	return now, peak
}
