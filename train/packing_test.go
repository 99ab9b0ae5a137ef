package train

import (
	"math"
	"math/rand/v2"
	"testing"

	_ "conquer/bamba"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
)

// Attention, the short convolution and the scan all begin anew with each sample of a row, wherever in a chunk it begins.
func TestSamplesPackedIntoRowsLoseWhatTheyLoseAlone(t *testing.T) {
	noLeaks(t)
	seed := rand.Uint64()
	draw := rand.New(rand.NewPCG(seed, 0))
	for _, name := range []string{"llama", "bamba", "mamba2"} {
		m := tiny(t, true, torch.Float32)
		if name != "llama" {
			free(m)
			config, err := model.Variant(name, "tiny") // bamba's third layer is attention; chunks of 32
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
		batches, err := dataset.NewBatcher(d, dataset.BatchOptions{Rows: 9, Length: 64, Pack: true, InOrder: true})
		if err != nil {
			t.Fatal(err)
		}
		packed, err := batches.Next()
		if err != nil || !packed.Last {
			t.Fatal("the samples do not fit a batch: ", err)
		}
		err = torch.Run(func() error {
			net := network{model: m, blocks: m.Blocks(), lowest: -1, strategy: &local{}}
			alone, labels := 0.0, 0
			for _, s := range d.Samples {
				b, err := dataset.NewBatcher(&dataset.Dataset{Samples: []dataset.Sample{s}}, dataset.BatchOptions{Rows: 1, Length: 64, InOrder: true})
				if err != nil {
					return err
				}
				one, err := b.Next()
				if err != nil {
					return err
				}
				torch.Scoped(func() { alone += net.evaluate(newMicroBatch(one, torch.CPU, 1))[0] })
				labels += one.Targets
			}
			torch.Scoped(func() {
				mb := newMicroBatch(packed, torch.CPU, 1)
				together := net.evaluate(mb)[0]
				if mb.targets != labels || math.Abs(together-alone) > 2e-5*alone {
					t.Errorf("seed %d, %s: %d labels lose %v in rows, %d lose %v alone", seed, name, mb.targets, together, labels, alone)
				}
				mb.seq.Segments = torch.Tensor{}
				if mixed := net.evaluate(mb)[0]; math.Abs(mixed-together) < 1e-6*alone { // by chance the sums may lie close
					t.Errorf("seed %d, %s: samples that see each other lose %v, alone %v: this test tells nothing", seed, name, mixed, alone)
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
