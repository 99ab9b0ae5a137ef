package main

import (
	"regexp"
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
		if code != 2 || !strings.Contains(stderr, ": use "+want+";") {
			t.Errorf("%s: exit %d, %s", line, code, stderr)
		}
	}
	_, stderr, _ := invoke(t, "", "export", "--lr", "3")
	if strings.Contains(stderr, ": use --") || strings.Contains(stderr, "did you mean") {
		t.Errorf("export has no learning rate, but suggests: %s", stderr)
	}
}

// scripts lists foundation-model-stack's scripts with the options of each and the
// command that stands for it.
var scripts = map[string]string{
	"train": "architecture variant training_type checkpoint_format model_path tokenizer " +
		"device_type default_dtype distributed unfuse_weights peft_method dataset_style " +
		"dataset_path pad_token_id max_data_sequence_length report_steps checkpoint_steps " +
		"output_path compile_model compile_optimizer compile_static compile_backend epochs " +
		"batch_size grad_accum_steps head_only optimizer lr run_validation",
	"generate": "device_type architecture variant model_path model_source tokenizer no_use_cache " +
		"unfuse_weights default_dtype compile compile_mode deterministic distributed batch_input " +
		"min_pad_length attn_name context_file",
	"bench inference": "device_type architecture variant tokenizer seq_len batch_size " +
		"max_new_tokens compile_mode deterministic distributed skip_correctness_check " +
		"skip_eager_runs skip_compile_runs skip_kvcache_runs skip_nokvcache_runs " +
		"skip_single_token_runs skip_e2e_runs unfuse_weights check_correctness",
	"score": "device_type architecture variant model_path model_source tokenizer no_use_cache " +
		"batch_size compile compile_mode deterministic distributed tasks num_fewshot",
	"chat": "device_type architecture variant model_path model_source tokenizer no_use_cache " +
		"compile compile_mode deterministic distributed max_new_tokens system_message",
}

// Every option of foundation-model-stack's scripts is a flag, or the error says what to do.
func TestFlags_FoundationModelStacksOptionsAreFlagsOrAnswered(t *testing.T) {
	eachCommand(func(c command, flags *pflag.FlagSet) {
		for option := range strings.FieldsSeq(scripts[c.name]) {
			if flags.Lookup(option) != nil {
				continue
			}
			line := append(strings.Fields(c.name), "--"+option+"=1")
			_, stderr, code := invoke(t, "", line...)
			answer := regexp.MustCompile(`unknown flag: --` + option +
				`: ((use|leave|give|write) [^;]{5,}.*); `)
			if code != 2 || !answer.MatchString(stderr) {
				t.Errorf("%s: exit %d, %s", line, code, stderr)
			}
			named := regexp.MustCompile(`--(\w+)`).FindAllStringSubmatch(stderr, -1)
			for _, n := range named[1:] { // the first is the option
				if n[1] != "help" && flags.Lookup(n[1]) == nil {
					t.Errorf("%s names --%s, which is not a flag of it", line, n[1])
				}
			}
		}
	})
	for line, want := range map[string]string{
		"generate --compile":                 "--compile needs a value, such as graph",
		"train --dataset_style=arrow":        "the layout of records is recognized",
		"generate --no_use_cache":            "write --use_cache=false",
		"chat --no_use_cache":                "are always cached",
		"bench inference --distributed":      "use --nproc N",
		"score --tasks hellaswag":            "use `conquer eval`",
		"train --default_dtype=bf16":         ": use --dtype;",
		"bench inference --compile_mode max": "unless --skip_compile_runs is given",
	} {
		_, stderr, code := invoke(t, "", strings.Fields(line)...)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit %d, %s", line, code, stderr)
		}
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
