package report

import (
	"fmt"
	"slices"
	"strings"

	"conquer/bench"
	"conquer/text/dataset"
)

// setting is what all rows of one set of charts share.
type setting struct {
	device, dtype     string
	layers, newTokens int
	cache             bool
}

func (s setting) String() string {
	cache := "without cache"
	if s.cache {
		cache = "with cache"
	}
	return fmt.Sprintf("%s, %s, %s, %s, %s", dataset.Count(s.layers, "layer"), cache,
		dataset.Count(s.newTokens, "new token"), s.dtype, s.device)
}

// ways are the ways to launch in the order of their bars.
var ways = []string{"eager", "kernels", "graph", "both"}

// wayMeans explains each way in a caption.
var wayMeans = map[string]string{
	"eager":   "libtorch's operations, launched one by one",
	"kernels": "conquer's kernels, launched one by one",
	"graph":   "libtorch's operations, replayed from a CUDA graph",
	"both":    "conquer's kernels, replayed from a CUDA graph",
}

// wayCode names the code of each way in a sentence.
var wayCode = map[string]string{
	"kernels": "conquer's kernels",
	"graph":   "a CUDA graph",
	"both":    "conquer's kernels in a CUDA graph",
}

// chunks makes the section about the model: time and memory of each strategy over prompts of
// several lengths, and the effect of each way to launch.
func chunks(p *page, r *bench.Results, l *looks) section {
	all := r.Rows.([]bench.ChunksRow)
	rows := where(all, func(r bench.ChunksRow) bool {
		return r.Failed == "" && r.PromptTokens > 0 && r.TotalMS > 0 && finite(r.TotalMS)
	})
	s := section{Intro: "The whole model, from the prompt to the last new token, for several " +
		"prompt lengths. " + runsOf(rows) + randomNote(r, "they take the same time as trained "+
		"ones.")}
	if failed := where(all, func(r bench.ChunksRow) bool { return r.Failed != "" }); len(
		failed) > 0 {
		f := failed[0]
		s.Missing = fmt.Sprintf("%d of %d runs failed. The first (%s, %s, %d tokens): %s",
			len(failed), len(all), f.Strategy, f.Compile, f.PromptTokens, f.Failed)
	}
	if len(rows) == 0 && s.Missing == "" {
		s.Missing = "chunks.json has no rows."
	}
	settings := distinct(rows, func(r bench.ChunksRow) setting {
		return setting{r.Device, r.DType,
			r.Layers, r.NewTokens, r.UseCache}
	})
	for i, set := range settings {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("-%d", i+1)
		}
		of := where(rows, func(r bench.ChunksRow) bool {
			return set == setting{r.Device, r.DType, r.Layers, r.NewTokens, r.UseCache}
		})
		s.overLengths(p, of, set, suffix, l)
		s.compilations(of, set, suffix, l)
		s.operations(of)
	}
	return s
}

// runsOf says what a point is: a single run, or the median of several.
func runsOf(rows []bench.ChunksRow) string {
	least, most := 1<<30, 0
	for _, r := range rows {
		least, most = min(least, max(1, r.Repeats)), max(most, r.Repeats)
	}
	switch {
	case most < 2:
		return "Each prompt was run once, so there are no quartiles. A point that holds several " +
			"prompts is their median."
	case least == most:
		return fmt.Sprintf("Points are medians of %d runs of each prompt, error bars are "+
			"quartiles.", most)
	}
	return fmt.Sprintf("Points are medians of %d to %d runs of each prompt, error bars are "+
		"quartiles.", least, most)
}

// curve is a strategy and a way to launch.
type curve struct{ strategy, compile string }

// name returns the name of the strategy with its way to launch, as on the command line where that
// has a name.
func (c curve) name() string {
	switch c.compile {
	case "eager":
		return c.strategy
	case "kernels":
		return c.strategy + "-optimized"
	case "both":
		return c.strategy + "-optimized, graph"
	}
	return c.strategy + ", " + c.compile
}

