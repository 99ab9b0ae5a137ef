package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"conquer/internal/settings"
)

// values returns the values of flags and which of them count as given.
func values(flags *pflag.FlagSet) map[string]string {
	all := map[string]string{}
	flags.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(aboutConfig, f.Name) {
			all[f.Name] = f.Value.String()
		}
	})
	return all
}

// configured parses arguments of train with a file of settings.
func configured(t *testing.T, name, text string, args ...string) (*pflag.FlagSet, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	flags, _ := trainCommand.declare()
	if err := flags.Parse(append(args, "--config", path)); err != nil {
		t.Fatal(err)
	}
	err := applyConfig(flags)
	if err == nil {
		err = expandPaths(flags)
	}
	return flags, path, err
}

func TestConfig_FileGivesFlagsThatTheLineDoesNot(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	for name, text := range map[string]string{
		"run.yaml": "model_path: ~/m\ndata-path: [a.jsonl, '~/b,c.jsonl']\nlearning_rate: 1e-4\n" +
			"steps: 40\npack: true\nseed: null\nask: [Why?]\nvariant: 3.10\nepochs: 2\n" +
			"timeout: 5m\n",
		"run.toml": "model_path = '~/m'\ndata-path = ['a.jsonl', '~/b,c.jsonl']\n" +
			"learning_rate = 1e-4\nsteps = 40\npack = true\nask = ['Why?']\nvariant = '3.10'\n" +
			"epochs = 2\ntimeout = '5m'\n",
	} {
		flags, _, err := configured(t, name, text, "--steps", "7", "--ask", "How, then?")
		if err != nil {
			t.Fatal(err)
		}
		for flag, want := range map[string]string{"model_path": "/home/me/m", "pack": "true",
			"data_path": `[a.jsonl,"/home/me/b,c.jsonl"]`, "learning_rate": "0.0001", "steps": "7",
			"seed": "1", "ask": `["How, then?"]`, "variant": "3.10", "timeout": "5m0s",
			"epochs": "0"} { // --steps excludes epochs
			if got := flags.Lookup(flag).Value.String(); got != want {
				t.Errorf("%s: %s is %s, expected %s", name, flag, got, want)
			}
		}
		if flags.Changed("seed") || !flags.Changed("pack") {
			t.Errorf("%s: seed counts as given, or pack does not", name)
		}
	}
}

func TestConfig_ErrorsNameFileLineAndKey(t *testing.T) {
	for text, want := range map[string]string{
		"steps: 3\nlr: 1e-4\n":            `:2: unknown key "lr": use --learning_rate`,
		"learning_rat: 1e-4\n":            `:1: unknown key "learning_rat", did you mean`,
		"# x\nunfuse_weights: true\n":     `:2: unknown key "unfuse_weights": leave it out`,
		"config: a.yaml\n":                ":1: config cannot be set in a file",
		"print_config: true\n":            ":1: print_config cannot be set in a file",
		"steps: 1.5\n":                    `:1: steps: expected a whole number, found a number, "1`,
		"steps: '3'\n":                    `:1: steps: expected a whole number, found a text, "3"`,
		"steps: [3]\n":                    ":1: steps: expected one value, found a list",
		"pack: 1\n":                       `:1: pack: expected true or false, found a whole number`,
		"ask: [true]\n":                   `:1: ask: expected a text, found true or false`,
		"learning_rate: high\n":           `:1: learning_rate: expected a number, found a text`,
		"timeout: soon\n":                 `:1: timeout: "soon" is not of the type duration`,
		"steps: 1\nsteps: 2\n":            ":2: steps is already set in line 1",
		"steps: 1\n epochs: 2\n":          ":2: ",
		"data_path:\n  train: a.jsonl\n":  ":2: data_path: expected a text",
		"steps: 99999999999999999999\n":   ":1: steps: expected a whole number",
		"steps: 3\nepochs: 2\n":           "give --steps or --epochs, not both",
		"lora_alpha: 3\n":                 "needs --lora_rank",
		"steps: 3\nbatch_size: 0\n":       "batch",
		"checkpoint_format: hf\nlr: 3\n ": ":2: ",
	} {
		path := filepath.Join(t.TempDir(), "run.yaml")
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := invoke(t, "", "train", "--architecture", "bamba", "--variant", "bytes",
			"--tokenizer", "char_tokenizer", "--data_path", path, "--output_path",
			filepath.Join(t.TempDir(), "out"), "--config", path)
		if strings.HasPrefix(want, ":") {
			want = "--config: " + path + want
		}
		if code != 2 || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit %d, expected %q\n%s", text, code, want, stderr)
		}
	}
	_, stderr, code := invoke(t, "", "plan", "--config", filepath.Join(t.TempDir(), "no.yaml"))
	if code != 1 || !strings.Contains(stderr, "no such file") {
		t.Errorf("a missing file: exit %d, %s", code, stderr)
	}
}

