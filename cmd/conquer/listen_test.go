package main

import (
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// listening returns the addresses that a process listens on.
func listening(t *testing.T, pid int) (list []net.IP) {
	t.Helper()
	var inodes []string
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		if target, _ := os.Readlink(link); strings.HasPrefix(target, "socket:[") {
			inodes = append(inodes, strings.Trim(target, "socket:[]"))
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil && table == "tcp" {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			const listens = "0A"
			fields := strings.Fields(line) // number, address:port, peer, state, …, inode
			if len(fields) < 10 || fields[3] != listens || !slices.Contains(inodes, fields[9]) {
				continue
			}
			address, _, _ := strings.Cut(fields[1], ":")
			ip, err := hex.DecodeString(address)
			if err != nil {
				t.Fatal(err)
			}
			for word := range slices.Chunk(ip, 4) { // each is in the order of the machine
				slices.Reverse(word)
			}
			list = append(list, ip)
		}
	}
	return list
}

// awaitSteps waits until a run has taken a step.
func awaitSteps(t *testing.T, out string) {
	t.Helper()
	metrics := filepath.Join(out, "metrics.jsonl")
	for range 1200 {
		if text, _ := os.ReadFile(metrics); strings.Contains(string(text), `"step"`) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no step in %s after a minute", metrics)
}

// endless are the arguments of a run that a test ends.
func endless(t *testing.T, out string, more ...string) []string {
	return smallRun(t, out, append([]string{"--steps", "1000000", "--report_steps", "1",
		"--threads", "1"}, more...)...)
}

func TestProcesses_OfOneMachineListenOnLoopbackAlone(t *testing.T) {
	skipProcesses(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	for name, external := range map[string]bool{"--nproc": false, "another launcher": true} {
		out := filepath.Join(t.TempDir(), "out")
		args := endless(t, out, "--distributed", "ddp")
		var started []*exec.Cmd
		if external {
			for rank := range 2 {
				c, _, _ := program(args...)
				c.Env = append(c.Env, "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2", "MASTER_ADDR="+host,
					fmt.Sprint("MASTER_PORT=", port), fmt.Sprint("RANK=", rank),
					fmt.Sprint("LOCAL_RANK=", rank))
				started = append(started, c)
			}
		} else {
			c, _, _ := program(append(args, "--nproc", "2")...)
			started = append(started, c)
		}
		var pids []int
		for _, c := range started {
			c.Env = append(c.Env, "GLOO_SOCKET_IFNAME=eth0")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Process.Kill(); c.Wait() })
			pids = append(pids, c.Process.Pid)
		}
		awaitSteps(t, out)
		for _, rank := range ranksOf(started[0].Process.Pid) {
			pids = append(pids, rank.Pid)
		}
		sockets := 0
		for _, pid := range pids {
			for _, ip := range listening(t, pid) {
				if sockets++; !ip.IsLoopback() {
					t.Errorf("%s: a process listens on %v", name, ip)
				}
			}
		}
		if sockets < 3 { // the store, and each rank
			t.Errorf("%s: %d listening sockets in the processes %v", name, sockets, pids)
		}
		for _, c := range started {
			c.Process.Kill()
			c.Wait()
		}
	}
}

func TestLaunch_RefusesToStartProcessesUnderALauncher(t *testing.T) {
	skipProcesses(t)
	data := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(data, []byte("text"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		smallRun(t, filepath.Join(t.TempDir(), "out"), "--steps", "1"),
		{"generate", "--model_path", "none", "--prompt", "x"},
		{"chat", "--model_path", "none"},
		{"score", "--model_path", "none", "--text_file", data},
		{"bench", "inference", "--model_path", "none"},
	} {
		c, _, stderr := program(append(args, "--nproc", "2")...)
		c.Env = append(c.Env, "RANK=0", "WORLD_SIZE=4", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=1")
		err := c.Run()
		if c.ProcessState.ExitCode() != 2 || !strings.Contains(stderr.String(), "one of 4") {
			t.Errorf("%s: %v\n%s", args[0], err, stderr)
		}
	}
	if _, stderr, code := invoke(t, "", smallRun(t, filepath.Join(t.TempDir(), "out"),
		"--max_restarts", "2")...); code != 2 || !strings.Contains(stderr, "--nproc") {
		t.Errorf("--max_restarts without --nproc: exit code %d\n%s", code, stderr)
	}
}
