package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"conquer/text/dataset"
)

// recordFlags are the flags that say how the records of data sets are read.
type recordFlags struct {
	columns []string
	onBad   string
}

func (f *recordFlags) declare(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.columns, "columns", nil,
		"names that the data has for the fields of its records: `NAME=COLUMN`,…, such as "+
			"instruction=question,output=answer or messages=dialog,role=speaker,content=text")
	flags.StringVar(&f.onBad, "on_bad_record", "stop",
		"stop at a record that cannot be read or rendered, or skip it and count it")
}

// set checks the flags and sets the options that they stand for.
func (f *recordFlags) set(o *dataset.Options) (err error) {
	if o.Columns, err = dataset.ParseColumns(f.columns); err != nil {
		return usagef("--columns: %w", err)
	}
	switch f.onBad {
	case "stop", "skip":
		o.SkipBad = f.onBad == "skip"
		return nil
	}
	return usagef("--on_bad_record is %q, expected stop or skip", f.onBad)
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
