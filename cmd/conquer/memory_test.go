package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/train/plan"
)

// The check is called as a run calls it, with models that have no weights yet.
func TestCheckMemory_RefusesAModelThatMemoryCannotHold(t *testing.T) {
	if plan.ReadHostMemory().Total > 5e11 {
		t.Skip("this machine could hold the model")
	}
	for _, more := range [][]string{nil, {"--lora_rank", "8"}, {"--recompute", "block"},
		{"--offload_optimizer", "--distributed", "fsdp"}, {"--distributed", "fsdp"},
		{"--distributed", "tp"}, {"--distributed", "hsdp", "--offload_optimizer"}} {
		for variant, fits := range map[string]bool{"micro": true, "70b": false} {
			var f trainFlags
			flags := newFlags("train")
			f.declare(flags)
			args := smallRun(t, filepath.Join(t.TempDir(), "out"), append(more, "--steps", "1")...)
			if err := flags.Parse(args[1:]); err != nil {
				t.Fatal(err)
			}
			if err := f.check(flags, dist.Alone); err != nil {
				t.Fatal(err)
			}
			config, err := model.Variant("llama", variant)
			if err != nil {
				t.Fatal(err)
			}
			m, err := model.New(config)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.predict(m, torch.Float32, torch.CPU, dist.Alone); !ok {
				t.Fatalf("%s %v: the run is not planned", variant, more)
			}
			err = f.checkMemory(m, torch.Float32, torch.CPU)
			if (err == nil) != fits ||
				!fits && !strings.Contains(err.Error(), "of host memory, and") {
				t.Errorf("%s %v: %v", variant, more, err)
			}
		}
	}
}

func TestKilled_NamesMemory(t *testing.T) {
	for script, want := range map[string]bool{"kill -KILL $$": true, "exit 137": true,
		"kill -TERM $$": false, "exit 1": false} {
		c := exec.Command("sh", "-c", script)
		c.Run()
		if killed(c.ProcessState) != want {
			t.Errorf("%s: taken for SIGKILL: %v", script, !want)
		}
	}
	for counted, want := range map[bool]string{true: "oom_kill", false: "most likely"} {
		if message := killedMessage(counted); !strings.Contains(message, want) {
			t.Errorf("%v: %s", counted, message)
		}
	}
}
