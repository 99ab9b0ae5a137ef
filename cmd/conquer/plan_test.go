package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestPlan_NamesStrategiesAndCountsWeights(t *testing.T) {
	var report planReport
	if err := json.Unmarshal([]byte(succeed(t, "plan", "--architecture", "llama", "--variant", "7b",
		"--gpus", "16", "--json")), &report); err != nil {
		t.Fatal(err)
	}
	if report.Parameters != 6738415616 { // Llama 2 7B, from the sizes in its paper
		t.Errorf("%d parameters", report.Parameters)
	}
	names := ""
	for _, p := range report.Plans {
		names += p.Strategy + " "
	}
	if names != "ddp fsdp hsdp tp fsdp+tp pp " {
		t.Errorf("plans for %s", names)
	}
	own := writeModel(t, 704, true)
	if out := succeed(t, "plan", "--model_path", own, "--memory_gb",
		"0.000001"); !strings.Contains(out, "does not fit 1e-06 GB: none\n") {
		t.Error(out)
	}
	out := succeed(t, "plan", "--model_path", own, "--gpus", "2", "--offload_optimizer")
	if !strings.Contains(out, "host") ||
		!strings.Contains(out, "not ddp, tp, pp: the optimizer's state can be kept in host memory "+
			"with fsdp and hsdp only") {
		t.Error(out)
	}
	out = succeed(t, "plan", "--architecture", "llama", "--variant", "3.2-1b", "--gpus", "2",
		"--stochastic_rounding")
	if !strings.Contains(out, "fsdp") ||
		!strings.Contains(out, "not pp: the first and the last GPU would round the embedding") {
		t.Error(out)
	}
	out = succeed(t, "plan", "--model_path", own, "--lora_rank", "4")
	if !strings.Contains(out, "none") {
		t.Errorf("a plan with adapters printed %s", out)
	}
	peak := func(more ...string) float64 {
		return decode[planReport](t, succeed(t, append([]string{"plan", "--model_path", own,
			"--lora_rank", "4", "--json"}, more...)...)).Plans[0].Peak
	}
	all, fewer := peak(), peak("--lora_layers", "1", "--lora_exclude", "mlp.up_proj")
	if fewer >= all || peak("--lora_rank_pattern", "q_proj=64") <= all {
		t.Errorf("fewer adapters take %g of %g bytes", fewer, all)
	}
	if _, stderr, code := invoke(t, "", "plan", "--model_path", own, "--lora_rank", "4",
		"--lora_targets", "qproj"); code != 2 ||
		!strings.Contains(stderr, `"qproj" names no layer`) {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestPlan_MissingVariantIsAnsweredWithTheArchitecturesOwn(t *testing.T) {
	_, stderr, code := invoke(t, "", "plan", "--architecture", "llama", "--variant", "bamba")
	if code != 2 || !strings.Contains(stderr, "3.2-1b") || strings.Contains(stderr, "780m") {
		t.Errorf("exit %d, expected 2 and llama's variants alone: %s", code, stderr)
	}
}
