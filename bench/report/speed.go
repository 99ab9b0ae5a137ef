package report

import (
	"fmt"
	"slices"
	"strings"

	"conquer/bench"
)

// ours reports whether a row is of this program, perhaps with a comma and how it ran.
func ours(r bench.SpeedRow) bool {
	name, _, _ := strings.Cut(r.Program, ",")
	return name == "conquer"
}

// speed makes the section about the times of this program beside other programs.
func speed(_ *page, r *bench.Results, l *looks) section {
	s := section{Intro: "Times of the same work in several programs, measured in turn in one run."}
	rows := where(r.Rows.([]bench.SpeedRow), func(r bench.SpeedRow) bool {
		return finite(r.Value) && r.Value > 0
	})
	type set struct{ unit, dtype string }
	for i, of := range distinct(rows, func(r bench.SpeedRow) set { return set{r.Unit, r.DType} }) {
		these := where(rows, func(r bench.SpeedRow) bool { return set{r.Unit, r.DType} == of })
		tasks := distinct(these, func(r bench.SpeedRow) string { return r.Task })
		slices.SortStableFunc(these, func(a, b bench.SpeedRow) int {
			return slices.Index(tasks, a.Task) - slices.Index(tasks, b.Task)
		})
		title := "Beside other programs, " + of.unit
		if of.dtype != "" {
			title += ", " + of.dtype
		}
		c := newChart(title, of.unit, "")
		var names []string
		var levels []bar
		t := table{Columns: columns("task|", "program|", "device|", of.unit, "of conquer's")}
		for _, row := range these {
			ratio := "–"
			for _, own := range these {
				if own.Task == row.Task && ours(own) && !ours(row) {
					ratio = fmt.Sprintf("%.2f", row.Value/own.Value)
					break
				}
			}
			style := l.of(row.Program).solid()
			if ours(row) {
				style = known["default"]
			}
			names = append(names, brief(row.Task+", "+row.Program))
			levels = append(levels, bar{row.Value, style, short(row.Value)})
			t.Rows = append(t.Rows, []string{row.Task, row.Program, row.Device, short(row.Value),
				ratio})
		}
		if err := c.levels(names, levels, 0); err != nil {
			s.Missing = err.Error()
			return s
		}
		s.Figures = append(s.Figures, figure{Name: fmt.Sprintf("speed-%d", i+1), chart: c, Table: t,
			Alt: title + ": a bar for each task and program. The table has the numbers."})
	}
	if len(rows) == 0 {
		s.Missing = "speed.json has no rows with figures."
	}
	return s
}
