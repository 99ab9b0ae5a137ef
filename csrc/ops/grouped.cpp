// grouped.cpp: cq_grouped_linear.
#include "blocks.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

class GroupedLinear : public torch::autograd::Function<GroupedLinear> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight,
                            const at::Tensor &index, int64_t count) {
    ctx->save_for_backward({x, weight, index});
    ctx->saved_data["count"] = count;
    return registered_device(x).grouped_linear(x, weight, index, count, /*across=*/false);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &index = saved[2];
    const int64_t count = ctx->saved_data["count"].toInt();
    const Device &device = registered_device(x);
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor dx, dweight;
    if (ctx->needs_input_grad(0))
      dx = device.grouped_linear(dy, weight, index, count, /*across=*/true);
    if (ctx->needs_input_grad(1))
      dweight = device.grouped_grad_weight(x, dy, index, count);
    return {dx, dweight, {}, {}};
  }
};

// Whether the device has kernels for x [N,D] and weight [count·R,D].
bool has_kernels(const at::Tensor &x, const at::Tensor &weight, int64_t count) {
  const Device *device = device_for(x);
  if (!device || !device->grouped_linear || blocks_of(weight) || device_for(weight) != device)
    return false;
  const int64_t multiple = device->limits.width_multiple;
  return x.dim() == 2 && x.size(0) > 0 && weight.dim() == 2 && weight.is_contiguous() &&
         weight.scalar_type() == x.scalar_type() && x.scalar_type() != at::kFloat &&
         x.size(1) == weight.size(1) && x.size(1) % multiple == 0 && count > 0 &&
         count <= device->limits.groups && weight.size(0) % (count * multiple) == 0 &&
         (has_gradients(*device, x.scalar_type()) || !records_grad(x, weight));
}

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_grouped_linear(cq_tensor x_, cq_tensor weight_, cq_tensor index_, int64_t count,
                      cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::grouped_linear");
    const at::Tensor x = tensor_of(x_), weight = tensor_of(weight_), index = tensor_of(index_);
    *out = nullptr;
    if (!ops::has_kernels(x, weight, count))
      return 0;
    TORCH_CHECK(index.dim() == 1 && index.size(0) == x.size(0) &&
                    index.scalar_type() == at::kLong && index.device() == x.device(),
                "grouped linear: the groups of ", x.sizes(), " are ", index.sizes(), " on ",
                index.device());
    const at::Tensor rows = x.contiguous(), groups = index.contiguous();
    return give(out, ops::records_grad(x, weight)
                         ? ops::GroupedLinear::apply(rows, weight, groups, count)
                         : ops::registered_device(x).grouped_linear(rows, weight, groups, count,
                                                                    /*across=*/false));
  });
}
