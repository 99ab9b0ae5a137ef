// Package dist has collectives between the processes of a run, one process for each device. It uses
// libtorch's c10d, with Gloo on CPUs and NCCL on GPUs, and returns errors instead of hanging.
//
//	place, err := dist.FromEnvironment() // RANK, WORLD_SIZE, …
//	world, err := dist.Join(place, torch.CPU, time.Minute)
//	defer world.Leave()
//	work := world.All.AllReduce(gradients, dist.Sum) // asynchronous
//	…
//	work.Wait()
//
// Every member of a group calls the same operations in the same order. An operation that a member
// does not join in time, or whose connection breaks, panics with a [torch.Error]. It names the
// operation, where in the program this process was, and which ranks are missing and where they are.
// For that each process writes its position, a few bytes, to the store every second.
package dist

// #cgo LDFLAGS: -lconquer
// #include <stdlib.h>
// #include "conquer.h"
import "C"

import (
	"fmt"
	"os"
	"runtime/cgo"
	"slices"
	"time"
	"unsafe"

	"conquer/torch"
)

// Reduction is the operation that combines the elements of several ranks.
type Reduction int

// Reductions.
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
	store   *Store // for this process's calls and for the rendezvous of groups
	heart   *heartbeat
	groups  []*Group
}

// Join makes this process a member of the run that place describes, with its tensors on device, and
// waits until all members joined. The processes do not authenticate each other: on several machines
// they belong in a network that others cannot reach. On one machine they listen on the loopback
// interface alone, whatever GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME say.
//
// An operation of a group fails if a member does not join it within timeout. Leave ends the
// membership.
func Join(place Place, device torch.Device, timeout time.Duration) (_ *World, err error) {
	w := &World{Place: place, device: device, timeout: timeout}
	defer func() {
		if err != nil {
			w.Leave()
		}
	}()
	if place.Local() { // NCCL reads it when it starts; Gloo is told by NewGroup
		if err := os.Setenv("NCCL_SOCKET_IFNAME", "lo"); err != nil {
			return nil, err
		}
	}
	host := place.Rank == 0 && !place.StoreElsewhere
	if place.Size == 1 && place.Address == "" {
		place.Address, host = "127.0.0.1", true
	}
	if w.store, err = OpenStore(place.Address, place.Port, host, timeout); err != nil {
		return nil, fmt.Errorf(
			"rank %d found no store at %s:%d within %v: "+
				"is rank 0 running, and is the port open? (%w)",
			place.Rank,
			place.Address,
			place.Port,
			timeout,
			err,
		)
	}
	w.Address, w.Port = place.Address, w.store.Port()
	w.store.prefix = "conquer/" + place.Attempt + "/"
	if w.heart, err = startHeartbeat(w); err != nil {
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

// Leave ends the membership and frees this process's groups. Operations of others with it fail.
func (w *World) Leave() {
	if w == nil {
		return
	}
	w.heart.stop()
	for _, g := range w.groups {
		C.cq_group_free(g.c)
		g.self.Delete()
	}
	w.groups = nil
	w.store.Close()
}

// At sets where in the program this process is, for error messages of all processes. It is cheap.
func (w *World) At(format string, args ...any) { w.heart.at(format, args) }

// Device returns the device of the tensors of collectives.
func (w *World) Device() torch.Device { return w.device }

// Timeout returns how long an operation waits for its members.
func (w *World) Timeout() time.Duration { return w.timeout }

// Store returns the key-value store that the processes share.
func (w *World) Store() *Store { return w.store }

// Group is a subset of a run's processes that calls collectives. One goroutine at a time may use
// it.
type Group struct {
	Name  string
	Ranks []int // the members' ranks in the world, in order
	Rank  int   // this process's index among them
	Size  int

	world *World
	c     *C.cq_group
	self  cgo.Handle // identifies the group to C
	seq   int        // operations started
}

// NewGroup returns the group of the given ranks of the world. All of them call it. The names of a
// rank's groups must differ.
func (w *World) NewGroup(name string, ranks []int) (*Group, error) {
	g := &Group{
		Name:  name,
		Ranks: slices.Clone(ranks),
		Rank:  slices.Index(ranks, w.Rank),
		Size:  len(ranks),
		world: w,
	}
	if g.Rank < 0 {
		return nil, fmt.Errorf("rank %d is not among the ranks %v of group %s", w.Rank, ranks, name)
	}
	address := ""
	if w.Local() {
		address = "127.0.0.1"
	}
	w.At("meeting as group %s", name)
	key, at := C.CString(fmt.Sprintf("%sgroup/%s/%d", w.store.prefix, name, ranks[0])), C.CString(
		address)
	defer C.free(unsafe.Pointer(key))
	defer C.free(unsafe.Pointer(at))
	var c *C.cq_group
	if C.cq_group_new(
		w.store.c,
		key,
		C.int(g.Rank),
		C.int(g.Size),
		C.int(w.device),
		at,
		C.double(w.timeout.Seconds()),
		&c,
	) != 0 {
		reason := C.GoString(C.cq_last_error())
		return nil, fmt.Errorf("rank %d: %s", w.Rank, w.heart.explain("meeting", g, -1, reason))
	}
	g.c, g.self = c, cgo.NewHandle(g)
	w.groups = append(w.groups, g)
	return g, nil
}

// Work is an asynchronous operation. It ends with Wait or Forget.
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
	g.world.heart.reached(g, g.seq, name)
	var c *C.cq_work // not a field of w, since w holds Go pointers, which C must not see
	if begin(&c) != 0 {
		w.fail(C.GoString(C.cq_last_error()))
	}
	w.c = c
	return w
}

func (w *Work) fail(reason string) {
	panic(
		&torch.Error{
			Op:      fmt.Sprintf("rank %d", w.group.world.Rank),
			Message: w.group.world.heart.explain(w.name, w.group, w.seq, reason),
		},
	)
}

// Wait waits for the operation. On a GPU the work queued from now on waits, not the host. It panics
// with a [torch.Error] if the operation failed. Waiting for a nil Work returns at once.
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

// Forget releases an operation that will not be waited for because something else failed.
func (w *Work) Forget() {
	if w != nil && w.c != nil {
		C.cq_work_forget(w.c)
		w.c = nil
	}
}

func handle(t torch.Tensor) C.cq_tensor { return C.cq_tensor(t.Handle()) }

// AllReduce replaces t on every rank by the reduction of all ranks' t.
func (g *Group) AllReduce(t torch.Tensor, r Reduction) *Work {
	return g.start("all-reduce", func(work **C.cq_work) C.int {
		return C.cq_all_reduce(g.c, handle(t), C.int(r), work)
	})
}

// AllGather fills output, Size times as large as input, with all ranks' inputs in rank order.
func (g *Group) AllGather(output, input torch.Tensor) *Work {
	return g.start("all-gather", func(work **C.cq_work) C.int {
		return C.cq_all_gather(g.c, handle(output), handle(input), work)
	})
}

// ReduceScatter fills output with this rank's part (the Rank'th of Size equal parts) of the
// reduction of all ranks' inputs. If output is that part of input itself, no memory is allocated
// and the rest of input is overwritten.
func (g *Group) ReduceScatter(output, input torch.Tensor, r Reduction) *Work {
	return g.start("reduce-scatter", func(work **C.cq_work) C.int {
		return C.cq_reduce_scatter(g.c, handle(output), handle(input), C.int(r), work)
	})
}

// Broadcast replaces t by the t of the group's rank root.
func (g *Group) Broadcast(t torch.Tensor, root int) *Work {
	return g.start("broadcast", func(work **C.cq_work) C.int {
		return C.cq_broadcast(g.c, handle(t), C.int(root), work)
	})
}

// Send sends t to the group's rank `to`, which receives it with the same tag. On GPUs, messages
// between two ranks of a group run one after the other, in the order in which each rank starts
// them. If both send, one of them must start by receiving.
func (g *Group) Send(t torch.Tensor, to, tag int) *Work {
	return g.start(fmt.Sprintf("send to rank %d", g.Ranks[to]), func(work **C.cq_work) C.int {
		return C.cq_send(g.c, handle(t), C.int(to), C.int(tag), work)
	})
}

// Receive fills t with the tensor that the group's rank `from` sends with the same tag.
func (g *Group) Receive(t torch.Tensor, from, tag int) *Work {
	return g.start(
		fmt.Sprintf("receive from rank %d", g.Ranks[from]),
		func(work **C.cq_work) C.int {
			return C.cq_recv(g.c, handle(t), C.int(from), C.int(tag), work)
		},
	)
}

// Barrier waits until all members called it.
func (g *Group) Barrier() { g.Sums(0) }

// Sums returns the sum of each value over all ranks, which must pass the same number of values. It
// waits.
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

// Mesh holds the groups of this process in a grid of all processes, filled row by row.
type Mesh struct {
	Row    *Group // the processes in its row
	Column *Group // the processes in its column
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

// Resize frees the storage of t if bytes is 0, else allocates it again with undefined contents.
// Tensors that share the storage still do: they can be read while it exists.
func Resize(t torch.Tensor, bytes int) {
	if C.cq_storage_resize(handle(t), C.size_t(bytes)) != 0 {
		panic(&torch.Error{Op: "resize", Message: C.GoString(C.cq_last_error())})
	}
}
