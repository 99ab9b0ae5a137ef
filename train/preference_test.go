package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// rated makes rated answers: those of pairs, of which each third is left out.
func rated(n int, seed uint64) *dataset.Dataset {
	d := &dataset.Dataset{}
	for i, s := range pairs(n, seed).Samples {
		for k, text := range []dataset.Sample{
			{IDs: s.IDs[:s.Second], Labels: s.Labels[:s.Second], Rating: dataset.Desirable},
			{IDs: s.IDs[s.Second:], Labels: s.Labels[s.Second:], Rating: dataset.Undesirable},
		} {
			if (2*i+k)%3 < 2 {
				d.Samples = append(d.Samples, text)
			}
		}
	}
	return d
}

// logProbabilities returns the log-probabilities of the answers of a sample's texts, and of the
// first text's prompt after its first token, computed over the whole model, in float64 from the
// logits on.
func logProbabilities(m model.Model, s dataset.Sample) (
	answers []torch.Tensor, prompt torch.Tensor,
) {
	of := func(from, to int, answer bool) torch.Tensor {
		var ids, targets, rows []int64
		for i := from; i < to; i++ {
			ids = append(ids, int64(s.IDs[i]))
			if i > from && (s.Labels[i] != dataset.IgnoreLabel) == answer {
				targets, rows = append(targets, int64(s.IDs[i])), append(rows, int64(i-from-1))
			}
		}
		if rows == nil {
			return torch.Zeros(nil, torch.Float64, torch.CPU)
		}
		logits := model.Logits(m, model.Sequence{IDs: torch.From(ids, 1, len(ids))}).
			Squeeze(0).
			To(torch.Float64)
		return logits.LogSoftmax(-1).
			IndexSelect(0, torch.From(rows, len(rows))).
			Gather(1, torch.From(targets, len(targets), 1)).
			Sum()
	}
	end := s.Second
	if end == 0 {
		end = len(s.IDs)
	}
	answers = append(answers, of(0, end, true))
	if s.Second > 0 {
		answers = append(answers, of(s.Second, len(s.IDs), true))
	}
	return answers, of(0, end, false)
}

// comparedSample is what the formulas below need of a sample: the log-probabilities of its answers,
// those under the reference, the numbers of labels, and the prompt of the first text.
type comparedSample struct {
	answers, reference, labels []float64
	prompt, promptLabels       float64
	mismatched                 float64 // of a rated answer
	desirable                  bool
}

// formulas computes the loss of samples and the rest of what a step reports, as TRL 1.16 does:
// DPOTrainer with the losses sigmoid, ipo, hinge and sft, CPOTrainer with simpo, ORPOTrainer, and
// KTOTrainer with all samples in one batch.
func formulas(o Options, list []comparedSample) (loss float64, measures []float64) {
	sigmoid := func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }
	logistic := func(x float64) float64 {
		e := o.LabelSmoothing
		return -(1-e)*math.Log(sigmoid(x)) - e*math.Log(sigmoid(-x))
	}
	n := float64(len(list))
	if o.Objective == KTO {
		return ktoFormula(o, list)
	}
	var chosen, rejected, right, nll, labels float64
	for _, s := range list {
		c, r := s.answers[0]-s.reference[0], s.answers[1]-s.reference[1]
		meanC, meanR := s.answers[0]/s.labels[0], s.answers[1]/s.labels[1]
		rewardC, rewardR := o.Beta*c, o.Beta*r
		switch o.Objective {
		case DPO:
			loss += logistic(o.Beta*(c-r)) / n
		case IPO:
			d := c/s.labels[0] - r/s.labels[1] - 1/(2*o.Beta)
			loss += d * d / n
		case Hinge:
			loss += max(0, 1-o.Beta*(c-r)) / n
		case SimPO:
			rewardC, rewardR = o.Beta*meanC, o.Beta*meanR
			loss += logistic(rewardC-rewardR-o.Gamma) / n
		case ORPO:
			rewardC, rewardR = o.Beta*meanC, o.Beta*meanR
			odds := meanC - meanR - math.Log(-math.Expm1(meanC)) + math.Log(-math.Expm1(meanR))
			loss -= o.Beta * math.Log(sigmoid(odds)) / n
			nll -= s.prompt
			labels += s.promptLabels
		}
		nll -= s.answers[0]
		labels += s.labels[0]
		chosen, rejected = chosen+rewardC/n, rejected+rewardR/n
		if rewardC > rewardR {
			right += 1 / n
		}
	}
	measures = []float64{chosen, rejected, chosen - rejected, right}
	if o.SFTWeight > 0 {
		measures = append(measures, nll/labels)
		loss += o.SFTWeight * nll / labels
	}
	return loss, measures
}

