package bench

import (
	"context"
	"fmt"
	"math/rand/v2"

	"conquer/model"
	"conquer/text/dataset"
	"conquer/train"
	"conquer/train/plan"
)

// TrainRow is the result of [Train].
type TrainRow struct {
	Weights     string  `json:"weights,omitempty"` // as in [Results]; the caller sets it
	Device      string  `json:"device"`
	DType       string  `json:"dtype"`
	Batch       int     `json:"batch"` // rows in a forward pass
	Length      int     `json:"length"`
	Accumulate  int     `json:"accumulate"` // forward passes in a step
	Steps       int     `json:"steps"`      // measured steps
	Parameters  int     `json:"parameters"`
	Trained     int     `json:"trained"`
	LoRARank    int     `json:"lora_rank,omitempty"`
	Recompute   string  `json:"recompute"`
	Recorded    bool    `json:"recorded"` // the measured steps were replayed
	StepMS      float64 `json:"step_ms"`  // median
	LowMS       float64 `json:"low_ms"`
	HighMS      float64 `json:"high_ms"`
	FirstStepMS float64 `json:"first_step_ms"` // includes loading and planning
	TokensPerS  float64 `json:"tokens_per_s"`
	TFlopPerS   float64 `json:"tflop_per_s"` // of GEMMs with weights, see plan.Operations
	PeakBytes   int64   `json:"peak_bytes"`
	FirstLoss   float64 `json:"first_loss"`
	LastLoss    float64 `json:"last_loss"`
}

// trainWarmUp is the number of steps before those that are measured.
const trainWarmUp = 2

// Train measures o.Steps training steps of m on random tokens, after two warm-up steps. It
// changes m and returns the model to free.
func Train(ctx context.Context, m model.Model, o train.Options) (TrainRow, model.Model, error) {
	if o.Steps < 1 {
		return TrainRow{}, m, fmt.Errorf("steps is %d, expected at least 1", o.Steps)
	}
	o.Steps += trainWarmUp
	o.Epochs, o.ValidateSteps, o.Accumulate = 0, o.Steps, max(1, o.Accumulate)
	operations := plan.Operations(m, plan.Options{
		Recompute: o.Recompute, LoRA: o.LoRA, HeadOnly: o.HeadOnly,
	})
	model.Device(m).ResetPeak()
	t, err := train.New(m, randomSamples(m, o), nil, o)
	if err != nil {
		return TrainRow{}, m, err
	}
	defer t.Close()
	var seen []train.Step
	t.Listen(stepListener(func(s train.Step) { seen = append(seen, s) }))
	if err := t.Run(ctx); err != nil {
		return TrainRow{}, t.Model(), err
	}
	row, err := trainRow(t, o, seen)
	row.TFlopPerS = operations * row.TokensPerS / 1e12
	return row, t.Model(), err
}

// randomSamples returns the samples of one step, so that one epoch is one step.
func randomSamples(m model.Model, o train.Options) *dataset.Dataset {
	random := rand.New(rand.NewPCG(uint64(o.Seed), 2))
	data := &dataset.Dataset{}
	for range o.BatchSize * o.Accumulate {
		var s dataset.Sample
		for range o.SequenceLength {
			id := random.Int32N(int32(m.Head().Shape[0]))
			s.IDs, s.Labels = append(s.IDs, id), append(s.Labels, id)
		}
		data.Samples = append(data.Samples, s)
	}
	return data
}

// trainRow returns the row of a run whose steps are seen.
func trainRow(t *train.Trainer, o train.Options, seen []train.Step) (TrainRow, error) {
	var times []float64
	tokens := o.BatchSize * o.Accumulate * o.SequenceLength
	for _, s := range seen[trainWarmUp:] {
		if s.Tokens != tokens {
			return TrainRow{}, fmt.Errorf("step %d had %d tokens, expected %d",
				s.Step, s.Tokens, tokens)
		}
		times = append(times, s.Seconds*1e3)
	}
	m := t.Model()
	row := TrainRow{
		Device: model.Device(m).String(), DType: model.DType(m).String(), Batch: o.BatchSize,
		Length: o.SequenceLength, Accumulate: o.Accumulate, Steps: len(times),
		Parameters: model.Parameters(m), Trained: t.Trained(), Recompute: string(o.Recompute),
		Recorded: t.Recorded(), FirstStepMS: seen[0].Seconds * 1e3,
		StepMS: median(times), PeakBytes: t.PeakMemory(),
		FirstLoss: seen[0].Loss, LastLoss: seen[len(seen)-1].Loss,
	}
	row.LowMS, row.HighMS = times[0], times[len(times)-1] // median has sorted them
	if o.LoRA != nil {
		row.LoRARank = o.LoRA.Rank
	}
	row.TokensPerS = 1e3 * float64(tokens) / row.StepMS
	return row, nil
}

// stepListener calls a function after each step.
type stepListener func(train.Step)

func (f stepListener) Step(s train.Step) error { f(s); return nil }

func (stepListener) Validation(train.Validation) error { return nil }

func (stepListener) Notice(string) {}
