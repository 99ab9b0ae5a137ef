// Package report makes a self-contained HTML page, and a file for each of its plots, from
// the results of the benchmarks in package bench.
package report

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"conquer/bench"
	"conquer/internal/atomicfile"
	"conquer/text/dataset"
)

// Report lists the files that [Write] wrote.
type Report struct {
	Page  string   // the HTML file
	Plots []string // the SVG and PNG files, in the folder plots beside Page
	// Notes holds one line for each missing result file.
	Notes []string
}

// Write makes the page output from the files ssd.json, chunks.json, accuracy.json, gptscore.json,
// consistency.json, quantization.json and speed.json in the folder results. Any of them may be
// missing. Results of other programs are in files named KIND_PROGRAM.json, such as ssd_mamba.json,
// which tools/peers writes; they are shown beside those of KIND.json. If a file is malformed, the
// page is made from the others, and Write returns both a report and an error.
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

// compose makes the contents of the page, or nil if no file could be read.
func compose(results string) (_ *page, notes []string, _ error) {
	if info, err := os.Stat(results); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no folder %s: "+
			"`conquer bench chunks --output_path %s` makes it", results, results)
	} else if err != nil {
		return nil, nil, err
	} else if !info.IsDir() {
		return nil, nil, fmt.Errorf("%s is not a folder: "+
			"give the folder with the results of the benchmarks", results)
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
		{bench.Consistency, "Consistency", consistency},
		{bench.Quantization, "Quantized weights", quantization},
		{bench.Speed, "Other programs", speed},
	} {
		path := filepath.Join(results, kind.name+".json")
		r, err := bench.Read(path)
		peers, failed := readPeers(results, kind.name)
		for _, err := range failed {
			broken = append(broken, err)
			p.Problems = append(p.Problems, err.Error())
		}
		if errors.Is(err, fs.ErrNotExist) && len(peers) > 0 {
			r, peers, err = peers[0], peers[1:], nil
			asProgram(r)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) && (kind.name == bench.Speed ||
			kind.name == bench.Quantization):
			continue // other programs and quantized models need not be there
		case errors.Is(err, fs.ErrNotExist):
			note := fmt.Sprintf("%s is missing: `conquer bench %s` makes it", path, kind.name)
			notes = append(notes, note)
			p.Sections = append(p.Sections, section{ID: kind.name, Title: kind.title,
				Missing: note})
			continue
		case err == nil && r.Kind != kind.name:
			err = fmt.Errorf("%s: holds the results of bench %s, expected bench %s",
				path, r.Kind, kind.name)
		}
		if err != nil {
			broken = append(broken, err)
			p.Problems = append(p.Problems, err.Error())
			continue
		}
		read++
		own := *r
		for _, peer := range peers {
			asProgram(peer)
			r.Rows = reflect.AppendSlice(reflect.ValueOf(r.Rows),
				reflect.ValueOf(peer.Rows)).Interface()
		}
		s := kind.section(p, r, style)
		s.ID, s.Title = kind.name, kind.title
		p.Sections = append(p.Sections, s)
		for _, r := range append([]*bench.Results{&own}, peers...) {
			title := kind.title
			if r.Program != "" {
				title += ": " + r.Program
			}
			p.Made = append(p.Made, madeBy(title, r))
		}
	}
	if read == 0 {
		if len(broken) > 0 {
			return nil, nil, errors.Join(broken...)
		}
		return nil, nil, fmt.Errorf("%s holds no results: "+
			"`conquer bench chunks --output_path %s` makes some", results, results)
	}
	p.Summary = "Speed, memory and accuracy of a state-space model when state is carried across " +
		"all chunks (default), from the k previous chunks (windowed:k), or not at all " +
		"(independent). " +
		"Solid: conquer's kernels. Dashed or pale: the same computation in libtorch's operations."
	return p, notes, errors.Join(broken...)
}

// readPeers reads the results of other programs, KIND_*.json, in the order of their names.
func readPeers(results, kind string) (list []*bench.Results, failed []error) {
	paths, _ := filepath.Glob(filepath.Join(results, kind+"_*.json")) // the pattern is valid
	for _, path := range paths {
		r, err := bench.Read(path)
		switch {
		case err == nil && r.Kind != kind:
			err = fmt.Errorf("%s: holds the results of bench %s, expected bench %s", path, r.Kind,
				kind)
		case err == nil && r.Program == "" && kind != bench.Speed:
			err = fmt.Errorf("%s: has no program: the results of another program name it", path)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		list = append(list, r)
	}
	return list, failed
}

// asProgram shows the program in place of the strategy of rows that have one.
func asProgram(r *bench.Results) {
	switch rows := r.Rows.(type) {
	case []bench.SSDRow:
		for i := range rows {
			rows[i].Strategy = r.Program
		}
	case []bench.ChunksRow:
		for i := range rows {
			rows[i].Strategy = r.Program
		}
	case []bench.ConsistencyRow:
		for i := range rows {
			rows[i].Program = r.Program
		}
	}
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

// weightsOf says where the weights of a run are from. Older versions did not record it.
func weightsOf(r *bench.Results) string {
	if r.Weights == "" && strings.Contains(r.Command, "--variant") {
		return "random, seed not recorded"
	}
	return r.Weights
}

// randomNote is a sentence for the intro of a section if its weights were random.
func randomNote(r *bench.Results, what string) string {
	weights := weightsOf(r)
	if !strings.HasPrefix(weights, "random, ") {
		return ""
	}
	return fmt.Sprintf(" The weights are %s: %s", weights, what)
}

// madeBy describes the run that produced results.
func madeBy(title string, r *bench.Results) made {
	m := made{Title: title, Command: r.Command,
		Table: table{Columns: columns("property|", "value|")}}
	add := func(what, which string) {
		if which != "" {
			m.Table.Rows = append(m.Table.Rows, []string{what, which})
		}
	}
	add("measured", r.Time.Format("2 January 2006, 15:04 MST"))
	add("weights", weightsOf(r))
	add("inputs", r.Inputs)
	add("CPU", fmt.Sprintf("%s, %s, %s", r.Machine.CPU, dataset.Count(r.Machine.Cores, "core"),
		dataset.Count(r.Machine.Threads, "thread")))
	add("memory", fmt.Sprintf("%.1f GB", float64(r.Machine.MemoryBytes)/1e9))
	if r.Machine.GPU != "" {
		add("GPU", fmt.Sprintf("%s, driver %s", r.Machine.GPU, r.Machine.Driver))
	}
	add("device", r.Machine.Device)
	c := r.Machine.Ceilings
	for _, ceiling := range []struct {
		what, unit string
		value      float64
	}{
		{"read bandwidth (ceiling)", "GB/s", c.ReadGBPerS},
		{"float32 GEMM (ceiling)", "GFLOP/s", c.F32GFlopPerS},
		{"bfloat16 GEMM (ceiling)", "GFLOP/s", c.BF16GFlopPerS},
	} {
		if ceiling.value > 0 {
			add(ceiling.what, short(ceiling.value)+" "+ceiling.unit)
		}
	}
	add("versions", fmt.Sprintf("conquer %s, libtorch %s, %s", r.Versions.Conquer,
		r.Versions.Libtorch, r.Versions.Go))
	return m
}
