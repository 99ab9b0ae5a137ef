package main

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ends waits for a program to end and returns its exit code.
func ends(t *testing.T, what string, c *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() {
		t.Errorf("%s: it did not end", what)
		c.Process.Kill()
	})
	defer timer.Stop()
	c.Wait()
	return c.ProcessState.ExitCode()
}

func TestTrain_StopsWithACheckpointAtEverySignal(t *testing.T) {
	skipProcesses(t)
	if signal.Ignored(os.Interrupt) {
		t.Skip("this test runs in the background of a script: the program would ignore SIGQUIT")
	}
	for name, c := range map[string]struct {
		signal syscall.Signal
		more   []string
	}{
		"SIGTERM":         {syscall.SIGTERM, nil},
		"SIGHUP":          {syscall.SIGHUP, nil},
		"SIGQUIT":         {syscall.SIGQUIT, nil},
		"SIGHUP, nproc 2": {syscall.SIGHUP, []string{"--nproc", "2"}},
	} {
		if signal.Ignored(c.signal) {
			continue // as under nohup, which the program obeys
		}
		out := filepath.Join(t.TempDir(), "out")
		p, _, stderr := program(endless(t, out, c.more...)...)
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		awaitSteps(t, out)
		p.Process.Signal(c.signal)
		if code := ends(t, name, p); code != 130 || strings.Contains(stderr.String(), "goroutine") {
			t.Errorf("%s: exit code %d\n%s", name, code, stderr)
		}
		if _, err := os.Stat(filepath.Join(out, "checkpoints", "latest")); err != nil {
			t.Errorf("%s: no checkpoint: %v\n%s", name, err, stderr)
		}
	}
}

// nohup starts a program with SIGHUP ignored.
func TestTrain_KeepsAnIgnoredHangupIgnored(t *testing.T) {
	skipProcesses(t)
	out := filepath.Join(t.TempDir(), "out")
	p, _, stderr := program(endless(t, out)...)
	nohup := exec.Command("sh", append([]string{"-c", `trap "" HUP; exec "$@"`, "sh"},
		p.Args...)...)
	nohup.Env, nohup.Stderr = p.Env, p.Stderr
	if err := nohup.Start(); err != nil {
		t.Fatal(err)
	}
	awaitSteps(t, out)
	nohup.Process.Signal(syscall.SIGHUP)
	time.Sleep(300 * time.Millisecond)
	if err := nohup.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("SIGHUP ended it: %v\n%s", err, stderr)
	}
	if code := ends(t, "SIGTERM", nohup); code != 130 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	metrics, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
	if err != nil || len(metrics) == 0 {
		t.Error(err)
	}
}

// A pipe without a writer is no reason to outlive a signal.
func TestGenerate_EndsWhileItWaitsForAPipe(t *testing.T) {
	skipProcesses(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"generate", "--model_path", "m", "--prompts_file", pipe},
		{"generate", "--model_path", "m", "--prompt", "x", "--chat", "--tools", pipe},
		{"score", "--model_path", "m", "--text_file", pipe},
		{"train", "--model_path", "m", "--data_path", "d", "--documents", pipe},
	} {
		c, _, stderr := program(args...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		// A pipe can be opened for writing without waiting once somebody reads it.
		var writer *os.File
		for i := 0; writer == nil && i < 600; i++ {
			time.Sleep(50 * time.Millisecond)
			writer, _ = os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		}
		if writer == nil {
			t.Fatalf("%v: it does not read the pipe", args)
		}
		defer writer.Close()
		c.Process.Signal(syscall.SIGTERM)
		if code := ends(t, strings.Join(args, " "), c); code != 130 {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
	}
}

// A program that waits for the other end of a pipe ends soon after the first signal.
func TestRun_EndsWhileItWaitsForAPipe(t *testing.T) {
	skipProcesses(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o666); err != nil {
		t.Skip(err)
	}
	p, _, stderr := program("data", "--data_path", pipe, "--tokenizer", "char_tokenizer")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // it waits by now, or will before the signal's patience ends
	p.Process.Signal(syscall.SIGTERM)
	if code := ends(t, "a pipe without a writer", p); code != 130 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}
