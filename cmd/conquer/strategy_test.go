package main

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"conquer/bamba"
	"conquer/bench"
	"conquer/torch"
)

// fade is a strategy of one's own, as bamba.ExampleRegisterStrategy has it.
type fade struct{ factor float64 }

func (f fade) Starts(chunks bamba.Chunks) torch.Tensor {
	var starts []torch.Tensor
	state := chunks.Initial
	for k := range chunks.Len() {
		state = state.MulScalar(f.factor)
		starts = append(starts, state)
		state = chunks.End(k, state)
	}
	return torch.Stack(1, starts...)
}

func init() {
	bamba.RegisterStrategy("fade", func(argument string) (bamba.Strategy, error) {
		factor, err := strconv.ParseFloat(argument, 64)
		if err != nil || !(factor >= 0 && factor <= 1) {
			return nil, errors.New("expected fade:f with a factor from 0 to 1")
		}
		return fade{factor}, nil
	})
}

// A registered strategy works in every benchmark, in the report and in training.
func TestRegisteredStrategy_WorksEverywhere(t *testing.T) {
	results, model, prompts := filepath.Join(t.TempDir(), "results"), writeBamba(t), writePrompts(t)
	subject := []string{"--model_path", model, "--tokenizer", "char_tokenizer", "--prompts",
		prompts, "--device", "cpu", "--chunk_size", "16", "--output_path", results}
	succeed(t, append([]string{"bench", "accuracy", "--chunking",
		"default-optimized,fade:1-optimized,fade:0.5"}, subject...)...)
	nll := map[string]float64{}
	for _, row := range readRows[bench.AccuracyRow](t, results, bench.Accuracy) {
		nll[row.Strategy] += row.NLL
	}
	if same := nll["fade:1-optimized"] - nll["default-optimized"]; math.Abs(same) > 1e-4 {
		t.Errorf("fade:1 differs from default by %g nats", same)
	}
	if other := nll["fade:0.5"] - nll["default-optimized"]; math.Abs(other) < 1e-4 {
		t.Errorf("fade:0.5 differs from default by %g nats only", other)
	}
	succeed(t, "bench", "gptscore", "--model_path", model, "--tokenizer", "char_tokenizer",
		"--device", "cpu", "--aspect", "none", "--output_path", results,
		filepath.Join(results, bench.PredictionsName("fade:0.5")))
	for _, row := range readRows[bench.GPTScoreRow](t, results, bench.GPTScore) {
		if row.Strategy != "fade:0.5" {
			t.Errorf("scores of %q", row.Strategy)
		}
	}
	succeed(t, append([]string{"bench", "chunks", "--chunking", "default,fade:0.5", "--compile",
		"eager,kernels", "--repeats", "1", "--max_new_tokens", "2"}, subject...)...)
	succeed(t, "bench", "ssd", "--length", "40", "--heads", "2", "--head_dim", "16", "--state",
		"16", "--chunk_size", "16", "--repeats", "1", "--device", "cpu", "--pass",
		"forward,backward", "--chunking", "default,fade:0.5,fade:0.5-optimized", "--output_path",
		results)
	for _, row := range readRows[bench.SSDRow](t, results, bench.SSD) {
		if !(row.Error > 0 && row.Error < 1e-4) || row.Failed != "" {
			t.Errorf("%s %s: error %g %s", row.Pass, row.Strategy, row.Error, row.Failed)
		}
	}
	succeed(t, "bench", "consistency", "--model_path", model, "--length", "40", "--pieces", "7",
		"--chunk_size", "16", "--chunking", "fade:0.5", "--device", "cpu", "--output_path", results)
	page := filepath.Join(t.TempDir(), "report.html")
	succeed(t, "bench", "report", "--results_path", results, "--output_path", page)
	if text, err := os.ReadFile(page); err != nil || strings.Count(string(text), "fade:0.5") < 8 {
		t.Errorf("the page does not show the strategy: %v", err)
	}

	data := filepath.Join(t.TempDir(), "text.txt")
	os.WriteFile(data, []byte(strings.Repeat("the sea is calm and the lamp is lit ", 20)), 0o666)
	train := func(chunking ...string) string {
		_, stderr, code := invoke(t, "", append([]string{"train", "--architecture", "bamba",
			"--variant", "bytes", "--tokenizer", "char_tokenizer", "--data_path", data, "--pack",
			"--sequence_length", "64", "--batch_size", "1", "--steps", "2", "--report_steps", "1",
			"--device", "cpu", "--output_path", filepath.Join(t.TempDir(), "out")}, chunking...)...)
		if code != 0 {
			t.Fatalf("%v: exit %d\n%s", chunking, code, stderr)
		}
		return strings.Join(regexp.MustCompile(`loss [0-9.]+`).FindAllString(stderr, -1), ", ")
	}
	whole := train()
	if same := train("--chunking", "default-optimized", "--chunk_size", "16"); same != whole {
		t.Errorf("without and with --chunking default-optimized:\n%s\n%s", whole, same)
	}
	if faded := train("--chunking", "fade:0-optimized", "--chunk_size", "16"); faded == whole {
		t.Errorf("fade:0 trains like default:\n%s", faded)
	}
	for _, wrong := range [][]string{{"--chunking", "fade:2"}, {"--chunk_size", "16"},
		{"--chunking", "default", "--chunk_size", "15"}} {
		_, stderr, code := invoke(t, "", append([]string{"train", "--architecture", "bamba",
			"--variant", "bytes", "--tokenizer", "char_tokenizer", "--data_path", data,
			"--output_path", t.TempDir()}, wrong...)...)
		if code != 2 || strings.Count(stderr, "\n") > 2 {
			t.Errorf("%v: exit %d, %s", wrong, code, stderr)
		}
	}
}

// A text file that is longer than a row goes on from row to row.
func TestTrain_CarriesStates(t *testing.T) {
	data := filepath.Join(t.TempDir(), "text.txt")
	os.WriteFile(data, []byte(strings.Repeat("the sea is calm and the lamp is lit ", 20)), 0o666)
	losses := func(flags ...string) string {
		_, stderr, code := invoke(t, "", append([]string{"train", "--architecture", "bamba",
			"--variant", "bytes", "--tokenizer", "char_tokenizer", "--data_path", data,
			"--sequence_length", "64", "--batch_size", "1", "--steps", "4", "--report_steps", "1",
			"--device", "cpu", "--output_path", filepath.Join(t.TempDir(), "out")}, flags...)...)
		if code != 0 {
			t.Fatalf("%v: exit %d\n%s", flags, code, stderr)
		}
		return strings.Join(regexp.MustCompile(`loss [0-9.]+`).FindAllString(stderr, -1), ", ")
	}
	if carried := losses("--carry_state"); carried == losses() {
		t.Errorf("the same losses with and without --carry_state: %s", carried)
	}
}
