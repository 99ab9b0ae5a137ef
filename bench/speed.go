package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"conquer/generate"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/train"
	"conquer/train/plan"
)

// InferenceOptions say what [Inference] measures. Prompts are random tokens.
type InferenceOptions struct {
	Batch, Length, NewTokens int
	Repeats                  int  // measured calls, after one that is not
	Compiled, Eager          bool // recorded steps, which the CPU does not have; operations launched one by one
	Cache, NoCache           bool
	Seed                     uint64
	Group                    *dist.Group        // of the processes that have divided the model, which do not record steps; nil for none
	Done                     func(InferenceRow) // called with each row as soon as it is measured; may be nil
}

// InferenceRow is one way to run: medians over the repeats.
type InferenceRow struct {
	Compile      string  `json:"compile"` // none or graph
	UseCache     bool    `json:"use_cache"`
	Device       string  `json:"device"`
	DType        string  `json:"dtype"`
	Batch        int     `json:"batch"`
	Length       int     `json:"length"` // of each prompt
	NewTokens    int     `json:"new_tokens"`
	Repeats      int     `json:"repeats"`
	Processes    int     `json:"processes,omitempty"`       // that have divided the model
	FirstTokenMS float64 `json:"first_token_ms"`            // from the call to the first new token
	SingleMS     float64 `json:"single_token_ms,omitempty"` // a step after the prompt, the recording of steps left out; 0 where that leaves none
	TotalMS      float64 `json:"end_to_end_ms"`             // from the call to the last new token
	PerTokenMS   float64 `json:"end_to_end_token_ms"`       // the same over NewTokens
	TokensPerS   float64 `json:"tokens_per_s"`              // of the whole batch, end to end
	PeakBytes    int64   `json:"peak_bytes,omitempty"`
	Fused        bool    `json:"fused,omitempty"`   // on a GPU: the blocks' ends were one kernel in the steps after the prompt
	Unfused      string  `json:"unfused,omitempty"` // or why they were not
}

// The first decoding steps that are launched one by one where steps are recorded: one to load, one to record.
const unrecorded = 2

// records reports whether recorded steps are measured: on a GPU, by a process with the whole model, and with a cache, since
// without one every step has another shape.
func (o InferenceOptions) records(device torch.Device) bool {
	return o.Compiled && o.Cache && device.IsCUDA() && o.Group == nil
}

// Check reports what is wrong with the options for a model on the device, if anything.
func (o InferenceOptions) Check(device torch.Device) error {
	least := 2 // the first comes with the prompt
	if o.records(device) {
		least += unrecorded
	}
	switch {
	case !o.records(device) && !(o.Eager && (o.Cache || o.NoCache)):
		return fmt.Errorf("nothing is left to measure: steps are recorded on a GPU, in one process, with a cache")
	case o.NewTokens < least:
		return fmt.Errorf("max_new_tokens is %d, expected at least %d: no step would be left to time", o.NewTokens, least)
	}
	return checkPositive("batch_size, seq_len or repeat", o.Batch, o.Length, o.Repeats)
}

// Inference measures generation: eager and recorded, with and without a cache, as FMS's benchmark does.
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

func inferenceRow(ctx context.Context, m model.Model, o InferenceOptions, cache bool, compile generate.Compile) (InferenceRow, error) {
	device := model.Device(m)
	row := InferenceRow{
		Compile: string(compile), UseCache: cache, Device: device.String(), DType: model.DType(m).String(), Batch: o.Batch,
		Length: o.Length, NewTokens: o.NewTokens, Repeats: o.Repeats,
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
		options := generate.Options{MaxNewTokens: o.NewTokens, IgnoreEOS: true, NoCache: !cache, Compile: compile, Group: o.Group}
		began := time.Now()
		_, stats, err := generate.Generate(ctx, m, nil, prompts, options, nil)
		if err != nil {
			return row, err
		}
		if repeat == 0 {
			continue
		}
		row.Fused, row.Unfused = stats.Fused, stats.UnfusedReason
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
	if device.IsCUDA() {
		row.PeakBytes = device.Info().Peak
	}
	return row, nil
}

// median sorts values and takes the one in the middle, 0 where there are none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return timingOf(values).median
}

