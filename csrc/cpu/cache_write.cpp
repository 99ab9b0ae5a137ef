// cache_write.cpp: copies of keys or values into the rows of a cache.
#include "cpu.h"

#include <cstring>

namespace conquer::cpu {

void check_positions(const at::Tensor &positions, int64_t S) {
  const int64_t *position = data_of<int64_t>(positions);
  for (int64_t i = 0; i < positions.numel(); i++)
    TORCH_CHECK(position[i] >= 0 && position[i] < S, "position ", position[i],
                " is outside a cache of ", S);
}

void cache_write(const at::Tensor &cache, const at::Tensor &fresh, const at::Tensor &positions) {
  const int64_t B = fresh.size(0), K = fresh.size(1), L = fresh.size(2), P = fresh.size(3);
  check_positions(positions, cache.size(2));
  const size_t bytes = cache.element_size();
  char *to = static_cast<char *>(cache.mutable_data_ptr());
  const char *from = static_cast<const char *>(fresh.const_data_ptr());
  const int64_t *position = data_of<int64_t>(positions), position_b = positions.size(0) > 1 ? L : 0;
  parallel_for(B * K, rows_per_share(L * P), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++) {
      const int64_t b = h / K, k = h % K;
      for (int64_t l = 0; l < L; l++)
        std::memcpy(to + bytes * (b * cache.stride(0) + k * cache.stride(1) +
                                  position[b * position_b + l] * cache.stride(2)),
                    from +
                        bytes * (b * fresh.stride(0) + k * fresh.stride(1) + l * fresh.stride(2)),
                    bytes * P);
    }
  });
}

} // namespace conquer::cpu
