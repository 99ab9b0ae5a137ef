package report

import (
	"fmt"
	"slices"
	"strings"

	"conquer/bench"
)

// consistency makes the section about how far ways to run a model agree.
func consistency(p *page, r *bench.Results, l *looks) section {
	rows := r.Rows.([]bench.ConsistencyRow)
	s := section{Intro: "How far ways to run one model over one text are from float64: the " +
		"text whole, in pieces, token by token, padded on the left in a batch, packed between " +
		"other samples, with each dtype of the states, chunk size and strategy. Each is " +
		"compared with a float64 computation from the same weights, position by position. KL is " +
		"the divergence of the predicted distributions in nats." +
		randomNote(r, "the differences say nothing about a trained model.")}
	failed := where(rows, func(r bench.ConsistencyRow) bool { return r.Failed != "" })
	for _, f := range failed {
		s.Intro += fmt.Sprintf(" %s has no figures: %s.", consistencyName(f),
			strings.TrimSuffix(f.Failed, "."))
	}
	rows = where(rows, func(r bench.ConsistencyRow) bool {
		return r.Failed == "" && len(r.Curve) > 0
	})
	if len(rows) == 0 {
		s.Missing = "consistency.json has no rows with figures."
		return s
	}
	type kind struct{ device, dtype string }
	for i, k := range distinct(rows, func(r bench.ConsistencyRow) kind {
		return kind{r.Device, r.DType}
	}) {
		of := where(rows, func(r bench.ConsistencyRow) bool {
			return r.Device == k.device && r.DType == k.dtype
		})
		suffix := ""
		if i > 0 {
			suffix = "-" + strings.ReplaceAll(k.device, ":", "") + "-" + k.dtype
		}
		place := fmt.Sprintf("%s on %s", k.dtype, k.device)
		s.drift("consistency-ways"+suffix, "Difference from float64 by position, "+place,
			consistencyTable(of), standard(of),
			func(r bench.ConsistencyRow) look { return wayLook(r, l) }, consistencyName)
		s.drift("consistency-strategies"+suffix, "Difference from float64 by strategy, "+place,
			table{}, ofStrategies(of),
			func(r bench.ConsistencyRow) look { return l.of(r.Strategy) },
			func(r bench.ConsistencyRow) string { return r.Strategy })
		s.drift("consistency-states"+suffix, "Difference from float64 by dtype of states, "+place,
			table{}, ofStates(of), stateLook,
			func(r bench.ConsistencyRow) string { return r.Way + ", " + r.State })
		if worst := slices.MaxFunc(standard(of), byLogit); worst.LogitScale > 0 {
			p.Findings = append(p.Findings, fmt.Sprintf("In %s every way that computes the "+
				"same is within %s of float64 in each logit (%s; %s standard deviations of the "+
				"logits), over %s tokens.", place, short(worst.LogitMax), consistencyName(worst),
				short(worst.LogitMax/worst.LogitScale), count(float64(worst.Length))))
		}
	}
	return s
}

func byLogit(a, b bench.ConsistencyRow) int {
	if a.LogitMax < b.LogitMax {
		return -1
	}
	return 1
}

// standard returns the rows that compute the same: with float32 states, the model's own chunk size
// and the usual strategy. The sizes of pieces are reduced to the smallest and the largest.
func standard(rows []bench.ConsistencyRow) []bench.ConsistencyRow {
	chunk := rows[0].ChunkSize
	least, most := 0, 0
	for _, r := range rows {
		if r.Piece > 0 && (least == 0 || r.Piece < least) {
			least = r.Piece
		}
		most = max(most, r.Piece)
	}
	return where(rows, func(r bench.ConsistencyRow) bool {
		return r.Program != "conquer" || (r.ChunkSize == chunk && r.Strategy == rows[0].Strategy &&
			(r.State == "" || r.State == "float32") && (r.Piece == least || r.Piece == most ||
			r.Piece == 0))
	})
}

