package model

import (
	"fmt"

	"conquer/torch"
	"conquer/torch/nn"
)

// Cache is what a model remembers of the tokens it has seen. All sequences of a batch fill the same
// columns; a shorter one is padded on the left and begins at its column of Starts.
type Cache struct {
	Layers   []LayerCache
	Length   int // columns filled
	Capacity int
	Starts   []int // first valid column of each sequence; nil if all begin at 0
	// Position (int64 [1] or [B] on the device), if defined, replaces Length in passes over a
	// single token: it is the column of the new token, for each sequence if there are B. A recorded
	// graph then serves every position, and sequences of different lengths need no padding. The
	// columns before it must be filled.
	Position torch.Tensor
	// Held (int32 [B] on the device) counts the tokens that the layers' rings took since they were
	// empty; undefined if the layers have no rings. See [torch.SSDRing].
	Held torch.Tensor
	// Fused reports whether a block of a single-token pass ended in the GPU's fused kernel (see
	// nn.BlockTail), and UnfusedReason why the first block without it ran unfused.
	Fused         bool
	UnfusedReason string
}

// LayerCache is one block's part of a Cache; a block uses the fields that it needs.
type LayerCache struct {
	Keys, Values torch.Tensor // [B,K,S,P]; of [CacheQ8] uint8 [B,K,S,P/32·34]
	Conv         torch.Tensor // [B, width, channels]: the last inputs of a causal convolution
	State        torch.Tensor // [B,H,P,N]: a state-space layer's state
	// Ring holds the last inputs of a state-space layer that its state lacks, if it has one. Held
	// is the cache's.
	Ring torch.SSDRing
	// After, if not nil, receives the states of the convolution and the state-space layer after the
	// pass, without gradients, and Conv and State, with which the pass begins, are left as they
	// are. It is for training: a pass with gradients may not change what it began with.
	After *LayerCache
}

// The forms in which caches hold keys and values.
const (
	CacheAsModel = ""     // in the model's dtype
	CacheQ8      = "q8_0" // in blocks of 32 numbers of 8 bits with a float16 scale
)

// SetCache makes the caches that m makes from now on hold keys and values in a form, on the CPU.
func SetCache(m Model, form string) error {
	if form != CacheAsModel && form != CacheQ8 {
		return fmt.Errorf("a cache of %q: expected q8_0, or none for the model's dtype", form)
	}
	var layers []*Attention
	narrow := 0
	nn.Layers(m, func(_ string, layer any) {
		if a, ok := layer.(*Attention); ok {
			layers = append(layers, a)
			if a.config.HeadDim%32 != 0 {
				narrow = a.config.HeadDim
			}
		}
	})
	switch {
	case form == CacheAsModel:
	case len(layers) == 0:
		return fmt.Errorf("a model of the architecture %s has no keys and values", m.Architecture())
	case narrow > 0:
		return fmt.Errorf("heads of %d dimensions cannot be kept in blocks of 32", narrow)
	case DType(m) == torch.Float64:
		return fmt.Errorf("a model in float64 keeps its keys and values in float64")
	case Device(m).IsCUDA():
		return fmt.Errorf("a GPU has no kernels for keys and values in 8 bits: use --device cpu, " +
			"or leave the flag out")
	}
	for _, a := range layers {
		a.eightBit = form == CacheQ8
	}
	return nil
}

// CacheForm is the form in which m's new caches hold keys and values; see [SetCache].
func CacheForm(m Model) string {
	form := CacheAsModel
	nn.Layers(m, func(_ string, layer any) {
		if a, ok := layer.(*Attention); ok && a.eightBit {
			form = CacheQ8
		}
	})
	return form
}

// Layer returns the cache of block i, nil for a nil cache.
func (c *Cache) Layer(i int) *LayerCache {
	if c == nil {
		return nil
	}
	return &c.Layers[i]
}

// Rows returns the cache of the sequences [first, first+count), as views of this one's tensors that
// belong to the innermost scope. Its Length is that of c; it has neither Starts nor Position.
func (c *Cache) Rows(first, count int) *Cache {
	part := &Cache{Length: c.Length, Capacity: c.Capacity,
		Layers: make([]LayerCache, len(c.Layers))}
	for i := range c.Layers {
		to := part.Layers[i].tensors()
		for j, t := range c.Layers[i].tensors() {
			if t.Defined() {
				*to[j] = t.Narrow(0, first, count)
			}
		}
	}
	if c.Held.Defined() {
		part.Held = c.Held.Narrow(0, first, count)
	}
	return part
}

// CopyColumns copies length columns of a row of from, a cache of the same model, to a row of c.
func (c *Cache) CopyColumns(row, column int, from *Cache, fromRow, fromColumn, length int) {
	for i := range c.Layers {
		to, of := &c.Layers[i], &from.Layers[i]
		if !to.Keys.Defined() {
			continue
		}
		torch.Scoped(func() {
			part := func(t torch.Tensor, row, column int) torch.Tensor {
				return t.Narrow(0, row, 1).Narrow(2, column, length)
			}
			part(to.Keys, row, column).Copy(part(of.Keys, fromRow, fromColumn))
			part(to.Values, row, column).Copy(part(of.Values, fromRow, fromColumn))
		})
	}
}

// CopyStates copies the states of a row of from, a cache of the same model, to a row of c. If from
// has rings of inputs, c must have them too.
func (c *Cache) CopyStates(row int, from *Cache, fromRow int) {
	if c.Held.Defined() {
		torch.Scoped(func() {
			held := c.Held.Narrow(0, row, 1)
			if held.Zero(); from.Held.Defined() {
				held.Copy(from.Held.Narrow(0, fromRow, 1))
			}
		})
	}
	for i := range c.Layers {
		to, of := c.Layers[i].tensors()[2:], from.Layers[i].tensors()[2:]
		for j, t := range to {
			if t.Defined() && of[j].Defined() {
				torch.Scoped(func() { t.Narrow(0, row, 1).Copy(of[j].Narrow(0, fromRow, 1)) })
			}
		}
	}
}

// tensors lists the fields, keys and values first.
func (l *LayerCache) tensors() []*torch.Tensor {
	return []*torch.Tensor{&l.Keys, &l.Values, &l.Conv, &l.State, &l.Ring.X, &l.Ring.B, &l.Ring.DT}
}

// advance counts the tokens of a pass that has ended.
func (c *Cache) advance(tokens int) {
	c.Length += tokens
	switch {
	case !c.Held.Defined():
	case tokens == 1:
		c.Held.AddTo(torch.Ones([]int{1}, torch.Int32, c.Held.Device()))
	default:
		c.Held.Zero() // every layer folded its ring
	}
}

// Own detaches the tensors from their scope. Free frees them.
func (c *Cache) Own() *Cache {
	for i := range c.Layers {
		for _, t := range c.Layers[i].tensors() {
			if t.Defined() {
				*t = t.Own()
			}
		}
	}
	if c.Held.Defined() {
		c.Held = c.Held.Own()
	}
	return c
}

// Free frees the cache's tensors.
func (c *Cache) Free() {
	for i := range c.Layers {
		for _, t := range c.Layers[i].tensors() {
			t.Free()
		}
	}
	c.Held.Free()
	c.Layers = nil
}

// Bytes is the memory of the cache's tensors.
func (c *Cache) Bytes() int64 {
	n := 0
	for i := range c.Layers {
		for _, t := range c.Layers[i].tensors() {
			if t.Defined() {
				n += t.Bytes()
			}
		}
	}
	return int64(n)
}
