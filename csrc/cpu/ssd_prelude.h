// ssd_prelude.h: the headers of ssd_head.h and ssd_rows.h, which include none themselves because they are compiled
// under a target of their own.
#pragma once

#include "ssd.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace conquer::ssd {

// Zeroed floats on a cache line.
struct Floats {
  float *data = nullptr;
  Floats() = default;
  explicit Floats(size_t n) { allocate(n); }
  Floats(const Floats &) = delete;
  ~Floats() { std::free(data); }
  void allocate(size_t n) {
    std::free(data);
    size_t bytes = (n * sizeof(float) + 63) / 64 * 64 + 64;
    data = static_cast<float *>(std::aligned_alloc(64, bytes));
    if (!data)
      throw std::bad_alloc();
    std::memset(data, 0, bytes);
  }
  operator float *() const { return data; }
};

inline int64_t pad16(int64_t n) { return (n + 15) / 16 * 16; }

} // namespace conquer::ssd
