package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"conquer/lora"
	"conquer/text/tokenizer"
)

// loraFlags are the flags that describe a LoRA adapter.
type loraFlags struct {
	lora.Config
	ranks, alphas, tokens []string
}

// declareSizes adds the flags that say how many weights an adapter has.
func (f *loraFlags) declareSizes(flags *pflag.FlagSet) {
	flags.IntVar(&f.Rank, "lora_rank", 0,
		"train a LoRA adapter of this `rank` instead of the weights")
	flags.StringSliceVar(&f.Targets, "lora_targets", []string{lora.AllLinear},
		"`layers` to adapt, such as q_proj,v_proj, or all-linear")
	flags.StringSliceVar(&f.Exclude, "lora_exclude", nil,
		"`layers` of --lora_targets to leave out, such as layers.0.self_attn.q_proj,down_proj")
	flags.IntSliceVar(&f.Layers, "lora_layers", nil,
		"`numbers` of the blocks to adapt, such as 14,15; the first is 0 (default: all)")
	flags.StringArrayVar(&f.ranks, "lora_rank_pattern", nil,
		"`layers=rank`: another rank for the layers whose names end like this, such as "+
			"down_proj=4; a regular expression, such as 'layers.[01]..*=4'; may be repeated, and "+
			"the first that matches counts")
	flags.BoolVar(&f.DoRA, "lora_dora", false,
		"DoRA: also train the length of each row of the adapted weights")
	flags.StringSliceVar(&f.Save, "lora_save", nil,
		"`layers` to train as a whole beside the adapter: embed_tokens, lm_head or both")
}

// declareScales adds the other flags.
func (f *loraFlags) declareScales(flags *pflag.FlagSet) {
	flags.Float64Var(&f.Alpha, "lora_alpha", 0,
		"LoRA alpha; the adapter is scaled by alpha divided by its rank (default: twice the rank)")
	flags.StringArrayVar(&f.alphas, "lora_alpha_pattern", nil,
		"`layers=alpha`: another alpha for some layers, in the form of --lora_rank_pattern")
	flags.BoolVar(&f.RSLoRA, "lora_rslora", false,
		"rsLoRA: scale the adapter by alpha divided by the square root of the rank")
	flags.StringVar(&f.Init, "lora_init", "default",
		"how the adapter begins: default, with random A and zero B; or pissa, with the largest "+
			"singular values of the weights, written as an adapter of twice the rank")
	flags.StringSliceVar(&f.tokens, "lora_tokens", nil,
		"`tokens` whose rows of the embedding and the head to train beside the adapter: ids, or "+
			"texts of single tokens")
	flags.Float64Var(&f.Dropout, "lora_dropout", 0, "`share` of an adapter's inputs to drop")
}

// read checks the flags and reads the patterns. It returns nil if no adapter is asked for.
func (f *loraFlags) read(flags *pflag.FlagSet) (*lora.Config, error) {
	if f.Rank == 0 {
		var given error
		flags.Visit(func(flag *pflag.Flag) {
			if strings.HasPrefix(flag.Name, "lora_") && flag.Name != "lora_rank" {
				given = usagef("--%s needs --lora_rank", flag.Name)
			}
		})
		return nil, given
	}
	if f.Init == "default" {
		f.Init = lora.InitDefault
	}
	var err error
	if f.RankPattern, err = readPatterns("lora_rank_pattern", f.ranks); err != nil {
		return nil, err
	}
	if f.AlphaPattern, err = readPatterns("lora_alpha_pattern", f.alphas); err != nil {
		return nil, err
	}
	if err := f.Config.Check(); err != nil {
		return nil, usageError{err}
	}
	return &f.Config, nil
}

// tokenIDs returns the ids of --lora_tokens.
func (f *loraFlags) tokenIDs(tok *tokenizer.Tokenizer) (ids []int, err error) {
	for _, token := range f.tokens {
		id, err := strconv.Atoi(token)
		if err != nil {
			number, ok := tok.ID(token)
			if !ok {
				return nil, usagef("--lora_tokens: %q is neither an id nor one token of the "+
					"tokenizer", token)
			}
			id = int(number)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// readPatterns reads the values layers=number of a flag.
func readPatterns(flag string, values []string) (list lora.Patterns, err error) {
	for _, value := range values {
		equals := strings.LastIndexByte(value, '=')
		if equals < 1 {
			return nil, usagef("--%s %q: expected layers=number, such as down_proj=4", flag, value)
		}
		number, err := strconv.ParseFloat(value[equals+1:], 64)
		if err != nil {
			return nil, usagef("--%s %q: %q is not a number", flag, value, value[equals+1:])
		}
		pattern, err := lora.NewPattern(value[:equals], number)
		if err != nil {
			return nil, usagef("--%s: %w", flag, err)
		}
		list = append(list, pattern)
	}
	return list, nil
}
