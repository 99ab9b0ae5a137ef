// Package dist lets the processes of a run, one a device, work on tensors together: it is libtorch's c10d, Gloo on CPUs and
// NCCL on GPUs, with errors in place of hangs.
//
//	place, err := dist.FromEnvironment() // RANK, WORLD_SIZE, …
//	world, err := dist.Join(place, torch.CPU, time.Minute)
//	defer world.Leave()
//	work := world.All.AllReduce(gradients, dist.Sum) // runs beside what follows
//	…
//	work.Wait()
//
// Every member of a group calls the same operations in the same order. A member that does not is found out: an operation
// that is not joined in time, or whose connection breaks, panics with a [torch.Error] that names the operation, where in
// the program this process was, and which ranks did not come and where they are. Each process writes a few bytes about
// where it is to the store every second for that.
package dist

// #cgo LDFLAGS: -lconquer
// #include <stdlib.h>
// #include "conquer.h"
import "C"

import (
	"fmt"
	"runtime/cgo"
	"slices"
	"time"
	"unsafe"

	"conquer/torch"
)

// Reduction is how the elements of several ranks become one.
type Reduction int

// The reductions.
const (
	Sum Reduction = C.CQ_SUM
	Max Reduction = C.CQ_MAX
)

// World is this process's membership in a run.
type World struct {
	Place
	// All is the group of all processes.
	All *Group

	device  torch.Device
	timeout time.Duration
	store   *Store // for this process's own calls, and for groups to meet at
	pulse   *pulse
	groups  []*Group
}

// Join makes this process part of the run that place describes, with its tensors on device, and waits until all are there.
// An operation of any group fails when not every member joined it within timeout. Leave ends the membership.
func Join(place Place, device torch.Device, timeout time.Duration) (_ *World, err error) {
	w := &World{Place: place, device: device, timeout: timeout}
	defer func() {
		if err != nil {
			w.Leave()
		}
	}()
	host := place.Rank == 0 && !place.StoreElsewhere
	if place.Size == 1 && place.Address == "" {
		place.Address, host = "127.0.0.1", true
	}
	if w.store, err = OpenStore(place.Address, place.Port, host, timeout); err != nil {
		return nil, fmt.Errorf("rank %d found no store at %s:%d within %v: is rank 0 running, and is the port open? (%w)",
			place.Rank, place.Address, place.Port, timeout, err)
	}
	w.Address, w.Port = place.Address, w.store.Port()
	w.store.prefix = "conquer/" + place.Attempt + "/"
	if w.pulse, err = startPulse(w); err != nil {
		return nil, err
	}
	all := make([]int, place.Size)
	for i := range all {
		all[i] = i
	}
	if w.All, err = w.NewGroup("world", all); err != nil {
		return nil, err
	}
	return w, nil
}

// Leave ends the membership: this process's groups are gone, and the others' operations with it fail.
func (w *World) Leave() {
	if w == nil {
		return
	}
	w.pulse.stop()
	for _, g := range w.groups {
		C.cq_group_free(g.c)
		g.self.Delete()
	}
	w.groups = nil
	w.store.Close()
}

// At says where in the program this process is, for the errors of all; it is cheap.
func (w *World) At(format string, args ...any) { w.pulse.at(format, args) }

// Device is where the tensors of collectives live.
func (w *World) Device() torch.Device { return w.device }

// Timeout is how long an operation waits for its members.
func (w *World) Timeout() time.Duration { return w.timeout }

// Store is the key-value store that the processes share.
func (w *World) Store() *Store { return w.store }

// Group is some of a run's processes, as operations work over them. Its methods are called by one goroutine at a time.
type Group struct {
	Name  string
	Ranks []int // the members' ranks in the world, in order
	Rank  int   // this process's place among them
	Size  int

	world *World
	c     *C.cq_group
	self  cgo.Handle // what C calls it by
	seq   int        // operations started
}

// NewGroup makes the group of the given ranks of the world. All of them call it; name tells the groups of a rank apart.
func (w *World) NewGroup(name string, ranks []int) (*Group, error) {
	g := &Group{Name: name, Ranks: slices.Clone(ranks), Rank: slices.Index(ranks, w.Rank), Size: len(ranks), world: w}
	if g.Rank < 0 {
		return nil, fmt.Errorf("rank %d is not among the ranks %v of group %s", w.Rank, ranks, name)
	}
	address := ""
	if w.Local() {
		address = "127.0.0.1"
	}
	w.At("meeting as group %s", name)
	key, at := C.CString(fmt.Sprintf("%sgroup/%s/%d", w.store.prefix, name, ranks[0])), C.CString(address)
	defer C.free(unsafe.Pointer(key))
	defer C.free(unsafe.Pointer(at))
	var c *C.cq_group
	if C.cq_group_new(w.store.c, key, C.int(g.Rank), C.int(g.Size), C.int(w.device), at, C.double(w.timeout.Seconds()), &c) != 0 {
		reason := C.GoString(C.cq_last_error())
		return nil, fmt.Errorf("rank %d: %s", w.Rank, w.pulse.explain("meeting", g, -1, reason))
	}
	g.c, g.self = c, cgo.NewHandle(g)
	w.groups = append(w.groups, g)
	return g, nil
}

// Work is an operation under way. It ends with Wait.
type Work struct {
	c     *C.cq_work
	group *Group
	name  string
	seq   int
}

