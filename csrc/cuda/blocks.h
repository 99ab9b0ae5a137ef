// blocks.h: products with quantized weights on a GPU (blocks.cpp).
#pragma once

#include "../ops/blocks.h"

namespace conquer::cuda {

// One row x [...,D] times the rows of all parts: [...,width], plus bias and residual if they are
// defined.
at::Tensor block_gemv(const at::Tensor &x, const std::vector<ops::BlockPart> &parts, int64_t width,
                      const at::Tensor &bias, const at::Tensor &residual);
// The same of a part of 2F rows, gate first: silu(gate)·up [...,F].
at::Tensor block_gemv_swiglu(const at::Tensor &x, const ops::BlockPart &part,
                             const at::Tensor &bias);
// The sums over slices of the inner dimension of up to 64 rows x [...,D] times the part's rows:
// float32 [slices,M,rows]. x is bfloat16 or float16.
at::Tensor block_gemm(const at::Tensor &x, const ops::BlockPart &part);
void block_unpack(const ops::BlockPart &part, int64_t first, int64_t rows, const at::Tensor &out);

} // namespace conquer::cuda
