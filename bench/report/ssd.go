package report

import (
	"fmt"
	"slices"

	"conquer/bench"
)

// shape is what the rows of one set of charts of the scan have in common.
type shape struct {
	device, dtype                        string
	batch, heads, headDim, state, groups int
}

func shapeOf(r bench.SSDRow) shape {
	return shape{r.Device, r.DType, r.Batch, r.Heads, r.HeadDim, r.State, r.Groups}
}

func (s shape) String() string {
	return fmt.Sprintf("batch %d, %d heads of %d, state %d, groups %d, %s, %s", s.batch, s.heads, s.headDim, s.state, s.groups, s.dtype, s.device)
}

// passes are the passes of the scan and its neighbours in the order of their bars.
var passes = []string{"forward", "backward", "step", "conv", "norm"}

// ssd shows what the scan and its neighbours take by themselves, and how near that is to what the machine can do.
func ssd(p *page, r *bench.Results, l *looks) section {
	all := r.Rows.([]bench.SSDRow)
	rows := where(all, func(r bench.SSDRow) bool {
		return r.Failed == "" && r.Length > 0 && r.MedianMS > 0 && finite(r.MedianMS)
	})
	s := section{Intro: "The state-space scan without the model around it, on fresh inputs, and what runs beside it: the update of one token's state, the convolution, the normalization. " +
		"Bytes and operations are counted from the shapes; the ceilings were measured in the same run with libtorch's own operations. Small inputs can beat the ceiling: they stay in the caches."}
	if failed := where(all, func(r bench.SSDRow) bool { return r.Failed != "" }); len(failed) > 0 {
		f := failed[0]
		s.Missing = fmt.Sprintf("%d of %d measurements failed, the first (%s %s, %d tokens): %s", len(failed), len(all), f.Strategy, f.Pass, f.Length, f.Failed)
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
		size := mostCommon(where(of, func(r bench.SSDRow) bool { return r.ChunkSize > 0 }), func(r bench.SSDRow) int { return r.ChunkSize }, nil)
		usual := where(of, func(r bench.SSDRow) bool { return r.ChunkSize == size || r.ChunkSize == 0 })
		for _, pass := range passes[:2] {
			s.scanOverLengths(usual, set, size, pass, suffix, l)
		}
		s.overChunks(of, set, suffix, l)
		s.againstCeilings(usual, set, r.Machine.Ceilings, suffix, l)
		if i == 0 {
			scanFinding(p, usual)
		}
	}
	p.Findings = append(p.Findings, fmt.Sprintf("The largest relative error of a scan against float64 was %.1e (%s, %s, %s).", worst.Error, worst.Strategy, worst.Pass, worst.DType))
	return s
}

// scanOverLengths draws one pass's time and memory against length.
func (s *section) scanOverLengths(rows []bench.SSDRow, set shape, size int, pass, suffix string, l *looks) {
	rows = where(rows, func(r bench.SSDRow) bool { return r.Pass == pass })
	if len(rows) == 0 {
		return
	}
	time := newChart("Scan, "+pass, "length (tokens)", "time (ms)")
	memory := newChart("Scan, "+pass+": memory beyond the inputs", "length (tokens)", "peak memory (MB)")
	t := table{Columns: columns("strategy|", "length (tokens)", "median (ms)", "quartiles (ms)", "GB/s", "of the ceiling", "GFLOP/s", "of the ceiling", "peak memory (MB)", "error")}
	for _, name := range inOrder(distinct(rows, func(r bench.SSDRow) string { return r.Strategy })) {
		of := where(rows, func(r bench.SSDRow) bool { return r.Strategy == name })
		slices.SortFunc(of, func(a, b bench.SSDRow) int { return a.Length - b.Length })
		var times, peaks []point
		for _, r := range of {
			times = append(times, point{float64(r.Length), r.MedianMS, r.LowMS, r.HighMS})
			peak := float64(r.PeakBytes) / 1e6
			peaks = append(peaks, point{float64(r.Length), peak, peak, peak})
			t.Rows = append(t.Rows, []string{name, count(float64(r.Length)), short(r.MedianMS), short(r.LowMS) + " to " + short(r.HighMS), short(r.GBPerS), share(r.OfBandwidth),
				short(r.GFlopPerS), share(r.OfRate), short(peak), fmt.Sprintf("%.1e", r.Error)})
		}
		for _, err := range []error{time.line(name, l.of(name), times), memory.line(name, l.of(name), peaks)} {
			if err != nil {
				s.Missing = err.Error()
			}
		}
	}
	caption := fmt.Sprintf("%s, chunks of %d.", set, size)
	alt := "Curves against length, one a strategy; the numbers are in the table."
	for _, f := range []figure{{Name: "scan-" + pass + suffix, chart: time, Table: t}, {Name: "scan-" + pass + "-memory" + suffix, chart: memory}} {
		if f.chart.named {
			f.chart.logX()
			f.chart.logY()
			f.Alt, f.Caption = f.chart.plot.Title.Text+": "+alt, caption
			s.Figures = append(s.Figures, f)
		}
	}
}

