package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"conquer/model/hub"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
)

// recordFlags are the flags that say how the records of data sets are read.
type recordFlags struct {
	columns []string
	onBad   string
	mapped  *dataset.Columns // --columns, once check has read it
}

func (f *recordFlags) declare(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.columns, "columns", nil,
		"names that the data has for the fields of its records: `NAME=COLUMN`,…, such as "+
			"instruction=question,output=answer or messages=dialog,role=speaker,content=text")
	flags.StringVar(&f.onBad, "on_bad_record", "stop",
		"stop at a record that cannot be read or rendered, or skip it and count it")
}

// check reads the flags.
func (f *recordFlags) check() (err error) {
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

// set sets the options that the flags stand for.
func (f *recordFlags) set(o *dataset.Options) {
	o.Columns, o.SkipBad = f.mapped, f.onBad == "skip"
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
	fmt.Printf("%s %s: %s\n", what, path, d.Report)
	printFiles("from", d.Chosen.Files)
	if len(d.Bad) > 0 {
		text := "  skipped " + strings.Join(d.Bad, "\n  skipped ")
		if more := d.Report.Bad - len(d.Bad); more > 0 {
			text += fmt.Sprintf("\n  skipped %d more", more)
		}
		fmt.Fprintln(&visibleWriter{out: os.Stdout}, text)
	}
}