// TrainRow is what [Train] measured.
type TrainRow struct {
	Device      string  `json:"device"`
	DType       string  `json:"dtype"`
	Batch       int     `json:"batch"` // rows of a forward pass
	Length      int     `json:"length"`
	Accumulate  int     `json:"accumulate"` // forward passes of a step
	Steps       int     `json:"steps"`      // measured
	Parameters  int     `json:"parameters"`
	Trained     int     `json:"trained"`
	LoRARank    int     `json:"lora_rank,omitempty"`
	Recompute   string  `json:"recompute"`
	Recorded    bool    `json:"recorded"` // whether the measured steps were replayed
	StepMS      float64 `json:"step_ms"`  // median
	LowMS       float64 `json:"low_ms"`
	HighMS      float64 `json:"high_ms"`
	FirstStepMS float64 `json:"first_step_ms"` // which loads and plans
	TokensPerS  float64 `json:"tokens_per_s"`
	TFlopPerS   float64 `json:"tflop_per_s"` // of the products with weights, as plan.Operations counts them
	PeakBytes   int64   `json:"peak_bytes"`
	FirstLoss   float64 `json:"first_loss"`
	LastLoss    float64 `json:"last_loss"`
}

// Train measures steps of tuning m, with o's batch and options, on random tokens: o.Steps of them after two that are not
// counted. m is changed; the model to free is returned.
func Train(ctx context.Context, m model.Model, o train.Options) (TrainRow, model.Model, error) {
	steps := o.Steps
	if steps < 1 {
		return TrainRow{}, m, fmt.Errorf("%d steps: at least 1 is measured", steps)
	}
	const warm = 2
	o.Steps, o.Epochs, o.ValidateSteps, o.Accumulate = steps+warm, 0, steps+warm, max(1, o.Accumulate)
	operations := plan.Operations(m, plan.Options{Recompute: o.Recompute, LoRA: o.LoRA, HeadOnly: o.HeadOnly})
	random := rand.New(rand.NewPCG(uint64(o.Seed), 2))
	data := &dataset.Dataset{}
	for range o.BatchSize * o.Accumulate { // an epoch is a step
		var s dataset.Sample
		for range o.SequenceLength {
			id := random.Int32N(int32(m.Head().Shape[0]))
			s.IDs, s.Labels = append(s.IDs, id), append(s.Labels, id)
		}
		data.Samples = append(data.Samples, s)
	}
	device := model.Device(m)
	device.ResetPeak()
	t, err := train.New(m, data, nil, o)
	if err != nil {
		return TrainRow{}, m, err
	}
	defer t.Close()
	var seen []train.Step
	t.Listen(stepListener(func(s train.Step) { seen = append(seen, s) }))
	if err := t.Run(ctx); err != nil {
		return TrainRow{}, t.Model(), err
	}
	m = t.Model()
	var times []float64
	tokens := o.BatchSize * o.Accumulate * o.SequenceLength
	for _, s := range seen[warm:] {
		if s.Tokens != tokens {
			return TrainRow{}, m, fmt.Errorf("step %d had %d tokens, %d were to be timed", s.Step, s.Tokens, tokens)
		}
		times = append(times, s.Seconds*1e3)
	}
	row := TrainRow{
		Device: device.String(), DType: model.DType(m).String(), Batch: o.BatchSize, Length: o.SequenceLength, Accumulate: o.Accumulate, Steps: steps,
		Parameters: model.Parameters(m), Trained: t.Trained(), Recompute: string(o.Recompute), Recorded: t.Recorded(), FirstStepMS: seen[0].Seconds * 1e3,
		StepMS: median(times), PeakBytes: t.PeakMemory(), FirstLoss: seen[0].Loss, LastLoss: seen[len(seen)-1].Loss,
	}
	row.LowMS, row.HighMS = times[0], times[len(times)-1]
	if o.LoRA != nil {
		row.LoRARank = o.LoRA.Rank
	}
	row.TokensPerS = 1e3 * float64(tokens) / row.StepMS
	row.TFlopPerS = operations * row.TokensPerS / 1e12
	return row, m, nil
}

type stepListener func(train.Step)

func (f stepListener) Step(s train.Step) error         { f(s); return nil }
func (stepListener) Validation(train.Validation) error { return nil }
func (stepListener) Notice(string)                     {}
