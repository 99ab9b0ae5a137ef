package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// homeWithMeta makes a home folder with a model in Meta's layout in models/7B and a tokenizer, and
// data in data.jsonl. The model is of the variant micro.
func homeWithMeta(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	config, err := model.Variant("llama", "micro")
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	if err := torch.Run(func() error {
		torch.ManualSeed(2)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(config)
	err = checkpoint.SaveMeta(filepath.Join(home, "models/7B"), model.Weights(m),
		checkpoint.Options{Config: text})
	if err == nil {
		err = os.WriteFile(filepath.Join(home, "data.jsonl"),
			[]byte(`{"instruction": "Why?", "output": "So."}`+"\n"), 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	return home
}

// The command that foundation-model-stack documents for its training script runs.
func TestTrain_TakesTheFlagsOfFoundationModelStack(t *testing.T) {
	home := homeWithMeta(t)
	tokens, err := filepath.Abs("../../text/tokenizer/testdata/smollm/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(tokens, filepath.Join(home, "models/tokenizer.json")); err != nil {
		t.Fatal(err)
	}
	command := func(more ...string) []string {
		return append([]string{"train", "--architecture=llama", "--variant=micro",
			"--tokenizer=~/models/tokenizer.json", "--model_path=~/models/7B/",
			"--report_steps=10", "--checkpoint_format=meta", "--distributed=fsdp"}, more...)
	}
	_, stderr, code := invoke(t, "", command()...)
	if code != 2 || !strings.Contains(stderr, "hf://datasets/tatsu-lab/alpaca") {
		t.Errorf("without data: exit %d, %s", code, stderr)
	}
	run := []string{"--data_path=~/data.jsonl", "--output_path=~/tuned", "--steps=1",
		"--batch_size=1", "--checkpoint_steps=0", "--device=cpu"}
	if _, stderr, code := invoke(t, "", command(run...)...); code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(home, "tuned/model.safetensors")); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ flag, want string }{
		{"--architecture=bamba --variant=tiny", `--architecture bamba: ` +
			`~/models/7B/consolidated.00.pth is a model of the architecture llama (model_type ` +
			`llama)`},
		{"--variant=7b", "hidden_size is 256, not 4096; intermediate_size is 688, not 11008; " +
			"num_hidden_layers is 4, not 32"},
		{"--variant=8b", `no variant "8b": choose one of`},
		{"--architecture=hf_pretrained", "leave --architecture and --variant out"},
		{"--checkpoint_format=hf", "~/models/7B/ has the format meta"},
		{"--checkpoint_format=native", "leave the flag out"},
		{"--checkpoint_format=fms", "convert them with convert_to_hf"},
		{"--checkpoint_format=pt", "choose one of hf, meta, native, gguf"},
	} {
		_, stderr, code := invoke(t, "", command(append(append(run, "--overwrite"),
			strings.Fields(c.flag)...)...)...)
		want := strings.ReplaceAll(c.want, "~", home)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit %d, expected %q\n%s", c.flag, code, want, stderr)
		}
	}
	// The format of checkpoints was the meaning of the flag in earlier versions.
	_, stderr, code = invoke(t, "", append([]string{"train", "--architecture=llama",
		"--variant=micro", "--tokenizer=~/models/tokenizer.json", "--checkpoint_format=native"},
		run...)...)
	if code != 2 || !strings.Contains(stderr, "--save_format") {
		t.Errorf("without a model: exit %d, %s", code, stderr)
	}
}

// A model of a variant's sizes that differs in a field without a name of its own is described by
// the shape of a weight.
func TestDifferences_NameFieldsOrElseWeights(t *testing.T) {
	micro, err := model.Variant("llama", "micro")
	if err != nil {
		t.Fatal(err)
	}
	with := func(key string, value any) model.Config {
		config := micro.Clone()
		config[key] = value
		return config
	}
	for _, c := range []struct {
		config model.Config
		want   string
	}{
		{with("rms_norm_eps", 1e-6), ""},
		{with("vocab_size", 704), "vocab_size is 704, not 32000"},
		{with("head_dim", 16.0), "model.layers.0.self_attn.k_proj.weight is [128 256], " +
			"not [256 256]"},
		{with("attention_bias", true), "model.layers.0.self_attn.k_proj.bias is [256], " +
			"not missing"},
	} {
		list, err := differences(micro, c.config)
		if got := strings.Join(list, "; "); err != nil || !strings.HasPrefix(got, c.want) ||
			(got == "") != (c.want == "") {
			t.Errorf("%v, %v, expected %q", list, err, c.want)
		}
	}
}

// A folder of the Hugging Face Hub may hold a model in both layouts.
func TestGenerate_CheckpointFormatMetaTakesMetasFiles(t *testing.T) {
	home := homeWithMeta(t)
	dir := filepath.Join(home, "models/7B")
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), []byte("none"),
		0o666); err != nil {
		t.Fatal(err)
	}
	args := []string{"generate", "--model_path", dir, "--token_ids", "1,2", "--max_new_tokens", "1",
		"--device", "cpu"}
	if _, stderr, code := invoke(t, "", args...); code != 1 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	succeed(t, append(args, "--checkpoint_format", "meta", "--architecture", "llama")...)
}

func TestFlags_PathsMayBeginWithTheHomeFolder(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	for given, want := range map[string]string{
		"~": "/home/me", "~/": "/home/me/", "~/a b": "/home/me/a b", "~you/a": "~you/a",
		"a/~/b": "a/~/b", "": "", "-": "-", "file:///data/x": "/data/x",
		"file://host/x": "file://host/x",
	} {
		if got, err := expandPath(given); err != nil || got != want {
			t.Errorf("%q: %q, %v, expected %q", given, got, err, want)
		}
	}
	named := []string{"tokenizer", "tools", "documents", "chat_template_kwargs", "profile",
		"prompts"}
	eachCommand(func(c command, flags *pflag.FlagSet) {
		flags.VisitAll(func(f *pflag.Flag) {
			_, path := isPath(f)
			named := strings.HasSuffix(f.Name, "_path") || strings.HasSuffix(f.Name, "_file") ||
				f.Value.Type() == "string" && slices.Contains(named, f.Name)
			if named && !path {
				t.Errorf("%s --%s is not a path", c.name, f.Name)
			}
			if !path {
				return
			}
			if err := flags.Set(f.Name, "~/x"); err != nil {
				t.Fatal(err)
			}
		})
		if err := expandPaths(flags); err != nil {
			t.Error(err)
		}
		flags.Visit(func(f *pflag.Flag) {
			if got := strings.Trim(f.Value.String(), "[]"); got != "/home/me/x" {
				t.Errorf("%s --%s=~/x is %q", c.name, f.Name, got)
			}
		})
	})
	t.Setenv("HOME", "")
	_, stderr, code := invoke(t, "", "score", "--text_file=~/x", "--model_path=y")
	if code != 2 || !strings.Contains(stderr, "--text_file: ~/x: the home folder is unknown") {
		t.Errorf("without a home: exit %d, %s", code, stderr)
	}
}
