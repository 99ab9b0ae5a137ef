package nn

import "conquer/torch"

// Defer makes p a deferred parameter: read reads its values, as dtype, when it is moved to its
// device. Until then p's tensor has the right shape but no memory of its own. p remains a leaf of
// autograd if it was one.
func (p *Param) Defer(dtype torch.DType, device torch.Device, read func(into *Param) error) {
	trained := p.Defined() && p.RequiresGrad()
	torch.NoGrad(func() {
		torch.Scoped(func() {
			p.Tensor.Free()
			// one element, repeated
			p.Tensor = torch.Empty([]int{1}, dtype, device).Expand(p.Local()...).Own()
		})
	})
	p.RequireGrad(trained)
	p.Deferred = read
}

// Move copies or reads p's values into to, a tensor of their shape and dtype, which p shares from
// then on.
func (p *Param) Move(to torch.Tensor) (err error) {
	torch.NoGrad(func() {
		if p.Deferred == nil {
			to.Copy(p.Detach())
		}
		p.SetData(to)
		if p.Deferred != nil {
			err = p.Deferred(p)
			p.Deferred = nil
		}
	})
	return err
}

// Values returns p's values; for a deferred parameter or a weight in blocks, a copy on the CPU that
// is made for this call.
func (p *Param) Values() (torch.Tensor, error) {
	if p.Tensor.InBlocks() {
		return p.RowsOf(0, p.Size(0)), nil
	}
	if p.Deferred == nil {
		return p.Detach(), nil
	}
	t := torch.Empty(p.Local(), p.DType(), torch.CPU)
	return t, p.Deferred(&Param{Tensor: t, Shape: p.Shape, Shard: p.Shard, Stack: p.Stack})
}
