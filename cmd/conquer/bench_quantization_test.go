package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/bench"
)

// Kinds of fewer bits are smaller and further from the original; importance data are named.
func TestBenchQuantization_MeasuresEachKind(t *testing.T) {
	dir, work := writeModel(t, 704, true), t.TempDir()
	text := filepath.Join(work, "text.txt")
	os.WriteFile(text, []byte(strings.Repeat("hello there, how are you? ", 30)), 0o644)
	args := []string{"bench", "quantization", "--model_path", dir, "--text_file", text, "--kinds",
		"q8_0,q2_k", "--tokens", "100", "--window", "32", "--device", "cpu", "--seq_len", "9",
		"--max_new_tokens", "3", "--repeat", "1", "--output_path", work}
	if out := succeed(t, args...); !strings.Contains(out, "q2_k") {
		t.Errorf("printed %s", out)
	}
	rows := readRows[bench.QuantizationRow](t, work, bench.Quantization)
	if len(rows) != 3 || rows[0].KL > 1e-6 || rows[0].SameTop != 1 || rows[0].Tokens < 90 ||
		!(rows[0].KL < rows[1].KL && rows[1].KL < rows[2].KL) ||
		!(rows[0].Bytes > rows[1].Bytes && rows[1].Bytes > rows[2].Bytes) ||
		!(rows[2].TokenMS > 0 && rows[2].PromptPerS > 0) || rows[2].Importance {
		t.Errorf("rows %+v", rows)
	}
	succeed(t, append(args, "--importance_data", text, "--json")...)
	rows = readRows[bench.QuantizationRow](t, work, bench.Quantization)
	if len(rows) != 3 || rows[0].Importance || !rows[1].Importance || !rows[2].Importance {
		t.Errorf("with importance data: rows %+v", rows)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--kinds", "q9"}, "q4_k_m"},
		{[]string{"--window", "1"}, "at least 2 tokens"},
		{[]string{"--text_file", ""}, "--text_file"},
	} {
		_, stderr, code := invoke(t, "", append(slices.Clone(args), test.args...)...)
		if code != 2 || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: exit %d: %s", test.args, code, stderr)
		}
	}
}
