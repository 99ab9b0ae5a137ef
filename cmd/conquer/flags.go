package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// newFlags makes a flag set that accepts a dash for each underscore.
func newFlags(name string) *pflag.FlagSet {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	flags.SortFlags = false
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(flagName(name))
	})
	return flags
}

// flagName is the declared name of a flag that may be written with dashes.
func flagName(written string) string { return strings.ReplaceAll(written, "-", "_") }

// headingKey is the annotation of a flag that holds its heading in the help.
const headingKey = "conquer/heading"

// group puts the flags that were declared since the last call under a heading of the help. A
// heading may be used again.
func group(flags *pflag.FlagSet, heading string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Annotations == nil {
			f.Annotations = map[string][]string{headingKey: {heading}}
		}
	})
}

// flagGroup is a section of the help.
type flagGroup struct {
	heading string
	flags   *pflag.FlagSet
}

// groups returns the flags by heading, in the order of declaration. The default heading is Flags.
func groups(flags *pflag.FlagSet) []flagGroup {
	group(flags, "Flags")
	var list []flagGroup
	flags.VisitAll(func(f *pflag.Flag) {
		heading := f.Annotations[headingKey][0]
		i := slices.IndexFunc(list, func(g flagGroup) bool { return g.heading == heading })
		if i < 0 {
			i = len(list)
			list = append(list, flagGroup{heading, newFlags(flags.Name())})
		}
		list[i].flags.AddFlag(f)
	})
	return list
}

// isPath reports whether a flag's values are paths, and of which kind: "file", "files", "folder" or
// "page".
func isPath(f *pflag.Flag) (kind string, ok bool) {
	kind, _ = pflag.UnquoteUsage(f)
	return kind, slices.Contains([]string{"file", "files", "folder", "page"}, kind)
}

// expandPaths replaces a ~ at the start of given paths by the home folder, which a shell does not
// do behind an equals sign, and takes the path of a file:// URL.
func expandPaths(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		if _, ok := isPath(f); ok && err == nil {
			err = expandFlag(f)
		}
	})
	return err
}

func expandFlag(f *pflag.Flag) (err error) {
	list, many := f.Value.(pflag.SliceValue)
	paths := []string{f.Value.String()}
	if many {
		paths = list.GetSlice()
	}
	for i := range paths {
		if paths[i], err = expandPath(paths[i]); err != nil {
			return usagef("--%s: %w", f.Name, err)
		}
	}
	if many {
		return list.Replace(paths)
	}
	return f.Value.Set(paths[0])
}

func expandPath(path string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "file://"); ok && strings.HasPrefix(rest, "/") {
		return rest, nil
	}
	rest, ok := strings.CutPrefix(path, "~")
	if !ok || rest != "" && rest[0] != '/' {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("%s: the home folder is unknown: %w", path, err)
	}
	return home + rest, nil
}

// parseMessage describes an error of pflag and suggests a flag for an unknown one.
func parseMessage(err error, flags *pflag.FlagSet) string {
	// pflag quotes strconv's error for a list of numbers.
	message, _, numbers := strings.Cut(err.Error(), "strconv.")
	if numbers {
		message += "expected integers separated by commas"
	}
	if typo, unknown := strings.CutPrefix(message, "unknown flag: --"); unknown {
		return message + suggestFlag(flagName(typo), flags)
	}
	if name, missing := strings.CutPrefix(message, "flag needs an argument: --"); missing {
		if values := fixedValues[flagName(name)]; len(values) > 0 {
			return fmt.Sprintf("--%s needs a value, such as %s", name, values[0])
		}
	}
	if short, unknown := strings.CutPrefix(message, "unknown shorthand flag: '"); unknown {
		letter, _, _ := strings.Cut(short, "'")
		_, given, _ := strings.Cut(short, " in ")
		return fmt.Sprintf("unknown flag: %s%s", given, suggestFlag(letter, flags))
	}
	return message
}

