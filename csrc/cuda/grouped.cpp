// grouped.cpp: launches the kernels of grouped.py in ../triton/kernels: linear layers whose rows
// have weights of their groups.
#include "../ops/device.h"
#include "triton.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>

namespace conquer::cuda {

using namespace triton;

namespace {

// Up to this many rows, each row reads its group's weight itself.
constexpr int64_t few_rows = 16;

// Where each group begins: int32 [count + 1].
at::Tensor offsets(const at::Tensor &index, int64_t count) {
  return at::searchsorted(index, at::arange(count + 1, index.options()), /*out_int32=*/true);
}

at::Tensor grouped_linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &index,
                          int64_t count, bool across) {
  c10::cuda::CUDAGuard guard(x.device());
  const int64_t rows = x.size(0), depth = x.size(1), width = weight.numel() / count / depth;
  const Dtype dtype = dtype_name(x);
  at::Tensor y = at::empty({rows, width}, x.options());
  Arguments args;
  if (rows <= few_rows && !across) {
    args << ptr(x) << ptr(weight) << ptr(index) << ptr(y) << width << depth;
    launch(keys::grouped_gemv(dtype), grid(ceil_div(width, tuning::grouped_gemv_BN), rows), args);
    return y;
  }
  const auto [few, many] = tuning::grouped_gemm_BM;
  const int64_t tile = rows / count < 32 ? few : many,
                columns = ceil_div(width, tuning::grouped_gemm_BN(tile)),
                tiles = ceil_div(rows, tile) + count; // the most that the groups can need
  const at::Tensor begins = offsets(index, count);
  args << ptr(x) << ptr(weight) << ptr(y) << ptr(begins) << count << tiles << columns << width
       << depth;
  launch(keys::grouped_gemm(dtype, across, tile), grid(tiles * columns), args);
  return y;
}

at::Tensor grouped_grad_weight(const at::Tensor &x, const at::Tensor &dy, const at::Tensor &index,
                               int64_t count) {
  c10::cuda::CUDAGuard guard(x.device());
  const int64_t depth = x.size(1), width = dy.size(1);
  at::Tensor dweight = at::empty({count * width, depth}, x.options());
  const at::Tensor begins = offsets(index, count);
  Arguments args;
  args << ptr(x) << ptr(dy) << ptr(dweight) << ptr(begins) << width << depth;
  launch(keys::grouped_grad_weight(dtype_name(x)),
         grid(ceil_div(width, tuning::grouped_grad_weight_BM) *
                  ceil_div(depth, tuning::grouped_grad_weight_BN),
              count),
         args);
  return dweight;
}

} // namespace

void add_grouped(ops::Device &d) {
  d.grouped_linear = grouped_linear;
  d.grouped_grad_weight = grouped_grad_weight;
  d.limits.groups = tuning::grouped_gemm_BE;
}

} // namespace conquer::cuda
