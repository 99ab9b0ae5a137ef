package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/model"
)

var benchGPTScoreCommand = command{
	name:    "bench gptscore",
	summary: "Score predictions against their references with a language model (GPTScore).",
	example: `conquer bench gptscore \
  --model_path smollm2-135m results/accuracy_default-optimized.tsv \
  results/accuracy_independent-optimized.tsv
# judged by single qualities
conquer bench gptscore --model_path smollm2-135m \
  --aspect none,semantics,fluency results/accuracy_*.tsv`,
	setup: setupBenchGPTScore,
}

func setupBenchGPTScore(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f benchFlags
	var m modelFlags
	m.declare(flags)
	aspects := flags.StringSlice("aspect", []string{"none", "semantics"},
		"`aspects` to judge by: none, semantics, informativeness, relevance, factuality, "+
			"coherence, fluency")
	f.declare(flags, bench.GPTScore)
	return func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			return usagef("name the predictions to score: the .tsv files of conquer bench " +
				"accuracy (id, prompt, reference, prediction)")
		}
		list, err := bench.ParseAspects(*aspects)
		if err != nil {
			return usagef("--aspect: %w", err)
		}
		for _, path := range args { // before a model is opened
			if _, err := bench.ReadPredictions(path); err != nil {
				return err
			}
		}
		o, err := m.open(ctx)
		if err != nil {
			return err
		}
		defer o.Close()
		results, err := f.begin(bench.GPTScore, model.Device(o.model), false)
		if err != nil {
			return err
		}
		rows := []bench.GPTScoreRow{}
		bar := newCounter(0, "scoring")
		err = bench.RunGPTScore(ctx, o.model, o.tokenizer, args, list,
			func(row bench.GPTScoreRow, total int) {
				rows = append(rows, row)
				bar.ChangeMax(total)
				bar.Add(1)
			})
		bar.Finish()
		results.Rows = rows
		return f.finish(results, len(rows), err, func(w io.Writer) { printGPTScore(w, rows) })
	}
}

// printGPTScore writes the means per file and aspect.
func printGPTScore(w io.Writer, rows []bench.GPTScoreRow) {
	type group struct{ source, aspect string }
	var order []group
	sums := map[group][5]float64{}
	for _, r := range rows {
		g := group{r.Source, r.Aspect}
		s, known := sums[g]
		if !known {
			order = append(order, g)
		}
		for i, v := range [5]float64{1, r.HypoGivenRef, r.RefGivenHypo, r.Average, r.HarmonicMean} {
			s[i] += v
		}
		sums[g] = s
	}
	fmt.Fprintln(w, "predictions\taspect\ttexts\thypo given ref\tref given "+
		"hypo\taverage\tharmonic mean\t")
	for _, g := range order {
		s := sums[g]
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.4f\t%.4f\t%.4f\t%.4f\t\n", g.source, g.aspect, s[0],
			s[1]/s[0], s[2]/s[0], s[3]/s[0], s[4]/s[0])
	}
}
