// triton.h: launches the kernels that csrc/triton/build/compile.py compiled ahead of time.
#pragma once

#include "keys.h"

#include <ATen/core/Tensor.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace conquer::triton {

// A tensor that the copy engine reads or writes box by box: [first, second, third] with the last dimension contiguous,
// the other two strides (in elements) multiples of 16 bytes; boxes of [1, rows, 64]: wider ones are copied 64 columns
// at a time, each laid out with a swizzle of 128 bytes, as the kernel's own layout of them says.
struct Boxes {
  const at::Tensor &tensor; // bfloat16 or float16
  int64_t shape[3], strides[2], rows;
};

// A variant's arguments in the order of the kernel's signature: device pointers, 32-bit integers, floats and boxes.
// Triton appends two scratch pointers, which these kernels do not use.
class Arguments {
public:
  Arguments &operator<<(const Boxes &b);
  Arguments &operator<<(const void *p) { return add(reinterpret_cast<uint64_t>(p)); }
  Arguments &operator<<(int64_t v);
  Arguments &operator<<(int v) { return *this << static_cast<int64_t>(v); }
  Arguments &operator<<(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return add(bits);
  }
  Arguments() = default;
  Arguments(const Arguments &) = delete;
  // Pointers into this object, for the launch.
  std::vector<void *> pointers();

private:
  Arguments &add(uint64_t bits) {
    values.push_back(bits);
    order.push_back(&values.back());
    return *this;
  }
  std::deque<uint64_t> values; // little-endian: a 32-bit value is the first half of its slot
  std::deque<CUtensorMap> maps;
  std::vector<void *> order;
};

// From one sequence of a batch to the next: of one alone, which may be too long for 32 bits, no matter.
inline int64_t batch_stride(const at::Tensor &t) { return t.size(0) > 1 ? t.stride(0) : 0; }

// The data's dtype in a key; nullptr is no pointer, what a kernel is given in place of an undefined tensor.
inline Dtype dtype_name(at::ScalarType t) { return t == at::kBFloat16 ? "bf16" : t == at::kHalf ? "fp16" : "fp32"; }
inline Dtype dtype_name(const at::Tensor &t) { return dtype_name(t.scalar_type()); }
inline const void *ptr(const at::Tensor &t) { return t.defined() ? t.const_data_ptr() : nullptr; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline dim3 grid(int64_t x, int64_t y = 1, int64_t z = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// Launches variant `key` (see keys.h) on the current device and stream. Throws a c10::Error where the variant was
// not compiled, or where the launch fails.
void launch(const std::string &key, dim3 grid, Arguments &arguments);

// Whether variant `key` was compiled for the current device.
bool has(const std::string &key);

// Whether there are compiled kernels for the current device at all. Where there are none, one line on standard error
// says so, once.
bool available();

// The current device's compute capability, such as "9.0".
std::string capability();

// Multiprocessors of the current device.
int processors();

} // namespace conquer::triton
