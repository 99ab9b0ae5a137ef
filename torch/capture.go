package torch

// #include "conquer.h"
import "C"

import (
	"sync/atomic"
	"unsafe"
)

// recording is set while a graph is recorded, when the host cannot wait for the device.
var recording atomic.Bool

// Capture runs a step many times on the same tensors. On a GPU the second run records its launches
// as a CUDA graph, and later runs replay it, which costs the host next to nothing. On the CPU the
// step runs each time.
//
// The first run loads kernels and allocates workspaces, which a recording cannot do. A step reads
// tensors that existed before it and writes its results into such tensors ([Tensor.Copy],
// [Tensor.AddTo]). Its other tensors are freed, and their memory is shared with all captures.
// Gradients add to those that leaves have; random numbers differ in each run. The step must launch
// the same work for all values: a change of shape needs another Capture.
type Capture struct {
	device Device
	step   func()
	graph  *C.cq_graph
	warm   bool
}

// NewCapture returns a Capture of step on device, which has not run yet. The caller calls Free.
func NewCapture(device Device, step func()) *Capture { return &Capture{device: device, step: step} }

// Run runs the step once.
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

// record captures the step's launches without executing them.
func (c *Capture) record() {
	var graph *C.cq_graph
	check(C.cq_graph_begin(C.int(c.device), &graph), "record")
	recorded := false
	recording.Store(true)
	defer func() {
		recording.Store(false)
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

// Recorded reports whether the next Run replays a graph.
func (c *Capture) Recorded() bool { return c.graph != nil }

// Free releases the graph.
func (c *Capture) Free() {
	if c.graph != nil {
		C.cq_graph_free(c.graph)
		c.graph = nil
	}
	c.warm = false
}

// Fetch is an asynchronous copy of a tensor to the host.
type Fetch[E Element] struct {
	c *C.cq_fetch
	n int
}

// StartFetch starts to copy t, after the work queued on its device, and does not wait. Every Fetch
// ends with Values or Drop.
func StartFetch[E Element](t Tensor) *Fetch[E] {
	if dtype := dtypeOf[E](); t.DType() != dtype {
		panic(
			&Error{
				Op:      "fetch",
				Shapes:  shapesOf(t),
				Message: "expected elements of type " + dtype.String(),
			},
		)
	}
	f := &Fetch[E]{n: t.Numel()}
	check(C.cq_fetch_begin(t.handle(), &f.c), "fetch", t)
	return f
}

// Values waits for the copy and returns the elements in row-major order.
func (f *Fetch[E]) Values() []E {
	values := make([]E, f.n)
	c := f.c
	f.c = nil
	var zero E
	check(C.cq_fetch_end(c, unsafe.Pointer(unsafe.SliceData(values)),
		C.size_t(f.n*int(unsafe.Sizeof(zero)))), "fetch")
	return values
}

// Drop waits for the copy and discards it.
func (f *Fetch[E]) Drop() {
	if f != nil && f.c != nil {
		C.cq_fetch_end(f.c, nil, 0)
		f.c = nil
	}
}
