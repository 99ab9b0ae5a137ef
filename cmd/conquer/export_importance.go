package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/internal/progress"
	"conquer/model"
	"conquer/model/calibrate"
	"conquer/text/dataset"
	"conquer/torch"
)

// importanceFlags say how the errors of quantized weights are weighed.
type importanceFlags struct {
	data   []string
	file   string
	tokens int
}

func (f *importanceFlags) declare(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.data, "importance_data", nil,
		"text or records, as for --data_path of conquer train, on which the quantized model shall "+
			"stay close to the original: `paths`, separated by commas")
	flags.IntVar(&f.tokens, "importance_tokens", 1<<15,
		"`number` of tokens of --importance_data that are read")
	flags.StringVar(&f.file, "importance", "",
		"importance matrix in GGUF, as llama-imatrix writes it: the `file` that is read, or "+
			"written with --importance_data")
}

// check refuses flags that would do nothing. encoding is the mix of the output.
func (f *importanceFlags) check(encoding string, overwrite bool) error {
	switch {
	case len(f.data) == 0 && f.file == "":
		return nil
	case encoding == "":
		return usagef("--importance_data and --importance are for quantized weights: choose a " +
			"--dtype such as q4_k_m, and --format gguf")
	case f.tokens < 1:
		return usagef("--importance_tokens is %d, expected at least 1", f.tokens)
	case len(f.data) > 0 && f.file != "":
		if err := checkOutput(f.file, true, overwrite); err != nil {
			return err
		}
	}
	return checkData("importance_data", f.data)
}

// calibrationLength is the number of tokens that a model reads at once for its importance matrix.
const calibrationLength = 512

// find returns the importance of m's matrices by GGUF's names, nil if no flag asks for it. m has no
// weights yet; source has them.
func (f *importanceFlags) find(ctx context.Context, m model.Model, source model.TensorSource,
	config []byte, o *opened) (checkpoint.Importance, error) {
	if len(f.data) == 0 {
		if f.file == "" {
			return nil, nil
		}
		found, err := checkpoint.LoadImportance(f.file)
		if err != nil {
			return nil, fmt.Errorf("--importance: %w", err)
		}
		return found, nil
	}
	if o.tokenizer == nil {
		return nil, o.noTokenizer("give one with --tokenizer")
	}
	rows, err := f.rows(ctx, o)
	if err != nil {
		return nil, err
	}
	defer model.Free(m)
	if err := model.Load(m, source, torch.Float32, torch.CPU); err != nil {
		return nil, err
	}
	total := 0
	for _, row := range rows {
		total += len(row)
	}
	bar := progress.New(os.Stderr, "reading tokens", progress.Steps, 0, int64(total))
	defer bar.Close()
	byName, err := calibrate.Importance(ctx, m, rows, func(done int) { bar.Set(int64(done)) })
	if err != nil {
		return nil, err
	}
	found, err := byName.GGUF(config)
	if err == nil && f.file != "" {
		err = checkpoint.SaveImportance(f.file, found, f.data, len(rows), calibrationLength)
	}
	return found, err
}

// rows encodes the data: texts of at most calibrationLength tokens, evenly chosen from all.
func (f *importanceFlags) rows(ctx context.Context, o *opened) (rows [][]int32, err error) {
	all := new(dataset.Dataset)
	defer func() { all.Close() }()
	for _, path := range f.data {
		_, err := loadPath(ctx, path, false, o.tokenizer, func(string) dataset.Options {
			return dataset.Options{MaxLength: calibrationLength}
		}, func(_ string, d *dataset.Dataset) { all.Append(d) })
		if err != nil {
			return nil, fmt.Errorf("--importance_data: %w", err)
		}
	}
	total := 0
	for i := range all.Len() {
		total += all.Length(i)
	}
	share, taken, seen := min(float64(f.tokens)/float64(max(total, 1)), 1), 0, 0
	for i := range all.Len() {
		seen += all.Length(i)
		if float64(taken) >= share*float64(seen) {
			continue
		}
		sample, err := all.At(i)
		if err != nil {
			return nil, err
		}
		ids := sample.IDs
		if sample.Second > 0 { // of a pair, the answer that is preferred
			ids = ids[:sample.Second]
		}
		rows, taken = append(rows, ids), taken+len(ids)
	}
	if taken == 0 {
		return nil, fmt.Errorf("--importance_data: there is no text")
	}
	return rows, nil
}