// ktoFormula is formulas for KTO. A sample's second answer is the mismatched one.
func ktoFormula(o Options, list []comparedSample) (loss float64, measures []float64) {
	var kl, counts, rewards [2]float64
	for _, s := range list {
		kl[0] += (s.mismatched - s.reference[1]) / float64(len(list))
	}
	baseline := max(0, kl[0])
	right := 0.0
	for _, s := range list {
		reward := o.Beta * (s.answers[0] - s.reference[0])
		sign, weight, kind := 1.0, o.DesirableWeight, 0
		if !s.desirable {
			sign, weight, kind = -1, o.UndesirableWeight, 1
		}
		margin := sign * (reward - o.Beta*baseline)
		loss += weight * (1 - 1/(1+math.Exp(-margin))) / float64(len(list))
		counts[kind]++
		rewards[kind] += reward
		if margin > 0 {
			right += 1 / float64(len(list))
		}
	}
	chosen, rejected := rewards[0]/counts[0], rewards[1]/counts[1]
	return loss, []float64{chosen, rejected, chosen - rejected, right, baseline}
}

// The losses, their measures and the gradients of the weights match the formulas, whose derivatives
// are taken by finite differences. One pass of a step, several, and a validation give the same.
func TestObjective_ComparisonsMatchFormulas(t *testing.T) {
	noLeaks(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	beta := 0.02 + 0.2*draw.Float64()
	for name, o := range map[string]Options{
		"dpo":             {Objective: DPO, Beta: beta},
		"dpo, recomputed": {Objective: DPO, Beta: beta, Recompute: RecomputeBlock},
		"dpo, smoothed":   {Objective: DPO, Beta: beta, LabelSmoothing: 0.2},
		"dpo and sft":     {Objective: DPO, Beta: beta, SFTWeight: 0.7},
		"ipo":             {Objective: IPO, Beta: beta},
		"hinge":           {Objective: Hinge, Beta: beta},
		"simpo":           {Objective: SimPO, Beta: 10 * beta, Gamma: draw.Float64()},
		"simpo, smoothed": {Objective: SimPO, Beta: 10 * beta, LabelSmoothing: 0.1, SFTWeight: 1},
		"orpo":            {Objective: ORPO, Beta: 10 * beta},
		"kto":             {Objective: KTO, Beta: beta},
		"kto, weighted":   {Objective: KTO, Beta: beta, DesirableWeight: 1.4},
	} {
		for _, pack := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, pack %v", name, pack), func(t *testing.T) {
				o.Pack = pack
				o.Steps, o.SequenceLength = 1, 24
				o.Rate = 1e-30 // the weights stay
				data := pairs(7, seed)
				if o.Objective == KTO {
					data = rated(6, seed)
				}
				checkComparison(t, o.complete(), data, draw)
			})
		}
	}
}

