package torch

// #include "conquer.h"
import "C"

import "github.com/sugarme/gotch/libtch"

// GradEnabled reports whether operations on this thread are recorded for a backward pass.
func GradEnabled() bool {
	was := C.cq_set_grad_enabled(1)
	C.cq_set_grad_enabled(was)
	return was != 0
}

func setGrad(on bool) bool {
	c := C.int(0)
	if on {
		c = 1
	}
	return C.cq_set_grad_enabled(c) != 0
}

// NoGrad calls f with gradient recording off on this thread.
func NoGrad(f func()) {
	was := setGrad(false)
	defer setGrad(was)
	f()
}

// WithGrad calls f with gradient recording on on this thread.
func WithGrad(f func()) {
	was := setGrad(true)
	defer setGrad(was)
	f()
}

// RequireGrad sets whether backward passes compute a gradient for the leaf t, and returns t.
func (t Tensor) RequireGrad(on bool) Tensor {
	c := begin()
	r := int32(0)
	if on {
		r = 1
	}
	libtch.AtgSetRequiresGrad(&c.out[0], t.c, r)
	c.end("requires_grad", t)
	return t
}

// RequiresGrad reports whether backward passes reach t.
func (t Tensor) RequiresGrad() bool { return libtch.AtRequiresGrad(t.c) }

// Detach returns t without its autograd history, sharing storage.
func (t Tensor) Detach() Tensor {
	c := begin()
	libtch.AtgDetach(&c.out[0], t.c)
	return c.end("detach", t)
}

// Grad returns t's accumulated gradient, or no tensor if it has none.
func (t Tensor) Grad() Tensor {
	c := begin()
	libtch.AtgGrad(&c.out[0], t.c)
	grad := c.end("grad", t)
	if !libtch.AtDefined(grad.c) {
		return Tensor{}
	}
	return grad
}

// SetGrad sets t's gradient to grad, sharing storage.
func (t Tensor) SetGrad(grad Tensor) {
	check(C.cq_set_grad(t.handle(), grad.handle()), "set grad", t, grad)
}

// ClearGrad removes t's gradient.
func (t Tensor) ClearGrad() { C.cq_clear_grad(t.handle()) }

// SetData makes t share src's storage, shape and dtype. t stays the same leaf of autograd's graph.
func (t Tensor) SetData(src Tensor) {
	check(C.cq_set_data(t.handle(), src.handle()), "set data", t, src)
}

// Backward adds to each leaf's gradient the gradient of the scalar t.
func (t Tensor) Backward() { Backward([]Tensor{t}, []Tensor{{}}) }

// Backward adds the gradient of Σ_i <outputs_i, seeds_i> to the gradients of inputs, or of every
// leaf if inputs is empty. The seed of a scalar output may be no tensor.
func Backward(outputs, seeds []Tensor, inputs ...Tensor) {
	check(
		C.cq_backward(handles(outputs), handles(seeds), C.int(len(outputs)), handles(inputs),
			C.int(len(inputs)), 0),
		"backward",
		outputs...)
}

// Dropped holds results whose memory was freed although a backward pass will read them.
type Dropped struct{ c *C.cq_dropped }

// DropCheap calls f and then frees the saved results of f's operations that are cheap to compute
// again: those of [RMSNorm], [SwiGLU], [GatedRMSNorm] and [CausalConv1D], alone or inside a fused
// linear layer. f's result stays. Call Restore before the backward pass, and Free at the end.
func DropCheap(f func() Tensor) (kept Tensor, dropped *Dropped) {
	check(C.cq_drop_begin(), "drop")
	dropped = &Dropped{}
	done := false
	defer func() {
		failed := C.cq_drop_end(kept.handle(), &dropped.c)
		if !done { // f panicked
			dropped.Free()
		} else {
			check(failed, "drop")
		}
	}()
	kept = f()
	done = true
	return kept, dropped
}

// Restore recomputes the results, bit for bit.
func (d *Dropped) Restore() {
	if d != nil {
		check(C.cq_dropped_restore(d.c), "restore")
	}
}

// Free ends d, which may be nil. Results that were not restored stay without memory.
func (d *Dropped) Free() {
	if d != nil {
		C.cq_dropped_free(d.c)
		d.c = nil
	}
}

// ManualSeed seeds the generators of all devices.
func ManualSeed(seed int64) { check(C.cq_manual_seed(C.int64_t(seed)), "manual_seed") }

// RNGState returns the state of d's generator as bytes (a uint8 CPU tensor).
func RNGState(d Device) Tensor {
	var out C.cq_tensor
	check(C.cq_rng_state(C.int(d), &out), "rng state of "+d.String())
	return Tensor{libtch.Ctensor(out)}
}

// SetRNGState restores a state of d's generator that RNGState returned.
func SetRNGState(d Device, state Tensor) {
	check(C.cq_set_rng_state(C.int(d), state.handle()), "set rng state of "+d.String(), state)
}
