package dist

// #include <stdlib.h>
// #include "conquer.h"
// extern char *conquerGroupRun(uintptr_t group, int what, cq_tensor output, cq_tensor input);
import "C"

import (
	"fmt"
	"runtime/cgo"
	"unsafe"

	"conquer/torch"
)

// Operators of layers whose weights are sharded over the processes of a group. They call
// collectives in the forward pass and, through autograd, in the backward pass, and wait for them.

func init() { C.cq_set_group_run(C.cq_group_run(C.conquerGroupRun)) }

//export conquerGroupRun
func conquerGroupRun(group C.uintptr_t, what C.int, output, input C.cq_tensor) (reason *C.char) {
	defer func() {
		if p := recover(); p != nil {
			message := fmt.Sprint(p)
			if e, ok := p.(*torch.Error); ok {
				message = e.Message
			}
			reason = C.CString(message)
		}
	}()
	g := cgo.Handle(group).Value().(*Group)
	name := map[C.int]string{
		C.CQ_GROUP_SUM:     "all-reduce",
		C.CQ_GROUP_GATHER:  "all-gather",
		C.CQ_GROUP_SCATTER: "reduce-scatter",
	}[what]
	g.start(name, func(work **C.cq_work) C.int {
		switch what {
		case C.CQ_GROUP_GATHER:
			return C.cq_all_gather(g.c, output, input, work)
		case C.CQ_GROUP_SCATTER:
			return C.cq_reduce_scatter(g.c, output, input, C.CQ_SUM, work)
		}
		return C.cq_all_reduce(g.c, output, C.CQ_SUM, work)
	}).Wait()
	return nil
}

// result returns the result of a C function, or panics with its error.
func (g *Group) result(failed C.int, out C.cq_tensor) torch.Tensor {
	if failed != 0 {
		panic(
			&torch.Error{
				Op:      fmt.Sprintf("rank %d", g.world.Rank),
				Message: C.GoString(C.cq_last_error()),
			},
		)
	}
	return torch.FromHandle(unsafe.Pointer(out))
}

// Spread returns x, which all processes hold, as the input of sharded layers. Its gradient is the
// sum of all processes' gradients.
func (g *Group) Spread(x torch.Tensor) torch.Tensor {
	var out C.cq_tensor
	failed := C.cq_group_spread(handle(x), C.uintptr_t(g.self), &out)
	return g.result(failed, out)
}

// Collect returns the sum of all processes' x, with gradients. It reuses x's memory: do not use x
// again.
func (g *Group) Collect(x torch.Tensor) torch.Tensor {
	var out C.cq_tensor
	failed := C.cq_group_collect(handle(x), C.uintptr_t(g.self), &out)
	return g.result(failed, out)
}

// Gather joins the rows x [N,D] of all processes: [Size·N,D]. The gradient is this process's rows
// of the sum of all processes' gradients.
func (g *Group) Gather(x torch.Tensor) torch.Tensor {
	var out C.cq_tensor
	failed := C.cq_group_gather(handle(x), C.int(g.Size), C.uintptr_t(g.self), &out)
	return g.result(failed, out)
}

// Scatter returns this process's rows [N,D] of the sum of all processes' x [Size·N,D], with
// gradients.
func (g *Group) Scatter(x torch.Tensor) torch.Tensor {
	var out C.cq_tensor
	failed := C.cq_group_scatter(handle(x), C.int(g.Size), C.uintptr_t(g.self), &out)
	return g.result(failed, out)
}

// HeadCrossEntropy is [torch.HeadCrossEntropy] with a sharded weight: this process holds the rows
// from first on, of vocabulary rows in all. hidden and labels are the same in every process, and so
// is the result. The logits are never gathered.
func (g *Group) HeadCrossEntropy(
	hidden, weight, labels torch.Tensor,
	first, vocabulary int,
	o torch.Loss,
) (loss, nll torch.Tensor) {
	var out, each C.cq_tensor
	options := C.cq_loss{
		divisor:         C.double(o.Divisor),
		label_smoothing: C.double(o.LabelSmoothing),
		z_loss:          C.double(o.ZLoss),
	}
	part := C.cq_group_part{
		group: C.uintptr_t(g.self),
		rank:  C.int(g.Rank),
		size:  C.int(g.Size),
		first: C.int64_t(first),
		whole: C.int64_t(vocabulary),
	}
	failed := C.cq_group_cross_entropy(handle(hidden), handle(weight), handle(labels),
		handle(o.Weights), &options, &part, &out, &each)
	return g.result(failed, out), g.result(failed, each)
}
