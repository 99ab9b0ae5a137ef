package lora

import (
	"errors"
	"fmt"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Adapter is an adapter that was read for a model without changing it. [Use] says for which rows of
// a batch it counts.
type Adapter struct{ layers map[*nn.Linear][]*nn.LoRA }

// Read reads the adapter in the folder dir, in PEFT's format, for m. It fails as [Load] does, and
// for an adapter of the experts of a mixture, whose rows are not those of the batch.
func Read(m model.Model, dir string) (*Adapter, error) {
	config, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	adapter := &Adapter{layers: map[*nn.Linear][]*nn.LoRA{}}
	err = torch.Run(func() error {
		c, err := openWeights(dir)
		if err != nil {
			return err
		}
		defer c.Close()
		all, err := readAll(m, c, &config, false)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
		for l, a := range all {
			if l.Linear.Experts > 0 {
				err = fmt.Errorf("%s: %w: %s", c.Path, errExperts, l.Name)
			}
			if adapter.layers[l.Linear] == nil {
				adapter.layers[l.Linear] = make([]*nn.LoRA, len(l.Linear.Rows))
			}
			adapter.layers[l.Linear][l.Index] = a
		}
		return err
	})
	if err != nil {
		adapter.Free()
		return nil, err
	}
	return adapter, nil
}

var errExperts = errors.New("an adapter of experts can only be merged into the weights")

// Free frees the adapter's tensors.
func (a *Adapter) Free() {
	for _, list := range a.layers {
		for _, l := range list {
			if l != nil {
				l.Free()
			}
		}
	}
	a.layers = nil
}

// Use makes the following passes of m take an adapter for each row of a batch, where nil means
// none. A pass with one row may have any length, others have one token in each row. No adapters, or
// only nil, make the model what it is without. The model must have no adapters of its own.
func Use(m model.Model, adapters ...*Adapter) {
	nn.Linears(m, func(_ []string, l *nn.Linear) {
		l.LoRA, l.Mixed = nil, nil
		if len(adapters) == 1 && adapters[0] != nil {
			l.LoRA = adapters[0].layers[l]
			return
		}
		for first := 0; first < len(adapters); {
			end := first + 1
			for end < len(adapters) && adapters[end] == adapters[first] {
				end++
			}
			if a := adapters[first]; a != nil && a.layers[l] != nil {
				l.Mixed = append(l.Mixed, nn.MixedRows{First: first, Count: end - first,
					LoRA: a.layers[l]})
			}
			first = end
		}
	})
}
