// operators.h: helpers of the operators, and operators that other operators call.
#pragma once

#include "../runtime/handles.h"
#include "device.h"

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

namespace conquer::ops {

// Whether autograd would record an operation on these tensors.
template <class... Ts> bool records_grad(const Ts &...tensors) {
  return at::GradMode::is_enabled() && ((tensors.defined() && tensors.requires_grad()) || ...);
}

// Whether the device's kernels can go backward in this dtype.
inline bool has_gradients(const Device &device, at::ScalarType type) {
  return type != at::kHalf || device.limits.float16_gradients;
}

// Autograd takes an absent tensor as an empty optional.
inline std::optional<at::Tensor> as_optional(const at::Tensor &t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}
inline at::Tensor or_undefined(const std::optional<at::Tensor> &t) { return t ? *t : at::Tensor(); }

// Makes handles of several results.
inline int give_all(std::initializer_list<std::pair<cq_tensor *, at::Tensor>> results) {
  for (auto &[out, t] : results)
    if (give(out, t))
      return 1;
  return 0;
}

// check_shape throws unless t is undefined, or has the given shape and the device of `beside`.
// check_dtype throws unless t is float32, bfloat16 or float16. Messages call t `name`.
void check_shape(const char *name, const at::Tensor &t, at::IntArrayRef shape,
                 const at::Tensor &beside);
void check_dtype(const char *name, const at::Tensor &t);

// The operators of conquer.h on tensors, with gradients.
at::Tensor rms_norm(const at::Tensor &x, const at::Tensor &weight, double eps);
at::Tensor swiglu(const at::Tensor &gate_up);
at::Tensor linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias);
at::Tensor linear_add(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                      const at::Tensor &residual);
at::Tensor norm_linear(const at::Tensor &x, const at::Tensor &norm, double eps,
                       const at::Tensor &weight, const at::Tensor &bias);
at::Tensor norm_linear_add(const at::Tensor &x, const at::Tensor &norm, double eps,
                           const at::Tensor &weight, const at::Tensor &bias,
                           const at::Tensor &residual);
at::Tensor norm_linear_swiglu(const at::Tensor &x, const at::Tensor &norm, double eps,
                              const at::Tensor &weight, const at::Tensor &bias);

// a [M,D] times b [D,N] without gradients, and the same added to `into` in its dtype (gemm.cpp).
at::Tensor gemm(const at::Tensor &a, const at::Tensor &b);
void add_gemm(at::Tensor &into, const at::Tensor &a, const at::Tensor &b);
// at::linear with gradients, through gemm.
at::Tensor gemm_linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias);

// at::matmul with gradients; of two matrices on a CPU as gemm_linear.
at::Tensor matmul(const at::Tensor &a, const at::Tensor &b);

// Throws unless codes and exponents are an 8-bit moment's; see cq_moment_pack (moments.cpp).
void check_moment8(const at::Tensor &codes, const at::Tensor &exponents);
// The values of an 8-bit moment in float32, and codes and exponents of values, rounded to nearest
// or stochastically; see cq_moment_pack.
at::Tensor unpacked_moment(const at::Tensor &codes, const at::Tensor &exponents, int which);
void pack_moment(const at::Tensor &values, const at::Tensor &codes, const at::Tensor &exponents,
                 int which, bool stochastic);

// The number of sequence changes before each token, int32 [B,L], from the sequences' numbers; so a
// number that is used twice still means two sequences (ssd_scan.cpp).
at::Tensor segments_of(const at::Tensor &seq_idx);
// Throws unless heads, head dimension, groups and state of a scan or step agree and are in range
// (ssd_scan.cpp).
void check_scan(const at::Tensor &x, const ScanInput &in, const ScanOptions &options);

} // namespace conquer::ops
