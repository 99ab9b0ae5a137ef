package cgroup

import (
	"testing"
	"testing/fstest"
)

func files(pairs ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1] + "\n")}
	}
	return m
}

func TestLimits_OfTheGroupAndThoseAroundIt(t *testing.T) {
	for _, c := range []struct {
		name   string
		root   fstest.MapFS
		cpus   float64
		memory int64
	}{
		{"no groups", files(), 0, 0},
		{"version 2 without limits", files(
			"proc/self/cgroup", "0::/",
			"sys/fs/cgroup/cpu.max", "max 100000",
			"sys/fs/cgroup/memory.max", "max"), 0, 0},
		{"version 2, a container", files(
			"proc/self/cgroup", "0::/",
			"sys/fs/cgroup/cpu.max", "150000 100000",
			"sys/fs/cgroup/memory.max", "1073741824"), 1.5, 1 << 30},
		{"version 2, a tighter group around this one", files(
			"proc/self/cgroup", "0::/a/b",
			"sys/fs/cgroup/a/cpu.max", "100000 100000",
			"sys/fs/cgroup/a/b/cpu.max", "400000 100000",
			"sys/fs/cgroup/a/memory.max", "5000",
			"sys/fs/cgroup/a/b/memory.max", "max"), 1, 5000},
		{"version 1", files(
			"proc/self/cgroup", "12:cpu,cpuacct:/x\n9:memory:/x\n1:name=systemd:/x\n0::/x",
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1",
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000",
			"sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "200000",
			"sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000",
			"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes", "7000"), 2, 7000},
		{"files with other content", files(
			"proc/self/cgroup", "0::/\nx",
			"sys/fs/cgroup/cpu.max", "-5 0",
			"sys/fs/cgroup/memory.max", "a lot"), 0, 0},
	} {
		if n, ok := cpus(c.root); n != c.cpus || ok != (c.cpus > 0) {
			t.Errorf("%s: %g processors, %v; want %g", c.name, n, ok, c.cpus)
		}
		if n, ok := memory(c.root); n != c.memory || ok != (c.memory > 0) {
			t.Errorf("%s: %d bytes, %v; want %d", c.name, n, ok, c.memory)
		}
	}
}
