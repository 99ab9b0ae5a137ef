package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"conquer/internal/cgroup"
)

// attempt is one run of this command in several processes.
type attempt struct {
	children []*exec.Cmd
	stderr   []bytes.Buffer // of ranks above 0; rank 0's is printed
	ends     chan processEnd
	begun    bool       // a process has taken steps
	diverged bool       // a process has reported that the run has diverged
	failed   processEnd // the first failure
	err      error      // the error to return, nil while no process failed
	same     int        // number of processes that reported the first failure
	oomKills int64      // that the kernel had counted before
}

// processEnd describes how a process ended.
type processEnd struct {
	rank     int
	err      error
	begun    bool
	diverged bool
	report   string // the error that the process reported, or empty
}

// sameFailureTime is how long the launcher waits for the other processes to report the same
// failure.
const sameFailureTime = 500 * time.Millisecond

// runOnce runs this command in n processes. It reports whether the run may go on if it is started
// again: a process took steps, and the run has not diverged. The first failure ends the other
// processes, and its error is returned. number counts the attempts from 0;
// later attempts resume.
func runOnce(ctx context.Context, n, port, number int) (again bool, err error) {
	a := &attempt{stderr: make([]bytes.Buffer, n), ends: make(chan processEnd, n)}
	a.oomKills, _ = cgroup.OOMKills()
	for rank := range n {
		if err := a.start(rank, n, port, number); err != nil {
			a.kill()
			return false, err
		}
	}
	canceled := ctx.Done()
	var patience <-chan time.Time
	for left := n; left > 0; {
		select {
		case <-patience:
			a.kill()
		case <-canceled:
			canceled = nil
			for _, c := range a.children {
				c.Process.Signal(syscall.SIGTERM)
			}
		case e := <-a.ends:
			left--
			if a.note(ctx, e) {
				patience = time.After(sameFailureTime)
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		a.err = ctx.Err()
	case a.same == n: // a mistake in the command line
		a.err = reportedError(a.failed.report, a.children[a.failed.rank].ProcessState)
	}
	return a.begun && !a.diverged, a.err
}

// start starts the process of a rank.
func (a *attempt) start(rank, n, port, number int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := os.Args[1:]
	if number > 0 {
		args = append(args[:len(args):len(args)], "--resume")
	}
	c := exec.Command(self, args...)
	c.Stdout, c.Stderr, c.Stdin = os.Stdout, os.Stderr, os.Stdin
	if rank > 0 {
		c.Stdout, c.Stderr, c.Stdin = nil, &a.stderr[rank], nil
	}
	// A process must not outlive its launcher.
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	reports, report, err := os.Pipe()
	if err != nil {
		return err
	}
	c.ExtraFiles = []*os.File{report} // descriptor 3, after stdin, stdout and stderr
	c.Env = append(os.Environ(), fmt.Sprint("RANK=", rank), fmt.Sprint("WORLD_SIZE=", n),
		fmt.Sprint("LOCAL_RANK=", rank), fmt.Sprint("LOCAL_WORLD_SIZE=", n),
		"MASTER_ADDR=127.0.0.1", fmt.Sprint("MASTER_PORT=", port),
		"TORCHELASTIC_USE_AGENT_STORE=True", fmt.Sprint("TORCHELASTIC_RESTART_COUNT=", number),
		reportVariable+"=3")
	err = c.Start()
	report.Close()
	if err != nil {
		return err
	}
	a.children = append(a.children, c)
	go func() { a.ends <- wait(c, rank, reports) }()
	return nil
}

// wait waits for a process and reads its report.
func wait(c *exec.Cmd, rank int, reports *os.File) processEnd {
	err := c.Wait()
	text := make([]byte, reportSize)
	// The process's own children may hold the pipe open.
	reports.SetReadDeadline(time.Now().Add(time.Second))
	n, _ := reports.Read(text)
	reports.Close()
	why, begun := strings.CutPrefix(string(text[:n]), begunMark)
	why, diverged := strings.CutPrefix(why, divergedMark)
	return processEnd{rank, err, begun, diverged, why}
}

// note records how a process ended. It returns true for the first failure that a process reported,
// because the other processes may soon report the same failure. It kills the other processes if the
// process failed without a report.
func (a *attempt) note(ctx context.Context, e processEnd) (reported bool) {
	a.begun = a.begun || e.begun
	a.diverged = a.diverged || e.diverged
	if a.err != nil && e.report != "" && e.report == a.failed.report {
		a.same++
	}
	if e.err == nil || a.err != nil || ctx.Err() != nil {
		return false
	}
	state := a.children[e.rank].ProcessState
	if state.ExitCode() == 130 { // it was interrupted and has informed the others
		a.err = context.Canceled
		return false
	}
	a.failed, a.same = e, 1
	complaint := a.stderr[e.rank].String()
	if killed(state) {
		after, _ := cgroup.OOMKills()
		complaint = killedMessage(after > a.oomKills)
	}
	a.err = failure(e.rank, state, e.report, complaint)
	if e.report == "" {
		a.kill()
		return false
	}
	return true
}

func (a *attempt) kill() {
	for _, c := range a.children {
		c.Process.Kill()
	}
}

// killed reports whether a process was ended by SIGKILL, perhaps below a shell or container that
// gives this as an exit code.
func killed(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL || state.ExitCode() == 137
}

// killedMessage explains the end of a process by SIGKILL. counted is set if the kernel has counted
// such an end for want of memory during the run.
func killedMessage(counted bool) string {
	why := "most likely because memory was short (a person or a scheduler may have sent it too)"
	if counted {
		why = "because memory was short: the kernel has counted it (oom_kill)"
	}
	return fmt.Sprintf("it was killed (SIGKILL), %s: use a smaller --batch_size, --recompute "+
		"block, or fewer processes; free memory, or raise the container's limit", why)
}
