package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"conquer/generate"
)

// samplingFlags are the flags of the commands that sample.
type samplingFlags struct {
	options       generate.Options
	seed          int64
	biases        []string
	compile       string
	reasonPrinted bool     // the reason for unfused steps was printed
	ignored       []string // fields of generation_config.json that are not supported
}

func (f *samplingFlags) declare(flags *pflag.FlagSet, maxNewTokens int, temperature, topP float64) {
	o := &f.options
	flags.IntVar(&o.MaxNewTokens, "max_new_tokens", maxNewTokens, "maximum number of new `tokens`")
	flags.Float64Var(&o.Temperature, "temperature", temperature, "sampling temperature; 0: greedy")
	flags.IntVar(&o.TopK, "top_k", 0, "sample from the `k` most likely tokens; 0 or -1: from all")
	flags.Float64Var(&o.TopP, "top_p", topP,
		"sample from the most likely tokens with this total `probability`")
	flags.Float64Var(&o.MinP, "min_p", 0,
		"drop tokens less likely than this `fraction` of the most likely one")
	flags.Float64Var(&o.RepetitionPenalty, "repetition_penalty", 1,
		"divide the logits of tokens that have occurred by this `factor`")
	flags.Float64Var(&o.PresencePenalty, "presence_penalty", 0,
		"subtract this `number` from the logits of tokens that the new text holds")
	flags.Float64Var(&o.FrequencyPenalty, "frequency_penalty", 0,
		"subtract this `number` from a token's logit each time the new text holds it")
	flags.StringArrayVar(&f.biases, "logit_bias", nil,
		"add a number to the logit of a token, as `id=number`; may be repeated")
	flags.Int64Var(&f.seed, "seed", -1, "`seed` of sampling; -1: a new one each time")
	flags.StringArrayVar(&o.Stop, "stop", nil, "stop before this `text`; may be repeated")
	flags.BoolVar(&o.IgnoreEOS, "ignore_eos", false, "continue after an end-of-sequence token")
}

func (f *samplingFlags) declareCompile(flags *pflag.FlagSet) {
	flags.StringVar(&f.compile, "compile", "",
		"graph: record a decoding step as a CUDA graph and replay it; none: launch operations one "+
			"by one (default: graph on a GPU)")
}

// read checks the flags and draws a seed if none was given.
func (f *samplingFlags) read() error {
	o := f.options
	for _, c := range []struct {
		wrong bool
		flag  string
		value any
		want  string
	}{
		{o.MaxNewTokens < 1, "max_new_tokens", o.MaxNewTokens, "1 or more"},
		{!(o.Temperature >= 0) || math.IsInf(o.Temperature, 0), "temperature", o.Temperature,
			"0 or more"},
		{o.TopK < -1, "top_k", o.TopK, "0 or more, or -1 for all tokens"},
		{!(o.TopP > 0 && o.TopP <= 1), "top_p", o.TopP, "more than 0, at most 1"},
		{!(o.MinP >= 0 && o.MinP <= 1), "min_p", o.MinP, "from 0 to 1"},
		{!(o.RepetitionPenalty > 0) || math.IsInf(o.RepetitionPenalty, 0), "repetition_penalty",
			o.RepetitionPenalty, "more than 0"},
		{!(math.Abs(o.PresencePenalty) <= math.MaxFloat32), "presence_penalty", o.PresencePenalty,
			"a number"},
		{!(math.Abs(o.FrequencyPenalty) <= math.MaxFloat32), "frequency_penalty",
			o.FrequencyPenalty, "a number"},
		{slices.Contains(o.Stop, ""), "stop", "empty", "a text"},
	} {
		if c.wrong {
			return usagef("--%s is %v, expected %s", c.flag, c.value, c.want)
		}
	}
	f.options.TopK = max(f.options.TopK, 0)
	if err := f.readBiases(); err != nil {
		return err
	}
	compile, err := generate.ParseCompile(f.compile)
	if err != nil {
		return usagef("--compile: %w", err)
	}
	f.options.Compile = compile
	if f.seed < 0 {
		f.seed = rand.Int64N(1 << 31)
	}
	f.options.Seed = uint64(f.seed)
	return nil
}

// readBiases reads --logit_bias.
func (f *samplingFlags) readBiases() error {
	for _, text := range f.biases {
		name, number, _ := strings.Cut(text, "=")
		id, err := strconv.ParseInt(name, 10, 32)
		bias, wrong := strconv.ParseFloat(number, 64)
		if err != nil || wrong != nil || !(math.Abs(bias) <= math.MaxFloat32) {
			return usagef("--logit_bias is %q, expected a token id and a number, such as 42=-100",
				text)
		}
		if f.options.LogitBias == nil {
			f.options.LogitBias = map[int32]float64{}
		}
		f.options.LogitBias[int32(id)] = bias
	}
	return nil
}

// printUnfusedReason prints once why decoding steps did not use the fused kernel.
func (f *samplingFlags) printUnfusedReason(command string, s generate.Stats) {
	if s.UnfusedReason != "" && !f.reasonPrinted {
		f.reasonPrinted = true
		note("conquer %s: decoding was slower, without the fused kernel: %s\n",
			command, s.UnfusedReason)
	}
}

// configure adds the settings of the model's generation_config.json. A flag takes precedence. chat
// samples unless the file turns sampling off, generate samples only with --temperature.
func (f *samplingFlags) configure(o *opened, flags *pflag.FlagSet, command string) error {
	s, err := generate.ReadSettings(o.checkpoint.GenerationConfig())
	if err != nil {
		return fmt.Errorf("%s: %w", o.path, err)
	}
	if command == "chat" && !flags.Changed("temperature") && s.DoSample != nil && !*s.DoSample {
		f.options.Temperature = 0
	}
	f.ignored = s.Unsupported
	if f.options.Temperature > 0 {
		s.Sample(&f.options, flags.Changed)
		f.ignored = append(f.ignored, s.UnsupportedSampling...)
	}
	if o.tokenizer == nil && s.Stop != nil { // the text is not known
		s.Stop = nil
		f.ignored = append(f.ignored, "stop_strings")
	}
	s.Constrain(&f.options, generate.EOS(o.model, o.tokenizer), flags.Changed)
	return nil
}

// printIgnored names the fields of generation_config.json that are not supported.
func (f *samplingFlags) printIgnored(command string) {
	if len(f.ignored) > 0 {
		note("conquer %s: not supported in generation_config.json, and ignored: "+
			"%s\n", command, strings.Join(f.ignored, ", "))
	}
}