// otherNames lists the names that other programs give to a flag: transformers, TRL, peft, axolotl,
// LLaMA-Factory, torchtune, llama.cpp, vLLM, ollama and foundation-model-stack. If a command lacks
// the first of several flags, the next is suggested.
var otherNames = map[string][]string{
	"adapter":                     {"adapter_path"},
	"adapter_name_or_path":        {"adapter_path"},
	"alpha":                       {"lora_alpha"},
	"alpha_pattern":               {"lora_alpha_pattern"},
	"arch":                        {"architecture"},
	"b":                           {"batch_size"},
	"base_model":                  {"model_path"},
	"batch":                       {"batch_size"},
	"bs":                          {"batch_size"},
	"c":                           {"sequence_length"},
	"checkpoint":                  {"model_path"},
	"checkpoint_dir":              {"checkpoint_path"},
	"ckpt":                        {"model_path"},
	"compile_model":               {"compile"},
	"context_length":              {"sequence_length"},
	"cpo_alpha":                   {"sft_weight"},
	"ctx_size":                    {"sequence_length"},
	"cutoff_len":                  {"sequence_length"},
	"column_mapping":              {"columns"},
	"d":                           {"data_path"},
	"data":                        {"data_path"},
	"dataset":                     {"data_path"},
	"dataset_name":                {"data_path"},
	"dataset_path":                {"data_path"},
	"datasets":                    {"data_path"},
	"default_dtype":               {"dtype"},
	"device_type":                 {"device"},
	"dataset_prepared_path":       {"data_cache"},
	"dataset_text_field":          {"columns"},
	"do_sample":                   {"temperature"},
	"dora":                        {"lora_dora"},
	"dpo_beta":                    {"beta"},
	"dropout":                     {"lora_dropout"},
	"epoch":                       {"epochs"},
	"eval_data":                   {"validation_path"},
	"eval_dataset":                {"validation_path"},
	"eval_steps":                  {"validate_steps"},
	"exclude_modules":             {"lora_exclude"},
	"f":                           {"prompts_file", "text_file"},
	"file":                        {"prompts_file", "text_file"},
	"force":                       {"overwrite"},
	"gguf":                        {"format", "model_path"},
	"gpus":                        {"nproc"},
	"grad_accum":                  {"accumulate"},
	"grad_accum_steps":            {"accumulate"},
	"gradient_accumulation":       {"accumulate"},
	"gradient_accumulation_steps": {"accumulate"},
	"gradient_checkpointing":      {"recompute"},
	"i":                           {"prompt"},
	"init_lora_weights":           {"lora_init"},
	"input":                       {"prompt", "text"},
	"label_smoothing_factor":      {"label_smoothing"},
	"layers_to_transform":         {"lora_layers"},
	"logging_steps":               {"report_steps"},
	"interleave_probs":            {"data_weights"},
	"lora":                        {"lora_rank", "adapter_path"},
	"lora_r":                      {"lora_rank"},
	"lora_target":                 {"lora_targets"},
	"lora_target_modules":         {"lora_targets"},
	"loss_type":                   {"objective"},
	"lr":                          {"learning_rate"},
	"lr_scheduler":                {"schedule"},
	"lr_scheduler_type":           {"schedule"},
	"m":                           {"model_path"},
	"max_data_sequence_length":    {"sequence_length"},
	"max_grad_norm":               {"clip"},
	"max_len":                     {"sequence_length", "max_new_tokens"},
	"max_length":                  {"sequence_length", "max_new_tokens"},
	"max_model_len":               {"sequence_length", "max_new_tokens"},
	"max_seq_len":                 {"sequence_length", "max_new_tokens"},
	"max_seq_length":              {"sequence_length", "max_new_tokens"},
	"max_steps":                   {"steps"},
	"max_tokens":                  {"max_new_tokens"},
	"micro_batch_size":            {"batch_size"},
	"mixed_precision":             {"dtype"},
	"model":                       {"model_path"},
	"model_dir":                   {"model_path"},
	"model_id":                    {"model_path"},
	"model_name":                  {"model_path"},
	"model_name_or_path":          {"model_path"},
	"model_source":                {"checkpoint_format"},
	"n":                           {"max_new_tokens"},
	"n_predict":                   {"max_new_tokens"},
	"nproc_per_node":              {"nproc"},
	"num_ctx":                     {"sequence_length"},
	"num_epochs":                  {"epochs"},
	"num_predict":                 {"max_new_tokens"},
	"num_processes":               {"nproc"},
	"num_tokens":                  {"max_new_tokens"},
	"num_train_epochs":            {"epochs"},
	"o":                           {"output_path"},
	"optim":                       {"optimizer"},
	"out":                         {"output_path"},
	"outfile":                     {"output_path"},
	"output":                      {"output_path"},
	"output_dir":                  {"output_path"},
	"output_file":                 {"output_path"},
	"outtype":                     {"dtype"},
	"p":                           {"prompt"},
	"packing":                     {"pack"},
	"peft":                        {"lora_rank", "adapter_path"},
	"per_device_train_batch_size": {"batch_size"},
	"pissa":                       {"lora_init"},
	"precision":                   {"dtype"},
	"pref_beta":                   {"beta"},
	"pref_ftx":                    {"sft_weight"},
	"pref_loss":                   {"objective"},
	"prompt_file":                 {"prompts_file"},
	"prompts":                     {"prompts_file", "prompt"},
	"quantize":                    {"dtype"},
	"r":                           {"lora_rank"},
	"rank":                        {"lora_rank"},
	"rank_pattern":                {"lora_rank_pattern"},
	"repeat_penalty":              {"repetition_penalty"},
	"resume_from_checkpoint":      {"resume"},
	"rl":                          {"objective"},
	"rl_beta":                     {"beta"},
	"rpo_alpha":                   {"sft_weight"},
	"rslora":                      {"lora_rslora"},
	"s":                           {"seed"},
	"sample_packing":              {"pack"},
	"save_checkpoint_format":      {"save_format"},
	"save_steps":                  {"checkpoint_steps"},
	"save_total_limit":            {"keep"},
	"scheduler":                   {"schedule"},
	"seq_len":                     {"sequence_length"},
	"seq_length":                  {"sequence_length"},
	"seqlen":                      {"sequence_length"},
	"simpo_gamma":                 {"gamma"},
	"stop_sequences":              {"stop"},
	"strategy":                    {"distributed"},
	"system_message":              {"system"},
	"system_prompt":               {"system"},
	"t":                           {"threads", "temperature"},
	"target_modules":              {"lora_targets"},
	"temp":                        {"temperature"},
	"template":                    {"chat"},
	"tensor_parallel_size":        {"tp_size", "nproc"},
	"tokenizer_name":              {"tokenizer"},
	"tokenizer_path":              {"tokenizer"},
	"torch_dtype":                 {"dtype"},
	"total_batch_size":            {"accumulate"},
	"tp":                          {"tp_size", "nproc"},
	"train_data":                  {"data_path"},
	"train_file":                  {"data_path"},
	"use_dora":                    {"lora_dora"},
	"use_lora":                    {"lora_rank"},
	"use_rslora":                  {"lora_rslora"},
	"val_data":                    {"validation_path"},
	"val_set_size":                {"validation_fraction"},
	"validation_data":             {"validation_path"},
	"validation_file":             {"validation_path"},
	"validation_split":            {"validation_fraction"},
	"warmup":                      {"warmup_steps"},
	"wd":                          {"weight_decay"},
}

