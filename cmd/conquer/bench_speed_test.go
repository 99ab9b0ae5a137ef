package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/bench"
)

func TestBenchInferenceTimesEveryWayToRun(t *testing.T) {
	args := []string{"bench", "inference", "--model_path", writeModel(t, 700, true), "--device", "cpu", "--seq_len", "9", "--max_new_tokens", "6",
		"--batch_size", "2", "--repeat", "2"}
	var ways []string
	for line := range strings.Lines(succeed(t, append(args, "--json")...)) {
		r := decode[bench.InferenceRow](t, line)
		if !(r.SingleMS > 0 && r.FirstTokenMS > 0 && r.TotalMS > r.FirstTokenMS && r.TokensPerS > 0) || r.Batch != 2 || r.Length != 9 {
			t.Errorf("%+v", r)
		}
		ways = append(ways, r.Compile+map[bool]string{true: " with", false: " without"}[r.UseCache])
	}
	if got := strings.Join(ways, ", "); got != "none with, graph with, none without" {
		t.Errorf("measured %s", got)
	}
	if printed := succeed(t, append(args, "--skip_eager_runs", "--skip_nokvcache_runs")...); strings.Count(printed, "single token") != 1 || !strings.Contains(printed, "compiled, use_cache=true") {
		t.Error(printed)
	}
	for _, nothing := range [][]string{{"--skip_eager_runs", "--skip_compile_runs"}, {"--skip_eager_runs", "--skip_kvcache_runs"},
		{"--skip_kvcache_runs", "--skip_nokvcache_runs"}, {"--nproc", "2", "--skip_eager_runs"}} {
		if _, stderr, code := invoke(t, "", append(args, nothing...)...); code != 2 || !strings.Contains(stderr, "nothing is left to measure") {
			t.Errorf("%v: exit %d: %s", nothing, code, stderr)
		}
	}
	if _, stderr, code := invoke(t, "", append(args, "--seq_len", "300")...); code != 2 || !strings.Contains(stderr, "context of 256") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestBenchTrainTimesSteps(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace.json")
	args := []string{"bench", "train", "--architecture", "bamba", "--variant", "tiny", "--dtype", "bfloat16", "--device", "cpu", "--batch_size", "2",
		"--sequence_length", "16", "--steps", "2", "--stochastic_rounding", "--compile", "graph", "--recompute", "selective", "--json", "--profile", trace}
	stdout, stderr, code := invoke(t, "", args...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	r := decode[bench.TrainRow](t, stdout)
	if !(r.StepMS > 0 && r.TokensPerS > 0 && r.FirstLoss > 0) || r.Trained != r.Parameters || r.Steps != 2 {
		t.Errorf("%+v", r)
	}
	if info, err := os.Stat(trace); err != nil || info.Size() == 0 || !strings.Contains(stderr, "aten::mm") {
		t.Errorf("no trace: %v\n%s", err, stderr)
	}
	if _, stderr, code := invoke(t, "", "bench", "train"); code != 2 || !strings.Contains(stderr, "--model_path") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
