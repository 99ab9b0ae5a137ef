package lora

import (
	"fmt"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/torch"
)

// Fold returns source's weights with the adapter in the folder dir, in PEFT's format, added, or
// subtracted if unmerge is set. Each weight is computed in float32 when it is read and rounded
// once. Subtracting from rounded weights does not restore every bit. No model is built, and one
// weight is in memory at a time. Close closes the adapter's file.
func Fold(source *checkpoint.Checkpoint, dir string, unmerge bool) (*Folded, error) {
	config, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	c, err := openWeights(dir)
	if err != nil {
		return nil, err
	}
	f := &Folded{Checkpoint: source, adapter: c, layers: map[string]*foldedLayer{}}
	if err := f.match(&config); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	if unmerge {
		for _, l := range f.layers {
			l.scale = -l.scale
		}
	}
	return f, nil
}

// Folded is a checkpoint with an adapter folded in, see [Fold].
type Folded struct {
	*checkpoint.Checkpoint
	adapter *checkpoint.Checkpoint
	layers  map[string]*foldedLayer // by the name of the weight
}

// foldedLayer holds the names of a layer's matrices and the factor of B·A.
type foldedLayer struct {
	a, b  string
	scale float64
}

// match finds the weight that each tensor of the adapter belongs to.
func (f *Folded) match(config *adapterConfig) error {
	for _, name := range f.adapter.Names() {
		layer, isB, err := config.split(name)
		if err != nil {
			return err
		}
		weight, ok := f.Checkpoint.Info(layer + ".weight")
		if !ok || len(weight.Shape) != 2 {
			return fmt.Errorf("tensor %q belongs to no linear layer of this model", name)
		}
		l := f.layers[layer+".weight"]
		if l == nil {
			l = &foldedLayer{}
			f.layers[layer+".weight"] = l
		}
		rank, scale := config.of(layer)
		want, to := []int{rank, weight.Shape[1]}, &l.a
		if isB {
			want, to = []int{weight.Shape[0], rank}, &l.b
		}
		if info, _ := f.adapter.Info(name); !slices.Equal(info.Shape, want) {
			return shapeError(name, info.Shape, want, rank)
		}
		*to, l.scale = name, scale
	}
	if len(f.layers) == 0 {
		return errEmpty
	}
	for name, l := range f.layers {
		if l.a == "" || l.b == "" {
			return halfError(strings.TrimSuffix(name, ".weight"))
		}
	}
	return nil
}

// Tensor returns a weight in its stored dtype.
func (f *Folded) Tensor(name string) (torch.Tensor, error) {
	info, _ := f.Info(name)
	return f.TensorAs(name, info.DType)
}

// TensorAs returns a weight as dtype.
func (f *Folded) TensorAs(name string, dtype torch.DType) (torch.Tensor, error) {
	l, ok := f.layers[name]
	if !ok {
		return f.Checkpoint.TensorAs(name, dtype)
	}
	w, err := f.Checkpoint.TensorAs(name, torch.Float32)
	if err != nil {
		return w, err
	}
	a, err := f.adapter.TensorAs(l.a, torch.Float32)
	if err != nil {
		return a, err
	}
	b, err := f.adapter.TensorAs(l.b, torch.Float32)
	if err != nil {
		return b, err
	}
	return w.Add(b.Matmul(a).MulScalar(l.scale)).To(dtype), nil
}

// Close closes the adapter's file. The base checkpoint stays open.
func (f *Folded) Close() { f.adapter.Close() }
