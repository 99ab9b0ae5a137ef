package report

import (
	"fmt"
	"slices"

	"conquer/bench"
)

// shape is what all rows of one set of charts of the scan share.
type shape struct {
	device, dtype                        string
	batch, heads, headDim, state, groups int
}

func shapeOf(r bench.SSDRow) shape {
	return shape{r.Device, r.DType, r.Batch, r.Heads, r.HeadDim, r.State, r.Groups}
}

func (s shape) String() string {
	return fmt.Sprintf("batch %d, %d heads of dimension %d, state %d, groups %d, %s, %s", s.batch,
		s.heads,
		s.headDim, s.state, s.groups, s.dtype, s.device)
}

// passes are the passes in the order of their bars.
var passes = []string{"forward", "backward", "step", "conv", "norm"}

// ssd makes the section about the scan and the operations around it: time, memory, and the rates
// beside the machine's ceilings.
func ssd(p *page, r *bench.Results, l *looks) section {
	all := r.Rows.([]bench.SSDRow)
	rows := where(all, func(r bench.SSDRow) bool {
		return r.Failed == "" && r.Length > 0 && r.MedianMS > 0 && finite(r.MedianMS)
	})
	s := section{Intro: "The state-space scan alone, on random inputs, and the operations " +
		"around it in a " +
		"layer: the state update of one token, the convolution and the gated norm. Bytes and " +
		"operations are counted from the shapes. The ceilings were measured in the same run with " +
		"libtorch's operations. Small inputs can exceed them, because they stay in the caches. " +
		repeatsOf(rows)}
	if failed := where(all, func(r bench.SSDRow) bool { return r.Failed != "" }); len(failed) > 0 {
		f := failed[0]
		s.Missing = fmt.Sprintf("%d of %d measurements failed. The first (%s %s, %d tokens): %s",
			len(failed), len(all), f.Strategy, f.Pass, f.Length, f.Failed)
	}
	if len(rows) == 0 {
		if s.Missing == "" {
			s.Missing = "ssd.json has no rows."
		}
		return s
	}
	worst := rows[0]
	for _, r := range rows {
		if r.Error > worst.Error {
			worst = r
		}
	}
	for i, set := range distinct(rows, shapeOf) {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("-%d", i+1)
		}
		of := where(rows, func(r bench.SSDRow) bool { return shapeOf(r) == set })
		size := mostCommon(where(of, func(r bench.SSDRow) bool { return r.ChunkSize > 0 }),
			func(r bench.SSDRow) int { return r.ChunkSize }, nil)
		usual := where(of, func(r bench.SSDRow) bool {
			return r.ChunkSize == size || r.ChunkSize == 0
		})
		for _, pass := range passes[:2] {
			s.scanOverLengths(usual, set, size, pass, suffix, l)
		}
		s.overChunks(of, set, suffix, l)
		s.againstCeilings(where(usual, func(r bench.SSDRow) bool { // other programs count nothing
			return r.GBPerS > 0
		}), set, r.Machine.Ceilings, suffix, l)
		if i == 0 {
			scanFinding(p, usual)
		}
	}
	if worst.Error > 0 { // other programs' rows have none
		p.Findings = append(p.Findings, fmt.Sprintf("The largest relative error of a scan "+
			"against float64 is %.1e (%s, %s, %s).", worst.Error, worst.Strategy, worst.Pass,
			worst.DType))
	}
	return s
}

// repeatsOf says whether times are medians.
func repeatsOf(rows []bench.SSDRow) string {
	if slices.ContainsFunc(rows, func(r bench.SSDRow) bool { return r.Repeats > 1 }) {
		return "Times are medians of the runs that the tables count; a single run has no quartiles."
	}
	return "Each time is that of a single run, so there are no quartiles."
}

