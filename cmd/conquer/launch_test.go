package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"conquer/train/report"
)

// programVariable makes the test binary run as the program, which starts itself once per process.
const programVariable = "CONQUER_TEST_PROGRAM"

func TestMain(m *testing.M) {
	switch os.Getenv(programVariable) {
	case "":
		os.Exit(m.Run())
	case "deaf":
		os.Exit(deaf.run(nil, os.Stdout, os.Stderr))
	default:
		os.Exit(runCommands(os.Args[1:]))
	}
}

// deaf is a command that does not look at its context.
var deaf = command{name: "deaf", setup: func(*pflag.FlagSet) func(context.Context, []string) error {
	return func(context.Context, []string) error {
		fmt.Println("ready")
		time.Sleep(time.Hour)
		return nil
	}
}}

// skipProcesses skips a test that starts processes if -short is set.
func skipProcesses(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes: left out by -short")
	}
}

// program returns a command that runs conquer in a process of its own.
func program(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), programVariable+"=1", "OMP_NUM_THREADS=1")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	return c, &stdout, &stderr
}

// smallRun returns the arguments of a small training run that writes to out.
func smallRun(t *testing.T, out string, more ...string) []string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "poem.txt")
	if err := os.WriteFile(data, []byte(strings.Repeat("round and round the tower the gulls go "+
		"round\n", 60)), 0o666); err != nil {
		t.Fatal(err)
	}
	return append([]string{"train", "--architecture", "bamba", "--variant", "bytes", "--tokenizer",
		"char_tokenizer", "--data_path", data, "--output_path", out, "--pack", "--sequence_length",
		"32", "--batch_size", "1", "--learning_rate", "0.01", "--device", "cpu"}, more...)
}

// transformers has defaults for missing special tokens, such as 2 to end a text, and 0 to pad.
func TestTrain_FreshModelHoldsTheSpecialTokensOfItsTokenizer(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	if _, stderr, code := invoke(t, "", smallRun(t, out, "--steps", "1")...); code != 0 {
		t.Fatal(stderr)
	}
	for name, want := range map[string]map[string]any{
		"config.json":            {"bos_token_id": 2.0, "eos_token_id": 3.0, "pad_token_id": nil},
		"generation_config.json": {"bos_token_id": 2.0, "eos_token_id": 3.0},
	} {
		text, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]any{}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		for key, id := range want {
			if value, there := got[key]; !there || value != id {
				t.Errorf("%s: %s is %v (%v), expected %v", name, key, value, there, id)
			}
		}
	}
}

func TestTrain_TwoProcessesReportOnce(t *testing.T) {
	skipProcesses(t)
	for _, strategy := range [][]string{{"fsdp"}, {"pp", "--accumulate", "2"}} {
		out := filepath.Join(t.TempDir(), "out")
		c, stdout, stderr := program(smallRun(t, out,
			append([]string{"--nproc", "2", "--steps", "4", "--report_steps", "1", "--distributed"},
				strategy...)...)...)
		if err := c.Run(); err != nil {
			t.Fatalf("%v: %v\n%s", strategy, err, stderr)
		}
		if n := strings.Count(stderr.String(), "step 4/4  epoch"); n != 1 {
			t.Errorf("%v: the last step is reported %d times\n%s", strategy, n, stderr)
		}
		if n := strings.Count(stdout.String(), "tuning "); n != 1 {
			t.Errorf("%v: the beginning is reported %d times\n%s", strategy, n, stdout)
		}
		if text := succeed(t, "generate", "--model_path", out, "--prompt", "round",
			"--max_new_tokens", "4", "--ignore_eos"); len(text) < 4 {
			t.Errorf("%v: the result continues with %q", strategy, text)
		}
	}
}

// ranksOf finds the processes that a launcher started, by rank.
func ranksOf(launcher int) map[string]*os.Process {
	found := map[string]*os.Process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, _ := os.ReadFile(path)
		environment, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "environ"))
		var pid, parent int
		var state string
		_, after, _ := strings.Cut(string(stat), ") ")
		fmt.Sscan(after, &state, &parent)
		fmt.Sscan(string(stat), &pid)
		for _, v := range strings.Split(string(environment), "\x00") {
			if rank, ok := strings.CutPrefix(v, "RANK="); ok && parent == launcher {
				found[rank], _ = os.FindProcess(pid)
			}
		}
	}
	return found
}

