package torch

// #include "conquer.h"
import "C"

import (
	"math"
	"unsafe"

	"github.com/sugarme/gotch/libtch"
)

func flag(on bool) int32 {
	if on {
		return 1
	}
	return 0
}

// keepDType stands for the input's dtype in gotch's C layer.
const keepDType = -1

// scalar calls f with a libtorch scalar.
func scalar(value float64, f func(s libtch.Cscalar)) {
	var s libtch.Cscalar
	if value == math.Trunc(value) && math.Abs(value) < 1<<53 {
		s = libtch.AtsInt(int64(value)) // keeps an integer tensor an integer tensor
	} else {
		s = libtch.AtsFloat(value)
	}
	f(s)
	libtch.AtsFree(s)
}

// ---- creation ----

// Empty returns a tensor with undefined contents.
func Empty(shape []int, dtype DType, device Device) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	libtch.AtgEmpty(&c.out[0], dims, n, int32(dtype), int32(device))
	return c.end("empty")
}

// Zeros returns a tensor of zeros.
func Zeros(shape []int, dtype DType, device Device) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	libtch.AtgZeros(&c.out[0], dims, n, int32(dtype), int32(device))
	return c.end("zeros")
}

// Full returns a tensor filled with one value.
func Full(shape []int, value float64, dtype DType, device Device) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	scalar(
		value,
		func(s libtch.Cscalar) {
			libtch.AtgFull(&c.out[0], dims, n, s, int32(dtype), int32(device))
		},
	)
	return c.end("full")
}

// Ones returns a tensor of ones.
func Ones(shape []int, dtype DType, device Device) Tensor { return Full(shape, 1, dtype, device) }

// Randn draws from the standard normal distribution.
func Randn(shape []int, dtype DType, device Device) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	libtch.AtgRandn(&c.out[0], dims, n, int32(dtype), int32(device))
	return c.end("randn")
}

// RandInt draws int64 numbers uniformly from [0, high).
func RandInt(high int, shape []int, device Device) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	libtch.AtgRandint(&c.out[0], int64(high), dims, n, int32(Int64), int32(device))
	return c.end("randint")
}

// Arange returns start, start+1, … up to but excluding end.
func Arange(start, end int, dtype DType, device Device) Tensor {
	c := begin()
	from, to := libtch.AtsInt(int64(start)), libtch.AtsInt(int64(end))
	libtch.AtgArangeStart(&c.out[0], from, to, int32(dtype), int32(device))
	libtch.AtsFree(from)
	libtch.AtsFree(to)
	return c.end("arange")
}

// ZerosLike returns zeros of t's shape, dtype and device.
func (t Tensor) ZerosLike() Tensor {
	c := begin()
	libtch.AtgZerosLike(&c.out[0], t.c)
	return c.end("zeros_like", t)
}

// ---- conversion and copying ----

// To converts t's elements to dtype, or returns t if it has that dtype.
func (t Tensor) To(dtype DType) Tensor {
	c := begin()
	libtch.AtgToDtype(&c.out[0], t.c, int32(dtype), 0, 0)
	return c.end("to", t)
}

// ToDevice copies t to a device, or returns t if it is there.
func (t Tensor) ToDevice(d Device) Tensor {
	if d.IsCUDA() && !t.Device().IsCUDA() && !t.RequiresGrad() {
		var out C.cq_tensor
		check(C.cq_upload(t.handle(), C.int(d), &out), "to", t)
		return Tensor{libtch.Ctensor(out)}
	}
	c := begin()
	libtch.AtgTo(&c.out[0], t.c, int32(d))
	return c.end("to", t)
}

// Clone returns a copy of t with its own memory.
func (t Tensor) Clone() Tensor {
	c := begin()
	libtch.AtgToDtype(&c.out[0], t.c, int32(t.DType()), 0, 1)
	return c.end("clone", t)
}

// Copy overwrites t with src, converting dtype and device.
func (t Tensor) Copy(src Tensor) Tensor {
	libtch.AtCopy_(t.c, src.c)
	if message := takeGotchError(); message != "" {
		panic(newError("copy_", message, []Tensor{t, src}))
	}
	return t
}

// Contiguous returns t in row-major order, or t itself if it is contiguous.
func (t Tensor) Contiguous() Tensor {
	c := begin()
	libtch.AtgContiguous(&c.out[0], t.c)
	return c.end("contiguous", t)
}

// Zero overwrites t with zeros.
func (t Tensor) Zero() Tensor {
	c := begin()
	libtch.AtgZero_(&c.out[0], t.c)
	c.end("zero_", t)
	return t
}

// Normal overwrites t with draws from a normal distribution.
func (t Tensor) Normal(mean, std float64) Tensor {
	c := begin()
	libtch.AtgNormal_(&c.out[0], t.c, mean, std)
	c.end("normal_", t)
	return t
}

