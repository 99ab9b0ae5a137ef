package torch

// #include "conquer.h"
import "C"

import (
	"unsafe"

	"github.com/sugarme/gotch/libtch"
)

// BlockPart is rows of a weight in quantized blocks.
type BlockPart struct {
	// ggml's number of the kind of block, that of a kind of package quant's codes, FloatRows or
	// Float8Rows
	Kind int
	Data Tensor // uint8 [rows, bytes of a row] on the CPU; float32 [rows,D] of FloatRows
	// Of Float8Rows: float32, a scale for each tile of TileRows × TileColumns numbers.
	Scales                Tensor
	TileRows, TileColumns int
	// Column i of Data is column Order[i] of the weight: int64 [D], or no tensor.
	Order Tensor
}

const (
	// FloatRows is the kind of a [BlockPart] that is not quantized.
	FloatRows = 0
	// Float8Rows is the kind of a [BlockPart] of numbers of 8 bits with four of exponent.
	Float8Rows = 260
)

// Blocks makes a weight [N,D] of parts that lie below each other, with D = columns. The weight
// stays in its blocks and keeps the parts' memory, such as pages of a mapped file. It says that its
// dtype is [Float32] and stands for a weight in [Linear] and the operations that contain one,
// [Embedding] and [HeadCrossEntropy]; [Tensor.UnpackRows] gives its values, and all other
// operations fail. In [NoGrad], activations are rounded to 8 bits in blocks of 32, but not for
// Float8Rows. Else the arithmetic is float32, and the weight itself gets no gradient.
func Blocks(columns int, parts ...BlockPart) Tensor {
	list, inputs := make([]C.cq_block_part, len(parts)), []Tensor{}
	for i, p := range parts {
		list[i] = C.cq_block_part{kind: C.int(p.Kind), data: p.Data.handle(),
			scales: p.Scales.handle(), order: p.Order.handle(), tile_rows: C.int64_t(p.TileRows),
			tile_columns: C.int64_t(p.TileColumns)}
		inputs = append(inputs, p.Data)
	}
	var out C.cq_tensor
	check(C.cq_block_weight(unsafe.SliceData(list), C.int(len(parts)), C.int64_t(columns), &out),
		"blocks", inputs...)
	return Tensor{libtch.Ctensor(out)}
}

// BlocksOn moves a weight made by [Blocks] to a GPU, into the form that its kernels read: codes of
// 4 bits with a scale and a minimum in float16 for each 32 numbers (Q4_0, Q4_1 and Q4_K), or of 8
// bits for each 16 (all other kinds). dtype is that of the activations. Kernels multiply a single
// row of activations by codes; for more rows, and with gradients, the weight is unpacked for each
// call.
func (t Tensor) BlocksOn(d Device, dtype DType) Tensor {
	var out C.cq_tensor
	check(C.cq_blocks_to_gpu(t.handle(), C.int(d), C.int(dtype), &out), "blocks to", t)
	return Tensor{libtch.Ctensor(out)}
}

// BlockBytes is the size of a weight made by [Blocks], 0 for any other tensor.
func (t Tensor) BlockBytes() int { return int(C.cq_blocks_bytes(t.handle())) }

// InBlocks reports whether t was made by [Blocks].
func (t Tensor) InBlocks() bool { return t.Defined() && t.BlockBytes() > 0 }

// WeightRows returns n rows of a weight from first on: a view, which stays in blocks if t was made
// by [Blocks].
func (t Tensor) WeightRows(first, n int) Tensor {
	if !t.InBlocks() {
		return t.Narrow(0, first, n)
	}
	var out C.cq_tensor
	check(C.cq_blocks_rows(t.handle(), C.int64_t(first), C.int64_t(n), &out), "rows", t)
	return Tensor{libtch.Ctensor(out)}
}

// UnpackRows returns n rows from first on of a weight in blocks, as dtype.
func (t Tensor) UnpackRows(first, n int, dtype DType) Tensor {
	var out C.cq_tensor
	check(C.cq_blocks_unpack(t.handle(), C.int64_t(first), C.int64_t(n), C.int(dtype), &out),
		"unpack", t)
	return Tensor{libtch.Ctensor(out)}
}
