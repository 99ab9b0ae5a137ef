package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"conquer/model/hub"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
)

// recordFlags are the flags that say how the records of data sets are read and mixed.
type recordFlags struct {
	columns, weights []string
	onBad, cache     string
	mapped           *dataset.Columns // --columns, once check has read it
	shares           []float64        // --data_weights, once check has read them
}

func (f *recordFlags) declare(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.weights, "data_weights", nil,
		"share of the samples from each --data_path: `numbers` such as 0.7,0.3; small data sets "+
			"are repeated (default: every sample once in an epoch)")
	flags.StringSliceVar(&f.columns, "columns", nil,
		"columns of the data that hold the fields of its records: `NAME=COLUMN`,…, such as "+
			"instruction=question,output=answer or messages=dialog,role=speaker,content=text")
	flags.StringVar(&f.onBad, "on_bad_record", "stop",
		"stop at a record that cannot be read or rendered, or skip it and count it")
	flags.StringVar(&f.cache, "data_cache", "",
		"`folder` for encoded data, which the next start with the same files, tokenizer and flags "+
			"reads instead (default: none)")
}

// check reads the flags. paths is the number of --data_path.
func (f *recordFlags) check(paths int) (err error) {
	f.shares = nil
	for _, text := range f.weights {
		weight, err := strconv.ParseFloat(text, 64)
		if err != nil || !(weight > 0) || math.IsInf(weight, 1) {
			return usagef("--data_weights: %q, expected numbers above 0", text)
		}
		f.shares = append(f.shares, weight)
	}
	if f.shares != nil && len(f.shares) != paths {
		return usagef("--data_weights has %s, --data_path has %s: give a weight for each path",
			dataset.Count(len(f.shares), "number"), dataset.Count(paths, "path"))
	}
	if f.onBad != "stop" && f.onBad != "skip" {
		return usagef("--on_bad_record is %q, expected stop or skip", f.onBad)
	}
	if f.mapped, err = dataset.ParseColumns(f.columns); err != nil {
		return usagef("--columns: %w", err)
	}
	return nil
}

// checkUsed returns an error if none of the data sets that were read has a column of --columns.
func (f *recordFlags) checkUsed() error {
	if err := f.mapped.Unused(); err != nil {
		return usagef("--columns: %w", err)
	}
	return nil
}

// join joins data sets, each of one path, into one: a mixture if there are weights.
func (f *recordFlags) join(sets []*dataset.Dataset) (*dataset.Dataset, error) {
	if f.shares != nil {
		return dataset.Mix(sets, f.shares)
	}
	all := new(dataset.Dataset)
	for _, d := range sets {
		all.Append(d)
	}
	return all, nil
}

// set sets the options that the flags stand for.
func (f *recordFlags) set(o *dataset.Options) {
	o.Columns, o.SkipBad = f.mapped, f.onBad == "skip"
	o.Cache = f.cache
	o.Notice = func(message string) { note("conquer: %s\n", message) }
}

// checkData reports paths of a flag at which there is no data.
func checkData(flag string, paths []string) error {
	for _, path := range paths {
		if hub.OnHub(path) {
			continue
		}
		if strings.HasPrefix(path, "https://") || strings.HasPrefix(path, "http://") {
			return usagef("--%s: %s is not fetched: download it, for example with curl -LO, "+
				"and give the file; data sets of the Hugging Face Hub are "+
				"hf://datasets/org/name", flag, path)
		}
		switch _, err := os.Stat(path); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("--%s: there is no file or folder %s; data sets of the Hugging Face "+
				"Hub are hf://datasets/org/name", flag, path)
		case err != nil:
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	return nil
}

// loadPath loads the data sets at a path: files, or a name of the Hub. It calls take with each, and
// returns the files of other splits.
func loadPath(ctx context.Context, path string, validation bool, tok *tokenizer.Tokenizer,
	options func(file string) dataset.Options, take func(file string, d *dataset.Dataset)) (
	heldOut []string, err error) {
	files, heldOut, err := hub.DataPaths(ctx, path, dataset.SplitFiles(validation),
		downloadBar(path))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		d, err := dataset.Load(file, tok, options(file))
		if err != nil {
			return nil, err
		}
		take(file, d)
		heldOut = append(heldOut, d.Chosen.HeldOut...)
	}
	return heldOut, nil
}

// printLoaded prints what was read: what names the data, path its place.
func printLoaded(what, path string, d *dataset.Dataset) {
	from := ""
	if d.Cached {
		from = " (from --data_cache)"
	}
	fmt.Fprintf(stdout, "%s %s: %s%s\n", what, path, d.Report, from)
	printFiles("from", d.Chosen.Files)
	if len(d.Bad) > 0 {
		text := "  skipped " + strings.Join(d.Bad, "\n  skipped ")
		if more := d.Report.Bad - len(d.Bad); more > 0 {
			text += fmt.Sprintf("\n  skipped %d more", more)
		}
		fmt.Fprintln(&visibleWriter{out: stdout}, text)
	}
}

// printShares prints what the data sets at paths give to a mixture.
func printShares(w io.Writer, paths []string, shares []dataset.Share) {
	for i, s := range shares {
		fmt.Fprintf(w, "mix %s: %.1f %% of the samples, %.1f %% of the tokens, %.2f passes in an "+
			"epoch\n", paths[i], 100*s.Samples, 100*s.Tokens, s.Passes)
	}
}