// killRank waits for a run's first checkpoint and kills a rank.
func killRank(t *testing.T, launcher *exec.Cmd, checkpoints, rank string) {
	t.Helper()
	for range 6000 {
		if _, err := os.Stat(filepath.Join(checkpoints, "latest")); err == nil {
			if p := ranksOf(launcher.Process.Pid)[rank]; p != nil {
				p.Kill()
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("no checkpoint was written, or no process has that rank")
}

func TestLaunch_RestartsAfterKilledRank(t *testing.T) {
	skipProcesses(t)
	for _, restarts := range []string{"0", "1"} {
		out := filepath.Join(t.TempDir(), "out")
		c, _, stderr := program(smallRun(t, out, "--nproc", "2", "--distributed", "ddp", "--steps",
			"150", "--checkpoint_steps", "2", "--max_restarts", restarts)...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		killRank(t, c, filepath.Join(out, "checkpoints"), "1")
		c.Wait()
		message := "rank 1 failed, so the others were stopped: it was killed (SIGKILL), " +
			"most likely because memory was short"
		if !strings.Contains(stderr.String(), message) {
			t.Errorf("a killed rank is not named\n%s", stderr)
		}
		if code := c.ProcessState.ExitCode(); (code == 0) != (restarts == "1") {
			t.Errorf("with %s restarts the exit code is %d\n%s", restarts, code, stderr)
		}
		if restarts == "0" {
			continue
		}
		metrics, err := os.ReadFile(filepath.Join(out, report.MetricsFile))
		if err != nil || bytes.Count(metrics, []byte("gradient_norm")) != 150 {
			t.Errorf("%d steps are in the metrics, want 150 (%v)",
				bytes.Count(metrics, []byte("gradient_norm")), err)
		}
	}
}

// A failure before the first step would repeat, so the run does not restart. A run does not resume
// from the checkpoints of another run.
func TestLaunch_DoesNotRestartRunWithoutSteps(t *testing.T) {
	skipProcesses(t)
	out := filepath.Join(t.TempDir(), "out")
	run := func(more ...string) (string, int) {
		c, _, stderr := program(smallRun(t, out,
			append(more, "--nproc", "2", "--steps", "4", "--checkpoint_steps", "2")...)...)
		c.Run()
		return stderr.String(), c.ProcessState.ExitCode()
	}
	if stderr, code := run(); code != 0 {
		t.Fatal(stderr)
	}
	stderr, code := run("--max_restarts", "1")
	if code != 1 || !strings.Contains(stderr, "holds checkpoints of a run") ||
		strings.Contains(stderr, "restarting") {
		t.Errorf("exit code %d and\n%s", code, stderr)
	}
}

// A run that has diverged would diverge again.
func TestLaunch_DoesNotRestartRunThatDiverged(t *testing.T) {
	skipProcesses(t)
	out := filepath.Join(t.TempDir(), "out")
	c, _, stderr := program(smallRun(t, out, "--nproc", "2", "--steps", "40", "--checkpoint_steps",
		"1", "--learning_rate", "1e30", "--warmup_steps", "0", "--max_skipped_steps", "3",
		"--max_restarts", "2")...)
	c.Run()
	said := stderr.String()
	if code := c.ProcessState.ExitCode(); code != 1 || !strings.Contains(said, "diverged") ||
		strings.Contains(said, "restarting") || strings.Contains(said, divergedMark) {
		t.Errorf("exit code %d\n%s", code, said)
	}
}

// Settings that a run cannot be resumed with are refused before the data is read.
func TestTrain_ComparesSettingsBeforeData(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	bad := filepath.Join(t.TempDir(), "bad.jsonl")
	put(t, bad, "{")
	expect := func(want string, code int, more ...string) {
		t.Helper()
		_, stderr, got := invoke(t, "", smallRun(t, out, more...)...)
		if got != code || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d, expected %q\n%s", more, got, want, stderr)
		}
	}
	expect("", 0, "--steps", "2", "--checkpoint_steps", "1", "--warmup_steps", "5")
	expect("learning_rate", 1, "--resume", "--steps", "3", "--data_path", bad,
		"--learning_rate", "0.02", "--warmup_steps", "5")
	expect("bad.jsonl", 1, "--resume", "--steps", "3", "--data_path", bad, "--warmup_steps",
		"5")
}

func TestTrain_PipelineMergesAdapter(t *testing.T) {
	skipProcesses(t)
	out := filepath.Join(t.TempDir(), "out")
	c, _, stderr := program(smallRun(t, out, "--nproc", "2", "--distributed", "mp", "--accumulate",
		"2", "--steps", "2", "--lora_rank", "2", "--merge")...)
	if err := c.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if text := succeed(t, "generate", "--model_path", out, "--prompt", "round", "--max_new_tokens",
		"4", "--ignore_eos"); len(text) < 4 {
		t.Errorf("the result continues with %q", text)
	}
}

func TestLaunch_ReportsCommonFailureOnce(t *testing.T) {
	skipProcesses(t)
	c, _, stderr := program(smallRun(t, filepath.Join(t.TempDir(), "out"), "--nproc", "3",
		"--steps", "4", "--distributed", "pp")...)
	c.Run()
	if code := c.ProcessState.ExitCode(); code != 1 ||
		strings.Count(stderr.String(), "2 layers cannot be divided over 3 processes") != 1 {
		t.Errorf("exit code %d and\n%s", code, stderr)
	}
	data := filepath.Join(t.TempDir(), "bad.jsonl")
	if err := os.WriteFile(data, []byte("{\"text\": \"fog\"}\n{\"text\": 5}\n"),
		0o666); err != nil {
		t.Fatal(err)
	}
	c, _, stderr = program(smallRun(t, filepath.Join(t.TempDir(), "out"), "--nproc", "2", "--steps",
		"4", "--data_path", data)...)
	c.Run()
	complaint, _ := strings.CutSuffix(stderr.String(),
		"bad.jsonl:2: field \"text\" is 5, expected a string; correct the record, or leave it out "+
			"with --on_bad_record skip\n")
	if code := c.ProcessState.ExitCode(); code != 1 ||
		!strings.HasPrefix(complaint, "conquer train: ") || strings.Contains(complaint, "\n") {
		t.Errorf("exit code %d and\n%s", code, stderr)
	}
}

// An error of one process names its rank. A usage error keeps its exit code.
func TestLaunch_NamesFailedRank(t *testing.T) {
	skipProcesses(t)
	state := func(code string) *os.ProcessState {
		c := exec.Command("sh", "-c", "exit "+code)
		c.Run()
		return c.ProcessState
	}
	for code, usage := range map[string]bool{"1": false, "2": true} {
		err := failure(3, state(code), "its disk is full", "a notice\n")
		var wrong usageError
		if err.Error() != "rank 3 failed, so the others were stopped: its disk is full" ||
			errors.As(err, &wrong) != usage {
			t.Errorf("exit %s: %#v", code, err)
		}
	}
	// A crash of the Go runtime also exits with 2.
	var wrong usageError
	if err := failure(0, state("2"), "",
		""); err.Error() != "rank 0 failed, so the others were stopped: it ended with exit status "+
		"2; its error is above" || errors.As(err, &wrong) {
		t.Errorf("%#v", err)
	}
}

func TestGenerate_DividedModelEqualsOneProcess(t *testing.T) {
	skipProcesses(t)
	for _, c := range []struct {
		model, processes string
	}{{"llama/testdata/llama3", "2"}, {"bamba/testdata/hybrid", "2"}, {"llama/testdata/head_dim",
		"4"}} {
		args := []string{"generate", "--model_path", "../../" + c.model, "--token_ids", "1,2,3,4",
			"--token_ids", "9,8", "--max_new_tokens", "10", "--ignore_eos", "--device", "cpu"}
		want := succeed(t, args...)
		p, stdout, stderr := program(append(args, "--nproc", c.processes)...)
		if err := p.Run(); err != nil || stdout.String() != want {
			t.Errorf("%s in %s processes: %v and %q, want %q\n%s", c.model, c.processes, err,
				stdout, want, stderr)
		}
	}
	// A model that cannot be divided, or an unsupported flag, is reported once.
	for want, more := range map[string][]string{
		"2 heads of keys and values cannot be divided over 3 processes": {"--nproc", "3"},
		"--compile graph works in one process only": {"--nproc", "2",
			"--compile", "graph"},
	} {
		p, stdout, stderr := program(append([]string{"generate", "--model_path",
			"../../llama/testdata/llama", "--token_ids", "1", "--device", "cpu"}, more...)...)
		if p.Run() == nil || !strings.Contains(stderr.String(), want) || stdout.Len() > 0 {
			t.Errorf("%q printed %q and %q, want %q", more, stdout, stderr, want)
		}
	}
}

func TestScore_DividedModelEqualsOneProcess(t *testing.T) {
	skipProcesses(t)
	var ids []string
	for range 200 { // more than the model's context
		ids = append(ids, fmt.Sprint(rand.IntN(64)))
	}
	for _, c := range []struct {
		model, processes string
	}{{"llama/testdata/llama3", "2"}, {"bamba/testdata/hybrid", "2"}, {"llama/testdata/head_dim",
		"4"}} {
		args := []string{"score", "--model_path", "../../" + c.model, "--token_ids",
			strings.Join(ids, ","), "--device", "cpu", "--json"}
		want := decode[scoreOutput](t, succeed(t, args...))
		p, stdout, stderr := program(append(args, "--nproc", c.processes)...)
		if err := p.Run(); err != nil {
			t.Fatalf("%s in %s processes: %v\n%s", c.model, c.processes, err, stderr)
		}
		got := decode[scoreOutput](t, stdout.String())
		if got.Tokens != want.Tokens || len(got.TokenNLL) != got.Tokens {
			t.Fatalf("%s in %s processes: %d tokens, want %d", c.model, c.processes, got.Tokens,
				want.Tokens)
		}
		for i, nll := range want.TokenNLL {
			if math.Abs(got.TokenNLL[i]-nll) > 1e-4*math.Max(1, nll) {
				t.Fatalf("%s in %s processes: token %d has NLL %v, in one process %v", c.model,
					c.processes, i+1, got.TokenNLL[i], nll)
			}
		}
	}
}

// Rank 0 reads the terminal. The other ranks must receive its questions, resets and the end.
func TestChat_DividedModelEqualsOneProcess(t *testing.T) {
	skipProcesses(t)
	dir := writeModel(t, 704, true)
	for _, sampling := range [][]string{{"--temperature", "0"},
		{"--temperature", "0.9", "--seed", "7"}} {
		args := append([]string{"chat", "--model_path", dir, "--max_new_tokens", "9",
			"--ignore_eos", "--device", "cpu"}, sampling...)
		for _, typed := range []string{"hello\nagain\n\n/reset\n/help\nhello\n/exit\nnever\n",
			"two \\\nlines\nand the end", ""} {
			want, _, code := invoke(t, typed, args...)
			p, stdout, stderr := program(append(args, "--nproc", "2")...)
			p.Stdin = strings.NewReader(typed)
			if err := p.Run(); err != nil || code != 0 || stdout.String() != want ||
				stderr.Len() > 0 {
				t.Errorf("%q: %v and %q, want %q\n%s", typed, err, stdout, want, stderr)
			}
		}
	}
	// A question too long for the model prints one line and ends every process.
	p, _, stderr := program("chat", "--model_path", dir, "--device", "cpu", "--nproc", "2")
	p.Stdin = strings.NewReader(strings.Repeat("to and fro ", 200))
	if p.Run() == nil || strings.Count(stderr.String(), "\n") != 1 ||
		!strings.Contains(stderr.String(), "the model's context is 256") {
		t.Errorf("printed %s", stderr)
	}
}

// Ctrl-C reaches every process of a terminal. It ends the current answer, or else the program.
func TestChat_CtrlCStopsSeveralProcesses(t *testing.T) {
	skipProcesses(t)
	dir := writeModel(t, 704, true)
	config := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	longer := bytes.Replace(data, []byte(`"max_position_embeddings": 256`),
		[]byte(`"max_position_embeddings": 100000`), 1)
	if err := os.WriteFile(config, longer, 0o666); err != nil || bytes.Equal(data, longer) {
		t.Fatalf("%v: %s", err, longer)
	}
	last := chatHelp[strings.LastIndex(chatHelp, "\n")+1:] + "\n"
	for _, processes := range []string{"1", "2"} {
		p, _, stderr := program("chat", "--model_path", dir, "--max_new_tokens", "90000",
			"--temperature", "0", "--ignore_eos", "--device", "cpu", "--nproc", processes)
		p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		p.Stdout = nil
		typed, _ := p.StdinPipe()
		printed, _ := p.StdoutPipe()
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(printed)
		interrupt := func() { syscall.Kill(-p.Process.Pid, syscall.SIGINT) }
		for _, question := range []string{"hello",
			"again"} { // the second answer continues from the first one's caches
			fmt.Fprintln(typed, question)
			if _, err := answers.ReadByte(); err != nil {
				t.Fatalf("no answer: %v\n%s", err, stderr)
			}
			interrupt()
			fmt.Fprintln(typed, "/help") // shows that the answer is over
			size := 0
			for line := ""; line != last; size += len(line) {
				if line, err = answers.ReadString('\n'); err != nil {
					t.Fatalf("%v\n%s", err, stderr)
				}
			}
			if size > 80000 { // more than a pipe holds, fewer than 90,000 tokens
				t.Errorf("%s processes: an answer of %d bytes was not stopped", processes, size)
			}
		}
		interrupt()
		if err := p.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("%s processes: %v\n%s", processes, err, stderr)
		}
	}
}

func TestBenchInference_NamesProcesses(t *testing.T) {
	skipProcesses(t)
	p, stdout, stderr := program("bench", "inference", "--nproc", "2", "--architecture", "bamba",
		"--variant", "tiny", "--batch_size", "1", "--seq_len", "8", "--max_new_tokens", "3",
		"--repeat", "1", "--json", "--device", "cpu")
	if err := p.Run(); err != nil || strings.Count(stdout.String(), `"processes":2`) != 2 {
		t.Errorf("%v and %q\n%s", err, stdout, stderr)
	}
}

// lossesIn reads the losses of a run's steps.
func lossesIn(t *testing.T, out string) (list []float64) {
	t.Helper()
	metrics, err := os.ReadFile(filepath.Join(out, report.MetricsFile))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(metrics)) {
		step := decode[map[string]any](t, line)
		if norm, _ := step["gradient_norm"].(float64); norm > 0 {
			list = append(list, step["loss"].(float64))
		}
	}
	return list
}

func TestTrain_DividedModelEqualsOneProcess(t *testing.T) {
	skipProcesses(t)
	work := t.TempDir()
	var all [][]float64
	for out, more := range map[string][]string{
		"one": nil, "tp": {"--nproc", "2", "--distributed", "tp"}, "fsdp+tp": {"--nproc", "2",
			"--distributed", "fsdp", "--tp_size", "2"},
	} {
		out = filepath.Join(work, out)
		p, _, stderr := program(smallRun(t, out,
			append(more, "--steps", "4", "--checkpoint_steps", "2")...)...)
		if err := p.Run(); err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		all = append(all, lossesIn(t, out))
	}
	for _, got := range all[1:] {
		if len(got) != 4 || len(all[0]) != 4 {
			t.Fatalf("losses %v and %v", got, all[0])
		}
		for i, want := range all[0] {
			if math.Abs(got[i]-want) > 1e-3*want {
				t.Errorf("loss %d is %v, another way %v", i, got[i], want)
			}
		}
	}
	// The checkpoint that the processes wrote is a model.
	exported := filepath.Join(work, "exported")
	if _, stderr, code := invoke(t, "", "export", "--model_path", filepath.Join(work, "tp",
		"checkpoints", "step-00000002"), "--output_path", exported); code != 0 ||
		!strings.Contains(stderr, "vLLM has no Bamba") {
		t.Fatalf("export: exit %d: %s", code, stderr)
	}
	if text := succeed(t, "generate", "--model_path", exported, "--prompt", "round",
		"--max_new_tokens", "4", "--ignore_eos"); len(text) < 4 {
		t.Errorf("the exported checkpoint continues with %q", text)
	}
	p, _, stderr := program(smallRun(t, filepath.Join(work, "none"), "--nproc", "2",
		"--distributed", "tp", "--tp_size", "3", "--steps", "4")...)
	if p.Run() == nil || !strings.Contains(stderr.String(),
		"--tp_size 3 does not divide the 2 processes") {
		t.Errorf("2 processes as groups of 3: %s", stderr)
	}
}

func TestFailure_NamesLibtorchMessage(t *testing.T) {
	err := failure(1, nil, "", "terminate called after throwing an instance of "+
		"'c10::DistBackendError'\n  what():  [Rank 1] CUDA error: out of luck\n"+
		"Exception raised from query at CUDAEvent.h:111 (most recent call first):\nframe #4: "+
		"<unknown function> + 0x129ecc (0x7fb2)\n")
	if want := "rank 1 failed, so the others were stopped: [Rank 1] CUDA error: out of " +
		"luck"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

// /dev/full behaves like a full disk.
func TestOutput_FullDiskIsAFailure(t *testing.T) {
	skipProcesses(t)
	dir := writeModel(t, 704, true)
	for _, args := range [][]string{
		{"generate", "--prompt", "hello", "--max_new_tokens", "3"}, {"generate", "--prompt",
			"hello", "--max_new_tokens", "3", "--json"},
		{"score", "--text", "hello there"}, {"score", "--text", "hello there", "--json"}, {"info",
			"--json"},
		{"bench", "inference", "--seq_len", "4", "--max_new_tokens", "3", "--repeat", "1",
			"--json"},
	} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skip(err)
		}
		p, _, stderr := program(append(args, "--model_path", dir)...)
		p.Stdout = full
		p.Run()
		full.Close()
		if code := p.ProcessState.ExitCode(); code != 1 ||
			strings.Count(stderr.String(), "no space left") != 1 {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
	}
}

// The first signal cancels the run's context. A command that does not look at it is ended by the
// second.
func TestProgram_SecondSignalEndsAtOnce(t *testing.T) {
	skipProcesses(t)
	for _, stop := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		if signal.Ignored(stop) {
			continue // as under nohup, which the program obeys
		}
		c, _, stderr := program()
		c.Env, c.Stdout = append(c.Env, programVariable+"=deaf"), nil
		stdout, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer c.Process.Kill()
		if _, err := io.ReadFull(stdout, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		c.Process.Signal(stop)
		select {
		case err := <-ended:
			t.Fatalf("the first %v ended it: %v", stop, err)
		case <-time.After(300 * time.Millisecond):
		}
		c.Process.Signal(stop)
		select {
		case <-ended:
			status := c.ProcessState.Sys().(syscall.WaitStatus)
			if status.Signal() != stop && status.ExitStatus() != 130 || stderr.Len() > 0 {
				t.Errorf("%v: exit status: %v\n%s", stop, c.ProcessState, stderr)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("the second %v did not end it", stop)
		}
	}
}

// The reader of the output may end before the run, as in conquer train … | head.
func TestTrain_FinishesWithoutAReaderOfItsOutput(t *testing.T) {
	skipProcesses(t)
	out := filepath.Join(t.TempDir(), "out")
	c, _, _ := program(smallRun(t, out, "--steps", "1")...)
	for _, stream := range []*io.Writer{&c.Stdout, &c.Stderr} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		read.Close()
		defer write.Close()
		*stream = write
	}
	if err := c.Run(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(out, "model.safetensors")); err != nil {
		t.Error(err)
	}
}

func TestTrain_ReplacesTheLogsOfARunWithoutAResult(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	if err := os.MkdirAll(filepath.Join(out, "checkpoints"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "metrics.jsonl"), []byte("{}\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := invoke(t, "", smallRun(t, out, "--steps", "1")...); code != 0 {
		t.Fatal(stderr)
	}
	text, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
	if err != nil || !strings.Contains(string(text), "loss") || text[1] == '}' {
		t.Errorf("metrics.jsonl holds %q, %v", text, err)
	}
}

// The model answers before, during and after a run, also if its weights are divided.
func TestTrain_AsksUnderEachStrategy(t *testing.T) {
	skipProcesses(t)
	for _, strategy := range []string{"none", "fsdp", "pp"} {
		out := filepath.Join(t.TempDir(), "out")
		args := smallRun(t, out, "--steps", "2", "--checkpoint_steps", "0", "--ask", "what?",
			"--ask_steps", "1", "--distributed", strategy, "--threads", "1")
		if strategy != "none" {
			args = append(args, "--nproc", "2")
		}
		p, stdout, stderr := program(args...)
		if err := p.Run(); err != nil {
			t.Errorf("%s: %v\n%s", strategy, err, stderr)
			continue
		}
		for _, when := range []string{"before tuning", "after step 1", "after tuning"} {
			if n := strings.Count(stdout.String(), "\n"+when+": what?\n"); n != 1 {
				t.Errorf("%s: %q is there %d times in\n%s", strategy, when, n, stdout)
			}
		}
		metrics, err := os.ReadFile(filepath.Join(out, report.MetricsFile))
		for step := range 3 {
			want := fmt.Sprintf(`{"step":%d,"question":"what?","answer":"`, step)
			if err != nil || strings.Count(string(metrics), want) != 1 {
				t.Errorf("%s: %v, %s lacks %s", strategy, err, metrics, want)
			}
		}
	}
}
