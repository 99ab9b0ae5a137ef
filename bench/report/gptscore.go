package report

import (
	"fmt"
	"strings"

	"conquer/bench"
)

// gptScore makes the section about the GPTScores of each strategy's predictions.
func gptScore(p *page, r *bench.Results, l *looks) section {
	rows := where(r.Rows.([]bench.GPTScoreRow), func(r bench.GPTScoreRow) bool {
		return finite(r.Average)
	})
	s := section{Intro: "The mean log-likelihood that a scoring model gives to the prediction " +
		"after the reference and to the reference after the prediction, averaged (Fu et al., " +
		"arXiv 2302.04166). It is negative. Nearer to zero means that the texts agree more."}
	if len(rows) == 0 {
		s.Missing = "gptscore.json has no rows."
		return s
	}
	aspects := distinct(rows, func(r bench.GPTScoreRow) string { return r.Aspect })
	for i, aspect := range aspects {
		title, suffix := "GPTScore of the predictions", ""
		if aspect != "none" && aspect != "" {
			title += ", aspect " + brief(aspect)
		}
		if i > 0 {
			suffix = fmt.Sprintf("-%d", i+1)
		}
		c := newChart(title, "", "mean log-likelihood (nats per token)")
		t, err := scoreBoxes(c, rows, aspect, l)
		if err != nil {
			s.Missing = err.Error()
			continue
		}
		s.Figures = append(s.Figures, figure{Name: "gptscore" + suffix, chart: c, Table: t,
			Alt: "Box plots of " + title + " by strategy. The table has the quartiles.",
			Caption: "Line: median. Box: quartiles. Whiskers: last text within 1.5 times the " +
				"height of the box. Rings: outliers. The last three columns are means."})
	}
	return s
}

// scoreBoxes draws a box for each strategy under one aspect and returns the table of the numbers.
func scoreBoxes(c *chart, rows []bench.GPTScoreRow, aspect string, l *looks) (table, error) {
	group := func(r bench.GPTScoreRow) string { // the file, if the strategy is not known
		if r.Strategy == "" {
			return r.Source
		}
		return r.Strategy
	}
	t := table{Columns: columns("strategy|", "texts", "lower quartile", "median", "upper quartile",
		"prediction given reference", "reference given prediction", "harmonic mean")}
	var labels []string
	var styles []look
	var samples [][]float64
	for _, name := range inOrder(distinct(rows, group)) {
		of := where(rows, func(r bench.GPTScoreRow) bool {
			return group(r) == name && r.Aspect == aspect
		})
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
		t.Rows = append(t.Rows, []string{name, fmt.Sprint(len(of)),
			fmt.Sprintf("%.4f", low), fmt.Sprintf("%.4f", median), fmt.Sprintf("%.4f", high),
			mean(func(r bench.GPTScoreRow) float64 { return r.HypoGivenRef }),
			mean(func(r bench.GPTScoreRow) float64 { return r.RefGivenHypo }),
			mean(func(r bench.GPTScoreRow) float64 { return r.HarmonicMean })})
		labels = append(labels, brief(strings.TrimSuffix(name, "-optimized")))
		styles, samples = append(styles, l.of(name)), append(samples, averages)
	}
	return t, c.boxes(labels, styles, samples)
}
