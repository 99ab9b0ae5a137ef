package torch

import (
	"math"
	"testing"
)

func TestDefaultThreads_FollowQuotaAndProcesses(t *testing.T) {
	for _, c := range []struct {
		processors int
		quota      float64
		processes  int
		want       int
	}{
		{8, math.Inf(1), 0, 8},
		{8, 1.5, 0, 2},
		{8, 0.1, 0, 1},
		{8, 16, 1, 8},
		{8, math.Inf(1), 3, 2},
		{2, math.Inf(1), 8, 1},
	} {
		if n := defaultThreads(c.processors, c.quota, c.processes); n != c.want {
			t.Errorf("%d processors, a quota of %g, %d processes: %d threads, want %d",
				c.processors, c.quota, c.processes, n, c.want)
		}
	}
}
