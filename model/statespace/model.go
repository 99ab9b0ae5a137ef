// Package statespace holds what the families with Mamba-2 layers share: the layer, its chunked
// scan, and the strategies by which chunks share their states.
//
// [Mixer] is the layer, [SSD] is its scan on one page, [Chunking] chooses how it runs, and [Model]
// is a stack of blocks whose layers share one choice.
package statespace

import (
	"conquer/model"
	"conquer/torch/nn"
)

// Model is a [model.Stack] whose state-space layers share one [Chunking].
type Model struct {
	*model.Stack
	chunking *Chunking
	chunk    int // the config's chunk size
}

// NewModel makes a model, without weights, whose state-space layers were made with the given
// chunking. It is a [Model] if there are such layers.
func NewModel(c model.StackConfig, blocks []model.Block, chunking *Chunking) (model.Model, error) {
	stack, err := model.NewStack(c, blocks)
	if err != nil {
		return nil, err
	}
	scans := false
	nn.Layers(stack, func(_ string, layer any) {
		_, mixer := layer.(*Mixer)
		scans = scans || mixer
	})
	if !scans {
		return stack, nil
	}
	return &Model{Stack: stack, chunking: chunking, chunk: chunking.ChunkSize}, nil
}

// Chunked is a model whose state-space layers can be given another chunking. [Model] implements it.
type Chunked interface {
	model.Model
	// Chunking returns the current choice; a new model's is default-optimized with its config's
	// chunk size.
	Chunking() Chunking
	// SetChunking changes it for the passes that follow.
	SetChunking(Chunking) error
}

// Chunking returns how the state-space layers scan.
func (m *Model) Chunking() Chunking { return *m.chunking }

// SetChunking changes how the state-space layers scan, from the next pass on.
func (m *Model) SetChunking(c Chunking) error {
	if err := c.Check(); err != nil {
		return err
	}
	if c.ChunkSize == 0 {
		c.ChunkSize = m.chunk
	}
	if c.StateDType == 0 {
		c.StateDType = m.chunking.StateDType
	}
	*m.chunking = c
	return nil
}

// NewChunking returns the chunking of a new model: default-optimized, with the chunk size of its
// config, rounded to a size that the kernels have. Under the default strategy the size changes the
// speed only.
func NewChunking(size int) *Chunking {
	chunk := 16
	for chunk < 256 && 2*chunk <= size {
		chunk *= 2
	}
	return &Chunking{Strategy: Default, ChunkSize: chunk, Optimized: true}
}