// A printed configuration, given as --config, has the same effect: it prints itself.
func TestConfig_PrintedConfigReproducesTheRun(t *testing.T) {
	data := filepath.Join(t.TempDir(), "a, b.txt")
	if err := os.WriteFile(data, []byte("round and round\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	base := []string{"train", "--architecture", "bamba", "--variant", "bytes", "--tokenizer",
		"char_tokenizer", "--data_path", `"` + data + `"`, "--output_path",
		filepath.Join(t.TempDir(), "out")}
	for _, more := range [][]string{
		nil,
		{"--steps", "3", "--learning_rate", "1.23456789e-5", "--lora_rank", "4", "--merge"},
		{"--lora_rank", "8", "--lora_targets", "in_proj,q_proj", "--lora_dropout", "0"},
		{"--nproc", "2", "--distributed", "mp", "--accumulate", "4", "--max_restarts", "2"},
		{"--objective", "dpo", "--ask", "Why: #1?", "--ask", "- true", "--no_decay", "none",
			"--warmup_steps", "0", "--timeout", "90s", "--overwrite", "--seed", "-4"},
		{"--optimizer", "lion", "--validation_fraction", "0.25", "--validate_steps", "2",
			"--schedule", "constant", "--clip", "0", "--checkpoint_steps", "0"},
	} {
		printed := succeed(t, append(append(slices.Clone(base), more...), "--print_config")...)
		path := filepath.Join(t.TempDir(), "printed.yaml")
		if err := os.WriteFile(path, []byte(printed), 0o666); err != nil {
			t.Fatal(err)
		}
		if again := succeed(t, "train", "--config", path, "--print_config"); again != printed {
			t.Errorf("%v: printed\n%s\nand then\n%s", more, printed, again)
		}
		if !strings.Contains(printed, "\ncheckpoint_path: null\n") {
			t.Errorf("checkpoint_path, which follows from output_path, is printed\n%s", printed)
		}
		list, err := settings.ParseYAML([]byte(printed))
		if err != nil {
			t.Fatal(err)
		}
		flags, _ := trainCommand.declare()
		flags.VisitAll(func(f *pflag.Flag) {
			listed := slices.ContainsFunc(list, func(s settings.Setting) bool {
				return s.Key == f.Name
			})
			if listed == slices.Contains(aboutConfig, f.Name) {
				t.Errorf("%s: listed %v", f.Name, listed)
			}
		})
	}
}

// The losses of a run and of the run of its printed configuration are the same.
func TestConfig_PrintedConfigTrainsTheSame(t *testing.T) {
	folder := t.TempDir()
	data := filepath.Join(folder, "poem.txt")
	if err := os.WriteFile(data, []byte(strings.Repeat("round the tower the gulls go\n", 30)),
		0o666); err != nil {
		t.Fatal(err)
	}
	args := []string{"train", "--architecture=bamba", "--variant=bytes",
		"--tokenizer=char_tokenizer", "--data_path", data, "--pack", "--sequence_length=64",
		"--batch_size=2", "--steps=2", "--device=cpu", "--checkpoint_steps=0"}
	one, two := filepath.Join(folder, "one"), filepath.Join(folder, "two")
	train := func(args ...string) string {
		stdout, stderr, code := invoke(t, "", args...)
		if code != 0 {
			t.Fatalf("%v: exit %d\n%s", args, code, stderr)
		}
		return stdout
	}
	printed := train(append(args, "--output_path", one, "--print_config")...)
	config := filepath.Join(folder, "run.yaml")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(printed, one, two)),
		0o666); err != nil {
		t.Fatal(err)
	}
	train(append(args, "--output_path", one)...)
	train("train", "--config", config)
	if a, b := lossesIn(t, one), lossesIn(t, two); len(a) != 2 || !slices.Equal(a, b) {
		t.Errorf("losses %v and %v", a, b)
	}
}

// Every recipe takes two steps with a tiny model.
func TestRecipes_TakeTwoSteps(t *testing.T) {
	tiny := writeModel(t, 704, true)
	t.Chdir("../..")
	files, err := filepath.Glob("examples/recipes/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("recipes %v, %v", files, err)
	}
	readme, err := os.ReadFile("examples/recipes/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if !strings.Contains(string(readme), "["+name+"]("+name+")") {
			t.Errorf("README.md does not list %s", name)
		}
		recipe, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out")
		args := []string{"train", "--config", file, "--output_path", out, "--steps", "2",
			"--batch_size", "1", "--sequence_length", "128", "--device", "cpu"}
		if strings.Contains(string(recipe), "\nmodel_path:") {
			args = append(args, "--model_path", tiny)
		}
		if _, stderr, code := invoke(t, "", args...); code != 0 {
			t.Errorf("%s: exit %d\n%s", name, code, stderr)
		} else if losses := lossesIn(t, out); len(losses) != 2 {
			t.Errorf("%s: losses %v", name, losses)
		}
	}
}

// No file crashes the flags. What is accepted is printed and read as the same values again.
func FuzzConfig(f *testing.F) {
	f.Add("steps: 3\nask: [a, '- b']\nlora_targets: [q_proj]\npack: yes\n", "--seed=3")
	f.Add("timeout: 1h\nlearning-rate: 1e-9\nmodel_path: ~\nvariant: 007\nno_decay: []\n", "")
	f.Add("data_path: a,b\nvalidation_fraction: 0.5\nkeep: null\n", "--data_path=c")
	f.Add("a: !!binary 3Q==\n", "--data_path=\xdd") // a name that is not UTF-8
	f.Fuzz(func(t *testing.T, text, arg string) {
		list, err := settings.ParseYAML([]byte(text))
		if err != nil || len(text) > 1<<12 {
			return
		}
		flags, _ := trainCommand.declare()
		if flags.Parse([]string{arg}) != nil || applySettings(flags, "run.yaml", list) != nil {
			return
		}
		var printed bytes.Buffer
		if err := printConfig(&printed, flags, nil); err != nil {
			t.Fatal(err)
		}
		again, _ := trainCommand.declare()
		read, err := settings.ParseYAML(printed.Bytes())
		if err == nil {
			err = applySettings(again, "printed.yaml", read)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, printed.Bytes())
		}
		before, after := values(flags), values(again)
		for name, value := range before {
			if after[name] != value {
				t.Errorf("%s was %s and is %s\n%s", name, value, after[name], printed.Bytes())
			}
		}
	})
}
