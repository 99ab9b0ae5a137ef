package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"conquer/bench"
	"conquer/text/dataset"
)

// way is a strategy with a chunk size.
type way struct {
	strategy string
	chunk    int
}

// perplexities holds the rows of an accuracy benchmark by way.
type perplexities struct {
	rows       map[way][]bench.AccuracyRow
	strategies []string
	sizes      []int
	base       string // strategy that the others are compared with
}

func newPerplexities(rows []bench.AccuracyRow) *perplexities {
	p := &perplexities{
		rows:       map[way][]bench.AccuracyRow{},
		strategies: inOrder(distinct(rows, func(r bench.AccuracyRow) string { return r.Strategy })),
		sizes:      distinct(rows, func(r bench.AccuracyRow) int { return r.ChunkSize }),
	}
	slices.Sort(p.sizes)
	for _, row := range rows {
		w := way{row.Strategy, row.ChunkSize}
		p.rows[w] = append(p.rows[w], row)
	}
	p.base = p.strategies[len(p.strategies)-1]
	for _, name := range p.strategies {
		if strings.TrimSuffix(name, "-optimized") == "default" {
			p.base = name
		}
	}
	return p
}

// nats returns the nats per token of a way and its number of tokens, which is 0 without rows.
func (p *perplexities) nats(w way) (mean float64, tokens int) {
	for _, row := range p.rows[w] {
		mean += row.NLL * float64(row.ReferenceTokens)
		tokens += row.ReferenceTokens
	}
	return mean / float64(tokens), tokens
}

// differences returns, for each prompt, the nats per token of a way minus those of the base.
func (p *perplexities) differences(w way) (list []float64) {
	base := map[int]float64{} // by prompt
	for _, row := range p.rows[way{p.base, w.chunk}] {
		base[row.ID] = row.NLL
	}
	for _, row := range p.rows[w] {
		if b, ok := base[row.ID]; ok {
			list = append(list, row.NLL-b)
		}
	}
	return list
}

// resamples is the number of bootstrap samples of an interval.
const resamples = 2000

// interval describes the 95 % interval of a way's perplexity relative to that of the base, in
// percent: the percentile bootstrap over prompts, in which both sides keep the same prompts (Efron
// and Tibshirani, An Introduction to the Bootstrap, 1993). A single prompt has no
// interval.
func (p *perplexities) interval(w way) string {
	base := map[int]bench.AccuracyRow{}
	for _, row := range p.rows[way{p.base, w.chunk}] {
		base[row.ID] = row
	}
	var pairs [][2]bench.AccuracyRow
	for _, row := range p.rows[w] {
		if b, ok := base[row.ID]; ok {
			pairs = append(pairs, [2]bench.AccuracyRow{row, b})
		}
	}
	if len(pairs) < 2 {
		return ", one prompt"
	}
	random := rand.New(rand.NewPCG(1, 1))
	ratios := make([]float64, resamples)
	for i := range ratios {
		sum, tokens := 0.0, 0.0
		for range pairs {
			pair := pairs[random.IntN(len(pairs))]
			n := float64(pair[1].ReferenceTokens)
			sum, tokens = sum+n*(pair[0].NLL-pair[1].NLL), tokens+n
		}
		ratios[i] = 100 * (math.Exp(sum/tokens) - 1)
	}
	slices.Sort(ratios)
	low, high := ratios[resamples/40], ratios[resamples-1-resamples/40]
	text := fmt.Sprintf(", 95 %% interval %+.1f to %+.1f %%", low, high)
	if low <= 0 && high >= 0 {
		text += ", which may be noise"
	}
	return text
}

// accuracy makes the section about the perplexity of each strategy.
func accuracy(p *page, r *bench.Results, l *looks) section {
	rows := where(r.Rows.([]bench.AccuracyRow), func(r bench.AccuracyRow) bool {
		return finite(r.NLL) && r.ReferenceTokens > 0
	})
	s := section{Intro: "How well the model predicts the references after their prompts with " +
		"each strategy. Lower is better, 1 is perfect. Differences are means over references. " +
		"The standard error is that of this mean." +
		randomNote(r, "the perplexities say nothing about a trained model.")}
	if len(rows) == 0 {
		s.Missing = "accuracy.json has no rows with a reference."
		return s
	}
	all := newPerplexities(rows)
	var names []string
	var values [][]bar
	t := table{Columns: columns("strategy|", "chunk (tokens)", "prompts", "tokens",
		"nats per token",
		"perplexity", "difference to "+all.base+" (nats)", "standard error")}
	for _, size := range all.sizes {
		for _, name := range all.strategies {
			w := way{name, size}
			nats, tokens := all.nats(w)
			if tokens == 0 {
				continue
			}
			more, spread := "–", "–"
			if d := all.differences(w); name != all.base && len(d) > 1 {
				mean, deviation := meanAndDeviation(d)
				more = fmt.Sprintf("%+.4f", mean)
				spread = fmt.Sprintf("%.4f", deviation/math.Sqrt(float64(len(d))))
			}
			t.Rows = append(t.Rows, []string{name, count(float64(size)),
				fmt.Sprint(len(all.rows[w])),
				count(float64(tokens)), fmt.Sprintf("%.4f", nats),
				fmt.Sprintf("%.3f", math.Exp(nats)),
				more, spread})
			label := brief(strings.TrimSuffix(name, "-optimized"))
			if len(all.sizes) > 1 {
				label += fmt.Sprintf("\nchunk %d", size)
			}
			names = append(names, label)
			values = append(values, []bar{
				{math.Exp(nats), l.of(name).solid(), fmt.Sprintf("%.2f", math.Exp(nats))},
			})
		}
	}
	c := newChart("Perplexity of the references", "", "perplexity per token")
	if err := c.bars(names, nil, values); err != nil {
		s.Missing = err.Error()
		return s
	}
	c.zeroY()
	prompts := len(distinct(rows, func(r bench.AccuracyRow) int { return r.ID }))
	s.Figures = append(s.Figures, figure{Name: "perplexity", chart: c, Table: t,
		Alt:     "Bars of perplexity by strategy: " + describe(names, values),
		Caption: fmt.Sprintf("Perplexity over %s.", dataset.Count(prompts, "prompt"))})
	all.finding(p)
	return s
}

// finding adds the perplexities with the smallest chunks, where strategies differ most, to the
// findings.
func (all *perplexities) finding(p *page) {
	size := all.sizes[0]
	nats, tokens := all.nats(way{all.base, size})
	if tokens == 0 {
		return
	}
	base := math.Exp(nats)
	var parts []string
	for _, name := range all.strategies {
		w := way{name, size}
		nats, tokens := all.nats(w)
		if name == all.base || tokens == 0 {
			continue
		}
		got := math.Exp(nats)
		parts = append(parts, fmt.Sprintf("%s %.2f (%+.1f %%%s)", name, got, 100*(got/base-1),
			all.interval(w)))
	}
	if len(parts) > 0 {
		p.Findings = append(p.Findings,
			fmt.Sprintf("Perplexity with chunks of %d tokens: %s %.2f, %s.",
				size, all.base, base, strings.Join(parts, ", ")))
	}
}

// describe lists the bars of a chart as text.
func describe(names []string, values [][]bar) string {
	var parts []string
	for i, name := range names {
		if len(values[i]) > 0 {
			parts = append(parts, strings.ReplaceAll(name, "\n", ", ")+" "+values[i][0].label)
		}
	}
	return strings.Join(parts, "; ") + "."
}