func (c curve) look(l *looks) look {
	look := l.of(c.strategy)
	look.plain = c.compile == "eager" || c.compile == "graph"
	return look
}

// overLengths plots time, throughput and memory against prompt length: every strategy in the usual
// way to launch, and default also eagerly.
func (s *section) overLengths(p *page, rows []bench.ChunksRow, set setting, suffix string,
	l *looks,
) {
	usual, lengths := usualWay(rows), buckets(rows)
	t := lengthsTable{set: set, onGPU: slices.ContainsFunc(rows, func(r bench.ChunksRow) bool {
		return r.GPUUtilization != nil
	})}
	values := lengthValues()
	for _, name := range inOrder(distinct(rows,
		func(r bench.ChunksRow) string { return r.Strategy })) {
		for _, way := range ways {
			if way != usual && (name != "default" || way != "eager") {
				continue
			}
			c := curve{name, way}
			points := make([][]point, len(values))
			for _, length := range lengths {
				of := where(rows, func(r bench.ChunksRow) bool {
					return r.Strategy == name && r.Compile == way && length.holds(r.PromptTokens)
				})
				if len(of) == 0 {
					continue
				}
				t.add(c, of)
				for i, v := range values {
					points[i] = append(points[i], v.point(of))
				}
			}
			for i, v := range values {
				if err := v.chart.line(c.name(), c.look(l), points[i]); err != nil {
					s.Missing = err.Error()
				}
			}
		}
	}
	for i, v := range values {
		if !v.chart.named { // no value for a logarithmic axis
			continue
		}
		v.chart.logX()
		v.chart.logY()
		f := figure{Name: v.figure + suffix, chart: v.chart, Caption: set.String() + ".",
			Alt: "Curves of " + v.name + " against prompt length, one for each strategy. " +
				"The table below the charts has the numbers."}
		if i == len(values)-1 {
			f.Table = t.table()
		}
		s.Figures = append(s.Figures, f)
	}
	s.speedFinding(p, rows, lengths, usual)
}

// lengthValue is a value that is plotted against prompt length.
type lengthValue struct {
	chart        *chart
	name, figure string
	unit         float64
	y, low, high func(bench.ChunksRow) float64 // low and high may be nil
}

// lengthValues returns the plotted values with empty charts.
func lengthValues() []lengthValue {
	const x = "prompt (tokens)"
	return []lengthValue{
		{chart: newChart("Latency", x, "prompt to last token (ms)"),
			name: "latency", figure: "latency", unit: 1,
			y:    func(r bench.ChunksRow) float64 { return r.TotalMS },
			low:  func(r bench.ChunksRow) float64 { return r.LowMS },
			high: func(r bench.ChunksRow) float64 { return r.HighMS }},
		{chart: newChart("Throughput", x, "prompt and new tokens per second"),
			name: "throughput", figure: "throughput", unit: 1,
			y: func(r bench.ChunksRow) float64 {
				return 1000 * float64(r.PromptTokens+r.NewTokens) / r.TotalMS
			}},
		{chart: newChart("Peak memory without the weights", x, "peak memory (MB)"),
			name: "peak memory", figure: "memory", unit: 1e-6,
			y: func(r bench.ChunksRow) float64 { return float64(r.PeakBytes) }},
	}
}

// point returns the medians of rows.
func (v lengthValue) point(rows []bench.ChunksRow) point {
	p := point{x: medianOf(rows, promptTokens), y: v.unit * medianOf(rows, v.y)}
	p.low, p.high = p.y, p.y
	if v.low != nil {
		p.low, p.high = v.unit*medianOf(rows, v.low), v.unit*medianOf(rows, v.high)
	}
	return p
}

func promptTokens(r bench.ChunksRow) float64 { return float64(r.PromptTokens) }

// medianOf returns the median of a value over rows.
func medianOf[Row any](rows []Row, value func(Row) float64) float64 {
	list := make([]float64, len(rows))
	for i, r := range rows {
		list[i] = value(r)
	}
	_, median, _ := quartiles(list)
	return median
}

