package cgroup

import (
	"testing"
	"testing/fstest"
)

func TestOOMKills_OfTheInnermostGroupThatTells(t *testing.T) {
	for _, c := range []struct {
		name string
		root fstest.MapFS
		want int64
	}{
		{"nothing to read", files(), -1},
		{"the machine", files("proc/self/cgroup", "0::/",
			"proc/vmstat", "nr_free_pages 7\noom_kill 3\ndrop_pagecache 0"), 3},
		{"version 2", files("proc/self/cgroup", "0::/a/b", "proc/vmstat", "oom_kill 9",
			"sys/fs/cgroup/a/memory.events", "low 0\noom 4\noom_kill 4\noom_group_kill 0",
			"sys/fs/cgroup/a/b/memory.events", "low 0\noom 2\noom_kill 2\noom_group_kill 0"), 2},
		{"version 1", files("proc/self/cgroup", "9:memory:/x", "proc/vmstat", "oom_kill 9",
			"sys/fs/cgroup/memory/x/memory.oom_control",
			"oom_kill_disable 0\nunder_oom 0\noom_kill 1"), 1},
	} {
		n, ok := oomKills(c.root)
		if want := c.want; ok != (want >= 0) || ok && n != want {
			t.Errorf("%s: %d, %v; want %d", c.name, n, ok, want)
		}
	}
}
