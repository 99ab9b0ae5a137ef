// cpu.h: what the tensor half of the CPU operations shares.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include "../face.h"
#include "../internal.h"
#include "kernels.h"

namespace conquer {

inline bool has_kernel_type(const at::Tensor &t) {
  auto type = t.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

// Calls f with a value of the element type that the kernels use for `type`.
template <class F> auto with_type(at::ScalarType type, F &&f) {
  switch (type) {
  case at::kFloat:
    return f(float{});
  case at::kBFloat16:
    return f(bf16{});
  case at::kHalf:
    return f(f16{});
  default:
    TORCH_CHECK(false, "no kernel for elements of type ", type, ": float32, bfloat16 and float16 have one");
  }
}

template <class T> const T *data_of(const at::Tensor &t) { return static_cast<const T *>(t.const_data_ptr()); }
template <class T> T *mutable_data_of(const at::Tensor &t) { return static_cast<T *>(t.mutable_data_ptr()); }

// Whether a gradient may be asked of an operation on these tensors.
template <class... Ts> bool records_grad(const Ts &...tensors) {
  return at::GradMode::is_enabled() && ((tensors.defined() && tensors.requires_grad()) || ...);
}

inline int give_all(std::initializer_list<std::pair<cq_tensor *, at::Tensor>> results) {
  for (auto &[out, t] : results)
    if (give(out, t))
      return 1;
  return 0;
}

// cq_swiglu of a tensor, with its gradient where one is asked for (swiglu.cpp).
at::Tensor gated(const at::Tensor &gate_up);

// cq_rms_norm likewise (norm.cpp).
at::Tensor normalized(const at::Tensor &x, const at::Tensor &weight, double eps);

// a [M, D] times b [D, N], without gradients; and the same added to `into`, in its dtype (product.cpp).
at::Tensor product(const at::Tensor &a, const at::Tensor &b);
void add_product(at::Tensor &into, const at::Tensor &a, const at::Tensor &b);

// at::linear, with its gradients.
at::Tensor linear_many(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias);

// How many rows of `width` elements make up a share of work worth waking a thread for (some 2 us).
inline int64_t rows_per_share(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1)); }

} // namespace conquer
