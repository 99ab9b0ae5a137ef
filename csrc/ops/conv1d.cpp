// conv1d.cpp: cq_causal_conv1d and cq_conv1d_step.
#include "../runtime/recompute.h"
#include "operators.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

struct ConvFunction : torch::autograd::Function<ConvFunction> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight,
                            const std::optional<at::Tensor> &bias,
                            const std::optional<at::Tensor> &initial,
                            const std::optional<at::Tensor> &segment, bool silu) {
    const ConvInput in{
        x, weight, or_undefined(bias), or_undefined(initial), or_undefined(segment), silu};
    ctx->save_for_backward({in.x, in.weight, in.bias, in.initial, in.segment});
    ctx->saved_data["silu"] = silu;
    return registered_device(x).causal_conv1d(in);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto t = ctx->get_saved_variables();
    ConvGradients g;
    registered_device(t[0]).causal_conv1d_grad(
        {t[0], t[1], t[2], t[3], t[4], ctx->saved_data["silu"].toBool()}, grads[0], g);
    return {g.x, g.weight, g.bias, g.initial, at::Tensor(), at::Tensor()};
  }
};

void check_conv(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                int64_t dim) {
  check_dtype("x", x);
  check_dtype("the weight", weight);
  TORCH_CHECK(weight.dim() == 2 && weight.size(0) == dim, "the weight has shape ", weight.sizes(),
              ", expected [", dim, ", width]");
  TORCH_CHECK(weight.size(1) >= 2 && weight.size(1) <= 4, "the convolution is ", weight.size(1),
              " wide, expected 2 to 4");
  check_shape("the bias", bias, {dim}, x);
}

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_causal_conv1d(cq_tensor x_, cq_tensor weight_, cq_tensor bias_, cq_tensor initial_,
                     cq_tensor seq_idx_, int silu, cq_tensor *y_out, cq_tensor *state_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::causal_conv1d");
    at::Tensor x = tensor_of(x_), weight = tensor_of(weight_), bias = tensor_of(bias_),
               initial = tensor_of(initial_), seq_idx = tensor_of(seq_idx_);
    TORCH_CHECK(x.dim() == 3 && x.numel() > 0, "x has shape ", x.sizes(),
                ", expected [batch, length, channels]");
    ops::check_conv(x, weight, bias, x.size(2));
    int64_t history = weight.size(1) - 1, length = x.size(1);
    ops::check_shape("the initial state", initial, {x.size(0), history, x.size(2)}, x);
    ops::check_shape("seq_idx", seq_idx, {x.size(0), length}, x);
    if (state_out) {
      at::Tensor tail = x.slice(1, std::max<int64_t>(0, length - history));
      if (length < history) {
        at::Tensor before = initial.defined()
                                ? initial.slice(1, length).to(x.scalar_type())
                                : at::zeros({x.size(0), history - length, x.size(2)}, x.options());
        tail = at::cat({before, tail}, 1);
      }
      if (give(state_out, tail.detach().clone()))
        return 1;
    }
    const auto segments = ops::as_optional(ops::segments_of(seq_idx));
    return give(y_out, recomputable([=] {
                  return ops::ConvFunction::apply(x, weight, ops::as_optional(bias),
                                                  ops::as_optional(initial), segments, silu != 0);
                }));
  });
}

int cq_conv1d_step(cq_tensor state_, cq_tensor x_, cq_tensor weight_, cq_tensor bias_, int silu,
                   cq_tensor *y_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::conv1d_step");
    at::NoGradGuard no_grad;
    at::Tensor state = tensor_of(state_), x = tensor_of(x_), weight = tensor_of(weight_),
               bias = tensor_of(bias_);
    TORCH_CHECK(x.dim() == 2 && x.numel() > 0, "x has shape ", x.sizes(),
                ", expected [batch, channels]");
    ops::check_conv(x, weight, bias, x.size(1));
    ops::check_shape("the state", state, {x.size(0), weight.size(1) - 1, x.size(1)}, x);
    return give(y_out,
                ops::registered_device(x).conv1d_step(state, {x, weight, bias, {}, {}, silu != 0}));
  });
}
