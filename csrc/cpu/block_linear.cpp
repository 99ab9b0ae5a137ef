// block_linear.cpp: linear layers whose weights stay in quantized blocks, the weight's rows shared
// out among the threads.
#include "../runtime/memory.h"
#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <memory>

namespace conquer::cpu {

namespace {

BlockRows rows_of(const ops::BlockPart &part) {
  return {BlockKind(part.kind), part.data.const_data_ptr<uint8_t>(), part.data.size(1), part.rows,
          part.columns};
}

bool is_float8(const ops::BlockPart &part) { return BlockKind(part.kind) == BlockKind::Float8; }

Float8Rows float8_of(const ops::BlockPart &part, int64_t first, int64_t rows) {
  return {part.data.const_data_ptr<uint8_t>() + first * part.columns,
          data_of<float>(part.scales),
          part.first + first,
          rows,
          part.columns,
          part.tile_rows,
          part.tile_columns};
}

// Rows of activations up to which the weight is unpacked for each row anew.
constexpr int64_t few = 8;

struct Give {
  void operator()(void *p) const { give_scratch(p); }
};
template <class T> using Scratch = std::unique_ptr<T, Give>;

template <class T> Scratch<T> scratch_of(int64_t n) {
  return Scratch<T>(static_cast<T *>(take_scratch(size_t(n) * sizeof(T))));
}

} // namespace

void block_linear(const at::Tensor &x, const std::vector<ops::BlockPart> &parts,
                  const at::Tensor &out) {
  const BlockKernels &k = block_kernels();
  const int64_t n = x.size(0), depth = x.size(1), units = (depth + unit - 1) / unit;
  const float *from = data_of<float>(x);
  const bool rounds = !std::all_of(parts.begin(), parts.end(), is_float8);
  auto rounded = scratch_of<ActivationUnit>(rounds ? n * units : 1);
  if (rounds)
    parallel_for(n, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        k.quantize(from + i * depth, depth, rounded.get() + i * units);
    });

  float *to = mutable_data_of<float>(out);
  const int64_t stride = out.size(1);
  const bool tiles = k.gemm && n > few;
  const int64_t scratch = tiles ? block_tile_floats(units) : 0;
  const int64_t grain = tiles ? block_tile : std::max<int64_t>(4, one_thread / (n * depth) / 4 * 4);
  // One loop over the rows of all parts, so that the threads wait for each other once.
  parallel_for(stride, grain, [&](int64_t begin, int64_t end) {
    Scratch<float> tile;
    if (tiles)
      tile = scratch_of<float>(scratch);
    int64_t first = 0; // of the part
    for (const ops::BlockPart &part : parts) {
      const int64_t a = std::max(begin, first) - first,
                    b = part.kind == 0 ? 0 : std::min(end, first + part.rows) - first;
      if (a < b && is_float8(part))
        k.float8_dot(float8_of(part, a, b - a), from, n, to + first + a, stride);
      else if (a < b && tiles)
        for (int64_t r = a; r < b; r += block_tile)
          k.gemm(rows_of(part).from(r, std::min(block_tile, b - r)), rounded.get(), n,
                 to + first + r, stride, tile.get());
      else if (a < b)
        k.dot(rows_of(part).from(a, b - a), rounded.get(), n, to + first + a, stride);
      first += part.rows;
    }
  });
}

void block_unpack(const ops::BlockPart &part, int64_t first, int64_t rows, const at::Tensor &out) {
  if (is_float8(part)) {
    float *to = mutable_data_of<float>(out);
    parallel_for(rows, rows_per_share(part.columns), [&](int64_t begin, int64_t end) {
      block_kernels().float8_unpack(float8_of(part, first + begin, end - begin),
                                    to + begin * part.columns);
    });
    return;
  }
  const BlockRows all = rows_of(part).from(first, rows);
  float *to = mutable_data_of<float>(out);
  parallel_for(rows, rows_per_share(part.columns), [&](int64_t begin, int64_t end) {
    block_kernels().unpack(all.from(begin, end - begin), to + begin * part.columns);
  });
}

bool block_pack(const ops::BlockPart &part, const ops::BlockPart &packed) {
  const BlockRows all = rows_of(part);
  uint32_t *codes = reinterpret_cast<uint32_t *>(packed.data.mutable_data_ptr<int32_t>()),
           *scales = reinterpret_cast<uint32_t *>(packed.scales.mutable_data_ptr<int32_t>());
  const int64_t row = packed.scales.size(1);
  std::atomic<bool> fits{true};
  parallel_for(part.rows, rows_per_share(part.columns), [&](int64_t begin, int64_t end) {
    if (!block_kernels().pack(all.from(begin, end - begin), packed.bits, codes + begin * row * 4,
                              scales + begin * row))
      fits = false;
  });
  return fits;
}

} // namespace conquer::cpu
