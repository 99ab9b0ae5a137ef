package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/model"
	"conquer/text/dataset"
)

var benchGPTScoreCommand = command{
	name:    "bench gptscore",
	summary: "Score predictions against their references with a language model (GPTScore).",
	example: `conquer bench gptscore --model_path smollm2-135m \
  results/accuracy_default-optimized.tsv results/accuracy_independent-optimized.tsv
# scores by aspect
conquer bench gptscore --model_path smollm2-135m --aspect none,semantics,fluency \
  results/accuracy_*.tsv`,
	files: true,
	setup: setupBenchGPTScore,
}

// gptScoreFlags are the flags of conquer bench gptscore.
type gptScoreFlags struct {
	modelFlags
	results benchFlags
	aspects []string
}

func setupBenchGPTScore(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f gptScoreFlags
	f.declare(flags)
	return f.run
}

func (f *gptScoreFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	group(flags, "Model")
	flags.StringSliceVar(&f.aspects, "aspect", []string{"none", "semantics"},
		"`aspects` to judge by: none, semantics, informativeness, relevance, factuality, "+
			"coherence, fluency")
	group(flags, "Judgement")
	f.results.declare(flags, bench.GPTScore)
}

// run scores the predictions in the files. It checks the files before it opens the model.
func (f *gptScoreFlags) run(ctx context.Context, files []string) error {
	if len(files) == 0 {
		return usagef("name the predictions to score: the .tsv files of conquer bench " +
			"accuracy (id, prompt, reference, prediction)")
	}
	aspects, err := bench.ParseAspects(f.aspects)
	if err != nil {
		return usagef("--aspect: %w", err)
	}
	for _, path := range files {
		if path == dataset.Stdin { // can be read once
			continue
		}
		if _, err := bench.ReadPredictions(path); err != nil {
			return err
		}
	}
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	results, err := f.results.begin(bench.GPTScore, model.Device(o.model), false)
	if err != nil {
		return err
	}
	results.Weights = f.path
	rows, err := collect("scoring", func(add func(bench.GPTScoreRow, int)) error {
		return bench.RunGPTScore(ctx, o.model, o.tokenizer, files, aspects, add)
	})
	results.Rows = rows
	return f.results.finish(results, len(rows), err, func(w io.Writer) { printGPTScore(w, rows) })
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