// lengthsTable is the table of the numbers in the plots against prompt length.
type lengthsTable struct {
	set   setting
	onGPU bool
	rows  [][]string
}

func (t *lengthsTable) table() table {
	names := []string{
		"strategy|", "prompt (tokens)", "prompts", "runs of each", "total (ms)", "first token (ms)",
		"between tokens (ms)", "tokens/s", "peak memory (MB)", "moved (GB)", "GB/s", "GFLOP/s",
		"CPU used",
	}
	if t.onGPU {
		names = append(names, "GPU used")
	}
	return table{Columns: columns(names...), Rows: t.rows}
}

// add adds the medians of rows, which are those of one curve and one length.
func (t *lengthsTable) add(c curve, rows []bench.ChunksRow) {
	cell := func(scale float64, value func(bench.ChunksRow) float64) string {
		return short(scale * medianOf(rows, value))
	}
	between := cell(1, func(r bench.ChunksRow) float64 { return r.BetweenTokensMS })
	if t.set.newTokens < 2 {
		between = "–"
	}
	row := []string{
		c.name(), count(medianOf(rows, promptTokens)), fmt.Sprint(len(rows)),
		count(medianOf(rows, func(r bench.ChunksRow) float64 { return float64(r.Repeats) })),
		cell(1, func(r bench.ChunksRow) float64 { return r.TotalMS }),
		cell(1, func(r bench.ChunksRow) float64 { return r.FirstTokenMS }), between,
		cell(1, func(r bench.ChunksRow) float64 { return r.TokensPerS }),
		cell(1e-6, func(r bench.ChunksRow) float64 { return float64(r.PeakBytes) }),
		cell(1e-9, func(r bench.ChunksRow) float64 { return float64(r.BytesMoved) }),
		cell(1, func(r bench.ChunksRow) float64 { return r.GBPerS }),
		cell(1, func(r bench.ChunksRow) float64 { return r.GFlopPerS }),
		share(medianOf(rows, func(r bench.ChunksRow) float64 { return r.CPUUtilization })),
	}
	if t.onGPU {
		row = append(row, share(medianOf(rows, func(r bench.ChunksRow) float64 {
			if r.GPUUtilization == nil {
				return nan
			}
			return *r.GPUUtilization
		})))
	}
	t.rows = append(t.rows, row)
}

// speedFinding adds the speedup of the kernels at the longest prompts to the findings.
func (s *section) speedFinding(p *page, rows []bench.ChunksRow, lengths []bucket, usual string) {
	if len(lengths) == 0 || usual == "eager" {
		return
	}
	longest := lengths[len(lengths)-1]
	of := func(way string) []bench.ChunksRow {
		return where(rows, func(r bench.ChunksRow) bool {
			return r.Strategy == "default" && r.Compile == way && longest.holds(r.PromptTokens)
		})
	}
	eager, other := of("eager"), of(usual)
	if len(eager) == 0 || len(other) == 0 {
		return
	}
	slow, fast := timesOf(eager), timesOf(other)
	code := wayCode[usual]
	if code == "" {
		code = usual
	}
	text := fmt.Sprintf("For a prompt of %s tokens the model takes %s ms with %s "+
		"and %s ms with libtorch's operations: %s",
		count(float64(longest.high)), short(fast.Median), code, short(slow.Median),
		asFast(slow.Over(fast)))
	memory := func(r bench.ChunksRow) float64 { return float64(r.PeakBytes) }
	if more, less := medianOf(eager, memory), medianOf(other, memory); more > 0 && less > 0 {
		text += fmt.Sprintf(", with %s instead of %s MB in addition to the weights",
			short(less/1e6), short(more/1e6))
	}
	p.Findings = append(p.Findings, text+".")
}

