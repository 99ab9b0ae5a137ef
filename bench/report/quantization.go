package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"conquer/bench"
)

// quantization makes the section about a model in several mixes of quantized kinds.
func quantization(p *page, r *bench.Results, l *looks) section {
	s := section{Intro: "One model, quantized in several ways: its size, the perplexity of a " +
		"text, the divergence (KL) of its predictions from the original's, and its speed."}
	rows := where(r.Rows.([]bench.QuantizationRow), func(r bench.QuantizationRow) bool {
		return finite(r.KL) && finite(r.Perplexity) && r.Bytes > 0
	})
	if len(rows) == 0 {
		s.Missing = "quantization.json has no rows with figures."
		return s
	}
	t := table{Columns: columns("kind|", "device|", "size (MB)", "bits per weight", "tokens",
		"perplexity", "KL (nats)", "standard error", "same top", "prompt (tokens/s)",
		"a token (ms)")}
	c := newChart("Divergence from the original by size", "bits per weight", "KL (nats)")
	series := map[string][]point{}
	for _, row := range rows {
		name, of := strings.ToLower(row.Kind), "without importance"
		if row.Importance {
			name, of = name+", importance", "with importance"
		}
		if row.Kind != "original" {
			series[of] = append(series[of], point{x: row.BitsPerWeight, y: row.KL,
				low: row.KL - row.KLError, high: row.KL + row.KLError})
		}
		t.Rows = append(t.Rows, []string{name, row.Device, short(float64(row.Bytes) / 1e6),
			fmt.Sprintf("%.2f", row.BitsPerWeight), count(float64(row.Tokens)),
			fmt.Sprintf("%.3f", row.Perplexity), fmt.Sprintf("%.5f", row.KL),
			fmt.Sprintf("%.5f", row.KLError), share(row.SameTop), short(row.PromptPerS),
			short(row.TokenMS)})
	}
	drawn := false
	for _, of := range []string{"without importance", "with importance"} {
		slices.SortFunc(series[of], func(a, b point) int { return cmp.Compare(a.x, b.x) })
		if err := c.line(of, l.of(of), series[of]); err != nil {
			s.Missing = err.Error()
			return s
		}
		for _, p := range series[of] {
			drawn = drawn || p.y > 1e-9
		}
	}
	if !drawn {
		s.Missing = "quantization.json has no quantized rows that differ from the original."
		return s
	}
	c.logY()
	s.Figures = append(s.Figures, figure{Name: "quantization", chart: c, Table: t,
		Alt: "Divergence from the original over bits per weight, a point for each kind. The " +
			"table has the numbers.",
		Caption: "Each point is a kind; the table names them."})
	return s
}
