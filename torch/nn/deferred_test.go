package nn

import (
	"slices"
	"testing"

	"conquer/torch"
)

// A deferred parameter that checkpoints hold as a stack of matrices is read as their rows.
func TestParam_DeferredStackHasTheRowsOfItsMatrices(t *testing.T) {
	err := torch.Run(func() error {
		torch.Scoped(func() {
			p := NewParam(Normal, 6, 4)
			p.Stack = 3
			want := torch.Arange(0, 24, torch.Float32, torch.CPU)
			p.Defer(torch.Float32, torch.CPU, func(into *Param) error {
				into.Store(0, want.View(3, 2, 4))
				return nil
			})
			got, err := p.Values()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(torch.Values[float32](got), torch.Values[float32](want)) {
				t.Errorf("the values are %v", torch.Values[float32](got))
			}
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
