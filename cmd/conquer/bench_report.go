package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"conquer/bench/report"
)

var benchReportCommand = command{
	name:    "bench report",
	summary: "Draw benchmark results: one HTML page, and every plot as SVG and PNG.",
	example: `conquer bench report
# other results and another page; plots go to site/plots
conquer bench report --results_path build/experiment/results --output_path site/report.html`,
	setup: setupBenchReport,
}

// reportOutput is the JSON result.
type reportOutput struct {
	Page    string   `json:"page"`
	Plots   []string `json:"plots"`
	Missing []string `json:"missing"`
}

func setupBenchReport(flags *pflag.FlagSet) func(context.Context, []string) error {
	results := flags.String("results_path", "results",
		"`folder` with benchmark results: ssd.json, chunks.json, accuracy.json, gptscore.json, "+
			"consistency.json, quantization.json and those of other programs, each optional")
	output := flags.String("output_path", "report.html",
		"HTML `page` to write; plots go to the folder plots beside it")
	asJSON := flags.Bool("json", false, "print a JSON object with page, plots and missing")
	return func(_ context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q: name the results with --results_path", args[0])
		}
		if info, err := os.Stat(*output); err == nil && info.IsDir() {
			return usagef("--output_path %s is a folder, expected the page's name, such as %s",
				*output, filepath.Join(*output, "report.html"))
		}
		r, err := report.Write(*results, *output)
		if r == nil {
			return err
		}
		if *asJSON {
			if failed := printJSON(stdout,
				reportOutput{r.Page, r.Plots, append([]string{}, r.Notes...)}); failed != nil {
				return failed
			}
			return err
		}
		for _, remark := range r.Notes {
			note("%s\n", remark)
		}
		fmt.Fprintf(stdout, "wrote %s and %d plots in %s\n", r.Page, len(r.Plots)/2,
			filepath.Join(filepath.Dir(r.Page), "plots"))
		return err
	}
}
