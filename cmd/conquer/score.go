package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"

	"conquer/generate"
	"conquer/text/dataset"
	"conquer/torch/dist"
)

var scoreCommand = command{
	name:    "score",
	summary: "Measure how well a model predicts a text: log-likelihood and perplexity.",
	example: `conquer score --model_path smollm2-135m --text "The sky is blue."
# every token's negative log-likelihood as JSON
conquer score --model_path my-model --text_file book.txt --json
# a long text: windows of 1,024 tokens, each predicted after at least 512
conquer score --model_path my-model --text_file book.txt --window 1024 --stride 512
# a model too large for one GPU: two GPUs hold half of every layer each
conquer score --nproc 2 --model_path llama-3.1-8b --text_file book.txt`,
	config: true,
	setup:  setupScore,
}

// scoreOutput is the JSON result. Tokens counts predicted tokens: all but the first.
type scoreOutput struct {
	Tokens     int       `json:"tokens"`
	NLL        float64   `json:"nll"`
	Perplexity float64   `json:"perplexity"`
	TokenNLL   []float64 `json:"token_nll"`
	Window     int       `json:"window"`
	Stride     int       `json:"stride"`
}

// scoreFlags are the flags of conquer score.
type scoreFlags struct {
	modelFlags
	processFlags
	file, text, idList string
	windows            generate.Windows
	json               bool
}

func setupScore(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f scoreFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		ids, err := f.check(ctx, flags, args)
		if err != nil {
			return err
		}
		return f.start(ctx, ids)
	}
}

func (f *scoreFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	f.declareAdapter(flags)
	f.declareCache(flags)
	f.declareExpected(flags)
	group(flags, "Model")
	flags.StringVar(&f.file, "text_file", "", "text `file` to score, or - for standard input")
	flags.StringVar(&f.text, "text", "", "the `text` to score")
	flags.StringVar(&f.idList, "token_ids", "",
		"token `ids` to score, such as 1,2,3; no tokenizer is needed")
	group(flags, "Text")
	flags.IntVar(&f.windows.Size, "window", 0,
		"`tokens` that the model reads at once (default: its context)")
	flags.IntVar(&f.windows.Stride, "stride", 0,
		"`tokens` from the start of a window to the start of the next; after the first window "+
			"each token is predicted after at least window-stride tokens (default: window-1)")
	group(flags, "Long texts")
	f.declareProcesses(flags)
	group(flags, "Several processes")
	flags.BoolVar(&f.json, "json", false,
		"print a JSON object with tokens, nll (the mean, in nats), perplexity, token_nll, window "+
			"and stride")
	group(flags, "Output")
}

// check reads the text, or returns the ids of --token_ids.
func (f *scoreFlags) check(ctx context.Context, flags *pflag.FlagSet, args []string) (ids []int32,
	err error) {
	if len(args) > 0 {
		return nil, usagef("unexpected %q: a text is given with --text or --text_file", args[0])
	}
	sources := 0
	for _, name := range []string{"text_file", "text", "token_ids"} {
		if flags.Changed(name) {
			sources++
		}
	}
	if sources != 1 {
		return nil, usagef("give one of --text_file, --text and --token_ids")
	}
	if flags.Changed("token_ids") {
		lists, err := parseIDs([]string{f.idList})
		if err != nil {
			return nil, err
		}
		ids = lists[0]
	}
	if err := checkStdin("text_file", f.file, f.processes); err != nil {
		return nil, err
	}
	if flags.Changed("text_file") {
		data, err := readInput(ctx, f.file)
		if err != nil {
			return nil, fmt.Errorf("--text_file: %w", err)
		}
		f.text = string(data)
	}
	if w := f.windows; flags.Changed("window") && w.Size < 2 ||
		flags.Changed("stride") && w.Stride < 1 {
		return nil, usagef("--window %d, --stride %d: expected a window of at least 2 tokens and "+
			"a stride of at least 1", w.Size, w.Stride)
	}
	return ids, f.checkProcesses()
}

// start scores in this process, or starts the processes of --nproc.
func (f *scoreFlags) start(ctx context.Context, ids []int32) error {
	place, err := dist.FromEnvironment()
	switch {
	case err != nil:
		return err
	case place.Size == 1 && f.processes > 1:
		return f.launch(ctx, 0)
	case place.Size > 1:
		if f.world, err = f.join(place, &f.modelFlags); err != nil {
			return err
		}
		defer f.world.Leave()
	}
	return f.run(ctx, ids)
}

func (f *scoreFlags) run(ctx context.Context, ids []int32) error {
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	if ids == nil {
		if o.tokenizer == nil {
			return o.noTokenizer("give one with --tokenizer, or the text as --token_ids")
		}
		ids = o.tokenizer.Encode(f.text, true)
	}
	began := time.Now()
	windows, err := f.windows.For(o.model)
	if err != nil {
		return usageError{err}
	}
	s, err := generate.ScoreWindows(ctx, o.model, ids, windows)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(stdout, scoreOutput{
			Tokens:     len(s.TokenNLL),
			NLL:        s.NLL,
			Perplexity: s.Perplexity,
			TokenNLL:   s.TokenNLL,
			Window:     windows.Size,
			Stride:     windows.Stride,
		})
	}
	if _, err := fmt.Fprintf(stdout, "perplexity %.4f, %.5f nats per token over %s\n", s.Perplexity,
		s.NLL, dataset.Count(len(s.TokenNLL), "predicted token")); err != nil {
		return err
	}
	if isTerminal(os.Stderr) {
		note("(%.0f tok/s)\n", float64(len(ids))/time.Since(began).Seconds())
	}
	return nil
}
