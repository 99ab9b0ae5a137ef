package main

import (
	"github.com/spf13/pflag"

	"conquer/model"
	"conquer/serve"
	"conquer/train/plan"
)

// cacheFlags say how many requests a server decodes together, and what memory their caches take.
type cacheFlags struct {
	limits           serve.Limits
	memory, prefixes float64 // in gigabytes
}

// declare adds the flags. prefixes is the default of --prefix_memory.
func (f *cacheFlags) declare(flags *pflag.FlagSet, prefixes float64) {
	flags.IntVar(&f.limits.Sequences, "max_sequences", 0,
		"`number` of requests decoded together (default: 16 on the CPU, 64 on a GPU, fewer if "+
			"memory is short)")
	flags.IntVar(&f.limits.Length, "max_length", 0,
		"most `tokens` of a request, prompt and answer together (default: the model's context, "+
			"less if memory is short; in benchmarks what the requests need)")
	flags.IntVar(&f.limits.Piece, "prefill_chunk", 0,
		"`tokens` of prompts that are read between two decoding steps (default: 256 on the CPU, "+
			"1024 on a GPU); also the unit in which beginnings of prompts are kept")
	flags.Float64Var(&f.memory, "cache_memory", 0,
		"`gigabytes` for keys, values and states (default: half of the free memory, on a GPU "+
			"nine tenths)")
	flags.Float64Var(&f.prefixes, "prefix_memory", prefixes,
		"`gigabytes` of them that keep the beginnings of earlier prompts; 0: none; -1: a quarter")
}

// check returns an error for a limit that cannot be.
func (f *cacheFlags) check() error {
	for _, limit := range []struct {
		name  string
		value float64
	}{
		{"max_sequences", float64(f.limits.Sequences)}, {"max_length", float64(f.limits.Length)},
		{"prefill_chunk", float64(f.limits.Piece)}, {"cache_memory", f.memory},
	} {
		if !(limit.value >= 0) {
			return usagef("--%s is negative", limit.name)
		}
	}
	return nil
}

// fit completes the limits for a model and the free memory.
func (f *cacheFlags) fit(m model.Model) (serve.Limits, error) {
	limits := f.limits
	switch {
	case f.prefixes == 0:
		limits.Prefixes = -1
	case f.prefixes > 0:
		limits.Prefixes = int64(f.prefixes * 1e9)
	}
	return serve.Fit(m, f.bytes(m), limits)
}

// bytes returns the memory that the caches may take, 0 if that is not known.
func (f *cacheFlags) bytes(m model.Model) int64 {
	if f.memory > 0 {
		return int64(f.memory * 1e9)
	}
	if device := model.Device(m); device.IsCUDA() {
		return device.Info().Free / 10 * 9
	}
	host := plan.ReadHostMemory()
	free := host.Available
	if host.Limit >= 0 && (free < 0 || host.Limit < free) {
		free = host.Limit
	}
	return max(0, free) / 2
}
