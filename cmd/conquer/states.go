package main

import (
	"fmt"

	"github.com/spf13/pflag"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// declareStates adds the flag of commands that generate text or read it in pieces.
func (f *modelFlags) declareStates(flags *pflag.FlagSet) {
	flags.StringVar(&f.stateDType, "state_dtype", "",
		"`dtype` of the states that state-space layers keep of the text: float32, the default, or "+
			"bfloat16, whose states take half the memory and less time, and are less exact")
}

// declareCache adds the flag of commands that keep keys and values.
func (f *modelFlags) declareCache(flags *pflag.FlagSet) {
	flags.StringVar(&f.cacheDType, "cache_dtype", "",
		"`form` in which keys and values are kept: q8_0, 8 bits in blocks of 32 with a scale, on "+
			"the CPU (default: the dtype of the activations)")
}

// setStates gives the layers of a model the forms of keys, values and states that the flags name.
func (f *modelFlags) setStates(m model.Model) error {
	if f.cacheDType != "" && f.cacheDType != model.CacheQ8 {
		return usagef("--cache_dtype %q: expected q8_0", f.cacheDType)
	}
	if err := model.SetCache(m, f.cacheDType); err != nil {
		return fmt.Errorf("--cache_dtype: %w", err)
	}
	if f.stateDType == "" {
		return nil
	}
	dtype, err := torch.ParseDType(f.stateDType)
	if err != nil || dtype != torch.Float32 && dtype != torch.BFloat16 {
		return usagef("--state_dtype %q: expected float32 or bfloat16", f.stateDType)
	}
	chunked, ok := m.(statespace.Chunked)
	if !ok {
		return fmt.Errorf("--state_dtype: a model of the architecture %s has no state-space layers",
			m.Architecture())
	}
	chunking := chunked.Chunking()
	chunking.StateDType = dtype
	return chunked.SetChunking(chunking)
}
