package nn

import "conquer/torch"

// Defer lets p's values be read later, as dtype, to device. Until Move, p's tensor has their shape, but no memory for them.
// p remains a leaf if it was one.
func (p *Param) Defer(dtype torch.DType, device torch.Device, read func(into *Param) error) {
	trained := p.Defined() && p.RequiresGrad()
	torch.NoGrad(func() {
		torch.Scoped(func() {
			p.Tensor.Free()
			p.Tensor = torch.Empty([]int{1}, dtype, device).Expand(p.Local()...).Own() // one element, in every place
		})
	})
	p.RequireGrad(trained)
	p.Deferred = read
}

// Move puts p's values, which may have been promised so far, into to, a tensor of their shape and dtype, which p shares from now
// on.
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

// Values are p's values, or, where they are only promised, a copy in the host's memory, read for this call.
func (p *Param) Values() (torch.Tensor, error) {
	if p.Deferred == nil {
		return p.Detach(), nil
	}
	t := torch.Empty(p.Local(), p.DType(), torch.CPU)
	return t, p.Deferred(&Param{Tensor: t, Shape: p.Shape, Shard: p.Shard})
}
