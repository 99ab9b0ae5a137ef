// blocks.h: weights that stay in quantized blocks.
//
// A weight in blocks is a tensor [N,D] that calls itself float32 on the CPU and has no elements:
// its parts hold blocks, as a rule the pages of a GGUF file itself. On a GPU it has
// the dtype of the activations, and its parts hold codes and scales. Parts of
// different kinds lie below each other, as those of a fused q, k and v. The operators below take
// it in place of a weight; every other operation of libtorch fails.
#pragma once

#include "operators.h"

namespace conquer::ops {

// Bytes and numbers of a block of a kind, by ggml's number; 0 for kinds without kernels.
struct BlockSize {
  int64_t bytes, numbers;
};
BlockSize block_size(int kind);

// The parts of a weight in blocks; null for any other tensor.
const std::vector<BlockPart> *blocks_of(const at::Tensor &t);

at::Tensor make_blocks(std::vector<BlockPart> parts);

// A weight in blocks on a GPU, in the form of its kernels; dtype is that of the activations. Throws
// if there are no kernels for the GPU.
at::Tensor blocks_to_gpu(const std::vector<BlockPart> &parts, const at::Device &device,
                         at::ScalarType dtype);

// Rows [first, first + rows) of a weight in blocks, which stay in blocks.
at::Tensor blocks_rows(const std::vector<BlockPart> &parts, int64_t first, int64_t rows,
                       at::ScalarType type);

// The values of the same rows, in float32, bfloat16 or float16.
at::Tensor unpacked(const std::vector<BlockPart> &parts, int64_t first, int64_t rows,
                    at::ScalarType type);

// cq_linear and cq_embedding of a weight in blocks.
at::Tensor block_linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias);
at::Tensor block_embedding(const at::Tensor &weight, const at::Tensor &ids);
// x [M,D] float32 times a weight in blocks transposed, without gradients: with activations of 8
// bits, or exactly.
at::Tensor block_product(const at::Tensor &x, const at::Tensor &weight, bool exact);
// dy [M,N] times a weight in blocks [N,D], without gradients.
at::Tensor block_gemm(const at::Tensor &dy, const at::Tensor &weight);

} // namespace conquer::ops
