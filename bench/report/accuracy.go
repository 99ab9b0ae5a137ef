package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot/plotter"

	"conquer/bench"
	"conquer/text/dataset"
)

// accuracy shows what each way of chunking costs in perplexity.
func accuracy(p *page, r *bench.Results, l *looks) section {
	rows := where(r.Rows.([]bench.AccuracyRow), func(r bench.AccuracyRow) bool { return finite(r.NLL) && r.ReferenceTokens > 0 })
	s := section{Intro: "How well the references are predicted after their prompts, under each strategy. 1 would be perfect; the lower the better. " +
		"Differences are between the same references, so that they tell more than the perplexities' own spread would suggest."}
	if len(rows) == 0 {
		s.Missing = "accuracy.json has no rows with a reference."
		return s
	}
	type way struct {
		strategy string
		chunk    int
	}
	byWay := map[way][]bench.AccuracyRow{}
	for _, row := range rows {
		w := way{row.Strategy, row.ChunkSize}
		byWay[w] = append(byWay[w], row)
	}
	sizes := distinct(rows, func(r bench.AccuracyRow) int { return r.ChunkSize })
	slices.Sort(sizes)
	strategies := inOrder(distinct(rows, func(r bench.AccuracyRow) string { return r.Strategy }))
	best := strategies[len(strategies)-1]
	for _, name := range strategies {
		if strings.TrimSuffix(name, "-optimized") == "default" {
			best = name
		}
	}

	var names []string
	var values [][]bar
	t := table{Columns: columns("strategy|", "chunk (tokens)", "prompts", "tokens", "nats a token", "perplexity", "more than "+best+" (nats)", "standard error")}
	perplexities := map[way]float64{}
	for _, size := range sizes {
		base := map[int]float64{} // nats by prompt
		for _, row := range byWay[way{best, size}] {
			base[row.ID] = row.NLL
		}
		for _, name := range strategies {
			w := way{name, size}
			if len(byWay[w]) == 0 {
				continue
			}
			nats, tokens := 0.0, 0
			var differences []float64
			for _, row := range byWay[w] {
				nats += row.NLL * float64(row.ReferenceTokens)
				tokens += row.ReferenceTokens
				if b, ok := base[row.ID]; ok {
					differences = append(differences, row.NLL-b)
				}
			}
			nats /= float64(tokens)
			perplexities[w] = math.Exp(nats)
			more, spread := "–", "–"
			if name != best && len(differences) > 1 {
				mean, deviation := meanAndDeviation(differences)
				more, spread = fmt.Sprintf("%+.4f", mean), fmt.Sprintf("%.4f", deviation/math.Sqrt(float64(len(differences))))
			}
			t.Rows = append(t.Rows, []string{name, count(float64(size)), fmt.Sprint(len(byWay[w])), count(float64(tokens)),
				fmt.Sprintf("%.4f", nats), fmt.Sprintf("%.3f", math.Exp(nats)), more, spread})
			label := brief(strings.TrimSuffix(name, "-optimized"))
			if len(sizes) > 1 {
				label += fmt.Sprintf("\nchunk %d", size)
			}
			names = append(names, label)
			values = append(values, []bar{{math.Exp(nats), l.of(name).solid(), fmt.Sprintf("%.2f", math.Exp(nats))}})
		}
	}
	c := newChart("Perplexity of the references", "", "perplexity of a token")
	if err := c.bars(names, nil, values); err != nil {
		s.Missing = err.Error()
		return s
	}
	c.zeroY()
	s.Figures = append(s.Figures, figure{Name: "perplexity", chart: c, Table: t,
		Alt:     "Bars of perplexity by strategy: " + describe(names, values),
		Caption: fmt.Sprintf("Perplexity over %s.", dataset.Count(len(distinct(rows, func(r bench.AccuracyRow) int { return r.ID })), "prompt"))})

	// In a sentence, for the smallest chunks: there the strategies differ most.
	size := sizes[0]
	var parts []string
	whole := perplexities[way{best, size}]
	for _, name := range strategies {
		if got := perplexities[way{name, size}]; name != best && got > 0 {
			parts = append(parts, fmt.Sprintf("%s %.2f (%+.1f %%)", name, got, 100*(got/whole-1)))
		}
	}
	if whole > 0 && len(parts) > 0 {
		p.Findings = append(p.Findings, fmt.Sprintf("Perplexity with chunks of %d tokens: %.2f under %s; %s.", size, whole, best, strings.Join(parts, ", ")))
	}
	return s
}