// unneeded are flags of other programs, mostly of foundation-model-stack's scripts, that stand for
// something which is done otherwise here, with what to do. An answer that names a flag is for the
// commands that have it; the first that fits is given.
var unneeded = map[string][]struct{ flag, answer string }{
	"attn_name": {{"", "leave it out: the device chooses the kernels of attention"}},
	"batch_input": {{"prompts_file", "give the prompts with --prompt or --prompts_file; " +
		"--batch_size of them are run together"}},
	"batch_size": {{"text", "leave it out: one text is measured at a time"}},
	"bf16":       {{"dtype", "write --dtype bfloat16"}},
	"check_correctness": {{"repeat", "leave it out: bench inference measures times, and " +
		"tests compare the outputs"}},
	"compile":           recorded[2:],
	"compile_backend":   recorded,
	"compile_mode":      recorded,
	"compile_optimizer": recorded,
	"compile_static":    recorded,
	"context_file":      {{"prompt", "write --prompt \"$(cat FILE)\""}},
	"dataset_style": {{"data_path", "leave it out: the layout of records is recognized; give " +
		"the files with --data_path"}},
	"deterministic": {{"seed", "leave it out: --seed fixes every random number; there is no " +
		"switch for deterministic GPU kernels, whose sums may differ in the last bits"},
		{"", "leave it out: this command draws no random numbers"}},
	"distributed": {{"nproc", "use --nproc N, or torchrun: the layers are divided over the " +
		"processes"}},
	"fp16": {{"dtype", "write --dtype float16"}},
	"fp32": {{"dtype", "write --dtype float32"}},
	"min_pad_length": {{"prompt", "leave it out: prompts are padded to the longest of their " +
		"batch"}},
	"no_use_cache": {{"use_cache", "write --use_cache=false"},
		{"skip_kvcache_runs", "write --skip_kvcache_runs"},
		{"", "leave it out: keys, values and states are always cached"}},
	"num_fewshot":  harness,
	"pad_token_id": {{"data_path", "leave it out: padding is neither attended to nor learned"}},
	"peft_method": {{"lora_rank", "use --lora_rank 8 to train a LoRA adapter; the settings of " +
		"foundation-model-stack are --lora_rank 8 --lora_alpha 32 --lora_dropout 0.05 " +
		"--lora_targets q_proj,k_proj"}},
	"run_validation": {{"ask", "use --ask QUESTION for an answer before and after training, " +
		"and --validation_path for the loss on other data"}},
	"skip_correctness_check": {{"repeat", "leave it out: bench inference measures only times"}},
	"skip_e2e_runs": {{"repeat", "leave it out: each run measures single tokens and whole " +
		"texts"}},
	"skip_single_token_runs": {{"repeat", "leave it out: each run measures single tokens and " +
		"whole texts"}},
	"tasks": harness,
	"training_type": {{"objective", "leave it out: only causal language models are trained; " +
		"--objective chooses the loss"}},
	"unfuse_weights": {{"", "leave it out: weights are fused in memory and never in files"}},
}

