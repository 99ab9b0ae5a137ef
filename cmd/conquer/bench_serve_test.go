package main

import (
	"strings"
	"testing"

	"conquer/bench"
)

func TestBenchServe_AnswersAllRequests(t *testing.T) {
	args := []string{"bench", "serve", "--architecture", "llama", "--variant", "micro", "--device",
		"cpu", "--requests", "7", "--prompt_lengths", "9,40,20", "--max_new_tokens", "5",
		"--max_sequences", "3", "--prefill_chunk", "16"}
	out, stderr, code := invoke(t, "", append(args, "--json")...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	r := decode[bench.ServingRow](t, out)
	if r.Requests != 7 || r.PromptTokens != 3*9+2*20+2*40 || r.NewTokens != 35 || r.Steps < 8 ||
		!(0 < r.FirstTokenMS.P50 && r.FirstTokenMS.P50 <= r.FirstTokenMS.P99 &&
			r.FirstTokenMS.P99 <= 1e3*r.Seconds && r.BetweenTokensMS.P50 > 0 && r.StepMS > 0) ||
		r.PeakBytes == 0 {
		t.Errorf("%+v", r)
	}
	if out, _, code := invoke(t, "", args...); code != 0 || !strings.Contains(out, "first token") {
		t.Errorf("exit %d: %s", code, out)
	}
	for _, wrong := range [][]string{{"--requests", "0"}, {"--max_sequences", "-1"}, {"x"}} {
		if _, stderr, code := invoke(t, "", append(args, wrong...)...); code != 2 {
			t.Errorf("%v: exit %d: %s", wrong, code, stderr)
		}
	}
}
