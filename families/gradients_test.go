package families_test

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// chosenBy ends the name of a bias that only the choice of experts depends on.
const chosenBy = ".e_score_correction_bias"

// tools/parity/family_models.py writes gradients.safetensors: the gradients of the mean loss of the
// fixture's prompt, which transformers computed in float64.
func TestFamilies_GradientsAgreeWithTransformers(t *testing.T) {
	if os.Getenv("FAMILIES_PARITY") == "" {
		t.Skip("tools/parity/family_models.py sets FAMILIES_PARITY")
	}
	each(t, func(t *testing.T, f fixture, m model.Model) {
		want, err := checkpoint.Open(filepath.Join(f.folder, "gradients.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		defer want.Close()
		ids, _, _ := f.prompt(t)
		for _, p := range nn.Params(m) {
			p.Tensor.RequireGrad(true)
		}
		torch.Scoped(func() {
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			hidden := model.Hidden(m, model.Sequence{IDs: input}).Squeeze(0)
			loss, _ := m.Head().Loss(hidden.Narrow(0, 0, len(ids)-1),
				input.Squeeze(0).Narrow(0, 1, len(ids)-1), torch.Loss{})
			loss.Backward()
			nn.Walk(m, func(c nn.Component) {
				if strings.HasSuffix(c.Name, chosenBy) {
					return
				}
				g, err := want.Tensor(c.Name)
				if err != nil {
					t.Error(err)
					return
				}
				got := c.Param.Tensor.Grad().Narrow(0, c.Start, c.Rows).To(torch.Float64)
				worst := torch.Item[float64](got.Sub(g.View(got.Shape()...)).Abs().Max())
				largest := torch.Item[float64](g.Abs().Max())
				// float32 against float64 through all layers; a wrong term is off by more
				if !(worst <= 1e-3*math.Max(largest, 1e-3)) {
					t.Errorf("%s: the gradient is off by %.3g of %.3g", c.Name, worst, largest)
				}
			})
		})
		for _, p := range nn.Params(m) {
			p.Tensor.ClearGrad()
			p.Tensor.RequireGrad(false)
		}
	})
}

// Two samples packed into a row give the logits that each gives alone.
func TestFamilies_PackedSamplesDoNotMix(t *testing.T) {
	each(t, func(t *testing.T, f fixture, m model.Model) {
		ids, _, _ := f.prompt(t)
		const first = 7 // the length of the first sample: no multiple of a chunk
		segments := make([]int64, len(ids))
		positions := make([]int64, len(ids))
		for i := range ids {
			segments[i], positions[i] = 1, int64(i)
			if i >= first {
				segments[i], positions[i] = 2, int64(i-first)
			}
		}
		alone := append(logitsOf(m, ids[:first]), logitsOf(m, ids[first:])...)
		torch.NoGrad(func() {
			packed := model.Logits(m, model.Sequence{
				IDs:       torch.From(ids, 1, len(ids)).To(torch.Int64),
				Segments:  torch.From(segments, 1, len(ids)),
				Positions: torch.From(positions, 1, len(ids)), Limit: len(ids),
			})
			near(t, "packed", torch.Values[float32](packed), alone)
		})
	})
}
