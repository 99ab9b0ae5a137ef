// cache_q8.cpp: caches of keys and values in blocks of Q8_0: 32 numbers of a head as 8-bit levels
// with a float16 scale, 34 bytes.
#include "../runtime/memory.h"
#include "cpu.h"

#include <c10/util/Half.h>

#include <cmath>
#include <cstring>

namespace conquer::cpu {

namespace {

// Rounds as ggml does: the level of the largest magnitude is 127.
void quantize(const float *x, int64_t n, uint8_t *to) {
  for (int64_t i = 0; i < n; i += 32, x += 32, to += 34) {
    float top = 0;
    for (int k = 0; k < 32; k++)
      top = std::max(top, std::abs(x[k]));
    const float scale = top / 127, inverse = scale > 0 ? 1 / scale : 0;
    const c10::Half half(scale);
    std::memcpy(to, &half, 2);
    for (int k = 0; k < 32; k++)
      to[2 + k] = uint8_t(int8_t(std::lrintf(x[k] * inverse)));
  }
}

} // namespace

void cache_write_q8(const at::Tensor &cache, const at::Tensor &fresh, const at::Tensor &positions) {
  const int64_t B = fresh.size(0), K = fresh.size(1), L = fresh.size(2), P = fresh.size(3);
  check_positions(positions, cache.size(2));
  const at::Tensor wide = fresh.to(at::kFloat).contiguous();
  uint8_t *to = cache.mutable_data_ptr<uint8_t>();
  const float *from = data_of<float>(wide);
  const int64_t *position = data_of<int64_t>(positions), position_b = positions.size(0) > 1 ? L : 0;
  parallel_for(B * K, rows_per_share(L * P), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++) {
      const int64_t b = h / K, k = h % K;
      for (int64_t l = 0; l < L; l++)
        quantize(from + (h * L + l) * P, P,
                 to + b * cache.stride(0) + k * cache.stride(1) +
                     position[b * position_b + l] * cache.stride(2));
    }
  });
}

void cache_unpack(const at::Tensor &cache, const at::Tensor &out) {
  const int64_t K = cache.size(1), S = cache.size(2), P = out.size(3);
  float *to = mutable_data_of<float>(out);
  parallel_for(cache.size(0) * K, rows_per_share(S * P), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++)
      block_kernels().unpack(cache_rows(cache, h / K, h % K, 0, S, P), to + h * S * P);
  });
}

BlockRows cache_rows(const at::Tensor &cache, int64_t b, int64_t k, int64_t first, int64_t n,
                     int64_t P) {
  const uint8_t *data = cache.const_data_ptr<uint8_t>() + b * cache.stride(0) +
                        k * cache.stride(1) + first * cache.stride(2);
  return {BlockKind::Q8_0, data, cache.stride(2), n, P};
}

} // namespace conquer::cpu
