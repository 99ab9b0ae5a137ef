package train

import (
	"encoding/json"
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
	"conquer/train/report"
)

// plainObjective computes the formulas sample by sample over the whole model: the mean over the
// labels of (1-e)(lse - x_y) + e(lse - mean x) + z lse^2, and of lse - x_y.
func plainObjective(
	m model.Model, d *dataset.Dataset, smoothing, z float64,
) (objective, plain torch.Tensor) {
	var totals [2]torch.Tensor
	labels := 0.0
	for _, s := range d.Samples {
		var ids, targets, rows []int64
		for i, id := range s.IDs {
			ids = append(ids, int64(id))
			if i > 0 && s.Labels[i] != dataset.IgnoreLabel {
				targets, rows = append(targets, int64(s.Labels[i])), append(rows, int64(i-1))
			}
		}
		logits := model.Logits(m, model.Sequence{IDs: torch.From(ids, 1, len(ids))}).
			Squeeze(0).
			To(torch.Float64).
			IndexSelect(0, torch.From(rows, len(rows)))
		lse := logits.Exp().SumDim(-1, false).Log()
		nll := lse.Sub(logits.Gather(1, torch.From(targets, len(targets), 1)).Squeeze(1))
		even := lse.Sub(logits.SumDim(-1, false).MulScalar(1. / vocabulary))
		each := nll.MulScalar(1 - smoothing).
			Add(even.MulScalar(smoothing)).
			Add(lse.Mul(lse).MulScalar(z))
		for i, sum := range []torch.Tensor{each.Sum(), nll.Sum()} {
			if totals[i].Defined() {
				sum = totals[i].Add(sum)
			}
			totals[i] = sum
		}
		labels += float64(len(rows))
	}
	return totals[0].MulScalar(1 / labels), totals[1].MulScalar(1 / labels)
}

func TestObjective_SmoothingAndZLossMatchFormulas(t *testing.T) {
	noLeaks(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	data := samples(6, seed)
	for _, pack := range []bool{false, true} {
		m := tiny(t, pack, torch.Float32)
		smoothing, z := draw.Float64(), draw.Float64()
		err := torch.Run(func() error {
			for _, p := range nn.Params(m) {
				p.RequireGrad(true)
			}
			objective, plain := plainObjective(m, data, smoothing, z)
			objective.Backward()
			want := map[*nn.Param][]float32{}
			for _, p := range nn.Params(m) {
				want[p] = torch.Values[float32](p.Grad())
				p.ClearGrad()
			}
			b := batchOf(t, data, 6, pack)
			net := network.New(m, network.Objective{Smoothing: smoothing, ZLoss: z}, RecomputeNone,
				&local{})
			got := torch.Values[float64](
				net.Gradients(network.NewMicroBatch(b, torch.CPU, 1, nil),
					float64(network.Targets(b)),
					true),
			)
			for i, number := range []torch.Tensor{plain, objective} {
				want := torch.Item[float64](number.Detach())
				if len(got) != 2 || math.Abs(got[i]-want) > 1e-5*want {
					t.Errorf("number %d of %v, want %v", i, got, want)
				}
			}
			nn.Walk(m, func(p nn.Component) {
				near(t, "gradient of "+p.Name, torch.Values[float32](p.Param.Grad()), want[p.Param],
					2e-5)
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		model.Free(m)
	}
}

// With label smoothing or z-loss, steps report the objective besides the plain loss. Validation
// reports the plain loss, and plain runs report no objective.
func TestObjective_IsReportedBesidePlainLoss(t *testing.T) {
	noLeaks(t)
	plain := train(t, tiny(t, true, torch.Float32), samples(16, 1), samples(5, 2), options(), nil)
	if plain.steps[0].Measures != nil {
		t.Errorf("a plain run reports %v", plain.steps[0].Measures)
	}
	o := options()
	o.LabelSmoothing, o.ZLoss, o.LogPath, o.TensorBoard = 0.2, 1e-3, t.TempDir(), true
	r := train(t, tiny(t, true, torch.Float32), samples(16, 1), samples(5, 2), o, nil)
	if r.validations[0].Loss != plain.validations[0].Loss ||
		math.Abs(r.steps[0].Loss-plain.steps[0].Loss) > 1e-6 ||
		r.validations[1].Loss == plain.validations[1].Loss {
		t.Errorf("penalties changed the plain loss: %v and %v", r.validations, plain.validations)
	}
	first := r.steps[0]
	if len(first.Measures) != 1 || first.Measures[0].Name != "objective" ||
		!(first.Measures[0].Value > first.Loss) {
		t.Errorf("a step reported loss %v and %v", first.Loss, first.Measures)
	}
	written, err := os.ReadFile(filepath.Join(o.LogPath, report.MetricsFile))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(written)) {
		var fields map[string]float64
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if _, step := fields["loss"]; step &&
			fields["objective"] != r.steps[int(fields["step"])-1].Measures[0].Value {
			t.Errorf("line %q lacks the objective", line)
		}
	}
	for name, spoil := range map[string]func(*Options){
		"smoothing": func(o *Options) { o.LabelSmoothing = 1 },
		"z_loss":    func(o *Options) { o.ZLoss = math.NaN() },
	} {
		o := options()
		spoil(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Bamba's config.json has a coefficient, which counts unless the options give another.
func TestObjective_BambasZLossCounts(t *testing.T) {
	config, err := model.Variant("bamba", "bytes")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		coefficient any
		given, want float64
	}{{1e-3, 0, 1e-3}, {1e-3, 1e-2, 1e-2}, {0.0, 0, 0}, {nil, 0, 0}, {-1.0, 0, 0}} {
		config["z_loss_coefficient"] = c.coefficient
		m, err := model.New(config)
		if err != nil {
			t.Fatal(err)
		}
		o := options()
		o.ZLoss = c.given
		if o, err = o.fit(m, samples(4, 1), nil); err != nil || o.objective().ZLoss != c.want {
			t.Errorf("coefficient %v, option %g: z-loss %g, expected %g (%v)", c.coefficient,
				c.given, o.objective().ZLoss, c.want, err)
		}
	}
}
