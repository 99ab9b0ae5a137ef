// swiglu.cpp: cq_swiglu.
#include "../runtime/recompute.h"
#include "operators.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

at::Tensor swiglu_reference(const at::Tensor &gate_up) {
  auto halves = gate_up.chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}

at::Tensor swiglu_kernel(const at::Tensor &gate_up) {
  auto shape = gate_up.sizes().vec();
  shape.back() /= 2;
  at::Tensor out = at::empty(shape, gate_up.options());
  registered_device(gate_up).swiglu(gate_up, out);
  return out;
}

class SwiGLU : public torch::autograd::Function<SwiGLU> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &gate_up) {
    ctx->save_for_backward({gate_up});
    return swiglu_kernel(gate_up);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const at::Tensor gate_up = ctx->get_saved_variables()[0];
    at::Tensor dx = at::empty(gate_up.sizes(), gate_up.options());
    registered_device(gate_up).swiglu_grad(grads[0].contiguous(), gate_up, dx);
    return {dx};
  }
};

bool has_kernel(const at::Tensor &x) {
  const Device *device = device_for(x);
  return device && x.size(-1) % (2 * device->limits.width_multiple) == 0 &&
         (has_gradients(*device, x.scalar_type()) || !records_grad(x));
}

} // namespace

at::Tensor swiglu(const at::Tensor &x) {
  return recomputable([=] {
    if (!has_kernel(x))
      return swiglu_reference(x);
    return records_grad(x) ? SwiGLU::apply(x.contiguous()) : swiglu_kernel(x.contiguous());
  });
}

} // namespace conquer::ops

using namespace conquer;

int cq_swiglu(cq_tensor gate_up, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::swiglu");
    const at::Tensor x = tensor_of(gate_up);
    TORCH_CHECK(x.dim() >= 1 && x.size(-1) % 2 == 0, "swiglu: the last dimension of ", x.sizes(),
                " must hold gate and up side by side");
    return give(out, ops::swiglu(x));
  });
}

int cq_swiglu_reference(cq_tensor gate_up, cq_tensor *out) {
  return guarded([&] { return give(out, ops::swiglu_reference(tensor_of(gate_up))); });
}
