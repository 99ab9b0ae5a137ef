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
	example: `conquer bench accuracy --model_path my-bamba \
  --prompts examples/prompts/prompts.json
# how far the state must be carried
conquer bench accuracy --model_path my-bamba --prompts prompts.json \
  --chunking default-optimized,windowed:4-optimized,windowed:1-optimized,independent-optimized`,
	setup: setupBenchAccuracy,
}

func setupBenchAccuracy(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f benchFlags
	var s subjectFlags
	s.declare(flags, 0, true, "default-optimized", "windowed:1-optimized", "independent-optimized")
	f.declare(flags, bench.Accuracy)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q", args[0])
		}
		subject, err := s.open(ctx, flags.Changed("layers"))
		if err != nil {
			return err
		}
		defer model.Free(subject.Model)
		results, err := f.begin(bench.Accuracy, model.Device(subject.Model), false)
		if err != nil {
			return err
		}
		rows := []bench.AccuracyRow{}
		bar := newCounter(0, "answering")
		err = bench.RunAccuracy(ctx, subject, func(row bench.AccuracyRow, total int) {
			rows = append(rows, row)
			bar.ChangeMax(total)
			bar.Add(1)
		})
		bar.Finish()
		results.Rows = rows
		predictions := map[string][]bench.Prediction{}
		for _, r := range rows {
			p := subject.Prompts[r.ID]
			predictions[r.Strategy] = append(predictions[r.Strategy], bench.Prediction{
				ID:         r.ID,
				Prompt:     p.Prompt,
				Reference:  p.Answer,
				Prediction: r.Prediction,
			})
		}
		if len(rows) > 0 {
			if failed := os.MkdirAll(f.output, 0o755); failed != nil {
				return errors.Join(err, failed)
			}
		}
		for strategy, list := range predictions {
			if failed := bench.WritePredictions(filepath.Join(f.output,
				bench.PredictionsName(strategy)), list); failed != nil {
				return errors.Join(err, failed)
			}
		}
		return f.finish(results, len(rows), err, func(w io.Writer) { printAccuracy(w, rows) })
	}
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