// Uniform overwrites t with draws from [low, high).
func (t Tensor) Uniform(low, high float64) Tensor {
	c := begin()
	libtch.AtgUniform_(&c.out[0], t.c, low, high)
	c.end("uniform_", t)
	return t
}

// ---- shape ----

// View reinterprets t's shape without copying; one dimension may be -1.
func (t Tensor) View(shape ...int) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	libtch.AtgView(&c.out[0], t.c, dims, n)
	return c.end("view", t)
}

// Reshape is View that copies when it must.
func (t Tensor) Reshape(shape ...int) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	libtch.AtgReshape(&c.out[0], t.c, dims, n)
	return c.end("reshape", t)
}

// Expand repeats dimensions of size 1 without copying.
func (t Tensor) Expand(shape ...int) Tensor {
	c := begin()
	dims, n := c.sizes(shape)
	libtch.AtgExpand(&c.out[0], t.c, dims, n, 0)
	return c.end("expand", t)
}

// Transpose swaps two dimensions without copying.
func (t Tensor) Transpose(dim0, dim1 int) Tensor {
	c := begin()
	libtch.AtgTranspose(&c.out[0], t.c, int64(dim0), int64(dim1))
	return c.end("transpose", t)
}

// Permute reorders the dimensions without copying.
func (t Tensor) Permute(order ...int) Tensor {
	c := begin()
	dims, n := c.sizes(order)
	libtch.AtgPermute(&c.out[0], t.c, dims, n)
	return c.end("permute", t)
}

// Unsqueeze inserts a dimension of size 1.
func (t Tensor) Unsqueeze(dim int) Tensor {
	c := begin()
	libtch.AtgUnsqueeze(&c.out[0], t.c, int64(dim))
	return c.end("unsqueeze", t)
}

// Squeeze removes dimension dim, which has size 1.
func (t Tensor) Squeeze(dim int) Tensor {
	c := begin()
	libtch.AtgSqueezeDim(&c.out[0], t.c, int64(dim))
	return c.end("squeeze", t)
}

// Narrow returns a view of length elements along dim, from start.
func (t Tensor) Narrow(dim, start, length int) Tensor {
	c := begin()
	libtch.AtgNarrow(&c.out[0], t.c, int64(dim), int64(start), int64(length))
	return c.end("narrow", t)
}

// Select returns a view of slice index along dim, without that dimension.
func (t Tensor) Select(dim, index int) Tensor {
	c := begin()
	libtch.AtgSelect(&c.out[0], t.c, int64(dim), int64(index))
	return c.end("select", t)
}

// Split returns views of t with the given sizes along dim.
func (t Tensor) Split(dim int, sizes ...int) []Tensor {
	wide, handles := make([]C.int64_t, len(sizes)), make([]C.cq_tensor, len(sizes))
	for i, size := range sizes {
		wide[i] = C.int64_t(size)
	}
	check(C.cq_split(t.handle(), C.int64_t(dim), unsafe.SliceData(wide), C.int(len(sizes)),
		unsafe.SliceData(handles)), "split", t)
	parts := make([]Tensor, len(sizes))
	for i, h := range handles {
		parts[i] = Tensor{libtch.Ctensor(h)}
	}
	return parts
}

// Cat joins tensors along dim.
func Cat(dim int, ts ...Tensor) Tensor {
	if len(ts) == 0 {
		panic(&Error{Op: "cat", Message: "there is nothing to join"})
	}
	c := begin()
	libtch.AtgCat(&c.out[0], list(ts), len(ts), int64(dim))
	return c.end("cat", ts...)
}

// Stack joins tensors along a new dimension.
func Stack(dim int, ts ...Tensor) Tensor {
	if len(ts) == 0 {
		panic(&Error{Op: "stack", Message: "there is nothing to join"})
	}
	c := begin()
	libtch.AtgStack(&c.out[0], list(ts), len(ts), int64(dim))
	return c.end("stack", ts...)
}

// ---- arithmetic ----

// Add is t + o.
func (t Tensor) Add(o Tensor) Tensor {
	c := begin()
	libtch.AtgAdd(&c.out[0], t.c, o.c)
	return c.end("add", t, o)
}

// AddTo adds o to t in place.
func (t Tensor) AddTo(o Tensor) Tensor {
	c := begin()
	libtch.AtgAdd_(&c.out[0], t.c, o.c)
	c.end("add_", t, o)
	return t
}

// Sub is t - o.
func (t Tensor) Sub(o Tensor) Tensor {
	c := begin()
	libtch.AtgSub(&c.out[0], t.c, o.c)
	return c.end("sub", t, o)
}