// scanOverLengths plots the time and memory of one pass against length.
func (s *section) scanOverLengths(rows []bench.SSDRow, set shape, size int, pass, suffix string,
	l *looks,
) {
	rows = where(rows, func(r bench.SSDRow) bool { return r.Pass == pass })
	if len(rows) == 0 {
		return
	}
	time := newChart("Scan, "+pass, "length (tokens)", "time (ms)")
	memory := newChart("Scan, "+pass+": memory without the inputs", "length (tokens)",
		"peak memory (MB)")
	t := table{Columns: columns("strategy|", "length (tokens)", "runs", "time (ms)",
		"quartiles (ms)", "GB/s", "share of ceiling", "GFLOP/s", "share of ceiling",
		"peak memory (MB)", "error")}
	for _, name := range inOrder(distinct(rows,
		func(r bench.SSDRow) string { return r.Strategy })) {
		of := where(rows, func(r bench.SSDRow) bool { return r.Strategy == name })
		slices.SortFunc(of, func(a, b bench.SSDRow) int { return a.Length - b.Length })
		var times, peaks []point
		for _, r := range of {
			times = append(times, point{float64(r.Length), r.MedianMS, r.LowMS, r.HighMS})
			peak := float64(r.PeakBytes) / 1e6
			peaks = append(peaks, point{float64(r.Length), peak, peak, peak})
			t.Rows = append(t.Rows, []string{name, count(float64(r.Length)),
				fmt.Sprint(r.Repeats), short(r.MedianMS), quartileCell(r.Times()),
				short(r.GBPerS), share(r.OfBandwidth), short(r.GFlopPerS), share(r.OfRate),
				short(peak), fmt.Sprintf("%.1e", r.Error)})
		}
		for _, err := range []error{time.line(name, l.of(name), times),
			memory.line(name, l.of(name), peaks)} {
			if err != nil {
				s.Missing = err.Error()
			}
		}
	}
	caption := fmt.Sprintf("%s, chunks of %d tokens.", set, size)
	alt := "Curves against length, one for each strategy. The table has the numbers."
	for _, f := range []figure{{Name: "scan-" + pass + suffix, chart: time, Table: t},
		{Name: "scan-" + pass + "-memory" + suffix, chart: memory}} {
		if f.chart.named {
			f.chart.logX()
			f.chart.logY()
			f.Alt, f.Caption = f.chart.plot.Title.Text+": "+alt, caption
			s.Figures = append(s.Figures, f)
		}
	}
}

// quartileCell formats the quartiles of several runs; a single run has none.
func quartileCell(t bench.Times) string {
	if t.Runs < 2 {
		return "–"
	}
	return short(t.Low) + " to " + short(t.High)
}

// overChunks plots the time of the forward pass against the chunk size at the greatest length.
func (s *section) overChunks(rows []bench.SSDRow, set shape, suffix string, l *looks) {
	rows = longest(where(rows, func(r bench.SSDRow) bool {
		return r.Pass == "forward" && r.ChunkSize > 0
	}))
	if len(distinct(rows, func(r bench.SSDRow) int { return r.ChunkSize })) < 2 {
		return
	}
	c := newChart("Scan, forward, by chunk size", "chunk (tokens)", "time (ms)")
	t := table{Columns: columns("strategy|", "chunk (tokens)", "runs", "time (ms)",
		"quartiles (ms)", "peak memory (MB)")}
	for _, name := range inOrder(distinct(rows,
		func(r bench.SSDRow) string { return r.Strategy })) {
		of := where(rows, func(r bench.SSDRow) bool { return r.Strategy == name })
		slices.SortFunc(of, func(a, b bench.SSDRow) int { return a.ChunkSize - b.ChunkSize })
		var points []point
		for _, r := range of {
			points = append(points, point{float64(r.ChunkSize), r.MedianMS, r.LowMS, r.HighMS})
			t.Rows = append(t.Rows, []string{name, count(float64(r.ChunkSize)),
				fmt.Sprint(r.Repeats), short(r.MedianMS), quartileCell(r.Times()),
				short(float64(r.PeakBytes) / 1e6)})
		}
		if err := c.line(name, l.of(name), points); err != nil {
			s.Missing = err.Error()
		}
	}
	if c.named {
		c.logX()
		c.logY()
		s.Figures = append(s.Figures, figure{Name: "scan-chunk" + suffix, chart: c, Table: t,
			Alt: "Curves of the time of the forward scan against chunk size by strategy. " +
				"The table has the numbers.",
			Caption: fmt.Sprintf("%s tokens: %s.", count(float64(rows[0].Length)), set)})
	}
}

