package train

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/internal/network"
)

// pairs makes pairs of texts with a common prompt. The preferred answer continues to count upwards,
// the other downwards.
func pairs(n int, seed uint64) *dataset.Dataset {
	draw := rand.New(rand.NewPCG(seed, 1))
	d := &dataset.Dataset{}
	for range n {
		var s dataset.Sample
		prompt, first := 1+draw.IntN(5), draw.IntN(vocabulary)
		for k, direction := range []int{1, vocabulary - 1} {
			s.Second = len(s.IDs)
			for i := range prompt {
				s.IDs = append(s.IDs, int32((first+i)%vocabulary))
				s.Labels = append(s.Labels, dataset.IgnoreLabel)
			}
			for i := range 1 + draw.IntN(8) {
				id := int32((first + prompt + (i+k)*direction) % vocabulary)
				s.IDs, s.Labels = append(s.IDs, id), append(s.Labels, id)
			}
		}
		d.Samples = append(d.Samples, s)
	}
	return d
}

// logProbabilities returns the log-probabilities of both texts of a pair, computed over the whole
// model, in float64 from the logits on.
func logProbabilities(m model.Model, s dataset.Sample) (chosen, rejected torch.Tensor) {
	of := func(from, to int) torch.Tensor {
		var ids, targets, rows []int64
		for i := from; i < to; i++ {
			ids = append(ids, int64(s.IDs[i]))
			if i > from && s.Labels[i] != dataset.IgnoreLabel {
				targets, rows = append(targets, int64(s.Labels[i])), append(rows, int64(i-from-1))
			}
		}
		logits := model.Logits(m, model.Sequence{IDs: torch.From(ids, 1, len(ids))}).
			Squeeze(0).
			To(torch.Float64)
		return logits.LogSoftmax(-1).
			IndexSelect(0, torch.From(rows, len(rows))).
			Gather(1, torch.From(targets, len(targets), 1)).
			Sum()
	}
	return of(0, s.Second), of(s.Second, len(s.IDs))
}

