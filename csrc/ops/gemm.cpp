// gemm.cpp: float32 GEMMs of many rows on a CPU. libtorch calls MKL for them, which stays on AVX2
// on AMD's processors and reaches half of their speed or less. oneDNN, which libtorch also holds
// and calls for bfloat16, uses AVX-512 where it is there. Its results for one shape are the same in
// every run.
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

class Linear : public torch::autograd::Function<Linear> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight,
                            const std::optional<at::Tensor> &bias) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["bias"] = bias && bias->requires_grad();
    return rows_times(x, weight, bias);
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

at::Tensor gemm(const at::Tensor &a, const at::Tensor &b) { return rows_times(a, b.t(), {}); }

void add_gemm(at::Tensor &into, const at::Tensor &a, const at::Tensor &b) {
  if (into.scalar_type() == at::kFloat && into.is_cpu())
    into.add_(gemm(a, b));
  else
    into.addmm_(a, b);
}

at::Tensor gemm_linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  const auto b = bias.defined() ? std::optional(bias) : std::nullopt;
  if (!x.is_cpu() || x.scalar_type() != at::kFloat || weight.scalar_type() != at::kFloat ||
      weight.dim() != 2 || x.dim() < 1 || x.size(-1) != weight.size(1) || x.numel() == 0 ||
      (b && b->numel() != weight.size(0)))
    return at::linear(x, weight, b); // its error names what does not fit
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return Linear::apply(x.reshape({-1, x.size(-1)}), weight, b).view(shape);
}

} // namespace conquer::ops