// ceiling is a rate of a pass and the machine's best value for it.
type ceiling struct {
	name, title, unit string
	operation         string // that reached the ceiling
	most              float64
	of                func(bench.SSDRow) float64
}

// againstCeilings plots the rates of each pass at the greatest length beside the machine's
// ceilings.
func (s *section) againstCeilings(rows []bench.SSDRow, set shape, ceilings bench.Ceilings,
	suffix string, l *looks,
) {
	flops := ceilings.F32GFlopPerS
	if set.dtype == "bfloat16" {
		flops = ceilings.BF16GFlopPerS
	}
	for _, rate := range []ceiling{
		{"bandwidth", "Bandwidth", "GB/s", "a sum", ceilings.ReadGBPerS,
			func(r bench.SSDRow) float64 { return r.GBPerS }},
		{"rate", "Compute rate", "GFLOP/s", "GEMM", flops,
			func(r bench.SSDRow) float64 { return r.GFlopPerS }},
	} {
		names, levels, t := rate.levels(rows, l)
		if len(levels) == 0 {
			continue
		}
		axis := rate.unit
		caption := fmt.Sprintf("Each pass at its greatest length: %s.", set)
		if rate.most > 0 {
			caption += fmt.Sprintf(" Dashed line: ceiling, the rate of %s in libtorch.",
				rate.operation)
			axis += fmt.Sprintf(" (dashed: ceiling of %s)", short(rate.most))
		}
		c := newChart(rate.title, axis, "")
		if err := c.levels(names, levels, rate.most); err != nil {
			s.Missing = err.Error()
			continue
		}
		s.Figures = append(s.Figures, figure{
			Name: rate.name + suffix, chart: c, Table: t, Caption: caption,
			Alt: "Bars of " + rate.unit + " for each pass and strategy, " +
				"with the machine's ceiling. The table has the numbers.",
		})
	}
}

// levels returns a bar for each pass and strategy at the greatest length, and their table.
func (rate ceiling) levels(rows []bench.SSDRow, l *looks) (names []string, levels []bar, t table) {
	t.Columns = columns("pass|", "strategy|", "length (tokens)", rate.unit, "share of ceiling")
	strategies := inOrder(distinct(rows, func(r bench.SSDRow) string { return r.Strategy }))
	for _, pass := range passes {
		of := longest(where(rows, func(r bench.SSDRow) bool { return r.Pass == pass }))
		for _, name := range strategies {
			i := slices.IndexFunc(of, func(r bench.SSDRow) bool { return r.Strategy == name })
			if i < 0 || !finite(rate.of(of[i])) {
				continue
			}
			value, part, label, look := rate.of(of[i]), "–", pass+", "+name, l.of(name)
			if rate.most > 0 {
				part = share(value / rate.most)
			}
			if name == "kernel" {
				label, look = pass, look.solid()
			}
			t.Rows = append(t.Rows, []string{
				pass, name, count(float64(of[i].Length)), short(value), part,
			})
			names = append(names, brief(label))
			levels = append(levels, bar{value, look, short(value)})
		}
	}
	return names, levels, t
}

// scanFinding adds the speedup of the kernels at the greatest length to the findings.
func scanFinding(p *page, rows []bench.SSDRow) {
	for _, pass := range passes[:2] {
		of := longest(where(rows, func(r bench.SSDRow) bool { return r.Pass == pass }))
		var plain, fast *bench.SSDRow
		for i, r := range of {
			switch r.Strategy {
			case "default":
				plain = &of[i]
			case "default-optimized":
				fast = &of[i]
			}
		}
		if plain != nil && fast != nil {
			text := fmt.Sprintf(
				"The %s pass of the scan over %s tokens takes %s ms with the kernels "+
					"and %s ms with libtorch's operations: %s",
				pass, count(float64(fast.Length)), short(fast.MedianMS), short(plain.MedianMS),
				asFast(plain.Times().Over(fast.Times())))
			if fast.PeakBytes > 0 && plain.PeakBytes > 0 {
				text += fmt.Sprintf(", with %s instead of %s MB in addition to the inputs",
					short(float64(fast.PeakBytes)/1e6), short(float64(plain.PeakBytes)/1e6))
			}
			p.Findings = append(p.Findings, text+".")
		}
	}
}
