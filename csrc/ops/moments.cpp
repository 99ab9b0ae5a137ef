// moments.cpp: 8-bit moments in plain libtorch, on any device: cq_moment_pack and cq_moment_unpack.
#include "../cpu/kernels.h"
#include "operators.h"

namespace conquer::ops {

namespace {

// What the codes of each block count from, int32 [blocks,1]; see moment_base.
at::Tensor bases(const at::Tensor &exponents, int which) {
  return (exponents[which].to(at::kInt) * 8 + int32_t(moment_base(0, which))).unsqueeze(1);
}

// t's elements in blocks, zeros after the last one: [blocks,moment_block].
at::Tensor in_blocks(const at::Tensor &t) {
  const int64_t n = t.numel(), blocks = (n + moment_block - 1) / moment_block;
  return at::constant_pad_nd(t.reshape({-1}), {0, blocks * moment_block - n})
      .view({blocks, moment_block});
}

// The first elements of blocks, in the shape of t.
at::Tensor out_of_blocks(const at::Tensor &blocks, const at::Tensor &t) {
  return blocks.reshape({-1}).narrow(0, 0, t.numel()).view(t.sizes());
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

at::Tensor unpacked_moment(const at::Tensor &codes, const at::Tensor &exponents, int which) {
  check_moment8(codes, exponents);
  const at::Tensor all = in_blocks(codes).to(at::kInt), code = which ? all : all.bitwise_and(127),
                   bits = (code + bases(exponents, which)).bitwise_left_shift(20);
  at::Tensor value = at::where(code == 0, 0, bits).view(at::kFloat);
  if (which == 0)
    value = at::where(all > 127, -value, value);
  return out_of_blocks(value, codes);
}

void pack_moment(const at::Tensor &values, const at::Tensor &codes, const at::Tensor &exponents,
                 int which, bool stochastic) {
  check_moment8(codes, exponents);
  const at::Tensor wide = in_blocks(values.to(at::kFloat)), size = wide.abs();
  exponents[which].copy_(
      (size.amax(1).view(at::kInt) + 0xFFFFF).bitwise_right_shift(23).clamp(31, 253));
  const at::Tensor base = bases(exponents, which),
                   smallest = (base + 1).bitwise_left_shift(20).view(at::kFloat);
  // Half a step, or a random part of it.
  const at::Tensor part = stochastic ? at::randint(0, 1 << 20, size.sizes(), base.options())
                                     : at::full({}, 1 << 19, base.options());
  at::Tensor code = (size.view(at::kInt) + part).bitwise_right_shift(20) - base;
  const at::Tensor bar = which ? at::zeros({}, size.options()) : smallest * (part * 0x1p-20);
  code = at::where(size < smallest, (size > bar).to(at::kInt), code);
  if (which == 0)
    code = code + wide.signbit().to(at::kInt) * 128;
  codes.copy_(out_of_blocks(code, codes));
}

} // namespace conquer::ops

using namespace conquer;

int cq_moment_unpack(cq_tensor codes, cq_tensor exponents, int which, cq_tensor *out) {
  return guarded([&] {
    TORCH_CHECK(which == 0 || which == 1, "8-bit moments: the moment must be 0 or 1, not ", which);
    return give(
        out, ops::unpacked_moment(tensor_of(codes), tensor_of(exponents), which).to(at::kBFloat16));
  });
}

int cq_moment_pack(cq_tensor values, cq_tensor codes, cq_tensor exponents, int which) {
  return guarded([&] {
    const at::Tensor from = tensor_of(values), into = tensor_of(codes);
    TORCH_CHECK(which == 0 || which == 1, "8-bit moments: the moment must be 0 or 1, not ", which);
    TORCH_CHECK(from.sizes() == into.sizes(), "8-bit moments: ", from.sizes(), " values for ",
                into.sizes());
    ops::pack_moment(from, into, tensor_of(exponents), which, /*stochastic=*/false);
    return 0;
  });
}
