package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/bench"
)

func TestBenchInference_TimesEachMode(t *testing.T) {
	args := []string{"bench", "inference", "--model_path", writeModel(t, 700, true), "--device",
		"cpu", "--seq_len", "9", "--max_new_tokens", "6", "--batch_size", "2", "--repeat", "2"}
	var ways []string
	rows, _, code := invoke(t, "", append(args, "--json")...)
	if code != 0 {
		t.Fatalf("exit %d", code)
	}
	for line := range strings.Lines(rows) {
		r := decode[bench.InferenceRow](t, line)
		if !(r.SingleMS > 0 && r.FirstTokenMS > 0 && r.TotalMS > r.FirstTokenMS &&
			r.TokensPerS > 0) || r.Batch != 2 || r.Length != 9 {
			t.Errorf("%+v", r)
		}
		ways = append(ways, r.Compile+map[bool]string{true: " with", false: " without"}[r.UseCache])
	}
	if got := strings.Join(ways, ", "); got != "none with, none "+
		"without" { // the CPU does not record
		t.Errorf("measured %s", got)
	}
	printed, stderr, code := invoke(t, "",
		append(args, "--max_new_tokens", "2", "--skip_nokvcache_runs")...)
	if code != 0 || strings.Count(printed, "single token") != 1 ||
		!strings.Contains(printed, "eager, use_cache=true") ||
		!strings.Contains(stderr, "skipping the compiled runs") {
		t.Errorf("exit %d: %s%s", code, printed, stderr)
	}
	if printed, stderr, code := invoke(t, "", append(args, "--skip_eager_runs")...); code != 2 ||
		printed != "" || !strings.Contains(stderr, "nothing to measure") {
		t.Errorf("exit %d: %s%s", code, printed, stderr)
	}
	for _, nothing := range [][]string{{"--skip_eager_runs", "--skip_compile_runs"},
		{"--skip_eager_runs", "--skip_kvcache_runs"},
		{"--skip_kvcache_runs", "--skip_nokvcache_runs"}, {"--nproc", "2", "--skip_eager_runs"}} {
		if _, stderr, code := invoke(t, "", append(args, nothing...)...); code != 2 ||
			!strings.Contains(stderr, "nothing left to measure") {
			t.Errorf("%v: exit %d: %s", nothing, code, stderr)
		}
	}
	if _, stderr, code := invoke(t, "", append(args, "--seq_len", "300")...); code != 2 ||
		!strings.Contains(stderr, "context of 256") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestBenchTrain_TimesSteps(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace.json")
	args := []string{"bench", "train", "--architecture", "bamba", "--variant", "tiny", "--dtype",
		"bfloat16", "--device", "cpu", "--batch_size", "2", "--sequence_length", "16", "--steps",
		"2", "--stochastic_rounding", "--compile", "graph", "--recompute", "selective"}
	stdout, stderr, code := invoke(t, "", append(args, "--json", "--profile", trace)...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	r := decode[bench.TrainRow](t, stdout)
	if !(r.StepMS > 0 && r.TokensPerS > 0 && r.FirstLoss > 0) || r.Trained != r.Parameters ||
		r.Steps != 2 {
		t.Errorf("%+v", r)
	}
	// Every accumulated pass runs, and its tokens count.
	printed := succeed(t, append(args, "--accumulate", "7")...)
	more := decode[bench.TrainRow](t, succeed(t, append(args, "--accumulate", "7", "--json")...))
	if want := 7 * 2 * 16 * 1e3 / more.StepMS; more.Accumulate != 7 || more.Batch != 2 ||
		math.Abs(more.TokensPerS-want) > 1e-6*want {
		t.Errorf("%+v", more)
	}
	if !strings.Contains(printed, "batch 2 × 16 tokens, bfloat16 on cpu, 7 passes a step") {
		t.Error(printed)
	}
	if info, err := os.Stat(trace); err != nil || info.Size() == 0 ||
		!strings.Contains(stderr, "conquer::cross_entropy_head") {
		t.Errorf("no trace: %v\n%s", err, stderr)
	}
	if _, stderr, code := invoke(t, "", "bench", "train"); code != 2 ||
		!strings.Contains(stderr, "--model_path") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// A prompt in pieces takes less memory than one that is read at once.
func TestBenchInference_ReadsPromptsInPieces(t *testing.T) {
	measure := func(flags ...string) (row bench.InferenceRow) {
		stdout, stderr, code := invoke(t, "", append([]string{"bench", "inference",
			"--architecture", "bamba", "--variant", "bytes", "--device", "cpu", "--batch_size", "1",
			"--seq_len", "2000", "--max_new_tokens", "2", "--repeat", "1",
			"--skip_nokvcache_runs", "--json"}, flags...)...)
		if code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		return decode[bench.InferenceRow](t, stdout)
	}
	whole, pieces := measure(), measure("--prefill_pieces", "128")
	if pieces.PrefillPiece != 128 || !(0 < pieces.PeakBytes) ||
		pieces.PeakBytes > whole.PeakBytes*3/4 {
		t.Errorf("at once %+v, in pieces %+v", whole, pieces)
	}
	_, stderr, code := invoke(t, "", "bench", "inference", "--architecture", "bamba", "--variant",
		"bytes", "--device", "cpu", "--prefill_pieces", "128")
	if code != 2 || !strings.Contains(stderr, "--skip_nokvcache_runs") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
