package torch

// #include "conquer.h"
import "C"

import "github.com/sugarme/gotch/libtch"

// BlockPart is rows of a weight in quantized blocks as GGUF files store them.
type BlockPart struct {
	Kind int    // ggml's number of the kind of block, or FloatRows
	Data Tensor // uint8 [rows, bytes of a row] on the CPU; float32 [rows,D] of FloatRows
}

// FloatRows is the kind of a [BlockPart] that is not quantized.
const FloatRows = 0

// Blocks makes a weight [N,D] of parts that lie below each other, with D = columns. The weight
// stays in its blocks and keeps the parts' memory, such as pages of a mapped file. It says that its
// dtype is [Float32] and stands for a weight in [Linear] and the operations that contain one,
// [Embedding] and [HeadCrossEntropy]; [Tensor.UnpackRows] gives its values, and all other
// operations fail. In [NoGrad], activations are rounded to 8 bits in blocks of 32. Else the
// arithmetic is float32, and the weight itself gets no gradient.
func Blocks(columns int, parts ...BlockPart) Tensor {
	data, kinds := make([]Tensor, len(parts)), make([]C.int, len(parts))
	for i, p := range parts {
		data[i], kinds[i] = p.Data, C.int(p.Kind)
	}
	var out C.cq_tensor
	check(C.cq_blocks(handles(data), &kinds[0], C.int(len(parts)), C.int64_t(columns), &out),
		"blocks", data...)
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

// UnpackRows returns n rows from first on of a weight in blocks, as dtype.
func (t Tensor) UnpackRows(first, n int, dtype DType) Tensor {
	var out C.cq_tensor
	check(C.cq_blocks_unpack(t.handle(), C.int64_t(first), C.int64_t(n), C.int(dtype), &out),
		"unpack", t)
	return Tensor{libtch.Ctensor(out)}
}
