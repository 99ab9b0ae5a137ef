// Package cgroup reads what Linux control groups, versions 1 and 2, permit this process to use. A
// container runtime sets these limits, and the number of processors and the size of memory that the
// machine reports do not show them.
package cgroup

import (
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// CPUs returns how many processors' time the process may use, such as 1.5. ok is false if nothing
// limits it.
func CPUs() (n float64, ok bool) { return cpus(os.DirFS("/")) }

// Memory returns how many bytes the process and its neighbours in the group may use. ok is false if
// nothing limits them.
func Memory() (bytes int64, ok bool) { return memory(os.DirFS("/")) }

func cpus(root fs.FS) (least float64, ok bool) {
	for _, dir := range folders(root, "cpu") {
		// Version 2 has "QUOTA PERIOD" in one file, version 1 has two files.
		quota, period, _ := strings.Cut(text(root, dir, "cpu.max"), " ")
		if quota == "" {
			quota = text(root, dir, "cpu.cfs_quota_us")
			period = text(root, dir, "cpu.cfs_period_us")
		}
		q, err1 := strconv.ParseFloat(quota, 64)
		p, err2 := strconv.ParseFloat(period, 64)
		if err1 == nil && err2 == nil && q > 0 && p > 0 && (!ok || q/p < least) {
			least, ok = q/p, true
		}
	}
	return least, ok
}

func memory(root fs.FS) (least int64, ok bool) {
	for _, dir := range folders(root, "memory") {
		for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
			n, err := strconv.ParseInt(text(root, dir, name), 10, 64)
			// Version 1 writes a number near 2^63 where there is no limit.
			if err == nil && n > 0 && n < 1<<60 && (!ok || n < least) {
				least, ok = n, true
			}
		}
	}
	return least, ok
}

// OOMKills returns how many processes the kernel has killed for want of memory in this process's
// group or, if no group tells, on the machine. ok is false if neither can be read.
func OOMKills() (n int64, ok bool) { return oomKills(os.DirFS("/")) }

func oomKills(root fs.FS) (n int64, ok bool) {
	count := func(dir, name string) {
		for line := range strings.Lines(text(root, dir, name)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			killed, err := strconv.ParseInt(value, 10, 64)
			if key == "oom_kill" && err == nil {
				n, ok = killed, true
			}
		}
	}
	for _, dir := range folders(root, "memory") {
		count(dir, "memory.events")      // version 2
		count(dir, "memory.oom_control") // version 1
		if ok {
			return n, ok
		}
	}
	count("proc", "vmstat")
	return n, ok
}

// folders returns the folders of the process's group for a controller, with those of the groups
// that enclose it: the limits of all of them apply.
func folders(root fs.FS, controller string) (dirs []string) {
	for line := range strings.Lines(text(root, "proc/self", "cgroup")) {
		// HIERARCHY:CONTROLLERS:PATH, where version 2 has "0::".
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mount := "sys/fs/cgroup"
		if parts[1] != "" {
			found := false
			for name := range strings.SplitSeq(parts[1], ",") {
				found = found || name == controller
			}
			if !found {
				continue
			}
			mount = path.Join(mount, parts[1])
		}
		for p := path.Join("/", parts[2]); ; p = path.Dir(p) {
			dirs = append(dirs, path.Join(mount, p))
			if p == "/" {
				break
			}
		}
	}
	return dirs
}

// text returns a small file without its final newline, or "" if it cannot be read.
func text(root fs.FS, dir, name string) string {
	b, err := fs.ReadFile(root, path.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