// Loss, rewards and gradients match TRL's formulas for the sigmoid loss:
// logits = (pi_chosen - pi_rejected) - (ref_chosen - ref_rejected),
// loss = mean -log sigmoid(beta logits), reward = beta (pi - ref).
func TestDPO_MatchesFormula(t *testing.T) {
	noLeaks(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	data := pairs(7, seed)
	known := make(network.Reference, 2*len(data.Samples))
	for i := range known {
		known[i] = -40 * draw.Float64()
	}
	beta := 0.02 + 0.2*draw.Float64()
	for _, pack := range []bool{false, true} {
		for _, recompute := range []Recompute{RecomputeNone, RecomputeBlock} {
			m := tiny(t, pack, torch.Float32)
			err := torch.Run(func() error {
				for _, p := range nn.Params(m) {
					p.RequireGrad(true)
				}
				var total torch.Tensor
				want := make([]float64, 5)
				n := float64(len(data.Samples))
				for i, s := range data.Samples {
					a, b := logProbabilities(m, s)
					chosen := a.AddScalar(-known[2*i]).MulScalar(beta)
					rejected := b.AddScalar(-known[2*i+1]).MulScalar(beta)
					loss := chosen.Sub(rejected).Neg().Exp().AddScalar(1).Log()
					if total.Defined() {
						loss = total.Add(loss)
					}
					total = loss
					c := torch.Item[float64](chosen.Detach())
					r := torch.Item[float64](rejected.Detach())
					want[1], want[2], want[3] = want[1]+c/n, want[2]+r/n, want[3]+(c-r)/n
					if c > r {
						want[4] += 1 / n
					}
				}
				total = total.MulScalar(1 / n)
				want[0] = torch.Item[float64](total.Detach())
				total.Backward()
				gradients := map[*nn.Param][]float32{}
				for _, p := range nn.Params(m) {
					gradients[p] = torch.Values[float32](p.Grad())
					p.ClearGrad()
				}

				o := Options{Objective: DPO, Pack: pack}.complete()
				tr := &Trainer{options: o, device: torch.CPU}
				net := network.New(m, network.Objective{Beta: beta}, recompute, &local{})
				b := batchOf(t, data, 8, pack)
				if b.Samples != len(data.Samples) {
					t.Fatalf("%d pairs in the batch", b.Samples)
				}
				got := torch.Values[float64](net.Gradients(tr.microBatch(b, known), n, true))
				for i := range want {
					if math.Abs(got[i]-want[i]) > 1e-5*(1+math.Abs(want[i])) {
						t.Errorf("number %d is %v, want %v", i, got[i], want[i])
					}
				}
				nn.Walk(m, func(p nn.Component) {
					near(t, "gradient of "+p.Name, torch.Values[float32](p.Param.Grad()),
						gradients[p.Param], 3e-5)
				})
				for i, sum := range evaluate(net, tr.microBatch(b, known)) {
					if math.Abs(sum/n-want[i]) > 1e-5*(1+math.Abs(want[i])) {
						t.Errorf("number %d is evaluated to %v, want %v", i, sum/n, want[i])
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			model.Free(m)
			if t.Failed() {
				t.Fatalf("with pack %v, recompute %v", pack, recompute)
			}
		}
	}
}

func dpo() Options {
	o := options()
	o.Objective, o.Beta, o.Steps = DPO, 0.3, 40
	return o
}

// The run starts with the model equal to the reference, and learns preferences that generalize to
// unseen pairs. The reference's log-probabilities are those of the initial model.
func TestDPO_LearnsToPrefer(t *testing.T) {
	noLeaks(t)
	data, valid := pairs(40, 1), pairs(10, 2)
	base := tiny(t, true, torch.Float32)
	var before network.Reference
	if err := torch.Run(func() error {
		for _, s := range data.Samples {
			torch.Scoped(func() {
				chosen, rejected := logProbabilities(base, s)
				before = append(before, torch.Item[float64](chosen), torch.Item[float64](rejected))
			})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	model.Free(base)
	for name, change := range map[string]func(*Options){
		"all weights": func(o *Options) {},
		"packed":      func(o *Options) { o.Pack, o.Accumulate = true, 2 },
		"LoRA":        func(o *Options) { o.LoRA = adapterConfig(); o.LoRA.Dropout = 0.1 },
	} {
		o := dpo()
		change(&o)
		r := train(t, tiny(t, true, torch.Float32), data, valid, o, func(tr *Trainer) {
			for i, want := range before {
				if got := tr.reference[data][i]; math.Abs(got-want) > 1e-4*(1+math.Abs(want)) {
					t.Fatalf("%s: the reference has %v for text %d, the initial model %v", name,
						got, i, want)
				}
			}
		})
		first, last := r.validations[0], r.validations[len(r.validations)-1]
		if math.Abs(first.Loss-math.Ln2) > 1e-5 || math.Abs(first.Measures[0].Value) > 1e-4 {
			t.Errorf("%s: starts with %+v, want ln 2 and no reward", name, first)
		}
		if accuracy := last.Measures[3]; accuracy.Name != "accuracy" || !(accuracy.Value >= 0.8) ||
			!(last.Loss < 0.6) {
			t.Errorf("%s: ends with %+v", name, last)
		}
	}
}

func TestDPO_ResumeKeepsReference(t *testing.T) {
	noLeaks(t)
	data, valid := pairs(22, 1), pairs(5, 2)
	o := dpo()
	o.Steps, o.ValidateSteps = 8, 4
	want := train(t, tiny(t, true, torch.Float32), data, valid, o, nil)
	o.CheckpointPath, o.Resume = filepath.Join(t.TempDir(), "c"), true
	o.Progress = func(string, int, int) error { return nil }
	first := interrupted(t, tiny(t, true, torch.Float32), data, valid, o, 3)
	o.Progress = func(string, int, int) error {
		t.Error("the reference was computed again")
		return nil
	}
	second := train(t, tiny(t, true, torch.Float32), data, valid, o, nil)
	for i, s := range append(first.steps, second.steps...) {
		if s.Loss != want.steps[i].Loss || s.Measures[2] != want.steps[i].Measures[2] {
			t.Errorf("step %d gave %+v, uninterrupted %+v", i+1, s, want.steps[i])
		}
	}
	if second.validations[0].Loss != want.validations[1].Loss {
		t.Errorf("validation %+v, uninterrupted %+v", second.validations[0], want.validations[1])
	}

	// Another model has another reference.
	other := tiny(t, true, torch.Float32)
	defer model.Free(other)
	change := func() { nn.Params(other)[0].Detach().Uniform(-1, 1) }
	if err := torch.Run(func() error { torch.NoGrad(change); return nil }); err != nil {
		t.Fatal(err)
	}
	o.Progress = nil
	_, err := New(other, data, valid, o)
	if err == nil || !strings.Contains(err.Error(), "base model's weights") {
		t.Errorf("resuming against another model: %v", err)
	}
	// A truncated file is written again.
	path := filepath.Join(o.CheckpointPath, referenceFile)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	same := tiny(t, true, torch.Float32)
	defer model.Free(same)
	tr, err := New(same, data, valid, o)
	if err != nil {
		t.Fatal(err)
	}
	tr.Close()
}

func TestDPO_RefusesUnsuitableRuns(t *testing.T) {
	noLeaks(t)
	nine := pairs(9, 1)
	for want, c := range map[string]struct {
		data   *dataset.Dataset
		change func(*Options)
	}{
		"0 of 9 samples are pairs":    {samples(9, 1), func(o *Options) {}},
		"9 of 9 samples are pairs":    {nine, func(o *Options) { o.Objective, o.Beta = SFT, 0 }},
		"unknown objective \"ppo\"":   {nine, func(o *Options) { o.Objective, o.Beta = "ppo", 0 }},
		"it must be positive":         {nine, func(o *Options) { o.Beta = -1 }},
		"beta 0.3 is for":             {samples(9, 1), func(o *Options) { o.Objective = SFT }},
		"cannot be combined with dpo": {nine, func(o *Options) { o.ZLoss = 0.1 }},
		"context canceled": {nine, func(o *Options) {
			o.Progress = func(string, int, int) error { return context.Canceled }
		}},
		"sample 0 has": {nine, func(o *Options) { o.SequenceLength = 2 }},
	} {
		m := tiny(t, true, torch.Float32)
		o := dpo()
		c.change(&o)
		if _, err := New(m, c.data, nil, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		model.Free(m)
	}
}