// start begins an operation of the group.
func (g *Group) start(name string, begin func(work **C.cq_work) C.int) *Work {
	g.seq++
	w := &Work{group: g, name: name, seq: g.seq}
	g.world.pulse.reached(g, g.seq, name)
	var c *C.cq_work // not a field of w: C must not see Go's pointers beside it
	if begin(&c) != 0 {
		w.fail(C.GoString(C.cq_last_error()))
	}
	w.c = c
	return w
}

func (w *Work) fail(reason string) {
	panic(&torch.Error{Op: fmt.Sprintf("rank %d", w.group.world.Rank), Message: w.group.world.pulse.explain(w.name, w.group, w.seq, reason)})
}

// Wait waits until the operation is done; on a GPU it is the work queued from now on that waits, not the host. It panics with
// a [torch.Error] when the operation failed. No work is done already.
func (w *Work) Wait() {
	if w == nil || w.c == nil {
		return
	}
	c := w.c
	w.c = nil
	if C.cq_work_wait(c) != 0 {
		w.fail(C.GoString(C.cq_last_error()))
	}
}

// Forget lets go of an operation that nobody will wait for, because something else failed.
func (w *Work) Forget() {
	if w != nil && w.c != nil {
		C.cq_work_forget(w.c)
		w.c = nil
	}
}

func handle(t torch.Tensor) C.cq_tensor { return C.cq_tensor(t.Handle()) }

// AllReduce replaces t, on every rank, by the reduction of all ranks' t.
func (g *Group) AllReduce(t torch.Tensor, r Reduction) *Work {
	return g.start("all-reduce", func(work **C.cq_work) C.int {
		return C.cq_all_reduce(g.c, handle(t), C.int(r), work)
	})
}

// AllGather fills output, of Size times input's elements, with all ranks' inputs in order of rank.
func (g *Group) AllGather(output, input torch.Tensor) *Work {
	return g.start("all-gather", func(work **C.cq_work) C.int {
		return C.cq_all_gather(g.c, handle(output), handle(input), work)
	})
}

// ReduceScatter fills output with this rank's part, the Rank'th of Size equal ones, of the reduction of all ranks' inputs.
// Where output is that part of input itself, no further memory is taken, and the rest of input is spoiled.
func (g *Group) ReduceScatter(output, input torch.Tensor, r Reduction) *Work {
	return g.start("reduce-scatter", func(work **C.cq_work) C.int {
		return C.cq_reduce_scatter(g.c, handle(output), handle(input), C.int(r), work)
	})
}

// Broadcast replaces t by that of the group's rank root.
func (g *Group) Broadcast(t torch.Tensor, root int) *Work {
	return g.start("broadcast", func(work **C.cq_work) C.int {
		return C.cq_broadcast(g.c, handle(t), C.int(root), work)
	})
}

// Send sends t to the group's rank `to`, which receives it with the same tag. On GPUs what two ranks of a group send each other
// goes one after the other, in the order in which each begins it: where both have something to send, one must begin by receiving.
func (g *Group) Send(t torch.Tensor, to, tag int) *Work {
	return g.start(fmt.Sprintf("send to rank %d", g.Ranks[to]), func(work **C.cq_work) C.int {
		return C.cq_send(g.c, handle(t), C.int(to), C.int(tag), work)
	})
}

// Receive fills t with what the group's rank `from` sends with the same tag.
func (g *Group) Receive(t torch.Tensor, from, tag int) *Work {
	return g.start(fmt.Sprintf("receive from rank %d", g.Ranks[from]), func(work **C.cq_work) C.int {
		return C.cq_recv(g.c, handle(t), C.int(from), C.int(tag), work)
	})
}

// Barrier waits until all members called it.
func (g *Group) Barrier() { g.Sums(0) }

// Sums returns, for each value, its sum over all ranks, which must give equally many. It waits.
func (g *Group) Sums(values ...float64) []float64 {
	sums := values
	if g.Size == 1 {
		return sums
	}
	torch.Scoped(func() {
		t := torch.From(values, len(values)).ToDevice(g.world.device)
		g.AllReduce(t, Sum).Wait()
		sums = torch.Values[float64](t)
	})
	return sums
}

// Mesh is a group's processes as a grid of Rows by Columns, rank after rank in a row.
type Mesh struct {
	Row    *Group // the processes of this one's row
	Column *Group // the processes of this one's column
}

// NewMesh divides the world into rows of the given number of columns. All processes call it.
func (w *World) NewMesh(columns int) (*Mesh, error) {
	if columns < 1 || w.Size%columns != 0 {
		return nil, fmt.Errorf("%d processes do not make rows of %d", w.Size, columns)
	}
	row, column := w.Rank/columns, w.Rank%columns
	var inRow, inColumn []int
	for c := range columns {
		inRow = append(inRow, row*columns+c)
	}
	for r := range w.Size / columns {
		inColumn = append(inColumn, r*columns+column)
	}
	m := &Mesh{}
	var err error
	if m.Row, err = w.NewGroup("row", inRow); err != nil {
		return nil, err
	}
	m.Column, err = w.NewGroup("column", inColumn)
	return m, err
}

// Resize gives the memory behind t, and behind every tensor that shares it, back (bytes 0) or takes it anew, with undefined
// contents. What views t stays a view of it, and may be read while the memory is there.
func Resize(t torch.Tensor, bytes int) {
	if C.cq_storage_resize(handle(t), C.size_t(bytes)) != 0 {
		panic(&torch.Error{Op: "resize", Message: C.GoString(C.cq_last_error())})
	}
}