// gptScore shows how a scorer judges the predictions made under each strategy.
func gptScore(p *page, r *bench.Results, l *looks) section {
	rows := where(r.Rows.([]bench.GPTScoreRow), func(r bench.GPTScoreRow) bool { return finite(r.Average) })
	s := section{Intro: "A scoring model's mean log-likelihood of the prediction given the reference and of the reference given the prediction, averaged " +
		"(Fu et al., arXiv 2302.04166). Below zero; the nearer to it, the more the two say the same."}
	if len(rows) == 0 {
		s.Missing = "gptscore.json has no rows."
		return s
	}
	group := func(r bench.GPTScoreRow) string { // where the strategy is not known the file's name must do
		if r.Strategy == "" {
			return r.Source
		}
		return r.Strategy
	}
	names := inOrder(distinct(rows, group))
	for i, aspect := range distinct(rows, func(r bench.GPTScoreRow) string { return r.Aspect }) {
		t := table{Columns: columns("strategy|", "texts", "lower quartile", "median", "upper quartile", "prediction given reference", "reference given prediction", "harmonic mean")}
		var labels []string
		var styles []look
		var samples [][]float64
		for _, name := range names {
			of := where(rows, func(r bench.GPTScoreRow) bool { return group(r) == name && r.Aspect == aspect })
			if len(of) == 0 {
				continue
			}
			column := func(value func(bench.GPTScoreRow) float64) []float64 {
				list := make([]float64, len(of))
				for i, row := range of {
					list[i] = value(row)
				}
				return list
			}
			averages := column(func(r bench.GPTScoreRow) float64 { return r.Average })
			mean := func(value func(bench.GPTScoreRow) float64) string {
				m, _ := meanAndDeviation(column(value))
				return fmt.Sprintf("%.4f", m)
			}
			low, median, high := quartiles(averages)
			t.Rows = append(t.Rows, []string{name, fmt.Sprint(len(of)), fmt.Sprintf("%.4f", low), fmt.Sprintf("%.4f", median), fmt.Sprintf("%.4f", high),
				mean(func(r bench.GPTScoreRow) float64 { return r.HypoGivenRef }), mean(func(r bench.GPTScoreRow) float64 { return r.RefGivenHypo }),
				mean(func(r bench.GPTScoreRow) float64 { return r.HarmonicMean })})
			labels, styles, samples = append(labels, brief(strings.TrimSuffix(name, "-optimized"))), append(styles, l.of(name)), append(samples, averages)
		}
		title, suffix := "GPTScore of the predictions", ""
		if aspect != "none" && aspect != "" {
			title += ", aspect " + brief(aspect)
		}
		if i > 0 {
			suffix = fmt.Sprintf("-%d", i+1)
		}
		c := newChart(title, "", "mean log-likelihood (nats a token)")
		if err := c.boxes(labels, styles, samples); err != nil {
			s.Missing = err.Error()
			continue
		}
		s.Figures = append(s.Figures, figure{Name: "gptscore" + suffix, chart: c, Table: t,
			Alt: "Box plots of " + title + " by strategy; the table has the quartiles.",
			Caption: "The line in a box is the median, the box reaches from quartile to quartile, whiskers to the last text within 1.5 boxes; rings " +
				"are texts beyond. The table's last three columns are means."})
	}
	return s
}

// describe reads a chart's bars out.
func describe(names []string, values [][]bar) string {
	var parts []string
	for i, name := range names {
		if len(values[i]) > 0 {
			parts = append(parts, strings.ReplaceAll(name, "\n", ", ")+" "+values[i][0].label)
		}
	}
	return strings.Join(parts, "; ") + "."
}

func meanAndDeviation(list []float64) (mean, deviation float64) {
	for _, x := range list {
		mean += x / float64(len(list))
	}
	for _, x := range list {
		deviation += (x - mean) * (x - mean)
	}
	return mean, math.Sqrt(deviation / math.Max(1, float64(len(list)-1)))
}

// quartiles are those that the box plots show.
func quartiles(list []float64) (low, median, high float64) {
	b, err := plotter.NewBoxPlot(1, 0, plotter.Values(list))
	if err != nil {
		return math.NaN(), math.NaN(), math.NaN()
	}
	return b.Quartile1, b.Median, b.Quartile3
}
