package plan

import (
	"testing"

	_ "conquer/bamba"
	"conquer/model"
	"conquer/torch"
	"conquer/train"
)

// Cutting rows over GPUs divides activations, leaves the state, and counts the GPUs' tokens once.
func TestPredict_CutsRows(t *testing.T) {
	config, err := model.Variant("mamba2", "370m")
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	machine := Machine{GPUs: 4, PerHost: 4, Memory: 80e9, Rate: 400, Transfer: 3000, Link: 300,
		Network: 40, Host: 20}
	o := Options{BatchSize: 1, SequenceLength: 32768, DType: torch.BFloat16,
		Recompute: train.RecomputeNone}
	whole, err := Predict(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	o.ContextSize = 4
	cut, err := Predict(m, o, machine)
	if err != nil {
		t.Fatal(err)
	}
	if len(cut) != 2 || cut[1].Strategy != train.FSDP || whole[1].Strategy != train.FSDP {
		t.Fatalf("%+v", cut)
	}
	a, b := whole[1], cut[1]
	if b.Optimizer != a.Optimizer || b.Activations != a.Activations/4 || b.Peak >= a.Peak ||
		!(b.Tokens > 0 && b.Tokens < 1.01*a.Tokens) {
		t.Errorf("whole %+v\ncut %+v", a, b)
	}
	o.ContextSize = 3
	if _, err := Predict(m, o, machine); err == nil {
		t.Error("3 of 4 GPUs were accepted")
	}
}