// Mul is t · o, element by element.
func (t Tensor) Mul(o Tensor) Tensor {
	c := begin()
	libtch.AtgMul(&c.out[0], t.c, o.c)
	return c.end("mul", t, o)
}

// Div is t / o.
func (t Tensor) Div(o Tensor) Tensor {
	c := begin()
	libtch.AtgDiv(&c.out[0], t.c, o.c)
	return c.end("div", t, o)
}

// AddScalar is t + value.
func (t Tensor) AddScalar(value float64) Tensor {
	c := begin()
	scalar(value, func(s libtch.Cscalar) { libtch.AtgAddScalar(&c.out[0], t.c, s) })
	return c.end("add", t)
}

// MulScalar is t · value.
func (t Tensor) MulScalar(value float64) Tensor {
	c := begin()
	scalar(value, func(s libtch.Cscalar) { libtch.AtgMulScalar(&c.out[0], t.c, s) })
	return c.end("mul", t)
}

// PowScalar is t to the power of value.
func (t Tensor) PowScalar(value float64) Tensor {
	c := begin()
	scalar(value, func(s libtch.Cscalar) { libtch.AtgPowTensorScalar(&c.out[0], t.c, s) })
	return c.end("pow", t)
}

// Neg is -t.
func (t Tensor) Neg() Tensor {
	c := begin()
	libtch.AtgNeg(&c.out[0], t.c)
	return c.end("neg", t)
}

// Exp is e to the power of t.
func (t Tensor) Exp() Tensor {
	c := begin()
	libtch.AtgExp(&c.out[0], t.c)
	return c.end("exp", t)
}

// Log is the natural logarithm.
func (t Tensor) Log() Tensor {
	c := begin()
	libtch.AtgLog(&c.out[0], t.c)
	return c.end("log", t)
}

// Abs is |t|.
func (t Tensor) Abs() Tensor {
	c := begin()
	libtch.AtgAbs(&c.out[0], t.c)
	return c.end("abs", t)
}

// Rsqrt is 1 / √t.
func (t Tensor) Rsqrt() Tensor {
	c := begin()
	libtch.AtgRsqrt(&c.out[0], t.c)
	return c.end("rsqrt", t)
}

// Cos is the cosine.
func (t Tensor) Cos() Tensor {
	c := begin()
	libtch.AtgCos(&c.out[0], t.c)
	return c.end("cos", t)
}

// Sin is the sine.
func (t Tensor) Sin() Tensor {
	c := begin()
	libtch.AtgSin(&c.out[0], t.c)
	return c.end("sin", t)
}

// Sigmoid is 1/(1+e^-t).
func (t Tensor) Sigmoid() Tensor {
	c := begin()
	libtch.AtgSigmoid(&c.out[0], t.c)
	return c.end("sigmoid", t)
}

// Silu is t · sigmoid(t).
func (t Tensor) Silu() Tensor {
	c := begin()
	libtch.AtgSilu(&c.out[0], t.c)
	return c.end("silu", t)
}

// Softplus is log(1 + e^t).
func (t Tensor) Softplus() Tensor {
	c := begin()
	libtch.AtgSoftplus(&c.out[0], t.c)
	return c.end("softplus", t)
}

// Clamp limits t to [low, high].
func (t Tensor) Clamp(low, high float64) Tensor {
	c := begin()
	scalar(low, func(lo libtch.Cscalar) {
		scalar(high, func(hi libtch.Cscalar) { libtch.AtgClamp(&c.out[0], t.c, lo, hi) })
	})
	return c.end("clamp", t)
}

// SVD decomposes the matrix t into u·diag(s)·vᵀ. u and v have orthonormal columns, and s falls.
func (t Tensor) SVD() (u, s, v Tensor) {
	c := begin()
	libtch.AtgSvd(&c.out[0], t.c, flag(true), flag(true))
	return c.end3("svd", t)
}

// ---- reductions ----

// Sum adds all elements.
func (t Tensor) Sum() Tensor {
	c := begin()
	libtch.AtgSum(&c.out[0], t.c, keepDType)
	return c.end("sum", t)
}

// SumDim adds along dim.
func (t Tensor) SumDim(dim int, keep bool) Tensor {
	c := begin()
	dims, _ := c.sizes([]int{dim})
	libtch.AtgSumDimIntlist(&c.out[0], t.c, dims, 1, flag(keep), keepDType)
	return c.end("sum", t)
}

// Mean averages all elements.
func (t Tensor) Mean() Tensor {
	c := begin()
	libtch.AtgMean(&c.out[0], t.c, keepDType)
	return c.end("mean", t)
}

// Max is the largest element.
func (t Tensor) Max() Tensor {
	c := begin()
	libtch.AtgMax(&c.out[0], t.c)
	return c.end("max", t)
}

