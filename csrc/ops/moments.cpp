// moments.cpp: 8-bit moments, packed and unpacked: cq_moment_pack and cq_moment_unpack.
#include "../cpu/kernels.h"
#include "operators.h"

#include <cmath>

namespace conquer::ops {

namespace {

// Calls f(first element, number of elements, exponent) for each block of an 8-bit moment.
template <class F>
void each_block(const at::Tensor &codes, const at::Tensor &exponents, int which, F f) {
  check_moment8(codes, exponents);
  TORCH_CHECK(which == 0 || which == 1, "8-bit moments: the moment must be 0 or 1, not ", which);
  const int64_t n = codes.numel(), blocks = exponents.size(1);
  uint8_t *e = exponents.mutable_data_ptr<uint8_t>() + which * blocks;
  for (int64_t i = 0; i < blocks; i++)
    f(i * moment_block, std::min(moment_block, n - i * moment_block), e[i]);
}

} // namespace

void check_moment8(const at::Tensor &codes, const at::Tensor &exponents) {
  const int64_t blocks = (codes.numel() + moment_block - 1) / moment_block;
  TORCH_CHECK(codes.is_contiguous() && codes.scalar_type() == at::kByte &&
                  exponents.is_contiguous() && exponents.scalar_type() == at::kByte &&
                  exponents.dim() == 2 && exponents.size(0) == 2 && exponents.size(1) == blocks,
              "8-bit moments: ", codes.sizes(), " codes do not go with exponents ",
              exponents.sizes());
}

} // namespace conquer::ops

using namespace conquer;

int cq_moment_unpack(cq_tensor codes, cq_tensor exponents, int which, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor from = tensor_of(codes),
                     values = at::empty(from.sizes(), from.options().dtype(at::kFloat));
    const uint8_t *code = from.const_data_ptr<uint8_t>();
    uint32_t *bits = static_cast<uint32_t *>(values.mutable_data_ptr());
    ops::each_block(
        from, tensor_of(exponents), which, [&](int64_t first, int64_t n, uint8_t &exponent) {
          const uint32_t base = moment_base(exponent, which), magnitude = which ? 255 : 127;
          for (int64_t i = first; i < first + n; i++) {
            const uint32_t k = code[i] & magnitude;
            bits[i] = (k ? (k + base) << 20 : 0) | uint32_t(code[i] & ~magnitude) << 24;
          }
        });
    return give(out, values.to(at::kBFloat16));
  });
}

int cq_moment_pack(cq_tensor values, cq_tensor codes, cq_tensor exponents, int which) {
  return guarded([&] {
    const at::Tensor from = tensor_of(values).to(at::kFloat).contiguous(), into = tensor_of(codes);
    TORCH_CHECK(from.sizes() == into.sizes(), "8-bit moments: ", from.sizes(), " values for ",
                into.sizes());
    const float *value = from.const_data_ptr<float>();
    uint8_t *code = into.mutable_data_ptr<uint8_t>();
    ops::each_block(into, tensor_of(exponents), which,
                    [&](int64_t first, int64_t n, uint8_t &exponent) {
                      float largest = 0;
                      for (int64_t i = first; i < first + n; i++)
                        largest = std::max(largest, std::abs(value[i]));
                      exponent = moment_exponent(largest);
                      const uint32_t base = moment_base(exponent, which);
                      const float smallest = __builtin_bit_cast(float, (base + 1) << 20);
                      for (int64_t i = first; i < first + n; i++) {
                        const float a = std::abs(value[i]);
                        uint32_t k = a > (which ? 0 : smallest / 2);
                        if (a >= smallest)
                          k = ((__builtin_bit_cast(uint32_t, a) + 0x80000) >> 20) - base;
                        code[i] = uint8_t(k | (which == 0 && std::signbit(value[i]) ? 128 : 0));
                      }
                    });
    return 0;
  });
}