// ofStrategies returns the rows that differ in their strategy only, if there are several.
func ofStrategies(rows []bench.ConsistencyRow) []bench.ConsistencyRow {
	chunk := rows[0].ChunkSize
	list := where(rows, func(r bench.ConsistencyRow) bool {
		return r.Program == "conquer" && r.Way == bench.Whole && r.Strategy != "" &&
			r.ChunkSize == chunk
	})
	if len(list) < 2 {
		return nil
	}
	return list
}

// ofStates returns the rows that were decoded with states of several dtypes, if there are any.
func ofStates(rows []bench.ConsistencyRow) []bench.ConsistencyRow {
	list := where(rows, func(r bench.ConsistencyRow) bool {
		return r.Program == "conquer" && r.Way == bench.Decode && r.State != "" && r.Batch <= 1
	})
	if len(list) < 2 {
		return nil
	}
	return list
}

// consistencyName names the way of a row.
func consistencyName(r bench.ConsistencyRow) string {
	name := r.Way
	if r.Piece > 0 {
		name += fmt.Sprintf(" of %d", r.Piece)
	}
	if r.Batch > 1 {
		name += fmt.Sprintf(", %d rows", r.Batch)
	}
	if r.Program != "conquer" {
		name = r.Program + ", " + name
	}
	return name
}

// wayLook gives each way the look of a strategy, which no other chart of this section uses.
func wayLook(r bench.ConsistencyRow, l *looks) look {
	as := map[string]string{bench.Whole: "default", bench.Decode: "independent",
		bench.Padded: "windowed:1", bench.Packed: "windowed:2", bench.Pieces: "windowed:4"}
	style := l.of(bench.Cached).solid()
	if name, ok := as[r.Way]; ok {
		style = known[name]
	}
	if r.Program != "conquer" {
		style = l.of(r.Program) // dashed
	}
	return style
}

func stateLook(r bench.ConsistencyRow) look {
	return known[map[string]string{"float32": "default", "bfloat16": "independent",
		"float16": "windowed:1"}[r.State]]
}

// drift draws the largest difference of a logit against the position.
func (s *section) drift(name, title string, t table, rows []bench.ConsistencyRow,
	style func(bench.ConsistencyRow) look, label func(bench.ConsistencyRow) string) {
	c := newChart(title, "position (tokens)", "largest difference of a logit")
	for _, r := range rows {
		var points []point
		for _, p := range r.Curve {
			points = append(points, point{x: float64(p.Position + 1), y: p.Logit})
		}
		if err := c.line(label(r), style(r), points); err != nil {
			s.Missing = err.Error()
		}
	}
	if !c.named {
		return
	}
	c.logX()
	c.logY()
	s.Figures = append(s.Figures, figure{Name: name, chart: c, Table: t,
		Alt: title + ": curves against the position. The table has the numbers.",
		Caption: "Each point is the largest difference of the positions after the point before " +
			"it."})
}

func consistencyTable(rows []bench.ConsistencyRow) table {
	t := table{Columns: columns("way|", "strategy|", "chunk (tokens)", "states|", "mean KL (nats)",
		"largest KL", "at", "largest logit difference", "at", "other greedy tokens",
		"first at", "by a lead of")}
	for _, r := range rows {
		chunk, first, lead := "", "–", ""
		if r.ChunkSize > 0 {
			chunk = count(float64(r.ChunkSize))
		}
		if r.FirstDiffering >= 0 {
			first, lead = count(float64(r.FirstDiffering)), fmt.Sprintf("%.1e", r.Margin)
		}
		t.Rows = append(t.Rows, []string{consistencyName(r), r.Strategy, chunk, r.State,
			fmt.Sprintf("%.1e", r.KLMean), fmt.Sprintf("%.1e", r.KLMax),
			count(float64(r.KLMaxAt)), fmt.Sprintf("%.1e", r.LogitMax),
			count(float64(r.LogitMaxAt)), fmt.Sprintf("%d of %s", r.Differing,
				count(float64(r.Length))), first, lead})
	}
	return t
}
