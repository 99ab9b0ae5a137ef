package torch

import (
	"math"
	"os"
	"runtime"
	"strconv"

	"conquer/internal/cgroup"
)

func init() {
	if os.Getenv("OMP_NUM_THREADS") == "" {
		quota, limited := cgroup.CPUs()
		if !limited {
			quota = math.Inf(1)
		}
		processes, _ := strconv.Atoi(os.Getenv("LOCAL_WORLD_SIZE"))
		SetThreads(defaultThreads(runtime.NumCPU(), quota, processes))
	}
}

// defaultThreads divides the processors of a machine among the processes of a run. A quota of 1.5
// processors is worth two threads.
func defaultThreads(processors int, quota float64, processes int) int {
	n := min(float64(processors), math.Ceil(quota))
	return max(1, int(n)/max(1, processes))
}
