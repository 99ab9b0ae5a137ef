package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"conquer/bench/report"
	"conquer/eval"
	"conquer/internal/atomicfile"
	"conquer/internal/progress"
	"conquer/model/statespace"
)

var probeCommand = command{
	name:    "probe",
	summary: "Hide a fact in long texts and measure where a model finds it.",
	example: `conquer probe --model_path smollm2-135m --lengths 512,1024,2048 --heat_map passkey.svg
# how far does a state carry a fact? One map for each strategy
conquer probe --model_path my-bamba --kind needle --lengths 1024,4096,16384 \
  --chunking default-optimized,windowed:4-optimized,independent-optimized --heat_map needle.png`,
	config: true,
	setup:  setupProbe,
}

// probeFlags are the flags of conquer probe.
type probeFlags struct {
	modelFlags
	probe           eval.Probe
	chunking        []string
	strategies      []statespace.Chunking
	heatMap, output string
	json            bool
}

// probeOutput is the JSON result.
type probeOutput struct {
	Model   string        `json:"model_path"`
	Kind    string        `json:"kind"`
	Repeats int           `json:"repeats"`
	Seed    uint64        `json:"seed"`
	Results []probeResult `json:"results"`
}

// probeResult are the cells of one strategy, which is empty for a model without state-space layers.
type probeResult struct {
	Strategy string        `json:"chunking,omitempty"`
	Cells    []eval.Recall `json:"cells"`
}

