// blocks.h: weights in quantized blocks, and activations in blocks of 8 bits, as the kernels of
// block_kinds.inl and block_linear.inl read them.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace conquer {

// The kinds of blocks: those of GGUF files by their numbers there, and those of integer codes,
// which GPTQ and AWQ give. 32 or 128 codes of 4 or 8 bits c share a scale and a zero point z and
// stand for scale * (c - z). A block begins with 4 bytes: a float32 scale, whose lowest 8 bits are
// 0 and hold z. Float8 is no kind of block: its numbers have 8 bits each (E4M3), and its scales lie
// apart.
enum class BlockKind : int {
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  MXFP4 = 39,
  Codes4x32 = 256,
  Codes4x128 = 257,
  Codes8x32 = 258,
  Codes8x128 = 259,
  Float8 = 260,
};

// A unit is 256 numbers of a row: one block of 256, or eight blocks of 32. The last unit of a row
// may have fewer blocks of 32.
constexpr int64_t unit = 256;
// Numbers that share a scale and a minimum, at least.
constexpr int64_t group = 16;
constexpr int64_t groups = unit / group;

// A unit of a row of activations: x[i] is about scale[i / 16] * q[i]. Scales belong to 32 numbers
// and stand twice. Numbers beyond the row are zero.
struct alignas(64) ActivationUnit {
  int8_t q[unit];
  float scale[groups];
  float sum[groups];          // scale times the sum of q, of 16 numbers
  float sum_of_two[8];        // the same of 32 numbers
  int32_t level[groups];      // the sum of q, of 16 numbers
  int32_t level_of_two[8];    // of 32 numbers
  float lane_scale[unit / 4]; // the scale of each four numbers
  float lane_sum[unit / 4];   // scale times the sum of q, of four numbers
};
static_assert(sizeof(ActivationUnit) == 1024);

// The rows of a weight that one call multiplies by, `row_bytes` apart.
struct BlockRows {
  BlockKind kind;
  const uint8_t *data;
  int64_t row_bytes, rows, columns; // columns: a multiple of the kind's block

  int64_t units() const { return (columns + unit - 1) / unit; }
  BlockRows from(int64_t row, int64_t n) const {
    return {kind, data + row * row_bytes, row_bytes, n, columns};
  }
};

// Rows of a weight of 8-bit floats. Tiles of them share a scale; row 0 is row `first` of the
// weight.
struct Float8Rows {
  const uint8_t *data;
  const float *scales; // [ceil(rows of the weight / tile_rows), ceil(columns / tile_columns)]
  int64_t first, rows, columns, tile_rows, tile_columns;

  const float *scales_of(int64_t row) const {
    return scales + (first + row) / tile_rows * ((columns + tile_columns - 1) / tile_columns);
  }
};

// Rows of the weight that `gemm` unpacks together, and the floats of its scratch memory.
constexpr int64_t block_tile = 32;
inline int64_t block_tile_floats(int64_t units) {
  return units * block_tile * (unit / 4 + 2 * groups);
}

// The inner loops on blocks (block_kinds.inl, block_linear.inl).
struct BlockKernels {
  // Rounds a row of `columns` floats to units of 8 bits.
  void (*quantize)(const float *x, int64_t columns, ActivationUnit *out);
  // y[m * y_stride + r] = <row r of w, x[m]> for the n rows of x, which have w.units() units each.
  void (*dot)(const BlockRows &w, const ActivationUnit *x, int64_t n, float *y, int64_t y_stride);
  // The same for many rows of x and at most block_tile rows of w. scratch has
  // block_tile_floats(w.units()) floats, aligned to 64 bytes. Null if the processor lacks the
  // instructions that make it faster than a product of floats.
  void (*gemm)(const BlockRows &w, const ActivationUnit *x, int64_t n, float *y, int64_t y_stride,
               float *scratch);
  // The values of w, exactly: [w.rows, w.columns].
  void (*unpack)(const BlockRows &w, float *out);
  // The form of ../triton/kernels/blocks.py, with codes of 4 or 8 bits: codes [w.rows, groups, 4]
  // and scales [w.rows, groups]. Returns false if a scale is not a finite float16.
  bool (*pack)(const BlockRows &w, int bits, uint32_t *codes, uint32_t *scales);
  // y[m * y_stride + r] = <row r of w, x[m]> for the n rows of x [n, w.columns], in float32.
  void (*float8_dot)(const Float8Rows &w, const float *x, int64_t n, float *y, int64_t y_stride);
  // The values of w, exactly: [w.rows, w.columns].
  void (*float8_unpack)(const Float8Rows &w, float *out);
};

const BlockKernels &block_kernels();

} // namespace conquer