// MaxDim returns the largest elements along dim and their indices.
func (t Tensor) MaxDim(dim int, keep bool) (values, indices Tensor) {
	c := begin()
	libtch.AtgMaxDim(&c.out[0], t.c, int64(dim), flag(keep))
	return c.end2("max", t)
}

// Argmax is the index of the largest element along dim, the first among equals.
func (t Tensor) Argmax(dim int) Tensor {
	c := begin()
	libtch.AtgArgmax(&c.out[0], t.c, int64(dim), 0, 0)
	return c.end("argmax", t)
}

// Cumsum is the running sum along dim.
func (t Tensor) Cumsum(dim int) Tensor {
	c := begin()
	libtch.AtgCumsum(&c.out[0], t.c, int64(dim), keepDType)
	return c.end("cumsum", t)
}

// Softmax normalizes e^t along dim.
func (t Tensor) Softmax(dim int) Tensor {
	c := begin()
	libtch.AtgSoftmax(&c.out[0], t.c, int64(dim), keepDType)
	return c.end("softmax", t)
}

// LogSoftmax is the logarithm of Softmax, computed directly.
func (t Tensor) LogSoftmax(dim int) Tensor {
	c := begin()
	libtch.AtgLogSoftmax(&c.out[0], t.c, int64(dim), keepDType)
	return c.end("log_softmax", t)
}

// ---- indexing, comparison, masks ----

// IndexSelect returns the slices of t along dim at index (int64, rank 1).
func (t Tensor) IndexSelect(dim int, index Tensor) Tensor {
	c := begin()
	libtch.AtgIndexSelect(&c.out[0], t.c, int64(dim), index.c)
	return c.end("index_select", t, index)
}

// IndexAdd is t with source's slices along dim added to its slices at index (int64, rank 1).
func (t Tensor) IndexAdd(dim int, index, source Tensor) Tensor {
	c := begin()
	libtch.AtgIndexAdd(&c.out[0], t.c, int64(dim), index.c, source.c)
	return c.end("index_add", t, index, source)
}

// Gather returns the elements along dim at index.
func (t Tensor) Gather(dim int, index Tensor) Tensor {
	c := begin()
	libtch.AtgGather(&c.out[0], t.c, int64(dim), index.c, 0)
	return c.end("gather", t, index)
}

// MaskedFill returns t with value where mask is true.
func (t Tensor) MaskedFill(mask Tensor, value float64) Tensor {
	c := begin()
	scalar(value, func(s libtch.Cscalar) { libtch.AtgMaskedFill(&c.out[0], t.c, mask.c, s) })
	return c.end("masked_fill", t, mask)
}

// Where returns elements of a where condition is true, of b elsewhere.
func Where(condition, a, b Tensor) Tensor {
	c := begin()
	libtch.AtgWhereSelf(&c.out[0], condition.c, a.c, b.c)
	return c.end("where", condition, a, b)
}

// Equal compares element by element.
func (t Tensor) Equal(o Tensor) Tensor {
	c := begin()
	libtch.AtgEqTensor(&c.out[0], t.c, o.c)
	return c.end("eq", t, o)
}

// Less is t < o, element by element.
func (t Tensor) Less(o Tensor) Tensor {
	c := begin()
	libtch.AtgLtTensor(&c.out[0], t.c, o.c)
	return c.end("lt", t, o)
}

// LessEqual is t <= o, element by element.
func (t Tensor) LessEqual(o Tensor) Tensor {
	c := begin()
	libtch.AtgLeTensor(&c.out[0], t.c, o.c)
	return c.end("le", t, o)
}

// Mark sets elements of a boolean t to true in place: those at index (int64) along its last
// dimension.
func (t Tensor) Mark(index Tensor) Tensor {
	scalar(1, func(s libtch.Cscalar) {
		c := begin()
		libtch.AtgScatterValue_(&c.out[0], t.c, -1, index.c, s)
		c.end("scatter_", t, index)
	})
	return t
}

// And is the logical and of two boolean tensors.
func (t Tensor) And(o Tensor) Tensor {
	c := begin()
	libtch.AtgLogicalAnd(&c.out[0], t.c, o.c)
	return c.end("logical_and", t, o)
}

// Tril is t with zeros above the given diagonal.
func (t Tensor) Tril(diagonal int) Tensor {
	c := begin()
	libtch.AtgTril(&c.out[0], t.c, int64(diagonal))
	return c.end("tril", t)
}

// Dropout zeroes elements with probability p and multiplies the others by 1/(1-p).
func (t Tensor) Dropout(p float64) Tensor {
	c := begin()
	libtch.AtgDropout(&c.out[0], t.c, p, 1)
	return c.end("dropout", t)
}
