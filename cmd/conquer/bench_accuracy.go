package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/model"
)

var benchAccuracyCommand = command{
	name:    "bench accuracy",
	summary: "Answer prompts under each strategy and measure the perplexity of the references.",
	example: `conquer bench accuracy --model_path my-bamba --prompts examples/prompts/prompts.json
# how far the state must be carried
conquer bench accuracy --model_path my-bamba --prompts prompts.json \
  --chunking default-optimized,windowed:4-optimized,windowed:1-optimized,independent-optimized`,
	setup: setupBenchAccuracy,
}

// accuracyFlags are the flags of conquer bench accuracy.
type accuracyFlags struct {
	subjectFlags
	results benchFlags
}

func setupBenchAccuracy(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f accuracyFlags
	f.declare(flags, 0, true, "default-optimized", "windowed:1-optimized", "independent-optimized")
	f.results.declare(flags, bench.Accuracy)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q", args[0])
		}
		return f.run(ctx, flags.Changed("layers"))
	}
}

func (f *accuracyFlags) run(ctx context.Context, layersGiven bool) error {
	subject, err := f.open(ctx, layersGiven)
	if err != nil {
		return err
	}
	defer model.Free(subject.Model)
	results, err := f.results.begin(bench.Accuracy, model.Device(subject.Model), false)
	if err != nil {
		return err
	}
	results.Weights = f.weights()
	rows, err := collect("answering", func(add func(bench.AccuracyRow, int)) error {
		return bench.RunAccuracy(ctx, subject, add)
	})
	results.Rows = rows
	if failed := f.writePredictions(subject.Prompts, rows); failed != nil {
		return errors.Join(err, failed)
	}
	return f.results.finish(results, len(rows), err, func(w io.Writer) { printAccuracy(w, rows) })
}

// writePredictions writes a .tsv file of predictions for each strategy, which bench gptscore reads.
// It removes those of other strategies, because the results replace an earlier run's as a whole.
func (f *accuracyFlags) writePredictions(prompts []bench.Prompt, rows []bench.AccuracyRow) error {
	if len(rows) == 0 {
		return nil
	}
	predictions := map[string][]bench.Prediction{}
	for _, r := range rows {
		p := prompts[r.ID]
		predictions[r.Strategy] = append(predictions[r.Strategy], bench.Prediction{
			ID:         r.ID,
			Prompt:     p.Prompt,
			Reference:  p.Answer,
			Prediction: r.Prediction,
		})
	}
	if err := os.MkdirAll(f.results.output, 0o755); err != nil {
		return err
	}
	fresh := map[string]bool{}
	for strategy, list := range predictions {
		path := filepath.Join(f.results.output, bench.PredictionsName(strategy))
		if err := bench.WritePredictions(path, list); err != nil {
			return err
		}
		fresh[filepath.Base(path)] = true
	}
	names, err := inUse(f.results.output)
	if err != nil {
		return err
	}
	for _, name := range names {
		if match, _ := filepath.Match(bench.PredictionsName("*"), name); match && !fresh[name] {
			if err := os.Remove(filepath.Join(f.results.output, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// printAccuracy writes one line per strategy: the perplexity over all reference tokens.
func printAccuracy(w io.Writer, rows []bench.AccuracyRow) {
	fmt.Fprintln(w, "strategy\tchunk\tprompts\treference tokens\tperplexity\tnats per "+
		"token\tpredictions\t")
	for i := 0; i < len(rows); {
		first, sum, tokens := i, 0.0, 0
		for ; i < len(rows) && rows[i].Strategy == rows[first].Strategy; i++ {
			sum += rows[i].NLL * float64(rows[i].ReferenceTokens)
			tokens += rows[i].ReferenceTokens
		}
		mean := sum / float64(tokens)
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.4f\t%.5f\t%s\t\n", rows[first].Strategy,
			rows[first].ChunkSize, i-first, tokens, math.Exp(mean), mean,
			bench.PredictionsName(rows[first].Strategy))
	}
}
