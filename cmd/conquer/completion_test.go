package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// completions lists the candidates that the program prints for a command line.
func completions(t *testing.T, words ...string) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(succeed(t, append([]string{completeCommand}, words...)...)) {
		word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		list = append(list, word)
	}
	return list
}

func TestCompletion_OffersWhatFitsTheLine(t *testing.T) {
	for line, want := range map[string]string{
		"tra":                                    "train",
		"bench ss":                               "ssd",
		"help bench acc":                         "accuracy",
		"bench ssd --chunk":                      "--chunking --chunk_size",
		"train --learning-r":                     "--learning-rate",
		"train --objective ":                     "sft dpo ipo hinge simpo orpo kto",
		"train --objective=d":                    "--objective=dpo",
		"train --objective = d":                  "dpo", // as bash splits the line
		"train --objective =":                    "sft dpo ipo hinge simpo orpo kto",
		"train --no_decay norm,b":                "norm,bias",
		"bench chunks --compile ":                "eager kernels graph both",
		"generate --compile ":                    "graph none",
		"train --architecture smo":               "smollm3",
		"plan --architecture smollm3 --variant ": "3b tiny",
		"train --output_path x":                  ":folders",
		"train --data_path x":                    ":files",
		"generate --model_path smol":             "smollm2-135m :files",
		"bench gptscore res":                     ":files",
		"completion ":                            "bash fish zsh --help",
		"info --tensors=t":                       "--tensors=true",
		"train --seed 4":                         "",
		"no such command ":                       "",
	} {
		words := strings.Split(line, " ")
		if got := strings.Join(completions(t, words...), " "); got != want {
			t.Errorf("%q: %q, expected %q", line, got, want)
		}
	}
}

func TestCompletion_OffersAFlagOnceUnlessItMayBeRepeated(t *testing.T) {
	list := completions(t, "train", "--batch-size", "4", "--data_path=x", "--")
	if slices.Contains(list, "--batch_size") || !slices.Contains(list, "--data_path") {
		t.Errorf("after --batch-size and --data_path: %v", list)
	}
}

// eachCommand calls visit for every command that has flags, with its flags.
func eachCommand(visit func(c command, flags *pflag.FlagSet)) {
	for _, c := range commands() {
		for _, part := range append(slices.Clone(c.subcommands), c) {
			if part.setup != nil {
				flags, _ := part.declare()
				visit(part, flags)
			}
		}
	}
}

func TestCompletion_EveryPathFlagCompletesPaths(t *testing.T) {
	eachCommand(func(c command, flags *pflag.FlagSet) {
		flags.VisitAll(func(f *pflag.Flag) {
			path := strings.HasSuffix(f.Name, "_path") || strings.HasSuffix(f.Name, "_file")
			list := c.completeValue(f, "", "", nil)
			if path && (len(list) == 0 || !strings.HasPrefix(list[len(list)-1].word, ":")) {
				t.Errorf("%s --%s: %v, expected paths", c.name, f.Name, list)
			}
		})
	})
}

// Every fixed value that completion offers is named by the flag's own description, so a value that
// the flag no longer has is noticed.
func TestCompletion_ValuesAreThoseOfTheHelp(t *testing.T) {
	free := []string{"chunk_size", "chunking", "variant", "architecture", "model_path", "tokenizer",
		"lora_targets", "objective", "format"}
	eachCommand(func(c command, flags *pflag.FlagSet) {
		flags.VisitAll(func(f *pflag.Flag) {
			if slices.Contains(free, f.Name) || f.NoOptDefVal != "" {
				return
			}
			for _, value := range c.flagValues(f, nil) {
				if !strings.Contains(f.Usage, value) && f.DefValue != value {
					t.Errorf("%s --%s: the value %s is not in %q", c.name, f.Name, value, f.Usage)
				}
			}
		})
	})
}

func TestCompletion_WorksInShells(t *testing.T) {
	skipProcesses(t)
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	wrapper := "#!/bin/sh\n" + programVariable + "=1 exec '" + self + "' \"$@\"\n"
	for name, text := range map[string]string{"conquer": wrapper, "my data.jsonl": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(shell, script, line string) string {
		c := exec.Command(shell, "-c", script, line)
		c.Dir = dir
		c.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", shell, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	const bash = `source <(conquer completion bash)
compopt() { :; }
read -ra COMP_WORDS <<< "$0"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_conquer
printf '%s\n' "${COMPREPLY[@]}"`
	for line, want := range map[string]string{
		"conquer bench ss":               "ssd",
		"conquer train --objective = d":  "dpo",
		"conquer train --data_path my":   "my data.jsonl",
		"conquer train --data_path = my": "my data.jsonl",
	} {
		if got := run("bash", bash, line); got != want {
			t.Errorf("bash, %q: %q, expected %q", line, got, want)
		}
	}
	if _, err := exec.LookPath("fish"); err != nil {
		t.Log("fish is not installed: its script was not run")
		return
	}
	for line, want := range map[string]string{
		"conquer bench ss":              "ssd\tTime the state-space scan",
		"conquer train --objective=d":   "--objective=dpo",
		"conquer train --data_path my":  "my data.jsonl",
		"conquer train --data_path=my":  "--data_path=my data.jsonl",
		"conquer train --output_path=x": "",
	} {
		const fish = "conquer completion fish | source; complete -C $argv[1]"
		if got := run("fish", fish, line); !strings.HasPrefix(got, want) {
			t.Errorf("fish, %q: %q, expected %q", line, got, want)
		}
	}
}
