// swiglu.cpp: cq_swiglu.
#include "../recompute.h"
#include "cpu.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer {

namespace {

at::Tensor swiglu_reference(const at::Tensor &gate_up) {
  auto halves = gate_up.chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}

at::Tensor swiglu(const at::Tensor &gate_up) {
  const int64_t width = gate_up.size(-1) / 2, rows = gate_up.numel() / (2 * width);
  auto shape = gate_up.sizes().vec();
  shape.back() = width;
  at::Tensor out = at::empty(shape, gate_up.options());
  if (const Face *face = face_of(gate_up)) {
    face->swiglu(gate_up, out);
    return out;
  }
  with_type(gate_up.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *x = data_of<T>(gate_up);
    T *y = mutable_data_of<T>(out);
    at::parallel_for(0, rows, rows_per_share(width), [&](int64_t begin, int64_t end) {
      kernels<T>().swiglu(x + begin * 2 * width, end - begin, width, y + begin * width);
    });
  });
  return out;
}

class SwiGLU : public torch::autograd::Function<SwiGLU> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &gate_up) {
    ctx->save_for_backward({gate_up});
    return swiglu(gate_up);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const at::Tensor gate_up = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const int64_t width = dy.size(-1), rows = dy.numel() / width;
    at::Tensor dx = at::empty(gate_up.sizes(), gate_up.options());
    if (const Face *face = face_of(gate_up)) {
      face->swiglu_grad(dy, gate_up, dx);
      return {dx};
    }
    with_type(dy.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const T *g = data_of<T>(dy), *x = data_of<T>(gate_up);
      T *out = mutable_data_of<T>(dx);
      at::parallel_for(0, rows, rows_per_share(width), [&](int64_t begin, int64_t end) {
        kernels<T>().swiglu_backward(g + begin * width, x + begin * 2 * width, end - begin, width,
                                     out + begin * 2 * width);
      });
    });
    return {dx};
  }
};

// Whether there are kernels for x: the CPU's, or another device's, whose float16 has no backward.
bool takes(const at::Tensor &x) {
  if (!has_kernel_type(x) || x.numel() == 0)
    return false;
  return x.is_cpu() || (face_of(x) && x.size(-1) % 32 == 0 && !(records_grad(x) && x.scalar_type() == at::kHalf));
}

} // namespace

at::Tensor gated(const at::Tensor &x) {
  return recomputable([=] {
    if (!takes(x))
      return swiglu_reference(x);
    return records_grad(x) ? SwiGLU::apply(x.contiguous()) : swiglu(x.contiguous());
  });
}

} // namespace conquer

using namespace conquer;

int cq_swiglu(cq_tensor gate_up, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::swiglu");
    const at::Tensor x = tensor_of(gate_up);
    TORCH_CHECK(x.dim() >= 1 && x.size(-1) % 2 == 0, "swiglu: the last dimension of ", x.sizes(),
                " must hold gate and up side by side");
    return give(out, gated(x));
  });
}

int cq_swiglu_reference(cq_tensor gate_up, cq_tensor *out) {
  return guarded([&] { return give(out, swiglu_reference(tensor_of(gate_up))); });
}
