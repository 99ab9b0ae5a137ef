package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/generate"
	"conquer/model"
	"conquer/serve"
	"conquer/text/tokenizer"
	"conquer/torch"
)

var benchServeCommand = command{
	name:    "bench serve",
	summary: "Time a server that gets many requests at once.",
	example: `conquer bench serve --model_path smollm2-135m --requests 16 --prompt_lengths 128 \
  --max_new_tokens 64
# random weights of a named size, on a GPU: 256 requests with prompts of 128 to 4,096 tokens
conquer bench serve --architecture llama --variant 3.2-1b --dtype bfloat16 \
  --max_sequences 256 --prefill_chunk 2048 --json`,
	setup: setupBenchServe,
}

// benchServeFlags are the flags of conquer bench serve.
type benchServeFlags struct {
	speedFlags
	bench.ServingOptions
	cacheFlags
}

func setupBenchServe(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f benchServeFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q", args[0])
		}
		if err := f.check(); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *benchServeFlags) declare(flags *pflag.FlagSet) {
	f.speedFlags.declare(flags)
	flags.IntVar(&f.Requests, "requests", 256, "`number` of requests, all at once")
	flags.IntSliceVar(&f.Lengths, "prompt_lengths", []int{128, 256, 512, 1024, 2048, 4096},
		"`tokens` of the prompts, about as many of each length")
	flags.IntVar(&f.NewTokens, "max_new_tokens", 128, "new `tokens` of each request")
	group(flags, "Requests")
	f.cacheFlags.declare(flags, 0)
	group(flags, "Limits")
}

func (f *benchServeFlags) check() error {
	if f.Requests < 1 || f.NewTokens < 1 || len(f.Lengths) == 0 || slices.Min(f.Lengths) < 1 {
		return usagef("--requests, --max_new_tokens and --prompt_lengths must be at least 1")
	}
	f.Seed = uint64(f.seed)
	if f.limits.Length == 0 {
		f.limits.Length = slices.Max(f.Lengths) + f.NewTokens
	}
	return f.cacheFlags.check()
}

func (f *benchServeFlags) run(ctx context.Context) error {
	m, tok, done, err := f.served(ctx)
	if err != nil {
		return err
	}
	defer done()
	f.Vocabulary = m.Head().Shape[0]
	return f.profiled(func() error { return f.measure(ctx, m, tok) })
}

// served opens the model, or makes one with random weights, whose token ids are words.
func (f *benchServeFlags) served(ctx context.Context) (model.Model, *tokenizer.Tokenizer, func(),
	error) {
	if f.path != "" {
		o, err := f.open(ctx)
		if err == nil && o.tokenizer == nil {
			o.Close()
			err = o.noTokenizer("a server needs one: give it with --tokenizer")
		}
		if err != nil {
			return nil, nil, nil, err
		}
		return o.model, o.tokenizer, o.Close, nil
	}
	m, done, err := f.model(ctx, f.limits.Length)
	if err != nil {
		return nil, nil, nil, err
	}
	tok, err := bench.Words(m.Head().Shape[0])
	if err != nil {
		model.Free(m)
		done()
		return nil, nil, nil, err
	}
	return m, tok, func() { model.Free(m); done() }, nil
}

// measure serves the model on a free port of this machine and asks it.
func (f *benchServeFlags) measure(ctx context.Context, m model.Model,
	tok *tokenizer.Tokenizer) error {
	limits, err := f.fit(m)
	if err != nil {
		return err
	}
	note("conquer bench serve: %s, prompts in pieces of %d tokens\n", limits, limits.Piece)
	s, err := serve.New(m, tok, serve.Options{Limits: limits, Queue: f.Requests,
		Defaults: generate.Options{Temperature: 0}})
	if err != nil {
		return err
	}
	defer s.Shutdown(ctx)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	h := &http.Server{Handler: s}
	defer h.Close()
	go h.Serve(listener)
	device := model.Device(m)
	f.Warmup = device.IsCUDA()
	if err := torch.Run(func() error { device.ResetPeak(); return nil }); err != nil {
		return err
	}
	row, err := bench.Serving(ctx, "http://"+listener.Addr().String(), f.ServingOptions)
	if err != nil {
		return err
	}
	_, row.PeakBytes = device.Memory()
	row.Weights, row.Device, row.DType = f.weights(), device.String(), model.DType(m).String()
	if f.json {
		return printJSON(os.Stdout, row)
	}
	printServing(os.Stdout, row)
	return nil
}

func printServing(w io.Writer, r bench.ServingRow) {
	fmt.Fprintf(w, "%d requests, %s + %s tokens, %s on %s, weights: %s\n", r.Requests,
		thousands(r.PromptTokens), thousands(r.NewTokens), r.DType, r.Device, r.Weights)
	fmt.Fprintf(w, "  new tokens   %10.1f tok/s, %.1f with prompts, %.2f s in all\n", r.TokensPerS,
		r.AllTokensPerS, r.Seconds)
	fmt.Fprintf(w, "  first token  %10.1f ms median, %.1f ms at 99 %%\n", r.FirstTokenMS.P50,
		r.FirstTokenMS.P99)
	fmt.Fprintf(w, "  each further %10.2f ms median, %.2f ms at 99 %%\n", r.BetweenTokensMS.P50,
		r.BetweenTokensMS.P99)
	fmt.Fprintf(w, "  steps        %10d of %.2f ms\n", r.Steps, r.StepMS)
	fmt.Fprintf(w, "  peak memory  %10s\n", formatBytes(r.PeakBytes))
}