var recorded = []struct{ flag, answer string }{
	{"compile", "use --compile graph, which records steps as CUDA graphs; kernels are compiled " +
		"with the program"},
	{"skip_compile_runs", "leave it out: kernels are compiled with the program, and steps are " +
		"measured recorded as CUDA graphs unless --skip_compile_runs is given"},
	{"", "leave it out: kernels are compiled with the program"},
}

var harness = []struct{ flag, answer string }{
	{"", "use `conquer eval`, which measures tasks; `conquer score` measures the perplexity of a " +
		"text"},
}

// suggestFlag suggests a flag for an unknown one: the flag that has another name here, a flag with
// that prefix, or the closest name.
func suggestFlag(typo string, flags *pflag.FlagSet) string {
	for _, name := range otherNames[typo] {
		if flags.Lookup(name) != nil {
			return fmt.Sprintf(": use --%s", name)
		}
	}
	for _, u := range unneeded[typo] {
		if u.flag == "" || flags.Lookup(u.flag) != nil {
			return ": " + u.answer
		}
	}
	best, name := 3, ""
	flags.VisitAll(func(f *pflag.Flag) {
		d := distance(typo, f.Name)
		if strings.HasPrefix(f.Name, typo) {
			d = min(d, 2)
		}
		if d < best && d < len(typo) {
			best, name = d, f.Name
		}
	})
	if name == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean --%s?", name)
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := previous
			if a[i] != b[j] {
				cost++
			}
			previous = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
