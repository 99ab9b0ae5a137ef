package bench

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"conquer/generate"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
)

// InferenceOptions say what [Inference] measures. Prompts are random tokens.
type InferenceOptions struct {
	Batch, Length, NewTokens int
	Repeats                  int  // measured calls, after a warm-up call
	Compiled, Eager          bool // recorded steps (GPU only), and operations launched one by one
	Cache, NoCache           bool
	Seed                     uint64 // of the prompts
	Weights                  string // for the rows
	// Group is the processes that the model is divided over, or nil. They do not record steps.
	Group *dist.Group
	// PrefillPiece is the most tokens of a pass over a prompt, 0 for the whole prompt. Runs without
	// a cache cannot read in pieces.
	PrefillPiece int
	// Done receives each row when it is measured. It may be nil.
	Done func(InferenceRow)
}

// InferenceRow is one way to run, with medians over the repeats.
type InferenceRow struct {
	Compile      string  `json:"compile"` // none or graph
	UseCache     bool    `json:"use_cache"`
	Weights      string  `json:"weights,omitempty"` // as in [Results]
	Device       string  `json:"device"`
	DType        string  `json:"dtype"`
	Batch        int     `json:"batch"`
	Length       int     `json:"length"` // tokens of each prompt
	NewTokens    int     `json:"new_tokens"`
	PrefillPiece int     `json:"prefill_piece,omitempty"` // tokens of a pass over a prompt
	Repeats      int     `json:"repeats"`
	Processes    int     `json:"processes,omitempty"` // that the model is divided over
	FirstTokenMS float64 `json:"first_token_ms"`      // call to first new token
	// SingleMS is one step after the prompt, without recording, or 0 if there is none.
	SingleMS   float64 `json:"single_token_ms,omitempty"`
	TotalMS    float64 `json:"end_to_end_ms"`       // call to last new token
	PerTokenMS float64 `json:"end_to_end_token_ms"` // TotalMS over NewTokens
	TokensPerS float64 `json:"tokens_per_s"`        // new tokens of the batch over TotalMS
	PeakBytes  int64   `json:"peak_bytes,omitempty"`
	// Fused reports, on a GPU, that block tails ran as the fused kernel.
	Fused         bool   `json:"fused,omitempty"`
	UnfusedReason string `json:"unfused,omitempty"` // why they did not
}

// unrecorded is the number of steps that run before the first replay: one loads kernels, one
// is recorded.
const unrecorded = 2

// records reports whether recorded steps are measured. That needs a GPU, a process with the
// whole model, and a cache: without a cache every step has another shape.
func (o InferenceOptions) records(device torch.Device) bool {
	return o.Compiled && o.Cache && device.IsCUDA() && o.Group == nil
}

// Check returns an error if the options are invalid for a model on the device.
func (o InferenceOptions) Check(device torch.Device) error {
	least := 2 // the prompt gives the first token
	if o.records(device) {
		least += unrecorded
	}
	switch {
	case !o.records(device) && !(o.Eager && (o.Cache || o.NoCache)):
		return fmt.Errorf("nothing to measure: steps can only be recorded on a GPU, " +
			"in one process and with a cache")
	case o.PrefillPiece < 0 || o.PrefillPiece > 0 && o.Eager && o.NoCache:
		return fmt.Errorf("prefill_pieces is %d: a prompt is read in pieces of 1 token or more, "+
			"and with a cache only", o.PrefillPiece)
	case o.NewTokens < least:
		return fmt.Errorf("max_new_tokens is %d, expected at least %d to time one step",
			o.NewTokens, least)
	}
	return checkPositive("batch_size, seq_len or repeat", o.Batch, o.Length, o.Repeats)
}

// Inference measures generation like FMS's benchmark: eager and recorded, with and without a
// cache.
func Inference(ctx context.Context, m model.Model, o InferenceOptions) ([]InferenceRow, error) {
	if err := o.Check(model.Device(m)); err != nil {
		return nil, err
	}
	var rows []InferenceRow
	for _, cache := range []bool{true, false} {
		for _, compile := range []generate.Compile{generate.CompileNone, generate.CompileGraph} {
			wanted := o.Eager && (cache && o.Cache || !cache && o.NoCache)
			if compile == generate.CompileGraph {
				wanted = cache && o.records(model.Device(m))
			}
			if !wanted {
				continue
			}
			row, err := inferenceRow(ctx, m, o, cache, compile)
			if err != nil {
				return rows, err
			}
			rows = append(rows, row)
			if o.Done != nil {
				o.Done(row)
			}
		}
	}
	return rows, nil
}

// inferenceRow measures one way to run.
func inferenceRow(ctx context.Context, m model.Model, o InferenceOptions, cache bool,
	compile generate.Compile,
) (InferenceRow, error) {
	device := model.Device(m)
	row := InferenceRow{
		Compile: string(compile), UseCache: cache, Weights: o.Weights, Device: device.String(),
		DType: model.DType(m).String(), Batch: o.Batch,
		Length: o.Length, NewTokens: o.NewTokens, Repeats: o.Repeats,
		PrefillPiece: o.PrefillPiece,
	}
	if o.Group != nil {
		row.Processes = o.Group.Size
	}
	random := rand.New(rand.NewPCG(o.Seed, 1))
	prompts := make([][]int32, o.Batch)
	for i := range prompts {
		for range o.Length {
			prompts[i] = append(prompts[i], random.Int32N(int32(m.Head().Shape[0])))
		}
	}
	var first, single, total []float64
	device.ResetPeak()
	for repeat := range o.Repeats + 1 {
		options := generate.Options{MaxNewTokens: o.NewTokens, IgnoreEOS: true, NoCache: !cache,
			Compile: compile, Group: o.Group, PrefillPiece: o.PrefillPiece}
		began := time.Now()
		results, stats, err := generate.Generate(ctx, m, nil, prompts, options, nil)
		for _, r := range results {
			err = cmp.Or(err, r.Err)
		}
		if err != nil {
			return row, err
		}
		if repeat == 0 {
			continue
		}
		row.Fused, row.UnfusedReason = stats.Fused, stats.UnfusedReason
		total = append(total, time.Since(began).Seconds()*1e3)
		first = append(first, stats.Prefill.Seconds()*1e3)
		steps := stats.Steps
		if compile == generate.CompileGraph {
			steps = steps[unrecorded:]
		}
		for _, d := range steps {
			single = append(single, d.Seconds()*1e3)
		}
	}
	row.FirstTokenMS, row.SingleMS, row.TotalMS = median(first), median(single), median(total)
	row.PerTokenMS = row.TotalMS / float64(o.NewTokens)
	row.TokensPerS = 1e3 * float64(o.Batch*o.NewTokens) / row.TotalMS
	_, row.PeakBytes = device.Memory()
	return row, nil
}

// median returns the median of values, which it sorts, or 0 if there are none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return timingOf(values).median
}
