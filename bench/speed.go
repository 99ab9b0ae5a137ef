package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"conquer/generate"
	"conquer/model"
	"conquer/text"
	"conquer/torch/dist"
	"conquer/train"
)

// InferenceOptions say what [Inference] measures. Prompts are random tokens.
type InferenceOptions struct {
	Batch, Length, NewTokens int
	Repeats                  int  // measured calls, after one that is not
	Compiled, Eager          bool // recorded steps; operations launched one by one
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

// Inference measures generation: eager and recorded, with and without a cache, as FMS's benchmark does.
func Inference(ctx context.Context, m model.Model, o InferenceOptions) ([]InferenceRow, error) {
	var rows []InferenceRow
	for _, cache := range []bool{true, false} {
		for _, compile := range []generate.Compile{generate.CompileNone, generate.CompileGraph} {
			if compile == generate.CompileGraph && o.Group != nil {
				continue
			}
			wanted := (cache && o.Cache || !cache && o.NoCache) && (compile == generate.CompileNone && o.Eager || compile == generate.CompileGraph && o.Compiled)
			if !wanted || !cache && compile == generate.CompileGraph { // without a cache every step has another shape
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
		row.Fused, row.Unfused = stats.Fused, stats.Unfused
		total = append(total, time.Since(began).Seconds()*1e3)
		first = append(first, stats.Prefill.Seconds()*1e3)
		steps := stats.Steps
		if compile == generate.CompileGraph && device.IsCUDA() {
			steps = steps[min(len(steps), 2):]
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

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// TrainRow is what [Train] measured.
type TrainRow struct {
	Device      string  `json:"device"`
	DType       string  `json:"dtype"`
	Batch       int     `json:"batch"`
	Length      int     `json:"length"`
	Steps       int     `json:"steps"` // measured
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
	TFlopPerS   float64 `json:"tflop_per_s"` // 6 operations a weight and token; attention and the scan not counted
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
	o.Steps, o.Epochs, o.ValidateSteps = steps+warm, 0, steps+warm
	random := rand.New(rand.NewPCG(uint64(o.Seed), 2))
	data := &text.Dataset{}
	for range o.BatchSize {
		var s text.Sample
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
	for _, s := range seen[warm:] {
		times = append(times, s.Seconds*1e3)
	}
	row := TrainRow{
		Device: device.String(), DType: model.DType(m).String(), Batch: o.BatchSize, Length: o.SequenceLength, Steps: steps,
		Parameters: model.Parameters(m), Trained: t.Trained(), Recompute: string(o.Recompute), Recorded: t.Recorded(), FirstStepMS: seen[0].Seconds * 1e3,
		StepMS: median(times), PeakBytes: t.PeakMemory(), FirstLoss: seen[0].Loss, LastLoss: seen[len(seen)-1].Loss,
	}
	row.LowMS, row.HighMS = times[0], times[len(times)-1]
	if o.LoRA != nil {
		row.LoRARank = o.LoRA.Rank
	}
	tokens := float64(o.BatchSize * o.SequenceLength)
	row.TokensPerS = 1e3 * tokens / row.StepMS
	row.TFlopPerS = 6 * float64(row.Parameters) * row.TokensPerS / 1e12
	return row, m, nil
}

type stepListener func(train.Step)

func (f stepListener) Step(s train.Step) error         { f(s); return nil }
func (stepListener) Validation(train.Validation) error { return nil }
func (stepListener) Notice(string)                     {}