func setupProbe(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f probeFlags
	f.modelFlags.declare(flags)
	f.declareAdapter(flags)
	f.declareExpected(flags)
	group(flags, "Model")
	flags.StringVar(&f.probe.Kind, "kind", eval.Kinds[0],
		"`kind` of fact: passkey, a number among sentences that repeat, or needle, a word among "+
			"sentences that do not")
	flags.IntSliceVar(&f.probe.Lengths, "lengths", []int{512, 1024, 2048},
		"`tokens` of the texts, with the question")
	flags.Float64SliceVar(&f.probe.Depths, "depths", []float64{0, 25, 50, 75, 100},
		"`places` of the fact in percent: 0 is the beginning")
	flags.IntVar(&f.probe.Repeats, "repeats", 5, "`facts` asked for at each length and depth")
	flags.Uint64Var(&f.probe.Seed, "seed", 0, "`seed` of the facts and sentences")
	group(flags, "Texts")
	declareChunking(flags, &f.chunking)
	group(flags, "Computation")
	flags.StringVar(&f.heatMap, "heat_map", "",
		"`file` to draw to, .svg or .png; with several strategies each has a file with its name")
	flags.StringVar(&f.output, "output_path", "", "`file` to write the results to, as JSON")
	flags.BoolVar(&f.json, "json", false, "print the results as JSON")
	group(flags, "Output")
	return func(ctx context.Context, args []string) error {
		if err := f.check(args); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *probeFlags) check(args []string) (err error) {
	if len(args) > 0 {
		return usagef("unexpected %q", args[0])
	}
	p := f.probe
	for _, length := range p.Lengths {
		if length < 1 {
			return usagef("--lengths has %d, expected numbers of tokens", length)
		}
	}
	for _, depth := range p.Depths {
		if !(depth >= 0 && depth <= 100) {
			return usagef("--depths has %g, expected percents from 0 to 100", depth)
		}
	}
	switch ext := strings.ToLower(filepath.Ext(f.heatMap)); {
	case len(p.Lengths) == 0 || len(p.Depths) == 0 || p.Repeats < 1:
		return usagef("--lengths, --depths and --repeats: expected at least one of each")
	case p.Kind != "passkey" && p.Kind != "needle":
		return usagef("--kind is %q, expected %s", p.Kind, strings.Join(eval.Kinds, " or "))
	case f.heatMap != "" && ext != ".svg" && ext != ".png":
		return usagef("--heat_map is %q, expected a file .svg or .png", f.heatMap)
	}
	if len(f.chunking) > 0 {
		f.strategies, err = parseStrategies(f.chunking)
	}
	return err
}

func (f *probeFlags) run(ctx context.Context) error {
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	if o.tokenizer == nil {
		return o.noTokenizer("give one with --tokenizer")
	}
	lm, err := eval.NewLM(o.model, o.tokenizer)
	if err != nil {
		return err
	}
	out := probeOutput{Model: f.path, Kind: f.probe.Kind, Repeats: f.probe.Repeats,
		Seed: f.probe.Seed}
	m, chunked := o.model.(statespace.Chunked)
	if f.strategies != nil && !chunked {
		return usagef("--chunking: the architecture %s has no state-space layers",
			o.model.Architecture())
	}
	for i := range max(1, len(f.strategies)) {
		var r probeResult
		if f.strategies != nil {
			if err := m.SetChunking(f.strategies[i]); err != nil {
				return usagef("--chunking: %w", err)
			}
			lm.Whole = f.strategies[i].Strategy != statespace.Default
		}
		if chunked {
			r.Strategy = m.Chunking().String()
		}
		if r.Cells, err = f.ask(ctx, lm); err != nil {
			return err
		}
		out.Results = append(out.Results, r)
	}
	return f.write(out)
}

// ask runs the probe with a progress bar.
func (f *probeFlags) ask(ctx context.Context, lm *eval.LM) ([]eval.Recall, error) {
	bar := progress.New(os.Stderr, "probing", progress.Steps, 0, 0)
	defer bar.Close()
	return lm.Probe(ctx, f.probe, func(done, total int) {
		bar.SetTotal(int64(total))
		bar.Set(int64(done))
	})
}

// write prints the results, and writes the file and the heat maps.
func (f *probeFlags) write(out probeOutput) (err error) {
	if f.output != "" {
		err = writeIndented(f.output, out)
	}
	if f.heatMap != "" {
		for _, r := range out.Results {
			err = errors.Join(err, f.draw(r, len(out.Results) > 1))
		}
	}
	if f.json {
		return errors.Join(err, printJSON(stdout, out))
	}
	columns := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, r := range out.Results {
		f.print(columns, r)
	}
	return errors.Join(err, columns.Flush())
}

// shares are the shares of facts that were found, by depth and length.
func (f *probeFlags) shares(r probeResult) [][]float64 {
	rows := make([][]float64, len(f.probe.Depths))
	for i, c := range r.Cells { // length by length
		row := i % len(rows)
		rows[row] = append(rows[row], float64(c.Found)/float64(c.Asked))
	}
	return rows
}

// print writes a row for each depth and a column for each length.
func (f *probeFlags) print(w io.Writer, r probeResult) {
	if r.Strategy != "" {
		fmt.Fprintf(w, "%s\n", r.Strategy)
	}
	fmt.Fprint(w, "depth")
	for _, length := range f.probe.Lengths {
		fmt.Fprintf(w, "\t%d", length)
	}
	fmt.Fprintln(w)
	for i, row := range f.shares(r) {
		fmt.Fprintf(w, "%g %%", f.probe.Depths[i])
		for _, share := range row {
			fmt.Fprintf(w, "\t%.0f %%", 100*share)
		}
		fmt.Fprintln(w)
	}
}

// draw writes the heat map of a strategy.
func (f *probeFlags) draw(r probeResult, named bool) error {
	h := report.HeatMap{Title: "Recall of a " + f.probe.Kind, X: "tokens of the text",
		Y: "depth of the fact", Values: f.shares(r)}
	if r.Strategy != "" {
		h.Title += ", " + r.Strategy
	}
	for _, length := range f.probe.Lengths {
		h.Columns = append(h.Columns, fmt.Sprint(length))
	}
	for _, depth := range f.probe.Depths {
		h.Rows = append(h.Rows, fmt.Sprintf("%g %%", depth))
	}
	ext := filepath.Ext(f.heatMap)
	path := f.heatMap
	if named {
		path = strings.TrimSuffix(path, ext) + "-" + strings.ReplaceAll(r.Strategy, ":", "_") + ext
	}
	data, err := h.Draw(strings.ToLower(ext[1:]))
	if err == nil {
		err = atomicfile.MkdirAll(filepath.Dir(path))
	}
	if err == nil {
		err = atomicfile.WriteBytes(path, data)
	}
	return err
}
