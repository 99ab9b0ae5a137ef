package train

import (
	"errors"
	"fmt"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
	"conquer/train/internal/network"
)

// RowLength is the longest sample in tokens that a row takes: SequenceLength, or one more with
// CarryState, because the last token of a row is only predicted there, and is the first input of
// the row that continues it.
func (o Options) RowLength() int {
	if o.CarryState {
		return o.SequenceLength + 1
	}
	return o.SequenceLength
}

// checkCarry returns an error if the states cannot be carried from row to row.
func (o Options) checkCarry() error {
	switch {
	case !o.CarryState:
		return nil
	case o.compares():
		return fmt.Errorf("--carry_state is for --objective %s, whose rows are texts that go on",
			SFT)
	case o.Distributed == PP || o.Distributed == TP || o.TensorSize > 1:
		return errors.New("--carry_state works in one process or with ddp, fsdp or hsdp")
	case o.Compile == CompileGraph:
		return fmt.Errorf("--carry_state cannot be combined with --compile %s: leave it out",
			CompileGraph)
	}
	return nil
}

// newCarries makes the empty states of n micro-batches, none without CarryState.
func (t *Trainer) newCarries(n int) (list []*network.Carry, err error) {
	if !t.options.CarryState {
		return make([]*network.Carry, n), nil
	}
	for range n {
		c, err := network.NewCarry(t.net.Model, t.options.BatchSize)
		if err != nil {
			freeCarries(list)
			return nil, fmt.Errorf("--carry_state: %w", err)
		}
		list = append(list, c)
	}
	return list, nil
}

func freeCarries(list []*network.Carry) {
	for _, c := range list {
		c.Free()
	}
}

// forget makes the carried states zero: those of a skipped step may not be finite.
func (t *Trainer) forget() {
	if t.options.CarryState {
		for _, c := range t.carries {
			c.Reset()
		}
	}
}

// eachCarried calls visit with each state that this process carries, [1, ...], and its name in a
// checkpoint. Names number the rows of a step, so that a checkpoint does not depend on how these
// are divided into processes and micro-batches.
func (t *Trainer) eachCarried(visit func(name string, state torch.Tensor)) {
	if !t.options.CarryState {
		return
	}
	index, count := t.options.rowGroup()
	rows := t.options.BatchSize
	for pass, c := range t.carries {
		c.Each(func(name string, all torch.Tensor) {
			for r := range rows {
				row := (pass*count+index)*rows + r
				visit(fmt.Sprintf("carried:%d:%s", row, name), all.Narrow(0, r, 1))
			}
		})
	}
}

// carriedTypes describes the carried states of all processes for a native checkpoint.
func (t *Trainer) carriedTypes(tensors map[string]checkpoint.NativeTensor) {
	if !t.options.CarryState {
		return
	}
	_, count := t.options.rowGroup()
	rows := t.options.BatchSize * count * t.options.Accumulate
	t.carries[0].Each(func(name string, all torch.Tensor) {
		shape := append([]int{1}, all.Shape()[1:]...)
		for row := range rows {
			tensors[fmt.Sprintf("carried:%d:%s", row, name)] =
				checkpoint.TensorType(all.DType(), shape)
		}
	})
}

// restoreCarried reads the carried states of this process by their names and numbers of elements.
func (t *Trainer) restoreCarried(read func(name string, n int) (torch.Tensor, error)) (err error) {
	t.eachCarried(func(name string, state torch.Tensor) {
		if err != nil {
			return
		}
		torch.NoGrad(func() {
			torch.Scoped(func() {
				var saved torch.Tensor
				if saved, err = read(name, state.Numel()); err == nil {
					state.Copy(saved.View(state.Shape()...))
				}
			})
		})
	})
	return err
}

// checkCarried returns an error if the model has no states to carry.
func (o Options) checkCarried(m model.Model) error {
	if !o.CarryState {
		return nil
	}
	return torch.Run(func() error {
		c, err := network.NewCarry(m, 1)
		if err != nil {
			return fmt.Errorf("--carry_state: %w", err)
		}
		c.Free()
		return nil
	})
}
