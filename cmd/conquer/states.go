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

// setStates gives the state-space layers of a model the dtype of the flag.
func (f *modelFlags) setStates(m model.Model) error {
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
