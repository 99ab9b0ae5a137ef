package train

import (
	"math"
	"math/rand/v2"
	"testing"

	_ "conquer/bamba"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/train/internal/network"
)

// Attention, the short convolution and the scan restart with each sample of a row, wherever in a
// chunk it starts.
func TestPacking_LossEqualsSeparateSamples(t *testing.T) {
	noLeaks(t)
	seed := rand.Uint64()
	draw := rand.New(rand.NewPCG(seed, 0))
	for _, name := range []string{"llama", "bamba", "mamba2"} {
		m := tiny(t, true, torch.Float32)
		if name != "llama" {
			free(m)
			// bamba's third layer is attention; chunks have 32 tokens.
			config, err := model.Variant(name, "tiny")
			if err != nil {
				t.Fatal(err)
			}
			config["vocab_size"], config["initializer_range"] = float64(vocabulary), 0.2
			if m, err = model.New(config); err != nil {
				t.Fatal(err)
			}
			torch.Run(func() error {
				torch.ManualSeed(int64(seed >> 1))
				model.Initialize(m, torch.Float32, torch.CPU)
				return nil
			})
		}
		d := &dataset.Dataset{}
		for range 9 {
			var s dataset.Sample
			for range 2 + draw.IntN(40) {
				s.IDs = append(s.IDs, draw.Int32N(vocabulary))
			}
			s.Labels = s.IDs
			d.Samples = append(d.Samples, s)
		}
		batches, err := dataset.NewBatcher(d,
			dataset.BatchOptions{Rows: 9, Length: 64, Pack: true, InOrder: true})
		if err != nil {
			t.Fatal(err)
		}
		packed, err := batches.Next()
		if err != nil || !packed.Last {
			t.Fatal("the samples do not fit a batch: ", err)
		}
		err = torch.Run(func() error {
			net := network.New(m, network.Objective{}, RecomputeNone, &local{})
			alone, labels := 0.0, 0
			for _, s := range d.Samples {
				b, err := dataset.NewBatcher(&dataset.Dataset{Samples: []dataset.Sample{s}},
					dataset.BatchOptions{Rows: 1, Length: 64, InOrder: true})
				if err != nil {
					return err
				}
				one, err := b.Next()
				if err != nil {
					return err
				}
				torch.Scoped(func() {
					alone += evaluate(net, network.NewMicroBatch(one, torch.CPU, 1, nil))[0]
				})
				labels += one.Targets
			}
			torch.Scoped(func() {
				mb := network.NewMicroBatch(packed, torch.CPU, 1, nil)
				together := evaluate(net, mb)[0]
				if mb.Targets != labels || math.Abs(together-alone) > 2e-5*alone {
					t.Errorf("seed %d, %s: packed, %d labels lose %v; alone, %d lose %v",
						seed, name, mb.Targets, together, labels, alone)
				}
				mb.Seq.Segments = torch.Tensor{}
				// By chance, the sums may be close.
				mixed := evaluate(net, mb)[0]
				if math.Abs(mixed-together) < 1e-6*alone {
					t.Errorf("seed %d, %s: without segments the loss is %v, alone %v: "+
						"the test detects nothing", seed, name, mixed, alone)
				}
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		free(m)
	}
}
