// ssd_prelude.h: the headers of ssd_head.h and ssd_rows.h, which include none themselves because they are compiled
// under a target of their own.
#pragma once

#include "ssd.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

namespace conquer {

// Memory for a kernel's own use, from where tensors live (memory.cpp), so that it counts as they do.
void *take_scratch(size_t bytes);
void give_scratch(void *data);

} // namespace conquer

namespace conquer::ssd {

// Zeroed floats on a cache line.
struct Floats {
  float *data = nullptr;
  Floats() = default;
  explicit Floats(size_t n) { allocate(n); }
  Floats(const Floats &) = delete;
  ~Floats() { give_scratch(data); }
  void allocate(size_t n) {
    give_scratch(data);
    data = nullptr;
    size_t bytes = (n * sizeof(float) + 63) / 64 * 64 + 64;
    data = static_cast<float *>(take_scratch(bytes));
    std::memset(data, 0, bytes);
  }
  operator float *() const { return data; }
};

inline int64_t pad16(int64_t n) { return (n + 15) / 16 * 16; }

} // namespace conquer::ssd
