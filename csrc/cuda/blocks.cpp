// blocks.cpp: launches the kernels of blocks.py in ../triton/kernels, for weights that
// ops/blocks.cpp brought into their form.
#include "blocks.h"

#include "triton.h"

#include <c10/cuda/CUDAGuard.h>

namespace conquer::cuda {

using namespace triton;

namespace {

// Where a kernel puts a code: the bits of the mantissa that hold it, and the power of two that has
// this mantissa (`code` in blocks.py).
void add_places(Arguments &args, int bits) {
  args << (bits == 4 ? 15 << 16 : 255 << 15) << (bits == 4 ? 0x43000000 : 0x43800000);
}

at::Tensor empty_row(const at::Tensor &x, int64_t width) {
  auto shape = x.sizes().vec();
  shape.back() = width;
  return at::empty(shape, x.options());
}

// Elements [first, first + n) of a vector, or no tensor.
at::Tensor some(const at::Tensor &t, int64_t first, int64_t n) {
  return t.defined() ? t.view({-1}).narrow(0, first, n) : t;
}

} // namespace

at::Tensor block_gemv(const at::Tensor &x, const std::vector<ops::BlockPart> &parts, int64_t width,
                      const at::Tensor &bias, const at::Tensor &residual) {
  c10::cuda::CUDAGuard guard(x.device());
  at::Tensor y = empty_row(x, width);
  int64_t first = 0;
  for (const ops::BlockPart &part : parts) {
    const at::Tensor b = some(bias, first, part.rows), r = some(residual, first, part.rows),
                     out = some(y, first, part.rows);
    Arguments args;
    args << ptr(x) << ptr(part.data) << ptr(part.scales) << ptr(b) << ptr(r) << ptr(out)
         << part.rows << part.columns << int64_t(b.defined()) << int64_t(r.defined());
    add_places(args, part.bits);
    launch(keys::block_gemv(dtype_name(x), part.bits, part.rows),
           grid(ceil_div(part.rows, block_gemv_rows(part.rows))), args);
    first += part.rows;
  }
  return y;
}

at::Tensor block_gemv_swiglu(const at::Tensor &x, const ops::BlockPart &part,
                             const at::Tensor &bias) {
  c10::cuda::CUDAGuard guard(x.device());
  const int64_t width = part.rows / 2;
  at::Tensor y = empty_row(x, width);
  Arguments args;
  args << ptr(x) << ptr(part.data) << ptr(part.scales) << ptr(bias) << ptr(y) << width
       << part.columns << int64_t(bias.defined());
  add_places(args, part.bits);
  launch(keys::block_gemv_swiglu(dtype_name(x), part.bits),
         grid(ceil_div(width, tuning::block_gemv_swiglu_BN)), args);
  return y;
}

at::Tensor block_gemm(const at::Tensor &x, const ops::BlockPart &part) {
  c10::cuda::CUDAGuard guard(x.device());
  const int64_t m = x.numel() / x.size(-1), groups = part.columns * part.bits / 128,
                bg = tuning::block_gemm_BG, tiles = ceil_div(part.rows, tuning::block_gemm_BN),
                wanted = std::max<int64_t>(1, tuning::block_gemm_RESIDENT * sm_count() / tiles),
                span = ceil_div(ceil_div(groups, wanted), bg) * bg, splits = ceil_div(groups, span);
  // The kernel multiplies the numbers of one place in their words at a time.
  at::Tensor in = x.view({m, groups, 32 / part.bits, 4}).transpose(1, 2).contiguous(),
             sums = at::empty({splits, m, part.rows}, x.options().dtype(at::kFloat));
  Arguments args;
  args << ptr(in) << ptr(part.data) << ptr(part.scales) << ptr(sums) << m << part.rows
       << part.columns << span;
  add_places(args, part.bits);
  launch(keys::block_gemm(dtype_name(x), part.bits, m), grid(tiles, splits), args);
  return sums;
}

void block_unpack(const ops::BlockPart &part, int64_t first, int64_t rows, const at::Tensor &out) {
  c10::cuda::CUDAGuard guard(out.device());
  at::Tensor codes = part.data.narrow(0, first, rows), scales = part.scales.narrow(0, first, rows);
  if (reinterpret_cast<uintptr_t>(ptr(scales)) % 16 != 0) // the kernel's pointers are multiples
    scales = scales.clone();
  Arguments args;
  args << ptr(codes) << ptr(scales) << ptr(out) << part.columns;
  add_places(args, part.bits);
  launch(keys::block_unpack(dtype_name(out), part.bits),
         grid(rows, ceil_div(scales.size(1), tuning::block_unpack_BG)), args);
}

} // namespace conquer::cuda
