package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/internal/progress"
	"conquer/model/statespace"
	"conquer/torch"
)

var benchCommand = command{
	name:    "bench",
	summary: "Measure speed, memory and accuracy of chunking strategies, generation and training.",
	example: `conquer bench ssd --length 1024,4096
conquer bench chunks --variant small --prompts examples/prompts/prompts.json
conquer bench accuracy --model_path my-bamba --prompts examples/prompts/prompts.json
conquer bench gptscore --model_path smollm2-135m results/accuracy_*.tsv
conquer bench consistency --model_path my-bamba --text_file book.txt
conquer bench quantization --model_path smollm2-135m --text_file book.txt
conquer bench inference --model_path smollm2-135m --seq_len 512 --max_new_tokens 64
conquer bench report`,
	subcommands: []command{
		benchSSDCommand,
		benchChunksCommand,
		benchAccuracyCommand,
		benchGPTScoreCommand,
		benchConsistencyCommand,
		benchQuantizationCommand,
		benchInferenceCommand,
		benchServeCommand,
		benchTrainCommand,
		benchReportCommand,
	},
}

// benchFlags are the flags of every benchmark.
type benchFlags struct {
	output string
	json   bool
}

func (f *benchFlags) declare(flags *pflag.FlagSet, kind string) {
	flags.StringVar(&f.output, "output_path", "results",
		fmt.Sprintf("`folder` for %s.json and %s.csv", kind, kind))
	flags.BoolVar(&f.json, "json", false, "print the JSON instead of a table")
	group(flags, "Output")
}

// declareChunking adds the flags that choose strategies.
func declareChunking(flags *pflag.FlagSet, chunking *[]string, otherwise ...string) {
	flags.StringSliceVar(chunking, "chunking", otherwise,
		"chunking `strategies`: "+strategyNames()+"; add -optimized for the kernels")
}

// strategyNames says what a flag for strategies takes.
func strategyNames() string {
	names := "default, independent, or windowed:k to carry the state across k chunks"
	if own := statespace.Strategies()[3:]; len(own) > 0 {
		names += "; registered here: " + strings.Join(own, ", ")
	}
	return names
}

func parseStrategies(names []string) ([]statespace.Chunking, error) {
	var list []statespace.Chunking
	for _, name := range names {
		c, err := statespace.ParseChunking(name)
		if err != nil {
			return nil, usagef("--chunking: %w", err)
		}
		if slices.Contains(list, c) {
			return nil, usagef("--chunking names %s twice", c)
		}
		list = append(list, c)
	}
	if list == nil {
		return nil, usagef("--chunking is empty")
	}
	return list, nil
}

// begin prepares the results, with the command line and the machine.
func (f *benchFlags) begin(kind string, device torch.Device, rates bool) (*bench.Results, error) {
	if err := checkFolder(f.output); err != nil {
		return nil, fmt.Errorf("--output_path: %w", err)
	}
	r, err := bench.New(kind, commandLine(), version, device)
	if err == nil && rates {
		r.Machine.Ceilings, err = bench.MeasureCeilings(device)
	}
	return r, err
}

// commandLine returns this process's command line, quoted for a shell.
func commandLine() string {
	words := []string{"conquer"}
	for _, arg := range os.Args[1:] {
		if arg == "" || strings.ContainsAny(arg, " \t\n'\"\\$`*?[]{}()<>|&;#~!") {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// finish writes and prints the rows. runErr is the error that ended the benchmark early, or nil.
func (f *benchFlags) finish(r *bench.Results, rows int, runErr error,
	print func(w io.Writer)) error {
	if rows == 0 && runErr != nil {
		return runErr
	}
	saved := r.Save(f.output)
	if runErr != nil && saved == nil {
		note("%d finished rows are in %s\n", rows,
			filepath.Join(f.output, r.Kind+".json"))
		return runErr
	}
	if f.json {
		return cmp.Or(printJSON(stdout, r), saved)
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	print(table)
	table.Flush()
	if saved == nil {
		fmt.Fprintf(stdout, "wrote %s and .csv%s\n",
			filepath.Join(f.output, r.Kind+".json"), origin(r))
	}
	return saved
}

// origin says in brackets where the weights and inputs of results are from, if that is recorded.
func origin(r *bench.Results) string {
	var parts []string
	if r.Weights != "" {
		parts = append(parts, "weights: "+r.Weights)
	}
	if r.Inputs != "" {
		parts = append(parts, "inputs: "+r.Inputs)
	}
	if parts == nil {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// collect runs a benchmark with a progress bar and returns its rows, also those before an error.
func collect[T any](what string, run func(add func(row T, total int)) error) ([]T, error) {
	rows := []T{}
	bar := progress.New(os.Stderr, what, progress.Steps, 0, 0)
	defer bar.Close()
	err := run(func(row T, total int) {
		rows = append(rows, row)
		bar.SetTotal(int64(total))
		bar.Add(1)
	})
	return rows, err
}

// formatQuartiles formats the quartiles of several runs; a single run has none.
func formatQuartiles(t bench.Times) string {
	if t.Runs < 2 {
		return "–"
	}
	return formatMS(t.Low) + "–" + formatMS(t.High)
}

// formatMS formats milliseconds with about three digits.
func formatMS(ms float64) string {
	switch {
	case ms >= 100:
		return fmt.Sprintf("%.0f", ms)
	case ms >= 10:
		return fmt.Sprintf("%.1f", ms)
	case ms >= 1:
		return fmt.Sprintf("%.2f", ms)
	}
	return fmt.Sprintf("%.4f", ms)
}
