package torch

// #include <stdlib.h>
// #include "conquer.h"
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/sugarme/gotch/libtch"
)

// Element is a Go type that tensors are made from and read into.
type Element interface {
	uint8 | int32 | int64 | float32 | float64
}

func dtypeOf[E Element]() DType {
	var zero E
	switch any(zero).(type) {
	case uint8:
		return Uint8
	case int32:
		return Int32
	case int64:
		return Int64
	case float32:
		return Float32
	}
	return Float64
}

// From returns a CPU tensor of the given shape with a copy of data.
func From[E Element](data []E, shape ...int) Tensor {
	var zero E
	return FromBytes(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(data))),
		len(data)*int(unsafe.Sizeof(zero))), dtypeOf[E](), shape)
}

// FromBytes returns a CPU tensor with a copy of data, the elements' bytes in row-major order.
func FromBytes(data []byte, dtype DType, shape []int) Tensor {
	sizes := make([]int64, len(shape)+1)
	for i, s := range shape {
		sizes[i] = int64(s)
	}
	var out C.cq_tensor
	check(C.cq_tensor_from(unsafe.Pointer(unsafe.SliceData(data)), C.size_t(len(data)),
		(*C.int64_t)(unsafe.Pointer(&sizes[0])), C.int(len(shape)), C.int(dtype),
		&out), fmt.Sprintf("from bytes %v%v", dtype, shape))
	return Tensor{libtch.Ctensor(out)}
}

// Values returns a copy of t's elements, converted to E, in row-major order.
func Values[E Element](t Tensor) []E {
	values := make([]E, t.Numel())
	if len(values) > 0 {
		Scoped(func() {
			source := t.To(dtypeOf[E]())
			check(C.cq_tensor_read(source.handle(), unsafe.Pointer(&values[0]),
				C.size_t(len(values)*int(unsafe.Sizeof(values[0])))), "values", source)
		})
	}
	return values
}

// Item returns the only element of t, converted to E.
func Item[E Element](t Tensor) E {
	values := Values[E](t)
	if len(values) != 1 {
		panic(&Error{Op: "item", Shapes: shapesOf(t), Message: "expected exactly one element"})
	}
	return values[0]
}

// Data returns the memory of a contiguous CPU tensor, valid while t lives.
func (t Tensor) Data() []byte {
	if t.Device() != CPU || !libtch.AtIsContiguous(t.c) {
		panic(
			&Error{
				Op:      "data",
				Shapes:  shapesOf(t),
				Message: "expected a contiguous tensor on the CPU",
			},
		)
	}
	n := t.Bytes()
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(libtch.AtDataPtr(t.c)), n)
}

// Mapping is a file mapped into memory. Tensors that view it keep it alive. Writing to them changes
// this process's private copy of the pages, never the file.
type Mapping struct {
	c    *C.cq_mapping
	data []byte
}

// OpenMapping maps the file at path.
func OpenMapping(path string) (*Mapping, error) {
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var m Mapping
	var data *C.uint8_t
	var size C.size_t
	if C.cq_map_open(cpath, &m.c, &data, &size) != 0 {
		return nil, fmt.Errorf("%s: %s", path, C.GoString(C.cq_last_error()))
	}
	m.data = unsafe.Slice((*byte)(unsafe.Pointer(data)), int(size))
	return &m, nil
}

// Bytes returns the file's contents, valid until Close.
func (m *Mapping) Bytes() []byte { return m.data }

// Tensor returns a view of the bytes from offset on, as a tensor of the given dtype and shape.
func (m *Mapping) Tensor(offset int, dtype DType, shape []int) Tensor {
	sizes := make([]int64, len(shape)+1)
	for i, s := range shape {
		sizes[i] = int64(s)
	}
	var out C.cq_tensor
	check(C.cq_map_tensor(m.c, C.size_t(offset), (*C.int64_t)(unsafe.Pointer(&sizes[0])),
		C.int(len(shape)), C.int(dtype), &out), fmt.Sprintf("map %v%v at byte %d", dtype, shape,
		offset))
	return Tensor{libtch.Ctensor(out)}
}

// Close releases the mapping once the last tensor that views it is freed.
func (m *Mapping) Close() {
	if m.c != nil {
		C.cq_map_close(m.c)
		m.c, m.data = nil, nil
	}
}
