package report

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/bench"
)

func consistencyRow(program, way string, piece int, logit float64) bench.ConsistencyRow {
	r := bench.ConsistencyRow{Program: program, Way: way, Piece: piece,
		Strategy: "default-optimized", ChunkSize: 64, Device: "cpu", DType: "float32", Length: 64,
		KLMean: logit * logit,
		KLMax:  4 * logit * logit, KLMaxAt: 17, LogitMax: logit, LogitMaxAt: 33, LogitScale: 2,
		FirstDiffering: -1}
	for p := 1; p < 64; p *= 2 {
		r.Curve = append(r.Curve, bench.ConsistencyPoint{Position: p, KL: 1e-12, Logit: logit})
	}
	return r
}

// write writes the file of another program.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestWrite_ShowsOtherPrograms(t *testing.T) {
	dir := t.TempDir()
	independent := consistencyRow("conquer", "whole", 0, 3)
	independent.Strategy = "independent-optimized"
	halved := consistencyRow("conquer", "decode", 0, 0.01)
	halved.State = "bfloat16"
	decoded := consistencyRow("conquer", "decode", 0, 2e-6)
	decoded.State, decoded.FirstDiffering, decoded.Margin = "float32", 40, 1e-7
	save(t, dir, bench.Consistency, []bench.ConsistencyRow{
		consistencyRow("conquer", "whole", 0, 1e-6), consistencyRow("conquer", "pieces", 7, 4e-6),
		decoded, independent, halved,
		{Program: "conquer", Way: "packed", Failed: "no memory", Device: "cpu", DType: "float32"},
	})
	write(t, dir, "consistency_peer.json", `{"kind": "consistency", "program": "peer 1.2",
		"command": "consistency.py", "rows": [{"way": "whole", "device": "cpu",
		"dtype": "float32", "length": 64, "logit_max": 7e-6, "logit_scale": 2,
		"curve": [{"position": 3, "logit": 7e-6}], "first_differing": -1}]}`)
	save(t, dir, bench.SSD, ssdRows(rand.New(rand.NewPCG(1, 2))))
	write(t, dir, "ssd_kernels.json", `{"kind": "ssd", "program": "kernels 3", "rows": [
		{"pass": "forward", "device": "cpu", "dtype": "float32", "batch": 1, "length": 256,
		"heads": 8, "head_dim": 32, "state": 64, "groups": 1, "median_ms": 4.25, "repeats": 3}]}`)
	write(t, dir, "speed_cpu.json", `{"kind": "speed", "rows": [
		{"program": "conquer", "task": "decode", "device": "cpu", "unit": "tokens/s", "value": 30},
		{"program": "peer 1.2", "task": "decode", "device": "cpu", "unit": "tokens/s",
		"value": 15}]}`)
	out := filepath.Join(t.TempDir(), "report.html")
	if _, err := Write(dir, out); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, want := range []string{"peer 1.2, whole", "7.0e-06", "kernels 3", "4.25", "pieces of 7",
		"within 0.000007 of float64", "packed has no figures: no memory", ">0.50<", "tokens/s",
		"decode, bfloat16", "independent-optimized", "1.0e-07", "Consistency: peer 1.2"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}

	// A file that is no peer's is reported, and the rest is shown.
	write(t, dir, "consistency_wrong.json", `{"kind": "consistency", "rows": []}`)
	write(t, dir, "ssd_wrong.json", `{"kind": "chunks", "program": "x", "rows": []}`)
	report, err := Write(dir, out)
	if report == nil || err == nil || !strings.Contains(err.Error(), "consistency_wrong.json") ||
		!strings.Contains(err.Error(), "ssd_wrong.json") {
		t.Errorf("wrong files: %v", err)
	}
}
