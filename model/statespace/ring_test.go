package statespace_test

import (
	"testing"

	"conquer/bamba"
	"conquer/model"
	"conquer/torch"
)

// giveRings gives the state-space layers of a cache rings of t inputs, which on this device no
// kernel asks for.
func giveRings(m model.Model, c *model.Cache, t int) {
	device := model.Device(m)
	for i, block := range m.Blocks() {
		mixer := block.(*bamba.Block).Mixer
		if mixer == nil {
			continue
		}
		batch := c.Layers[i].State.Size(0)
		heads, headDim, groups, states := mixer.Sizes()
		c.Layers[i].Ring = torch.SSDRing{
			X:  torch.Zeros([]int{batch, heads, t, headDim}, model.DType(m), device).Own(),
			B:  torch.Zeros([]int{batch, groups, t, states}, model.DType(m), device).Own(),
			DT: torch.Zeros([]int{batch, heads, t}, torch.Float32, device).Own(),
		}
		c.Held = torch.Zeros([]int{batch}, torch.Int32, device).Own()
	}
}

// A cache with rings gives the logits of one without, over steps, further pieces of text, rows
// that are copied from other caches, and views of rows.
func TestRing_LogitsAreThoseOfAWrittenState(t *testing.T) {
	config, err := model.Variant("bamba", "tiny")
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	if err := torch.Run(func() error {
		torch.ManualSeed(7)
		model.Initialize(m, torch.Float32, torch.CPU)
		const rows = 3
		plain, ringed := m.NewCache(rows, 64, torch.Float32, torch.CPU),
			m.NewCache(rows, 64, torch.Float32, torch.CPU)
		defer plain.Free()
		defer ringed.Free()
		giveRings(m, ringed, 4)
		step := 0
		read := func(a, b *model.Cache, length int) {
			torch.Scoped(func() {
				ids := make([]int64, a.Layers[0].Conv.Size(0)*length)
				for i := range ids {
					ids[i] = int64((i*31 + step*7) % 50)
				}
				seq := model.Sequence{IDs: torch.From(ids, len(ids)/length, length), Cache: a}
				want := torch.Values[float32](model.LastLogits(m, seq).Contiguous().View(-1))
				seq.Cache = b
				got := torch.Values[float32](model.LastLogits(m, seq).Contiguous().View(-1))
				for i := range want {
					if d := got[i] - want[i]; !(d < 1e-4 && d > -1e-4) {
						t.Fatalf("step %d: logit %d is %g, without a ring %g", step, i, got[i],
							want[i])
					}
				}
				step++
			})
		}
		read(plain, ringed, 5)
		for range 6 {
			read(plain, ringed, 1)
		}
		for i, l := range ringed.Layers {
			if l.Ring.DT.Defined() && torch.Item[float32](l.Ring.DT.Neg().Max()) >= 0 {
				t.Errorf("layer %d has an entry that no token filled", i)
			}
		}
		read(plain, ringed, 3) // folds two inputs
		for range 3 {
			read(plain, ringed, 1)
		}
		// Row 1 becomes another sequence. Then the first two rows go on alone.
		other := m.NewCache(1, 64, torch.Float32, torch.CPU)
		defer other.Free()
		model.LastLogits(m, model.Sequence{
			IDs: torch.From([]int64{9, 8, 7}, 1, 3), Cache: other})
		for _, c := range []*model.Cache{plain, ringed} {
			c.CopyColumns(1, 0, other, 0, 0, 3)
			c.CopyStates(1, other, 0)
		}
		read(plain, ringed, 1)
		two, ringedTwo := plain.Rows(0, 2), ringed.Rows(0, 2)
		for range 5 {
			read(two, ringedTwo, 1)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