// mismatchedProbability is the log-probability of the answer of the nearest sample before i that
// has another prompt, after the prompt of sample i.
func mismatchedProbability(m model.Model, data *dataset.Dataset, i int) float64 {
	split := func(s dataset.Sample) (prompt, answer []int32) {
		at := slices.IndexFunc(s.Labels, func(l int32) bool { return l >= 0 })
		return s.IDs[:at], s.IDs[at:]
	}
	prompt, _ := split(data.Samples[i])
	for j := i + len(data.Samples) - 1; ; j-- {
		other, answer := split(data.Samples[j%len(data.Samples)])
		if slices.Equal(other, prompt) {
			continue
		}
		s := dataset.Sample{IDs: slices.Concat(prompt, answer)}
		s.Labels = slices.Clone(s.IDs)
		for k := range prompt {
			s.Labels[k] = dataset.IgnoreLabel
		}
		answers, _ := logProbabilities(m, s)
		return torch.Item[float64](answers[0].Detach())
	}
}

func checkComparison(t *testing.T, o Options, data *dataset.Dataset, draw *rand.Rand) {
	known := make(network.Reference, 2*len(data.Samples))
	for i := range known {
		known[i] = -20 * draw.Float64()
		if i%2 == 1 && o.Objective == KTO && o.DesirableWeight == 1 {
			known[i] -= 60 // the baseline is positive; otherwise it is 0
		}
	}
	m := tiny(t, o.Pack, torch.Float32)
	defer model.Free(m)
	if err := torch.Run(func() error {
		for _, p := range nn.Params(m) {
			p.RequireGrad(true)
		}
		var list []comparedSample
		var leaves [][]torch.Tensor
		for i, s := range data.Samples {
			answers, prompt := logProbabilities(m, s)
			sample := comparedSample{
				reference: known[2*i : 2*i+2],
				labels:    make([]float64, 2),
				prompt:    torch.Item[float64](prompt.Detach()),
			}
			for k, label := range s.Labels {
				switch {
				case label != dataset.IgnoreLabel && s.Second > 0 && k >= s.Second:
					sample.labels[1]++
				case label != dataset.IgnoreLabel:
					sample.labels[0]++
				case k > 0 && (s.Second == 0 || k < s.Second):
					sample.promptLabels++
				}
			}
			for _, a := range answers {
				sample.answers = append(sample.answers, torch.Item[float64](a.Detach()))
			}
			if sample.desirable = s.Rating == dataset.Desirable; s.Rating != dataset.Unrated {
				sample.mismatched = mismatchedProbability(m, data, i)
			}
			list, leaves = append(list, sample), append(leaves, append(answers, prompt))
		}
		loss, measures := formulas(o, list)
		total := torch.Zeros(nil, torch.Float64, torch.CPU)
		slope := func(of *float64, p torch.Tensor) {
			const step = 1e-5
			was := *of
			*of = was + step
			above, _ := formulas(o, list)
			*of = was - step
			below, _ := formulas(o, list)
			*of = was
			total = total.Add(p.MulScalar((above - below) / (2 * step)))
		}
		for i, s := range list {
			for k := range s.answers {
				slope(&s.answers[k], leaves[i][k])
			}
			slope(&list[i].prompt, leaves[i][len(s.answers)])
		}
		total.Backward()
		gradients := map[*nn.Param][]float32{}
		for _, p := range nn.Params(m) {
			gradients[p] = torch.Values[float32](p.Grad())
			p.ClearGrad()
		}

		check := func(what string, loss32 float64, list []Measure) {
			t.Helper()
			got, want := []float32{float32(loss32)}, []float32{float32(loss)}
			for i, m := range list {
				got, want = append(got, float32(m.Value)), append(want, float32(measures[i]))
			}
			near(t, what, got, want, 1e-5)
		}
		for _, passes := range []int{1, 4} {
			o.BatchSize, o.Accumulate = 8/passes, passes
			tr, err := New(m, data, data, o)
			if err != nil {
				return err
			}
			if o.kind().Reference {
				tr.reference[data] = known
			}
			what := fmt.Sprintf("%d passes", passes)
			step := Step{Rate: tr.schedule.Rate(0)}
			batches, counts, err := tr.nextBatches(&step)
			if err != nil {
				return err
			}
			baseline, err := tr.baseline(batches)
			if err != nil {
				return err
			}
			tr.update(&step, batches, counts, baseline)
			check(what, step.Loss, step.Measures)
			if len(batches) != passes || tr.batches.State().Epoch > 0 {
				t.Errorf("%s: not one step an epoch", what)
			}
			nn.Walk(m, func(p nn.Component) {
				near(t, what+": gradient of "+p.Name, torch.Values[float32](p.Param.Grad()),
					gradients[p.Param], 3e-5)
			})
			numbers, err := tr.evaluate(context.Background(), data)
			if err != nil {
				return err
			}
			loss, list := tr.net.Objective.Report(numbers)
			check(what+": validation", loss, list)
			tr.Close()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
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
				answers, _ := logProbabilities(base, s)
				for _, a := range answers {
					before = append(before, torch.Item[float64](a))
				}
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

func TestDPO_ResumeKeepsReference(t *testing.T) { checkResume(t, dpo(), pairs(22, 1), pairs(5, 2)) }

func TestKTO_ResumeKeepsReference(t *testing.T) {
	o := dpo()
	o.Objective = KTO
	checkResume(t, o, rated(20, 1), rated(5, 2))
}

func checkResume(t *testing.T, o Options, data, valid *dataset.Dataset) {
	noLeaks(t)
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
		if s.Loss != want.steps[i].Loss || !slices.Equal(s.Measures, want.steps[i].Measures) {
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
	oneSided := rated(1, 1)
	for want, c := range map[string]struct {
		data   *dataset.Dataset
		change func(*Options)
	}{
		"0 of 9 samples are pairs": {samples(9, 1), func(o *Options) {}},
		"9 of 9 samples are pairs": {nine, func(o *Options) {
			o.Objective, o.Beta = SFT, 0
		}},
		"unknown objective \"ppo\"":      {nine, func(o *Options) { o.Objective = "ppo" }},
		"--beta -1: it must be positive": {nine, func(o *Options) { o.Beta = -1 }},
		"--beta 0.3 is for": {samples(9, 1), func(o *Options) {
			o.Objective = SFT
		}},
		"--z_loss cannot be combined with dpo": {nine, func(o *Options) { o.ZLoss = 0.1 }},
		"--label_smoothing cannot be combined with ipo": {nine, func(o *Options) {
			o.Objective, o.LabelSmoothing = IPO, 0.1
		}},
		"--label_smoothing 0.5: it is the probability": {nine, func(o *Options) {
			o.LabelSmoothing = 0.5
		}},
		"--gamma 0.5 is for":    {nine, func(o *Options) { o.Gamma = 0.5 }},
		"--gamma -1: it cannot": {nine, func(o *Options) { o.Objective, o.Gamma = SimPO, -1 }},
		"--sft_weight 1 is for": {samples(9, 1), func(o *Options) {
			o.Objective, o.Beta, o.SFTWeight = SFT, 0, 1
		}},
		"--sft_weight -1: it cannot": {nine, func(o *Options) { o.SFTWeight = -1 }},
		"--sft_weight 2: in the objective orpo it is 1": {nine, func(o *Options) {
			o.Objective, o.SFTWeight = ORPO, 2
		}},
		"0 of 9 samples are rated": {samples(9, 1), func(o *Options) { o.Objective = KTO }},
		"12 of 12 samples are rated": {rated(9, 1), func(o *Options) {
			o.Objective, o.Beta = SFT, 0
		}},
		"all answers have the same prompt": {oneSided, func(o *Options) { o.Objective = KTO }},
		"--desirable_weight and --undesirable_weight are for": {nine, func(o *Options) {
			o.DesirableWeight = 2
		}},
		"--desirable_weight 1 and --undesirable_weight -2": {rated(9, 1), func(o *Options) {
			o.Objective, o.UndesirableWeight = KTO, -2
		}},
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