// timesOf returns the medians of the times of rows, which are those of one curve and one length.
func timesOf(rows []bench.ChunksRow) bench.Times {
	t := bench.Times{
		Median: medianOf(rows, func(r bench.ChunksRow) float64 { return r.TotalMS }),
		Low:    medianOf(rows, func(r bench.ChunksRow) float64 { return r.LowMS }),
		High:   medianOf(rows, func(r bench.ChunksRow) float64 { return r.HighMS }),
		Runs:   rows[0].Repeats,
	}
	for _, r := range rows {
		t.Runs = min(t.Runs, r.Repeats)
	}
	return t
}

// compilations plots the ways to launch at the longest prompts.
func (s *section) compilations(rows []bench.ChunksRow, set setting, suffix string, l *looks) {
	lengths := buckets(rows)
	longest := lengths[len(lengths)-1]
	rows = where(rows, func(r bench.ChunksRow) bool { return longest.holds(r.PromptTokens) })
	strategies := inOrder(distinct(rows, func(r bench.ChunksRow) string { return r.Strategy }))
	used := where(ways, func(way string) bool {
		return slices.ContainsFunc(rows, func(r bench.ChunksRow) bool { return r.Compile == way })
	})
	for _, r := range rows { // ways of a newer program
		if !slices.Contains(used, r.Compile) {
			used = append(used, r.Compile)
		}
	}
	if len(used) < 2 {
		return
	}
	t := table{Columns: columns("strategy|")}
	values := make([][]bar, len(used))
	cells := map[string][]string{}
	for i, way := range used {
		t.Columns = append(t.Columns, column{Name: way + " (ms)"})
		for _, name := range strategies {
			b := bar{value: nan, look: curve{name, way}.look(l)}
			var list []float64
			for _, r := range rows {
				if r.Strategy == name && r.Compile == way {
					list = append(list, r.TotalMS)
				}
			}
			if len(list) > 0 {
				_, b.value, _ = quartiles(list)
				b.label = short(b.value)
			}
			values[i] = append(values[i], b)
			cells[name] = append(cells[name], short(b.value))
		}
	}
	for _, name := range strategies {
		t.Rows = append(t.Rows, append([]string{name}, cells[name]...))
	}
	names := make([]string, len(used))
	var meanings []string
	for i, way := range used {
		names[i] = brief(way)
		if meaning := wayMeans[way]; meaning != "" {
			meanings = append(meanings, way+": "+meaning)
		}
	}
	c := newChart("Kernels and graphs", "", "prompt to last token (ms)")
	if err := c.bars(names, strategies, values); err != nil {
		s.Missing = err.Error()
		return
	}
	c.zeroY()
	s.Figures = append(s.Figures, figure{Name: "compile" + suffix, chart: c, Table: t,
		Alt: "Bars of latency: a group for each way to launch, a bar for each strategy. " +
			"The table has the numbers.",
		Caption: fmt.Sprintf("Prompts of %s tokens: %s. %s.", longest, set,
			strings.Join(meanings, "; "))})
}

// operations adds a table of the most expensive operations at the longest prompts.
func (s *section) operations(rows []bench.ChunksRow) {
	if len(s.Figures) == 0 {
		return
	}
	usual := usualWay(rows)
	lengths := buckets(rows)
	longest := lengths[len(lengths)-1]
	t := table{Caption: fmt.Sprintf("Most expensive operations at %s tokens", longest),
		Columns: columns("strategy|", "operations|")}
	seen := map[curve]bool{}
	for _, r := range rows {
		c := curve{r.Strategy, r.Compile}
		if r.PromptTokens < longest.low || seen[c] || len(r.TopOperations) == 0 ||
			r.Compile != usual && c != (curve{"default", "eager"}) {
			continue
		}
		seen[c] = true
		var parts []string
		for _, o := range r.TopOperations[:min(4, len(r.TopOperations))] {
			parts = append(parts, fmt.Sprintf("%s %.0f %%", o.Name, 100*o.Share))
		}
		t.Rows = append(t.Rows, []string{c.name(), strings.Join(parts, ", ")})
	}
	s.Figures[len(s.Figures)-1].More = t
}