// overChunks draws the forward pass's time against the size of the chunks, at the greatest length.
func (s *section) overChunks(rows []bench.SSDRow, set shape, suffix string, l *looks) {
	rows = longest(where(rows, func(r bench.SSDRow) bool { return r.Pass == "forward" && r.ChunkSize > 0 }))
	if len(distinct(rows, func(r bench.SSDRow) int { return r.ChunkSize })) < 2 {
		return
	}
	c := newChart("Scan, forward, by chunk size", "chunk (tokens)", "time (ms)")
	t := table{Columns: columns("strategy|", "chunk (tokens)", "median (ms)", "quartiles (ms)", "peak memory (MB)")}
	for _, name := range inOrder(distinct(rows, func(r bench.SSDRow) string { return r.Strategy })) {
		of := where(rows, func(r bench.SSDRow) bool { return r.Strategy == name })
		slices.SortFunc(of, func(a, b bench.SSDRow) int { return a.ChunkSize - b.ChunkSize })
		var points []point
		for _, r := range of {
			points = append(points, point{float64(r.ChunkSize), r.MedianMS, r.LowMS, r.HighMS})
			t.Rows = append(t.Rows, []string{name, count(float64(r.ChunkSize)), short(r.MedianMS), short(r.LowMS) + " to " + short(r.HighMS), short(float64(r.PeakBytes) / 1e6)})
		}
		if err := c.line(name, l.of(name), points); err != nil {
			s.Missing = err.Error()
		}
	}
	if c.named {
		c.logX()
		c.logY()
		s.Figures = append(s.Figures, figure{Name: "scan-chunk" + suffix, chart: c, Table: t, Alt: "Curves of the forward scan's time against chunk size, one a strategy; the numbers are in the table.",
			Caption: fmt.Sprintf("At %s tokens; %s.", count(float64(rows[0].Length)), set)})
	}
}

// againstCeilings draws what each pass reached at the greatest length beside what the machine can do.
func (s *section) againstCeilings(rows []bench.SSDRow, set shape, ceilings bench.Ceilings, suffix string, l *looks) {
	used := where(passes, func(pass string) bool {
		return slices.ContainsFunc(rows, func(r bench.SSDRow) bool { return r.Pass == pass })
	})
	strategies := inOrder(distinct(rows, func(r bench.SSDRow) string { return r.Strategy }))
	rate := ceilings.F32GFlopPerS
	if set.dtype == "bfloat16" {
		rate = ceilings.BF16GFlopPerS
	}
	for _, what := range []struct {
		name, title, unit, ceiling string
		most                       float64
		of                         func(bench.SSDRow) float64
	}{
		{"bandwidth", "Bandwidth reached", "GB/s", "reading", ceilings.ReadGBPerS, func(r bench.SSDRow) float64 { return r.GBPerS }},
		{"rate", "Rate reached", "GFLOP/s", "matrix products", rate, func(r bench.SSDRow) float64 { return r.GFlopPerS }},
	} {
		t := table{Columns: columns("pass|", "strategy|", "length (tokens)", what.unit, "of the ceiling")}
		var names []string
		var levels []bar
		for _, pass := range used {
			of := longest(where(rows, func(r bench.SSDRow) bool { return r.Pass == pass }))
			for _, name := range strategies {
				i := slices.IndexFunc(of, func(r bench.SSDRow) bool { return r.Strategy == name })
				if i < 0 || !finite(what.of(of[i])) {
					continue
				}
				value, part, label, look := what.of(of[i]), "–", pass+", "+name, l.of(name)
				if what.most > 0 {
					part = share(value / what.most)
				}
				if name == "kernel" {
					label, look = pass, look.solid()
				}
				t.Rows = append(t.Rows, []string{pass, name, count(float64(of[i].Length)), short(value), part})
				names = append(names, brief(label))
				levels = append(levels, bar{value, look, short(value)})
			}
		}
		if len(levels) == 0 {
			continue
		}
		axis := what.unit
		caption := fmt.Sprintf("At the greatest length of each pass; %s.", set)
		if what.most > 0 {
			caption += fmt.Sprintf(" The line is what libtorch's own %s reached.", what.ceiling)
			axis += fmt.Sprintf(" (dashed: %s, %s at most)", what.ceiling, short(what.most))
		}
		c := newChart(what.title, axis, "")
		if err := c.levels(names, levels, what.most); err != nil {
			s.Missing = err.Error()
			continue
		}
		s.Figures = append(s.Figures, figure{Name: what.name + suffix, chart: c, Table: t, Caption: caption,
			Alt: "Bars of " + what.unit + ", one for each pass and strategy, beside the machine's ceiling; the numbers are in the table."})
	}
}

// scanFinding says what the kernels gain at the greatest length.
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
			text := fmt.Sprintf("The scan's %s pass over %s tokens takes %s ms in the kernels and %s ms in plain operations: %s times as fast",
				pass, count(float64(fast.Length)), short(fast.MedianMS), short(plain.MedianMS), short(plain.MedianMS/fast.MedianMS))
			if fast.PeakBytes > 0 && plain.PeakBytes > 0 {
				text += fmt.Sprintf(", with %s instead of %s MB beyond the inputs", short(float64(fast.PeakBytes)/1e6), short(float64(plain.PeakBytes)/1e6))
			}
			p.Findings = append(p.Findings, text+".")
		}
	}
}

// longest is the rows of the greatest length.
func longest(rows []bench.SSDRow) []bench.SSDRow {
	most := 0
	for _, r := range rows {
		most = max(most, r.Length)
	}
	return where(rows, func(r bench.SSDRow) bool { return r.Length == most })
}

func share(part float64) string {
	if part <= 0 || !finite(part) {
		return "–"
	}
	return fmt.Sprintf("%.0f %%", 100*part)
}
