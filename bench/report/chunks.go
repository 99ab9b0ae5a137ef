package report

import (
	"fmt"
	"slices"
	"strings"

	"conquer/bench"
	"conquer/text/dataset"
)

// setting is what the rows of one set of charts have in common.
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
	return fmt.Sprintf("%s, %s, %s, %s, %s", dataset.Count(s.layers, "layer"), cache, dataset.Count(s.newTokens, "new token"), s.dtype, s.device)
}

// ways are the ways to launch in the order of their bars.
var ways = []string{"eager", "kernels", "graph", "both"}

var wayMeans = map[string]string{"eager": "libtorch's operations one by one", "kernels": "this project's kernels in their place",
	"graph": "libtorch's operations, recorded once and replayed", "both": "the kernels, recorded and replayed"}

// chunks shows what each strategy costs in time and memory over prompts of several lengths, and what each way to launch
// gives.
func chunks(p *page, r *bench.Results, l *looks) section {
	all := r.Rows.([]bench.ChunksRow)
	rows := where(all, func(r bench.ChunksRow) bool {
		return r.Failed == "" && r.PromptTokens > 0 && r.TotalMS > 0 && finite(r.TotalMS)
	})
	s := section{Intro: "The model over prompts of several lengths: from the prompt to the last new token. Medians of repeated runs; the bars at a point reach from quartile to quartile."}
	if failed := where(all, func(r bench.ChunksRow) bool { return r.Failed != "" }); len(failed) > 0 {
		f := failed[0]
		s.Missing = fmt.Sprintf("%d of %d runs failed, the first (%s, %s, %d tokens): %s", len(failed), len(all), f.Strategy, f.Compile, f.PromptTokens, f.Failed)
	}
	if len(rows) == 0 && s.Missing == "" {
		s.Missing = "chunks.json has no rows."
	}
	settings := distinct(rows, func(r bench.ChunksRow) setting { return setting{r.Device, r.DType, r.Layers, r.NewTokens, r.UseCache} })
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

// curve is a strategy launched in one way.
type curve struct{ strategy, compile string }

// name is the strategy's as it is chosen elsewhere, and a way to launch that is not the usual one for it.
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

// overLengths draws time, rate and memory against the prompt's length: every strategy launched in the way that most were,
// and what was launched otherwise for default alone.
func (s *section) overLengths(p *page, rows []bench.ChunksRow, set setting, suffix string, l *looks) {
	strategies := inOrder(distinct(rows, func(r bench.ChunksRow) string { return r.Strategy }))
	usual := usualWay(rows)
	var curves []curve
	for _, name := range strategies {
		for _, way := range ways {
			if way == usual || name == "default" && way == "eager" {
				curves = append(curves, curve{name, way})
			}
		}
	}
	t := table{Columns: columns("strategy|", "prompt (tokens)", "prompts", "total (ms)", "first token (ms)", "between tokens (ms)", "tokens/s",
		"peak memory (MB)", "moved (GB)", "GB/s", "GFLOP/s", "CPU used", "GPU used")}
	onGPU := slices.ContainsFunc(rows, func(r bench.ChunksRow) bool { return r.GPUUtilization != nil })
	if !onGPU {
		t.Columns = t.Columns[:len(t.Columns)-1]
	}
	type value struct {
		chart  *chart
		name   string
		figure string
		unit   float64
		of     func(bench.ChunksRow) (y, low, high float64)
	}
	exact := func(of func(bench.ChunksRow) float64) func(bench.ChunksRow) (y, low, high float64) {
		return func(r bench.ChunksRow) (y, low, high float64) { y = of(r); return y, y, y }
	}
	values := []value{
		{newChart("Latency", "prompt (tokens)", "prompt to last token (ms)"), "latency", "latency", 1,
			func(r bench.ChunksRow) (y, low, high float64) { return r.TotalMS, r.LowMS, r.HighMS }},
		{newChart("Throughput", "prompt (tokens)", "prompt and new tokens a second"), "throughput", "throughput", 1,
			exact(func(r bench.ChunksRow) float64 { return 1000 * float64(r.PromptTokens+r.NewTokens) / r.TotalMS })},
		{newChart("Peak memory beyond the weights", "prompt (tokens)", "peak memory (MB)"), "peak memory", "memory", 1e-6,
			exact(func(r bench.ChunksRow) float64 { return float64(r.PeakBytes) })},
	}
	lengths := buckets(rows)
	for _, c := range curves {
		points := make([][]point, len(values))
		for _, length := range lengths {
			of := where(rows, func(r bench.ChunksRow) bool {
				return r.Strategy == c.strategy && r.Compile == c.compile && r.PromptTokens >= length.low && r.PromptTokens <= length.high
			})
			if len(of) == 0 {
				continue
			}
			middle := func(value func(bench.ChunksRow) float64) float64 {
				list := make([]float64, len(of))
				for i, r := range of {
					list[i] = value(r)
				}
				_, m, _ := quartiles(list)
				return m
			}
			tokens := middle(func(r bench.ChunksRow) float64 { return float64(r.PromptTokens) })
			for i, v := range values {
				points[i] = append(points[i], point{tokens,
					v.unit * middle(func(r bench.ChunksRow) float64 { y, _, _ := v.of(r); return y }),
					v.unit * middle(func(r bench.ChunksRow) float64 { _, low, _ := v.of(r); return low }),
					v.unit * middle(func(r bench.ChunksRow) float64 { _, _, high := v.of(r); return high })})
			}
			cell := func(scale float64, value func(bench.ChunksRow) float64) string { return short(scale * middle(value)) }
			between := cell(1, func(r bench.ChunksRow) float64 { return r.BetweenTokensMS })
			if set.newTokens < 2 {
				between = "–"
			}
			row := []string{c.name(), count(tokens), fmt.Sprint(len(of)),
				cell(1, func(r bench.ChunksRow) float64 { return r.TotalMS }), cell(1, func(r bench.ChunksRow) float64 { return r.FirstTokenMS }), between,
				cell(1, func(r bench.ChunksRow) float64 { return r.TokensPerS }),
				cell(1e-6, func(r bench.ChunksRow) float64 { return float64(r.PeakBytes) }),
				cell(1e-9, func(r bench.ChunksRow) float64 { return float64(r.BytesMoved) }),
				cell(1, func(r bench.ChunksRow) float64 { return r.GBPerS }), cell(1, func(r bench.ChunksRow) float64 { return r.GFlopPerS }),
				share(middle(func(r bench.ChunksRow) float64 { return r.CPUUtilization }))}
			if onGPU {
				row = append(row, share(middle(func(r bench.ChunksRow) float64 {
					if r.GPUUtilization == nil {
						return nan
					}
					return *r.GPUUtilization
				})))
			}
			t.Rows = append(t.Rows, row)
		}
		for i, v := range values {
			if err := v.chart.line(c.name(), c.look(l), points[i]); err != nil {
				s.Missing = err.Error()
			}
		}
	}
	for i, v := range values {
		if !v.chart.named { // nothing that a logarithmic axis could show
			continue
		}
		v.chart.logX()
		v.chart.logY()
		f := figure{Name: v.figure + suffix, chart: v.chart, Alt: "Curves of " + v.name + " against prompt length, one a strategy; the numbers are in a table below the charts.",
			Caption: set.String() + "."}
		if i == len(values)-1 {
			f.Table = t
		}
		s.Figures = append(s.Figures, f)
	}
	s.speedFinding(p, rows, lengths, usual)
}

// speedFinding says what the kernels gain at the longest prompts.
func (s *section) speedFinding(p *page, rows []bench.ChunksRow, lengths []bucket, usual string) {
	if len(lengths) == 0 || usual == "eager" {
		return
	}
	longest := lengths[len(lengths)-1]
	at := func(way string, value func(bench.ChunksRow) float64) float64 {
		var list []float64
		for _, r := range rows {
			if r.Strategy == "default" && r.Compile == way && r.PromptTokens >= longest.low && r.PromptTokens <= longest.high {
				list = append(list, value(r))
			}
		}
		if len(list) == 0 {
			return nan
		}
		_, m, _ := quartiles(list)
		return m
	}
	total, memory := func(r bench.ChunksRow) float64 { return r.TotalMS }, func(r bench.ChunksRow) float64 { return float64(r.PeakBytes) }
	slow, fast := at("eager", total), at(usual, total)
	if !finite(slow) || !finite(fast) {
		return
	}
	text := fmt.Sprintf("The model with the project's kernels (%s) takes %s ms for a prompt of %s tokens, in plain operations %s ms: %s times as fast",
		usual, short(fast), count(float64(longest.high)), short(slow), short(slow/fast))
	if more, less := at("eager", memory), at(usual, memory); more > 0 && less > 0 {
		text += fmt.Sprintf(", with %s instead of %s MB beyond the weights", short(less/1e6), short(more/1e6))
	}
	p.Findings = append(p.Findings, text+".")
}

// compilations compares the ways to launch at the longest prompts.
func (s *section) compilations(rows []bench.ChunksRow, set setting, suffix string, l *looks) {
	lengths := buckets(rows)
	longest := lengths[len(lengths)-1]
	rows = where(rows, func(r bench.ChunksRow) bool { return r.PromptTokens >= longest.low && r.PromptTokens <= longest.high })
	strategies := inOrder(distinct(rows, func(r bench.ChunksRow) string { return r.Strategy }))
	used := where(ways, func(way string) bool {
		return slices.ContainsFunc(rows, func(r bench.ChunksRow) bool { return r.Compile == way })
	})
	for _, r := range rows { // what this program does not know yet
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
	c := newChart("What compiling gives", "", "prompt to last token (ms)")
	if err := c.bars(names, strategies, values); err != nil {
		s.Missing = err.Error()
		return
	}
	c.zeroY()
	s.Figures = append(s.Figures, figure{Name: "compile" + suffix, chart: c, Table: t,
		Alt:     "Bars of latency, a group for each way to launch, a bar for each strategy; the numbers are in the table.",
		Caption: fmt.Sprintf("At the longest prompts, %s tokens; %s. %s.", longest, set, strings.Join(meanings, "; "))})
}

// operations lists the most expensive operations at the longest prompts.
func (s *section) operations(rows []bench.ChunksRow) {
	if len(s.Figures) == 0 {
		return
	}
	usual := usualWay(rows)
	lengths := buckets(rows)
	longest := lengths[len(lengths)-1]
	t := table{Caption: fmt.Sprintf("The most expensive operations at %s tokens", longest), Columns: columns("strategy|", "operations|")}
	seen := map[curve]bool{}
	for _, r := range rows {
		c := curve{r.Strategy, r.Compile}
		if r.PromptTokens < longest.low || seen[c] || len(r.TopOperations) == 0 || r.Compile != usual && c != (curve{"default", "eager"}) {
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

// bucket is a range of prompt lengths that are shown as one.
type bucket struct{ low, high int }

func (b bucket) String() string {
	if b.low == b.high {
		return count(float64(b.low))
	}
	return count(float64(b.low)) + " to " + count(float64(b.high))
}

// buckets groups the lengths that occur: each its own where they are few, else those within a fifth of the shortest.
func buckets(rows []bench.ChunksRow) (list []bucket) {
	lengths := distinct(rows, func(r bench.ChunksRow) int { return r.PromptTokens })
	slices.Sort(lengths)
	for _, n := range lengths {
		if last := len(list) - 1; last >= 0 && len(lengths) > 12 && float64(n) <= 1.2*float64(list[last].low) {
			list[last].high = n
		} else {
			list = append(list, bucket{n, n})
		}
	}
	return list
}

// usualWay is how most rows were launched.
func usualWay(rows []bench.ChunksRow) string {
	return mostCommon(rows, func(r bench.ChunksRow) string { return r.Compile }, []string{"kernels", "both", "graph", "eager"})
}

// mostCommon is the value that most rows have; among equals the one that comes first in preferred.
func mostCommon[Row any, K comparable](rows []Row, key func(Row) K, preferred []K) (best K) {
	counts := map[K]int{}
	for _, r := range rows {
		counts[key(r)]++
	}
	most := 0
	for _, k := range append(slices.Clone(preferred), distinct(rows, key)...) {
		if counts[k] > most {
			best, most = k, counts[k]
		}
	}
	return best
}
