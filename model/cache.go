package model

import "conquer/torch"

// Cache is what a model remembers of the tokens it has seen. All sequences of a batch fill the same
// columns; a shorter one is padded on the left and begins at its column of Starts.
type Cache struct {
	Layers   []LayerCache
	Length   int // columns filled
	Capacity int
	Starts   []int // first valid column of each sequence; nil if all begin at 0
	// Position (int64 [1] on the device), if defined, replaces Length in passes over a single
	// token. A recorded graph then serves every position.
	Position torch.Tensor
	// Fused reports whether a block of a single-token pass ended in the GPU's fused kernel (see
	// nn.BlockTail), and UnfusedReason why the first block without it ran unfused.
	Fused         bool
	UnfusedReason string
}

// LayerCache is one block's part of a Cache; a block uses the fields that it needs.
type LayerCache struct {
	Keys, Values torch.Tensor // [B,K,S,P]
	Conv         torch.Tensor // [B, width, channels]: the last inputs of a causal convolution
	State        torch.Tensor // [B,H,P,N], float32: a state-space layer's state
}

// Layer returns the cache of block i, nil for a nil cache.
func (c *Cache) Layer(i int) *LayerCache {
	if c == nil {
		return nil
	}
	return &c.Layers[i]
}

// Free frees the cache's tensors.
func (c *Cache) Free() {
	for i := range c.Layers {
		layer := &c.Layers[i]
		layer.Keys.Free()
		layer.Values.Free()
		layer.Conv.Free()
		layer.State.Free()
	}
	c.Layers = nil
}
