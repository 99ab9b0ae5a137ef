// rms_norm.cpp: cq_rms_norm.
#include "../runtime/recompute.h"
#include "operators.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

// LlamaRMSNorm of transformers, line by line.
at::Tensor rms_norm_reference(const at::Tensor &x, const at::Tensor &weight, double eps) {
  at::Tensor wide = x.to(at::kFloat);
  at::Tensor variance = wide.pow(2).mean(-1, /*keepdim=*/true);
  return weight * (wide * at::rsqrt(variance + eps)).to(x.scalar_type());
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight,
                            double eps) {
    at::Tensor y = at::empty(x.sizes(), x.options()),
               rstd = at::empty({x.numel() / weight.numel()}, x.options().dtype(at::kFloat));
    registered_device(x).rms_norm(x, weight, eps, y, rstd);
    ctx->save_for_backward({x, weight, rstd});
    return y;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    at::Tensor dx = at::empty(saved[0].sizes(), saved[0].options());
    at::Tensor dweight = registered_device(dx).rms_norm_grad(
        grads[0].contiguous(), saved[0], saved[1], saved[2], ctx->needs_input_grad(1), dx);
    return {dx, dweight, {}};
  }
};

const Device *kernels_for(const at::Tensor &x, const at::Tensor &weight) {
  const Device *device = device_for(x);
  const bool fits = device && device_for(weight) == device &&
                    weight.scalar_type() == x.scalar_type() &&
                    weight.numel() % device->limits.width_multiple == 0 &&
                    weight.numel() <= device->limits.norm_width &&
                    (has_gradients(*device, x.scalar_type()) || !records_grad(x, weight));
  return fits ? device : nullptr;
}

} // namespace

at::Tensor rms_norm(const at::Tensor &x, const at::Tensor &weight, double eps) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && x.size(-1) == weight.size(0), "rms_norm: x ",
              x.sizes(), " does not end in the weight's length ", weight.sizes());
  return recomputable([=] {
    const Device *device = kernels_for(x, weight);
    if (!device)
      return rms_norm_reference(x, weight, eps);
    if (records_grad(x, weight))
      return RmsNorm::apply(x.contiguous(), weight.contiguous(), eps);
    at::Tensor y = at::empty(x.sizes(), x.options());
    device->rms_norm(x.contiguous(), weight.contiguous(), eps, y, {});
    return y;
  });
}

} // namespace conquer::ops

using namespace conquer;

int cq_rms_norm(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::rms_norm");
    return give(out, ops::rms_norm(tensor_of(x), tensor_of(weight), eps));
  });
}

int cq_rms_norm_reference(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out) {
  return guarded(
      [&] { return give(out, ops::rms_norm_reference(tensor_of(x), tensor_of(weight), eps)); });
}
