// gated_rms_norm.cpp: cq_gated_rms_norm.
#include "../runtime/recompute.h"
#include "operators.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

struct GatedNorm : torch::autograd::Function<GatedNorm> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x,
                            const std::optional<at::Tensor> &z, const at::Tensor &weight,
                            double eps, int64_t group) {
    const GatedNormInput in{x, or_undefined(z), weight, eps, group};
    ctx->save_for_backward({in.x, in.z, in.weight});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["group"] = group;
    return registered_device(x).gated_rms_norm(in);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto t = ctx->get_saved_variables();
    GatedNormGradients g;
    registered_device(t[0]).gated_rms_norm_grad(
        {t[0], t[1], t[2], ctx->saved_data["eps"].toDouble(), ctx->saved_data["group"].toInt()},
        grads[0], g);
    return {g.x, g.z, g.weight, at::Tensor(), at::Tensor()};
  }
};

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_gated_rms_norm(cq_tensor x_, cq_tensor z_, cq_tensor weight_, double eps, int64_t group_size,
                      cq_tensor *y_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::gated_rms_norm");
    at::Tensor x = tensor_of(x_), z = tensor_of(z_), weight = tensor_of(weight_);
    TORCH_CHECK(x.dim() >= 1 && x.numel() > 0, "x has shape ", x.sizes(),
                ": there is nothing to normalize");
    ops::check_dtype("x", x);
    int64_t dim = x.size(-1), group = group_size > 0 ? group_size : dim;
    TORCH_CHECK(dim % group == 0, "groups of ", group, " do not divide ", dim, " channels");
    ops::check_shape("z", z, x.sizes(), x);
    ops::check_shape("the weight", weight, {dim}, x);
    return give(y_out, recomputable([=] {
                  return ops::GatedNorm::apply(x, ops::as_optional(z), weight, eps, group);
                }));
  });
}
