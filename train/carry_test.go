package train

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	_ "conquer/bamba"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
)

// scanning makes a small model of state-space layers and of attention in the given layers.
func scanning(t testing.TB, attention ...any) model.Model {
	t.Helper()
	config, err := model.Variant("bamba", "bytes")
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range (model.Config{"vocab_size": float64(vocabulary), "hidden_size": 32.0,
		"intermediate_size": 48.0, "mamba_n_heads": 4.0, "mamba_d_head": 16.0,
		"mamba_d_state": 16.0, "num_attention_heads": 2.0, "num_key_value_heads": 1.0,
		"attn_layer_indices": append([]any{}, attention...), "initializer_range": 0.2}) {
		config[key] = value
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := torch.Run(func() error {
		torch.ManualSeed(11)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// text makes random texts of the given lengths, cut into samples of size tokens.
func text(seed uint64, size int, lengths ...int) *dataset.Dataset {
	draw := rand.New(rand.NewPCG(seed, 1))
	d := &dataset.Dataset{}
	for _, length := range lengths {
		ids := make([]int32, length)
		for i := range ids {
			ids[i] = int32(draw.IntN(vocabulary))
		}
		for start := 0; start == 0 || start+1 < length; start += size - 1 {
			part := ids[start:min(start+size, length)]
			d.Samples = append(d.Samples, dataset.Sample{IDs: part, Labels: part,
				Continues: start > 0})
		}
	}
	return d
}

// carrying are the options of a run over rows of 24 tokens that hardly changes the weights.
func carrying() Options {
	o := options()
	o.CarryState, o.BatchSize, o.Rate, o.Decay = true, 2, 1e-30, 0
	return o
}

// With carried states, the losses of a text's rows are those of the text in one long row.
func TestCarryState_LossesAreThoseOfALongRow(t *testing.T) {
	noLeaks(t)
	const rows, size = 5, 24
	lengths := []int{rows*size + 1, rows*size + 1}
	long := options()
	long.BatchSize, long.SequenceLength, long.Steps, long.Rate = 2, rows*size+1, 1, 1e-30
	want := train(t, scanning(t), text(3, long.SequenceLength, lengths...), nil, long, nil)
	for name, change := range map[string]func(*Options){
		"plain":     func(*Options) {},
		"packed":    func(o *Options) { o.Pack = true },
		"recompute": func(o *Options) { o.Recompute = RecomputeBlock },
		"selective": func(o *Options) { o.Recompute = RecomputeSelective },
		"accumulated": func(o *Options) {
			o.BatchSize, o.Accumulate = 1, 2
		},
	} {
		o := carrying()
		o.Steps = rows
		change(&o)
		got := train(t, scanning(t), text(3, o.RowLength(), lengths...), nil, o, nil)
		mean := 0.0
		for _, loss := range got.losses() {
			mean += loss / rows
		}
		if e := math.Abs(mean - want.losses()[0]); !(e < 2e-6) {
			t.Errorf("%s: mean loss %.7f, of a long row %.7f", name, mean, want.losses()[0])
		}
		o.CarryState = false
		o.SequenceLength = size + 1
		alone := train(t, scanning(t), text(3, o.SequenceLength, lengths...), nil, o, nil)
		if e := math.Abs(alone.losses()[rows-1] - got.losses()[rows-1]); !(e > 1e-4) {
			t.Errorf("%s: without carried states the last losses differ by %g only", name, e)
		}
	}
}

// Texts that share a row do not see each other's states, and a validation carries its own.
func TestCarryState_TextsDoNotMeet(t *testing.T) {
	noLeaks(t)
	o := carrying()
	o.Pack, o.Steps, o.BatchSize, o.ValidateSteps = true, 4, 1, 2
	lengths := []int{30, 7, 24*2 + 1, 3, 60, 11}
	d := text(5, o.RowLength(), lengths...)
	got := train(t, scanning(t), d, text(5, o.RowLength(), lengths...), o, nil)
	sum, count := 0.0, 0
	for i, length := range lengths { // each text alone, in a row of its own
		whole := options()
		whole.SequenceLength, whole.BatchSize, whole.Steps, whole.Rate = 61, 1, 1, 1e-30
		all := text(5, 61, lengths...)
		one := &dataset.Dataset{Samples: all.Samples[i : i+1]}
		loss := train(t, scanning(t), one, nil, whole, nil).losses()[0]
		sum, count = sum+loss*float64(length-1), count+length-1
	}
	for _, v := range got.validations {
		if e := math.Abs(v.Loss - sum/float64(count)); !(e < 2e-6) {
			t.Errorf("validation loss %.7f, of the texts alone %.7f", v.Loss, sum/float64(count))
		}
	}
	if len(got.validations) != 3 {
		t.Errorf("%d validations", len(got.validations))
	}
}

func TestCarryState_ResumeIsBitEqual(t *testing.T) {
	if testing.Short() {
		t.Skip("resumes runs: left out by -short")
	}
	noLeaks(t)
	for _, format := range []string{FormatHF, FormatNative} {
		o := carrying()
		o.Rate, o.Steps, o.Pack, o.Accumulate, o.SaveFormat = 3e-3, 12, true, 2, format
		data := text(7, o.RowLength(), 400, 90, 30, 333, 250, 12, 9)
		want := train(t, scanning(t, 1.0), data, nil, o, nil)
		o.CheckpointPath, o.CheckpointSteps, o.Resume = filepath.Join(t.TempDir(), "c"), 5, true
		first := interrupted(t, scanning(t, 1.0), data, nil, o, 5)
		// The same rows of a step, in other micro-batches.
		o.BatchSize, o.Accumulate = 4, 1
		second := train(t, scanning(t, 1.0), data, nil, o, nil)
		steps := append(first.steps, second.steps...)
		if len(steps) != 12 {
			t.Fatalf("%s: %d steps", format, len(steps))
		}
		for i, s := range steps {
			if e := math.Abs(s.Loss - want.steps[i].Loss); i < 5 && e != 0 || !(e < 1e-5) {
				t.Errorf("%s: step %d gave %g, uninterrupted %g", format, i+1, s.Loss,
					want.steps[i].Loss)
			}
		}
		o.CheckpointPath = filepath.Join(t.TempDir(), "c")
		o.BatchSize, o.Accumulate = 2, 2
		first = interrupted(t, scanning(t, 1.0), data, nil, o, 7)
		second = train(t, scanning(t, 1.0), data, nil, o, nil)
		for i, s := range append(first.steps, second.steps...) {
			if w := want.steps[i]; s.Loss != w.Loss || s.Norm != w.Norm {
				t.Errorf("%s: step %d gave %+v, uninterrupted %+v", format, i+1, s, w)
			}
		}
	}
}

func TestCarryState_RefusesWhatDoesNotHold(t *testing.T) {
	o := carrying()
	m := tiny(t, true, torch.Float32)
	defer free(m)
	if _, err := New(m, text(1, o.RowLength(), 40), nil, o); err == nil ||
		!strings.Contains(err.Error(), "llama has no state-space layers") {
		t.Errorf("a Llama: %v", err)
	}
	bamba := scanning(t)
	defer free(bamba)
	if _, err := New(bamba, text(1, 24, 60), nil, o); err == nil ||
		!strings.Contains(err.Error(), "MaxLength 25") {
		t.Errorf("samples of other lengths: %v", err)
	}
	for want, change := range map[string]func(*Options){
		"--objective sft": func(o *Options) { o.Objective = DPO },
		"--compile graph": func(o *Options) { o.Compile = CompileGraph },
		"ddp, fsdp":       func(o *Options) { o.Distributed = PP },
	} {
		o := carrying()
		change(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
	}
}
