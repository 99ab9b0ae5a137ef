package torch_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/torch"
)

func TestTrace_NamesOperationsInChromeFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.json")
	failure := errors.New("of f")
	rows, err := torch.Trace(path, func() error {
		return errors.Join(failure, torch.Run(func() error {
			a := torch.Randn([]int{400, 400}, torch.Float32, torch.CPU)
			for i := range 3 {
				torch.Span(func() { torch.RMSNorm(a.Matmul(a), a.Select(0, 0), 1e-5) }, "round %d",
					i)
			}
			return nil
		}))
	})
	if !errors.Is(err, failure) {
		t.Errorf("f's error was lost: %v", err)
	}
	calls := map[string]int{}
	for i, r := range rows {
		calls[r.Name] = r.Calls
		if r.GPU || r.Own < 0 || r.Total < r.Own || (i > 0 && r.Own > rows[i-1].Own) {
			t.Errorf("row %d: %+v", i, r)
		}
	}
	if calls["aten::mm"] != 3 || calls["conquer::rms_norm"] != 3 {
		t.Errorf("of 3 products and 3 norms the trace shows %v", calls)
	}
	data, err := os.ReadFile(path)
	var trace struct {
		TraceEvents []struct{ Name string } `json:"traceEvents"`
	}
	if err == nil {
		err = json.Unmarshal(data, &trace)
	}
	names := ""
	for _, e := range trace.TraceEvents {
		names += e.Name + " "
	}
	if err != nil || strings.Count(names, "aten::mm ") != 3 || strings.Count(names, "round ") != 3 {
		t.Errorf("%v; the file's events: %.300s", err, names)
	}
}
