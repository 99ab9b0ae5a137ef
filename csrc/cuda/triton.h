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

// A tensor [shape] that a kernel reads or writes in boxes through a TMA descriptor. The last
// dimension is contiguous; the other two strides (in elements) are multiples of 16 bytes. A box is
// [1, rows, 64] with a swizzle of 128 bytes, which the kernel's shared-memory layout matches; the
// kernel copies wider boxes 64 columns at a time.
struct Boxes {
  const at::Tensor &tensor; // bfloat16 or float16
  int64_t shape[3], strides[2], rows;
};

// A variant's arguments in the order of the kernel's signature: device pointers, 32-bit integers,
// floats and boxes. Triton's kernels have two more parameters, scratch pointers, which these
// kernels do not use.
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
  // Returns pointers into this object, for the launch.
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

// The stride between the sequences of a batch, in elements; 0 for a single sequence, whose stride
// is not used and may not fit 32 bits.
inline int64_t batch_stride(const at::Tensor &t) { return t.size(0) > 1 ? t.stride(0) : 0; }

// The dtype's name in a key.
inline Dtype dtype_name(at::ScalarType t) {
  return t == at::kBFloat16 ? "bf16" : t == at::kHalf ? "fp16" : "fp32";
}
inline Dtype dtype_name(const at::Tensor &t) { return dtype_name(t.scalar_type()); }
// The tensor's data, or nullptr if it is undefined.
inline const void *ptr(const at::Tensor &t) { return t.defined() ? t.const_data_ptr() : nullptr; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline dim3 grid(int64_t x, int64_t y = 1, int64_t z = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// Launches variant `key` (see keys.h) on the current device and stream. Throws a c10::Error if the
// variant was not compiled or the launch fails.
void launch(const std::string &key, dim3 grid, Arguments &arguments);

// Returns whether variant `key` was compiled for the current device.
bool has(const std::string &key);

// Returns whether there are compiled kernels for the current device. If there are none, prints one
// line to standard error, once.
bool available();

// Returns the current device's compute capability, such as "9.0".
std::string capability();

// Returns the number of SMs of the current device.
int sm_count();

} // namespace conquer::triton
