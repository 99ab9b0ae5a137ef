package torch

// #include "conquer.h"
import "C"

import "unsafe"

// Capture is a step that is taken many times on tensors that stay where they are. On a GPU its launches are recorded the
// second time and replayed from then on as one CUDA graph, which costs the host next to nothing; on the CPU the step simply
// runs.
//
// The first run is an ordinary one: it loads the kernels and makes the workspaces that a recording could not. A step takes
// its input from tensors made before, and leaves its results in such tensors ([Tensor.Copy], [Tensor.AddTo]); whatever else
// it makes is freed, and its memory is shared with all other captures. Gradients add to those that leaves have already, random
// numbers are drawn anew each time. It must launch the same work whatever the values are:
// a change of shape needs another Capture.
type Capture struct {
	device Device
	step   func()
	graph  *C.cq_graph
	warm   bool
}

// NewCapture prepares to run step on device. The caller ends it with Free.
func NewCapture(device Device, step func()) *Capture { return &Capture{device: device, step: step} }

// Run takes the step once.
func (c *Capture) Run() {
	switch {
	case c.graph != nil:
	case !c.device.IsCUDA() || !c.warm:
		Scoped(c.step)
		c.warm = true
		return
	default:
		c.record()
	}
	check(C.cq_graph_replay(c.graph), "replay")
}

// record runs the step without its work being done.
func (c *Capture) record() {
	var graph *C.cq_graph
	check(C.cq_graph_begin(C.int(c.device), &graph), "record")
	recorded := false
	defer func() {
		if !recorded {
			C.cq_graph_abandon(graph)
		}
	}()
	Scoped(c.step)
	recorded = true
	if C.cq_graph_end(graph) != 0 {
		err := newError("record", C.GoString(C.cq_last_error()), nil)
		C.cq_graph_free(graph)
		panic(err)
	}
	c.graph = graph
}

// Recorded reports whether the next Run replays.
func (c *Capture) Recorded() bool { return c.graph != nil }

// Free gives the recording back.
func (c *Capture) Free() {
	if c.graph != nil {
		C.cq_graph_free(c.graph)
		c.graph = nil
	}
	c.warm = false
}

// Fetch is a copy of a tensor on its way to the host.
type Fetch[E Element] struct {
	c *C.cq_fetch
	n int
}

// StartFetch begins to copy t, behind what is queued on its device, and does not wait for it. Every Fetch ends with Values or
// Drop.
func StartFetch[E Element](t Tensor) *Fetch[E] {
	if dtype := dtypeOf[E](); t.DType() != dtype {
		panic(&Error{Op: "fetch", Shapes: shapesOf(t), Message: "expected elements of type " + dtype.String()})
	}
	f := &Fetch[E]{n: t.Numel()}
	check(C.cq_fetch_begin(t.handle(), &f.c), "fetch", t)
	return f
}

// Values waits for the copy and returns it, in row-major order.
func (f *Fetch[E]) Values() []E {
	values := make([]E, f.n)
	c := f.c
	f.c = nil
	var zero E
	check(C.cq_fetch_end(c, unsafe.Pointer(unsafe.SliceData(values)), C.size_t(f.n*int(unsafe.Sizeof(zero)))), "fetch")
	return values
}

// Drop waits for the copy and forgets it.
func (f *Fetch[E]) Drop() {
	if f != nil && f.c != nil {
		C.cq_fetch_end(f.c, nil, 0)
		f.c = nil
	}
}
