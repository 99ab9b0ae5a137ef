package train

import (
	"errors"
	"fmt"

	"conquer/model"
	"conquer/model/statespace"
)

// chunking reads Chunking and ChunkSize. given is false if both are unset.
func (o Options) chunking() (c statespace.Chunking, given bool, err error) {
	if o.Chunking == "" {
		if o.ChunkSize != 0 {
			err = errors.New("--chunk_size needs --chunking")
		}
		return c, false, err
	}
	if c, err = statespace.ParseChunking(o.Chunking); err != nil {
		return c, true, fmt.Errorf("--chunking: %w", err)
	}
	c.ChunkSize = o.ChunkSize
	if err := c.Check(); err != nil {
		return c, true, fmt.Errorf("--chunk_size: %w", err)
	}
	return c, true, nil
}

// checkChunking returns an error if the model has no chunks to choose.
func (o Options) checkChunking(m model.Model) error {
	c, given, err := o.chunking()
	if _, chunked := m.(statespace.Chunked); err == nil && given && !chunked {
		err = fmt.Errorf("--chunking %s: the architecture %s has no state-space layers", c,
			m.Architecture())
	}
	return err
}

// setChunking gives the state-space layers the run's strategy.
func (o Options) setChunking(m model.Model) error {
	c, given, err := o.chunking()
	if err != nil || !given {
		return err
	}
	return m.(statespace.Chunked).SetChunking(c)
}
