package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/bench"
)

func TestBenchReport_ShowsAllResults(t *testing.T) {
	results, bamba, prompts := filepath.Join(t.TempDir(), "results"), writeBamba(t), writePrompts(t)
	out := filepath.Join(t.TempDir(), "site", "report.html")
	reportArgs := []string{"bench", "report", "--results_path", results, "--output_path", out}
	if _, stderr, code := invoke(t, "", reportArgs...); code != 1 ||
		strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, results) {
		t.Errorf("without results: exit %d, %s", code, stderr)
	}

	subject := []string{"--model_path", bamba, "--tokenizer", "char_tokenizer", "--prompts",
		prompts, "--device", "cpu", "--chunk_size", "16", "--output_path", results}
	succeed(t, append([]string{"bench", "accuracy", "--chunking",
		"default-optimized,independent-optimized,windowed:1-optimized"}, subject...)...)
	stdout, stderr, code := invoke(t, "", reportArgs...)
	if code != 0 || strings.Count(stderr, "\n") != 4 ||
		!strings.Contains(stderr, "conquer bench ssd") || !strings.Contains(stdout, "1 plots") {
		t.Errorf("with one file of results: exit %d\n%s%s", code, stdout, stderr)
	}

	succeed(t, "bench", "gptscore", "--model_path", bamba, "--tokenizer", "char_tokenizer",
		"--device", "cpu", "--aspect", "none", "--output_path", results,
		filepath.Join(results, bench.PredictionsName("default-optimized")),
		filepath.Join(results, bench.PredictionsName("windowed:1-optimized")))
	succeed(t, append([]string{"bench", "chunks", "--chunking", "default,windowed:1", "--compile",
		"eager,kernels", "--repeats", "1", "--max_new_tokens", "2"}, subject...)...)
	succeed(t, "bench", "ssd", "--length", "20,40", "--heads", "2", "--head_dim", "16", "--state",
		"16", "--chunk_size", "16,32", "--repeats", "1", "--device", "cpu", "--chunking",
		"default,default-optimized", "--output_path", results)
	succeed(t, "bench", "consistency", "--model_path", bamba, "--length", "40", "--pieces", "7",
		"--chunk_size", "16", "--device", "cpu", "--output_path", results)
	printed := decode[reportOutput](t, succeed(t, append(reportArgs, "--json")...))
	if printed.Page != out || len(printed.Plots) < 20 || len(printed.Missing) != 0 {
		t.Errorf("printed %+v", printed)
	}
	for _, path := range printed.Plots {
		if info, err := os.Stat(path); err != nil || info.Size() < 1000 ||
			filepath.Dir(path) != filepath.Join(filepath.Dir(out), "plots") {
			t.Errorf("%s: %v", path, err)
		}
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	for _, kind := range []string{bench.Accuracy, bench.GPTScore, bench.Chunks, bench.SSD,
		bench.Consistency} {
		r, err := bench.Read(filepath.Join(results, kind+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(page, `id="`+kind+`"`) || !strings.Contains(page, r.Machine.CPU) ||
			!strings.Contains(page, r.Versions.Libtorch) {
			t.Errorf("the page does not show %s, its machine or its versions", kind)
		}
	}
	for _, row := range readRows[bench.SSDRow](t, results, "ssd") {
		if want := fmt.Sprintf("<td>%.1e</td>", row.Error); row.ChunkSize == 16 &&
			row.Pass == "forward" && !strings.Contains(page, want) {
			t.Errorf("the page lacks the error %s of %s", want, row.Strategy)
		}
	}

	// A broken file prints one line; the other results are shown.
	path := filepath.Join(results, "chunks.json")
	if err := os.WriteFile(path, []byte(`{"kind": "chunks"`), 0o666); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, code = invoke(t, "", reportArgs...); code != 1 ||
		strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, path) ||
		!strings.Contains(stdout, "wrote") {
		t.Errorf("with a broken file: exit %d\n%s%s", code, stdout, stderr)
	}
	for name, args := range map[string][]string{"extra argument": {"results"},
		"folder as page": {"--output_path", results}} {
		if _, stderr, code := invoke(t, "",
			append([]string{"bench", "report"}, args...)...); code != 2 ||
			strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, %s", name, code, stderr)
		}
	}
}
