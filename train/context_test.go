package train

import (
	"strings"
	"testing"

	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/dist"
)

func TestContextSize_RefusesWhatDoesNotHold(t *testing.T) {
	split := func() Options {
		o := options()
		o.Distributed, o.ContextSize = FSDP, 2
		return o
	}
	place := dist.Place{Size: 4, LocalSize: 4}
	if err := split().CheckPlace(place); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Options){
		"does not divide the 4": func(o *Options) { o.ContextSize = 3 },
		"not hsdp":              func(o *Options) { o.Distributed = HSDP },
		"without --tp_size":     func(o *Options) { o.TensorSize = 2 },
		"--objective sft":       func(o *Options) { o.Objective = DPO },
		"--pack":                func(o *Options) { o.Pack = true },
		"--carry_state":         func(o *Options) { o.CarryState = true },
		"--router_aux_loss":     func(o *Options) { o.RouterLoss = 1 },
		"--lora_dropout": func(o *Options) {
			o.LoRA = adapterConfig()
			o.LoRA.Dropout = 0.1
		},
	} {
		o := split()
		change(&o)
		if err := o.CheckPlace(place); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
	}
	m := scanning(t)
	defer free(m)
	o := split()
	if err := o.CheckModel(m); err != nil {
		t.Error(err)
	}
	o.Chunking = "windowed:2"
	if err := o.CheckModel(m); err == nil || !strings.Contains(err.Error(), "--chunking default") {
		t.Errorf("another strategy: %v", err)
	}
	o.Chunking = ""
	independent, _ := statespace.ParseChunking("independent")
	if err := m.(statespace.Chunked).SetChunking(independent); err != nil {
		t.Fatal(err)
	}
	if err := o.CheckModel(m); err == nil || !strings.Contains(err.Error(), "--chunking default") {
		t.Errorf("a model with another strategy: %v", err)
	}
	llama := tiny(t, true, torch.Float32)
	defer free(llama)
	if err := split().CheckModel(llama); err != nil {
		t.Error(err)
	}
}
