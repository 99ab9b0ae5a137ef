// triton.h: launches the kernels that csrc/triton/compile.py compiled ahead of time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace conquer::triton {

// A variant's arguments in the order of the kernel's signature: device pointers, 32-bit integers and floats. Triton
// appends two scratch pointers, which these kernels do not use.
class Arguments {
public:
  Arguments &operator<<(const void *p) { return add(reinterpret_cast<uint64_t>(p)); }
  Arguments &operator<<(int64_t v);
  Arguments &operator<<(int v) { return *this << static_cast<int64_t>(v); }
  Arguments &operator<<(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return add(bits);
  }
  // Pointers into this object, for the launch.
  std::vector<void *> pointers();

private:
  Arguments &add(uint64_t bits) {
    values.push_back(bits);
    return *this;
  }
  std::vector<uint64_t> values; // little-endian: a 32-bit value is the first half of its slot
};

// Launches variant `key` (see compile.py) on the current device and stream. Throws a c10::Error where the variant was
// not compiled, or where the launch fails.
void launch(const std::string &key, dim3 grid, Arguments arguments);

// Whether there are compiled kernels for the current device at all. Where there are none, one line on standard error
// says so, once.
bool available();

// Multiprocessors of the current device.
int processors();

} // namespace conquer::triton
