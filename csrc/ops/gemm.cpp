// gemm.cpp: GEMMs of many rows on a CPU. In float32 libtorch calls MKL, which stays on AVX2 on
// AMD's processors and reaches half of their speed or less. oneDNN, which libtorch also holds, uses
// AVX-512 where it is there. Its results for one shape are the same in every run.
//
// In 16 bits libtorch calls oneDNN too, but only on processors whose instructions suit it. On all
// others it multiplies one element after the other on one thread. There the operands are widened to
// float32, and the result is rounded once.
#include "../cpu/kernels.h"
#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

namespace conquer::ops {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Pointwise = at::Tensor(const at::Tensor &, const at::Tensor &,
                             const std::optional<at::Tensor> &, std::string_view,
                             c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

// oneDNN's GEMM, if libtorch was built with it.
const std::optional<c10::TypedOperatorHandle<Pointwise>> &onednn() {
  static const auto found = [] {
    auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return op ? std::optional(op->typed<Pointwise>()) : std::nullopt;
  }();
  return found;
}

// Whether libtorch's GEMMs of a type are slow on this processor.
bool slow(at::ScalarType type) {
#if defined(__x86_64__)
  static const bool float16 = __builtin_cpu_supports("avx512fp16");
#else
  constexpr bool float16 = false;
#endif
  return (type == at::kBFloat16 && !has_avx512()) ||
         (type == at::kHalf && !(has_avx512() && float16));
}

// x [M, D] weightᵀ [N, D] + bias [N]
at::Tensor rows_times(const at::Tensor &x, const at::Tensor &weight,
                      const std::optional<at::Tensor> &bias) {
  if (onednn() && x.scalar_type() == at::kFloat && x.is_cpu() && x.numel() > 0 &&
      weight.numel() > 0) {
    at::AutoDispatchBelowAutograd below;
    return onednn()->call(x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
  }
  return at::linear(x, weight, bias);
}

// The same in float32 for operands of 16 bits, some rows of the weight after the other.
at::Tensor widened(const at::Tensor &x, const at::Tensor &weight,
                   const std::optional<at::Tensor> &bias) {
  at::AutoDispatchBelowAutograd below;
  constexpr int64_t together = 1 << 24; // elements of the weight
  const int64_t n = weight.size(0), rows = std::max<int64_t>(1, together / weight.size(1));
  const at::Tensor wide = x.to(at::kFloat);
  auto part = [&](int64_t first, int64_t count) {
    return rows_times(wide, weight.narrow(0, first, count).to(at::kFloat),
                      bias ? std::optional(bias->narrow(0, first, count).to(at::kFloat))
                           : std::nullopt);
  };
  if (n <= rows)
    return part(0, n);
  const at::Tensor y = at::empty({x.size(0), n}, wide.options());
  for (int64_t first = 0; first < n; first += rows) {
    const int64_t count = std::min(rows, n - first);
    y.narrow(1, first, count).copy_(part(first, count));
  }
  return y;
}

bool widens(const at::Tensor &x, const at::Tensor &weight) {
  return x.is_cpu() && slow(x.scalar_type()) && weight.scalar_type() == x.scalar_type() &&
         x.numel() > 0 && weight.numel() > 0;
}

at::Tensor product(const at::Tensor &x, const at::Tensor &weight,
                   const std::optional<at::Tensor> &bias) {
  return widens(x, weight) ? widened(x, weight, bias).to(x.scalar_type())
                           : rows_times(x, weight, bias);
}

class Linear : public torch::autograd::Function<Linear> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight,
                            const std::optional<at::Tensor> &bias) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["bias"] = bias && bias->requires_grad();
    return product(x, weight, bias);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor dy = grads[0].contiguous(), &x = saved[0], &weight = saved[1];
    return {ctx->needs_input_grad(0) ? gemm(dy, weight) : at::Tensor(),
            ctx->needs_input_grad(1) ? gemm(dy.t(), x) : at::Tensor(),
            ctx->saved_data["bias"].toBool() ? dy.sum(0) : at::Tensor()};
  }
};

} // namespace

at::Tensor gemm(const at::Tensor &a, const at::Tensor &b) { return product(a, b.t(), {}); }

void add_gemm(at::Tensor &into, const at::Tensor &a, const at::Tensor &b) {
  if (into.scalar_type() == at::kFloat && into.is_cpu())
    into.add_(gemm(a, b));
  else if (widens(a, b))
    into.copy_(widened(a, b.t(), {}).add_(into));
  else
    into.addmm_(a, b);
}

at::Tensor gemm_linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  const auto b = bias.defined() ? std::optional(bias) : std::nullopt;
  const bool ours = x.is_cpu() && weight.scalar_type() == x.scalar_type() &&
                    (x.scalar_type() == at::kFloat || slow(x.scalar_type()));
  if (!ours || weight.dim() != 2 || x.dim() < 1 || x.size(-1) != weight.size(1) || x.numel() == 0 ||
      (b && b->numel() != weight.size(0)))
    return at::linear(x, weight, b); // its error names what does not fit
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return Linear::apply(x.reshape({-1, x.size(-1)}), weight, b).view(shape);
}

at::Tensor matmul(const at::Tensor &a, const at::Tensor &b) {
  const bool matrices = a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0);
  return matrices && widens(a, b) ? gemm_linear(a, b.t(), {}) : at::matmul(a, b);
}

} // namespace conquer::ops

using namespace conquer;

int cq_matmul(cq_tensor a, cq_tensor b, cq_tensor *out) {
  return guarded([&] { return give(out, ops::matmul(tensor_of(a), tensor_of(b))); });
}

int cq_add_matmul(cq_tensor into, cq_tensor a, cq_tensor b) {
  return guarded([&] {
    at::Tensor sum = tensor_of(into);
    const at::Tensor x = tensor_of(a), y = tensor_of(b);
    if (ops::widens(x, y))
      sum.add_(ops::matmul(x, y));
    else
      sum.addmm_(x, y);
    return 0;
  });
}
