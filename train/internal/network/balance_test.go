package network

import (
	"math/rand/v2"
	"testing"

	_ "conquer/families/mixtral"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
)

// alone is the strategy of a single process.
type alone struct{}

func (alone) Gather(int, int)   {}
func (alone) Release(int, bool) {}
func (alone) Reduce(int, bool)  {}

// The gradients with a balancing loss, block by block, are those of the sum of both losses in one
// graph, with padding left out.
func TestBalance_GradientsAreThoseOfOneGraph(t *testing.T) {
	const rows, length, coefficient = 3, 9, 0.7
	b := dataset.Batch{Rows: rows, Length: length}
	for row := range rows {
		for column := range length {
			id, segment := int32(1+rand.IntN(60)), int32(1)
			label := id
			if column > 5+row {
				id, segment, label = 0, 0, dataset.IgnoreLabel
			}
			b.IDs, b.Labels = append(b.IDs, id), append(b.Labels, label)
			b.Segments = append(b.Segments, segment)
			b.Positions = append(b.Positions, int32(column))
		}
	}
	m, err := model.New(model.Config{"model_type": "mixtral", "vocab_size": 64.0,
		"hidden_size": 16.0, "intermediate_size": 12.0, "num_hidden_layers": 3.0,
		"num_attention_heads": 2.0, "num_key_value_heads": 1.0, "num_local_experts": 4.0,
		"num_experts_per_tok": 2.0, "initializer_range": 0.4})
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	err = torch.Run(func() error {
		model.Initialize(m, torch.Float32, torch.CPU)
		for _, p := range nn.Params(m) {
			p.RequireGrad(true)
		}
		mb := NewMicroBatch(b, torch.CPU, 1, nil)
		balance := balances(m)
		balance.On, balance.Counted = true, mb.Counted
		hidden := model.Hidden(m, mb.Seq)
		picked := hidden.View(-1, hidden.Size(-1)).IndexSelect(0, mb.Rows)
		loss, _ := m.Head().Loss(picked, mb.Labels, torch.Loss{})
		var tokens, probabilities torch.Tensor
		for i, s := range balance.Take() {
			defer s.Free()
			if i == 0 {
				tokens, probabilities = s.Tokens, s.Probabilities
				continue
			}
			tokens, probabilities = tokens.Add(s.Tokens), probabilities.Add(s.Probabilities)
		}
		balance.On, balance.Counted = false, torch.Tensor{}
		n := torch.Item[float64](mb.Counted.Sum()) * 3 // over all layers
		router := tokens.MulScalar(4 / n / n).Mul(probabilities).Sum()
		loss.Add(router.MulScalar(coefficient)).Backward()
		var want []torch.Tensor
		for _, p := range nn.Params(m) {
			want = append(want, p.Grad().Clone())
			p.Tensor.ClearGrad()
		}
		for _, recompute := range []Recompute{RecomputeNone, RecomputeBlock, RecomputeSelective} {
			net := New(m, Objective{RouterLoss: coefficient}, recompute, alone{})
			numbers := torch.Values[float64](net.Gradients(mb, float64(mb.Targets), true))
			if d := numbers[1] - torch.Item[float64](router); !(d*d < 1e-10) {
				t.Errorf("%s: the router's loss is %g, expected %g", recompute, numbers[1],
					torch.Item[float64](router))
			}
			for i, p := range nn.Params(m) {
				d := torch.Item[float64](p.Grad().Sub(want[i]).Abs().Max())
				if largest := torch.Item[float64](want[i].Abs().Max()); !(d <= 1e-4*largest) {
					t.Errorf("%s: gradient %d is off by %g of %g", recompute, i, d, largest)
				}
				p.Tensor.ClearGrad()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
