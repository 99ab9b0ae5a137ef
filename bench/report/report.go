// Package report makes one self-contained HTML page, and a file for each of its plots, from what the benchmarks of package
// bench measured.
package report

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"conquer/bamba"
	"conquer/bench"
	"conquer/internal/atomicfile"
	"conquer/text/dataset"
)

// Report says what [Write] wrote.
type Report struct {
	Page  string   // the HTML file
	Plots []string // the SVG and PNG files, in the folder plots beside it
	// Notes name the result files that were missing, in a line each.
	Notes []string
}

// Write makes the page `output` from the result files in the folder `results`: those of ssd.json, chunks.json,
// accuracy.json and gptscore.json that are there. Where one is malformed the page is made of the others, and the error says
// what is wrong with it.
func Write(results, output string) (*Report, error) {
	p, notes, err := compose(results)
	if p == nil {
		return nil, err
	}
	report := &Report{Page: output, Notes: notes}
	if err := report.write(p); err != nil {
		return nil, err
	}
	return report, err
}

// compose makes the page's contents; there is none where no file could be read.
func compose(results string) (_ *page, notes []string, _ error) {
	if info, err := os.Stat(results); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no folder %s: `conquer bench chunks --output_path %s` makes it", results, results)
	} else if err != nil {
		return nil, nil, err
	} else if !info.IsDir() {
		return nil, nil, fmt.Errorf("%s is no folder: give the folder that the benchmarks wrote their results to", results)
	}
	p := &page{Title: "Bamba and its chunked states"}
	style := &looks{}
	var broken []error
	read := 0
	for _, kind := range []struct {
		name, title string
		section     func(*page, *bench.Results, *looks) section
	}{
		{bench.Accuracy, "Perplexity", accuracy},
		{bench.GPTScore, "GPTScore", gptScore},
		{bench.Chunks, "Latency, throughput and memory", chunks},
		{bench.SSD, "The scan alone", ssd},
	} {
		path := filepath.Join(results, kind.name+".json")
		r, err := bench.Read(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			note := fmt.Sprintf("%s is not there: `conquer bench %s` makes it", path, kind.name)
			notes = append(notes, note)
			p.Sections = append(p.Sections, section{ID: kind.name, Title: kind.title, Missing: note})
			continue
		case err == nil && r.Kind != kind.name:
			err = fmt.Errorf("%s: holds the results of bench %s, expected bench %s", path, r.Kind, kind.name)
		}
		if err != nil {
			broken = append(broken, err)
			p.Problems = append(p.Problems, err.Error())
			continue
		}
		read++
		s := kind.section(p, r, style)
		s.ID, s.Title = kind.name, kind.title
		p.Sections = append(p.Sections, s)
		p.Made = append(p.Made, madeBy(kind.title, r))
	}
	if read == 0 {
		if len(broken) > 0 {
			return nil, nil, errors.Join(broken...)
		}
		return nil, nil, fmt.Errorf("%s holds no results: `conquer bench chunks --output_path %s` makes some", results, results)
	}
	p.Summary = "How a state-space model fares when its chunks share their states: all of them (default), the few chunks before a token's own " +
		"(windowed:k), or none (independent). The project's kernels are drawn solid, the same in plain operations of libtorch dashed or pale."
	return p, notes, errors.Join(broken...)
}

// write writes the plots, then the page.
func (r *Report) write(p *page) error {
	plots := filepath.Join(filepath.Dir(r.Page), "plots")
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return err
	}
	for _, s := range p.Sections {
		for _, f := range s.Figures {
			png, err := f.chart.png()
			if err != nil {
				return fmt.Errorf("drawing %s: %w", f.Name, err)
			}
			for _, file := range []struct {
				ext  string
				data []byte
			}{{".svg", f.chart.svg()}, {".png", png}} {
				path := filepath.Join(plots, f.Name+file.ext)
				if err := atomicfile.WriteBytes(path, file.data); err != nil {
					return err
				}
				r.Plots = append(r.Plots, path)
			}
		}
	}
	html, err := p.html()
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(r.Page, html)
}

// madeBy says where results come from.
func madeBy(title string, r *bench.Results) made {
	m := made{Title: title, Command: r.Command, Table: table{Columns: columns("what|", "which|")}}
	add := func(what, which string) {
		if which != "" {
			m.Table.Rows = append(m.Table.Rows, []string{what, which})
		}
	}
	add("measured", r.Time.Format("2 January 2006, 15:04 MST"))
	add("processor", fmt.Sprintf("%s, %s, %s", r.Machine.CPU, dataset.Count(r.Machine.Cores, "core"), dataset.Count(r.Machine.Threads, "thread")))
	add("memory", fmt.Sprintf("%.1f GB", float64(r.Machine.MemoryBytes)/1e9))
	if r.Machine.GPU != "" {
		add("GPU", fmt.Sprintf("%s, driver %s", r.Machine.GPU, r.Machine.Driver))
	}
	add("device", r.Machine.Device)
	c := r.Machine.Ceilings
	for _, ceiling := range []struct {
		what, unit string
		value      float64
	}{{"reads at most", "GB/s", c.ReadGBPerS}, {"float32 products at most", "GFLOP/s", c.F32GFlopPerS}, {"bfloat16 products at most", "GFLOP/s", c.BF16GFlopPerS}} {
		if ceiling.value > 0 {
			add(ceiling.what, short(ceiling.value)+" "+ceiling.unit)
		}
	}
	add("versions", fmt.Sprintf("conquer %s, libtorch %s, %s", r.Versions.Conquer, r.Versions.Libtorch, r.Versions.Go))
	return m
}

// inOrder sorts strategies by how many chunks they carry state across, and the plain code before the kernels.
func inOrder(names []string) []string {
	rank := func(name string) int {
		c, err := bamba.ParseChunking(name)
		switch {
		case err != nil:
			return 1 << 60
		case c.Reach() < 0:
			return 1 << 59
		}
		return c.Reach()
	}
	slices.SortStableFunc(names, func(a, b string) int {
		if x, y := rank(a), rank(b); x != y {
			return min(1, max(-1, x-y))
		}
		return strings.Compare(a, b)
	})
	return names
}

// distinct lists the values of key over rows, each once, in the order of their first appearance.
func distinct[Row any, K comparable](rows []Row, key func(Row) K) (list []K) {
	seen := map[K]bool{}
	for _, r := range rows {
		if k := key(r); !seen[k] {
			seen[k] = true
			list = append(list, k)
		}
	}
	return list
}

// where is the rows that satisfy a condition.
func where[Row any](rows []Row, condition func(Row) bool) (list []Row) {
	for _, r := range rows {
		if condition(r) {
			list = append(list, r)
		}
	}
	return list
}
