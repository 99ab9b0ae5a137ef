// Package torch is libtorch for Go: tensors, autograd, devices and the project's own kernels, over
// gotch's C layer and the C++ in csrc.
//
// # Scopes
//
// The result of an operation belongs to the innermost open scope of its thread and is freed when
// that scope closes. [Run] opens the outermost scope, [Scoped] an inner one. [Tensor.Keep] moves a
// tensor to the enclosing scope; [Tensor.Own] removes it from all scopes, as for weights. The
// garbage collector plays no part.
//
// # Errors
//
// Operations return no errors, so that an expression reads as the formula does. They panic with an
// [*Error] that names the operation, the shapes and libtorch's reason; [Run] returns it as an
// error.
//
// # Threads
//
// libtorch's modes (gradient recording, current device) and this package's scopes belong to an
// operating-system thread. [Run] locks the goroutine to its thread; every operation happens in a
// Run.
package torch

// #include "conquer.h"
import "C"

import (
	"fmt"
	"strings"
	"sync"
	"unsafe"

	"github.com/sugarme/gotch/libtch"
)

// Tensor is a handle on a libtorch tensor, passed by value. The zero Tensor is "no tensor";
// functions accept it for optional arguments.
type Tensor struct{ c libtch.Ctensor }

// Defined reports whether t is a tensor, not "no tensor".
func (t Tensor) Defined() bool { return t.c != nil }

// handle is t as the C functions of csrc take it.
func (t Tensor) handle() C.cq_tensor { return C.cq_tensor(t.c) }

const maxRank = 12

// describe reads rank, sizes, dtype and device in one call.
func (t Tensor) describe() (sizes [maxRank]int64, rank int, dtype DType, device Device) {
	var crank, cdtype, cdevice C.int
	C.cq_tensor_describe(t.handle(), &crank, &cdtype, &cdevice,
		(*C.int64_t)(unsafe.Pointer(&sizes[0])), maxRank)
	return sizes, int(crank), DType(cdtype), Device(cdevice)
}

// Shape returns the sizes of t's dimensions.
func (t Tensor) Shape() []int {
	sizes, rank, _, _ := t.describe()
	shape := make([]int, rank)
	for i := range shape {
		shape[i] = int(sizes[i])
	}
	return shape
}

// Size returns the size of dimension dim; a negative dim counts from the last.
func (t Tensor) Size(dim int) int {
	sizes, rank, _, _ := t.describe()
	if dim < 0 {
		dim += rank
	}
	if dim < 0 || dim >= rank {
		panic(
			&Error{
				Op:      "size",
				Shapes:  shapesOf(t),
				Message: fmt.Sprintf("there is no dimension %d", dim),
			},
		)
	}
	return int(sizes[dim])
}

// Rank returns the number of dimensions.
func (t Tensor) Rank() int { _, rank, _, _ := t.describe(); return rank }

// Numel returns the number of elements.
func (t Tensor) Numel() int {
	sizes, rank, _, _ := t.describe()
	n := 1
	for _, s := range sizes[:rank] {
		n *= int(s)
	}
	return n
}

// Bytes returns the size of t's elements in bytes.
func (t Tensor) Bytes() int { return t.Numel() * t.DType().Size() }

// DType returns the type of t's elements.
func (t Tensor) DType() DType { _, _, dtype, _ := t.describe(); return dtype }

// Device returns where t lives.
func (t Tensor) Device() Device { _, _, _, device := t.describe(); return device }

// String describes t by dtype, shape and device.
func (t Tensor) String() string {
	if !t.Defined() {
		return "no tensor"
	}
	return fmt.Sprintf("%v%v on %v", t.DType(), t.Shape(), t.Device())
}

// call holds the result slots and dimension lists of one call into gotch's C layer. It contains no
// Go pointers, which cgo forbids there. Calls are pooled, so that an operation allocates nothing.
type call struct {
	out  [4]libtch.Ctensor
	dims [maxRank]int64
}

var calls = sync.Pool{New: func() any { return new(call) }}

func begin() *call { return calls.Get().(*call) }

// sizes copies a shape into the call. gotch takes a slice and its length separately, and reads the
// slice's first element even if the length is 0.
func (c *call) sizes(shape []int) ([]int64, int) {
	if len(shape) > maxRank {
		panic(
			&Error{
				Op: "shape",
				Message: fmt.Sprintf("%d dimensions are more than the %d supported", len(shape),
					maxRank),
			},
		)
	}
	for i, s := range shape {
		c.dims[i] = int64(s)
	}
	return c.dims[:], len(shape)
}

// list converts tensors to gotch's handles.
func list(ts []Tensor) []libtch.Ctensor {
	list := make([]libtch.Ctensor, len(ts))
	for i, t := range ts {
		list[i] = t.c
	}
	return list
}

// end returns the call's first result, adopted by the innermost scope, and panics if there is none.
func (c *call) end(op string, in ...Tensor) Tensor {
	t := c.take(0, op, in)
	calls.Put(c)
	return t
}

// end2 is end for operations with two results.
func (c *call) end2(op string, in ...Tensor) (Tensor, Tensor) {
	a := c.take(0, op, in)
	b := c.take(1, op, in)
	calls.Put(c)
	return a, b
}

// end3 is end for operations with three results.
func (c *call) end3(op string, in ...Tensor) (Tensor, Tensor, Tensor) {
	x, y, z := c.take(0, op, in), c.take(1, op, in), c.take(2, op, in)
	calls.Put(c)
	return x, y, z
}

func (c *call) take(i int, op string, in []Tensor) Tensor {
	t := Tensor{c.out[i]}
	c.out[i] = nil
	if t.c == nil {
		panic(newError(op, takeGotchError(), in))
	}
	if C.cq_scope_adopt(t.handle()) != 0 {
		panic(newError(op, C.GoString(C.cq_last_error()), nil))
	}
	return t
}

// check panics with csrc's reason if a C function failed.
func check(failed C.int, op string, in ...Tensor) {
	if failed != 0 {
		panic(newError(op, C.GoString(C.cq_last_error()), in))
	}
}

// handles converts tensors to an array of handles for a C function, nil if empty.
func handles(ts []Tensor) *C.cq_tensor {
	if len(ts) == 0 {
		return nil
	}
	list := make([]C.cq_tensor, len(ts))
	for i, t := range ts {
		list[i] = t.handle()
	}
	return &list[0]
}

func shapesOf(ts ...Tensor) string {
	var parts []string
	for _, t := range ts {
		parts = append(parts, t.String())
	}
	return strings.Join(parts, ", ")
}

// Handle returns the at::Tensor behind t, for packages with C functions of their own.
func (t Tensor) Handle() unsafe.Pointer { return unsafe.Pointer(t.c) }

// FromHandle returns the tensor of a handle from such a function; it belongs to a scope already.
func FromHandle(handle unsafe.Pointer) Tensor { return Tensor{libtch.Ctensor(handle)} }
