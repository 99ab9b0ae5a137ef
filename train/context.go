package train

import (
	"errors"
	"fmt"

	"conquer/model"
	"conquer/model/statespace"
)

// contextSize is the number of processes that a row is cut over.
func (o Options) contextSize() int { return max(1, o.ContextSize) }

// checkContext returns an error for the first option that does not fit rows that are cut over
// processes.
func (o Options) checkContext() error {
	switch {
	case o.ContextSize < 0 || o.processes()%o.contextSize() != 0:
		return fmt.Errorf("--cp_size %d does not divide the %d processes", o.ContextSize,
			o.processes())
	case o.contextSize() == 1:
		return nil
	case o.Distributed != DDP && o.Distributed != FSDP || o.TensorSize > 1:
		return fmt.Errorf("--cp_size needs --distributed ddp or fsdp without --tp_size, not %s",
			o.Distributed)
	case o.compares():
		return fmt.Errorf("--cp_size is for --objective %s: the answers of a pair are not cut",
			SFT)
	case o.Pack:
		return errors.New("--cp_size cannot be combined with --pack: a row that is cut is one " +
			"sample")
	case o.CarryState:
		return errors.New("--cp_size cannot be combined with --carry_state")
	case o.RouterLoss > 0:
		return errors.New("--cp_size cannot be combined with --router_aux_loss, which needs all " +
			"tokens of a row in one process")
	case o.LoRA != nil && o.LoRA.Dropout > 0:
		return errors.New("--cp_size cannot be combined with --lora_dropout")
	}
	return nil
}

// checkSplits returns an error if the rows of m cannot be cut over processes.
func (o Options) checkSplits(m model.Model) error {
	if o.contextSize() == 1 {
		return nil
	}
	for i, block := range m.Blocks() {
		if _, ok := block.(model.Splitter); !ok {
			return fmt.Errorf("--cp_size: block %d of the architecture %s cannot be cut along the "+
				"sequence", i, m.Architecture())
		}
	}
	if dependsOnLength(m) {
		return errors.New("--cp_size: the rotary embedding of this model depends on the length " +
			"of a pass, which each process would see differently")
	}
	chunked, ok := m.(statespace.Chunked)
	if !ok {
		return nil
	}
	c, given, err := o.chunking()
	if !given {
		c = chunked.Chunking()
	}
	if err == nil && c.Strategy != statespace.Default {
		err = fmt.Errorf("--cp_size needs --chunking default, not %s", c)
	}
	return err
}

// splitRows makes the group of the processes that share this one's rows.
func (t *Trainer) splitRows() error {
	size := t.options.contextSize()
	if size == 1 {
		return nil
	}
	world := t.options.World
	first := world.Rank / size * size
	var ranks []int
	for r := range size {
		ranks = append(ranks, first+r)
	}
	group, err := world.NewGroup("context", ranks)
	if err == nil {
		t.split = &model.Split{Group: group, Rank: group.Rank, Size: group.Size}
	}
	return err
}
