package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestFlags_OtherProgramsNamesAreAnswered(t *testing.T) {
	known := map[string]bool{}
	eachCommand(func(_ command, flags *pflag.FlagSet) {
		flags.VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
	})
	for name, ours := range otherNames {
		for _, flag := range ours {
			if !known[flag] {
				t.Errorf("%s stands for --%s, which no command has", name, flag)
			}
		}
	}
	for line, want := range map[string]string{
		"train --lr 1e-4":                       "--learning_rate",
		"train --gradient-accumulation-steps 4": "--accumulate",
		"train --model_name_or_path x":          "--model_path",
		"train --max_seq_length 512":            "--sequence_length",
		"generate --max_tokens 4":               "--max_new_tokens",
		"generate --max_length 4":               "--max_new_tokens",
		"generate -m x":                         "--model_path",
		"generate -n 4":                         "--max_new_tokens",
		"chat --temp 1":                         "--temperature",
		"export --outtype f16":                  "--dtype",
		"bench ssd --bs 4":                      "--batch_size",
		"score --file x":                        "--text_file",
	} {
		_, stderr, code := invoke(t, "", strings.Fields(line)...)
		if code != 2 || !strings.Contains(stderr, "here it is "+want+";") {
			t.Errorf("%s: exit %d, %s", line, code, stderr)
		}
	}
	_, stderr, _ := invoke(t, "", "export", "--lr", "3")
	if strings.Contains(stderr, "here it is") || strings.Contains(stderr, "did you mean") {
		t.Errorf("export has no learning rate, but suggests: %s", stderr)
	}
}

// Every flag of a command with more than a screen of flags stands under a heading of its own.
func TestHelp_LongListsHaveHeadings(t *testing.T) {
	eachCommand(func(c command, flags *pflag.FlagSet) {
		n := 0
		flags.VisitAll(func(*pflag.Flag) { n++ })
		list := groups(flags)
		if n > 6 && (len(list) < 2 || list[len(list)-1].heading == "Flags") {
			t.Errorf("%s lists %d flags under %d headings, the last is %q", c.name, n, len(list),
				list[len(list)-1].heading)
		}
	})
}
