package torch

// #include "conquer.h"
import "C"

import (
	"slices"

	"github.com/sugarme/gotch/libtch"
)

// Groups says which of N consecutive rows belong to which of E groups, such as the tokens of the
// experts of a mixture. [Group] makes them.
type Groups struct {
	// Index holds the group of each row, in ascending order: int64 [N].
	Index Tensor
	Count int // E
	sizes []int
}

// Sizes returns the number of rows of each group; nil if only the device knows it.
func (g Groups) Sizes() []int { return g.sizes }

// gathered is the number of rows up to which a GPU without a kernel for it computes a grouped layer
// without telling the host the sizes of the groups. Above it, the host waits for them and launches
// one GEMM for each group.
const gathered = 256

// Group sorts rows by their group. index (int64 [N]) holds the group, from 0 to count-1, of each
// row. order (int64 [N]) lists the rows in the order of their groups, rows of one group in their
// own order, and place (int64 [N]) is its inverse: row i of index is row place[i] of the groups.
func Group(index Tensor, count int) (groups Groups, order, place Tensor) {
	groups.Count = count
	if !index.Device().IsCUDA() {
		sorted, list, back := groups.sort(Values[int64](index))
		n := len(list)
		groups.Index = From(sorted, n)
		return groups, From(list, n), From(back, n)
	}
	order = index.argsort()
	groups.Index = index.IndexSelect(0, order)
	return groups, order, order.argsort()
}

// sort counts the rows of each group, and returns their groups in ascending order, the rows in this
// order, and its inverse.
func (g *Groups) sort(index []int64) (sorted, order, place []int64) {
	g.sizes = make([]int, g.Count)
	for _, i := range index {
		g.sizes[i]++
	}
	next := make([]int64, g.Count)
	for i := range next[1:] {
		next[i+1] = next[i] + int64(g.sizes[i])
	}
	sorted, order = make([]int64, len(index)), make([]int64, len(index))
	place = make([]int64, len(index))
	for row, i := range index {
		at := next[i]
		next[i]++
		sorted[at], order[at], place[row] = i, int64(row), at
	}
	return sorted, order, place
}

// GroupedLinear multiplies the rows of each group by a weight of their own: x [N,D], whose rows
// belong to groups, and weight [E·R,D], of which group e has the rows from e·R on, give [N,R]. On a
// GPU a kernel does it for 16-bit dtypes and up to 512 groups. Otherwise it is one GEMM for each
// group that has rows. Weights of groups without rows are not read.
func GroupedLinear(x, weight Tensor, groups Groups) Tensor {
	if groups.sizes == nil {
		var y C.cq_tensor
		check(C.cq_grouped_linear(x.handle(), weight.handle(), groups.Index.handle(),
			C.int64_t(groups.Count), &y), "grouped linear", x, weight, groups.Index)
		if y != nil {
			return Tensor{libtch.Ctensor(y)}
		}
		if x.Size(0) <= gathered || recording.Load() {
			return groupedOnDevice(x, weight, groups)
		}
		groups.sort(Values[int64](groups.Index))
	}
	rows := weight.Size(0) / groups.Count
	part := func(e int) Tensor { return weight.WeightRows(e*rows, rows) }
	if GradEnabled() && weight.RequiresGrad() {
		// The gradients of views that are split off together are joined once.
		parts := weight.Split(0, slices.Repeat([]int{rows}, groups.Count)...)
		part = func(e int) Tensor { return parts[e] }
	}
	var results []Tensor
	start := 0
	for e, n := range groups.sizes {
		if n > 0 {
			results = append(results, Linear(x.Narrow(0, start, n), part(e), Tensor{}))
			start += n
		}
	}
	if len(results) == 1 {
		return results[0]
	}
	return Cat(0, results...)
}

// groupedOnDevice is GroupedLinear if the host does not know the groups, so that a graph can record
// it. For few rows it copies the weight of each row's group. Otherwise it multiplies all rows by
// all weights, which reads each weight once, and selects each row's result.
func groupedOnDevice(x, weight Tensor, groups Groups) Tensor {
	n, width, count := x.Size(0), x.Size(1), groups.Count
	each := weight.View(count, -1, width)
	if n < count {
		return each.IndexSelect(0, groups.Index).Matmul(x.Unsqueeze(2)).Squeeze(2)
	}
	all := x.Matmul(each.Transpose(1, 2)) // [E,N,R]
	index := groups.Index.View(1, n, 1).Expand(1, n, all.Size(2))
	return all.Gather(0, index).Squeeze(0)
}

// argsort returns the indices that sort t, of rank 1; equal elements stay in order.
func (t Tensor) argsort() Tensor {
	c := begin()
	libtch.AtgArgsortStable(&c.out[0], t.c, 1, 0, 0)
	return c.end("argsort", t)
}

// TopK returns the k largest elements along the last dimension, largest first, and their indices
// (int64).
func (t Tensor) TopK(k int) (values, indices Tensor) {
	c := begin()
	libtch.AtgTopk(&c.out[0], t.c, int64(k), -1, 1, 1)
	return c.end2("topk", t)
}
