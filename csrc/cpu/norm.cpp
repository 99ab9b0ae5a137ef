// norm.cpp: cq_rms_norm.
#include "../recompute.h"
#include "cpu.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer {

namespace {

// What LlamaRMSNorm of transformers does, line by line.
at::Tensor rms_norm_reference(const at::Tensor &x, const at::Tensor &weight, double eps) {
  at::Tensor wide = x.to(at::kFloat);
  at::Tensor variance = wide.pow(2).mean(-1, /*keepdim=*/true);
  return weight * (wide * at::rsqrt(variance + eps)).to(x.scalar_type());
}

struct Norm {
  at::Tensor y, rstd;
};

Norm forward(const at::Tensor &x, const at::Tensor &weight, double eps, bool keep_rstd) {
  const int64_t depth = weight.numel(), rows = x.numel() / depth;
  Norm norm{at::empty(x.sizes(), x.options()),
            keep_rstd ? at::empty({rows}, x.options().dtype(at::kFloat)) : at::Tensor()};
  if (const Face *face = face_of(x)) {
    face->rms_norm(x, weight, eps, norm.y, norm.rstd);
    return norm;
  }
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *in = data_of<T>(x), *w = data_of<T>(weight);
    T *out = mutable_data_of<T>(norm.y);
    float *rstd = keep_rstd ? mutable_data_of<float>(norm.rstd) : nullptr;
    at::parallel_for(0, rows, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      int64_t at = begin * depth;
      kernels<T>().rms_norm(in + at, w, float(eps), end - begin, depth, out + at, rstd ? rstd + begin : nullptr);
    });
  });
  return norm;
}

// Gradients with respect to what was normalized and (if asked for) the weight.
std::pair<at::Tensor, at::Tensor> backward(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &weight,
                                           const at::Tensor &rstd, bool wants_dweight) {
  const int64_t depth = weight.numel(), rows = x.numel() / depth;
  at::Tensor dx = at::empty(x.sizes(), x.options()), shares;
  if (const Face *face = face_of(x))
    return {dx, face->rms_norm_grad(dy, x, weight, rstd, wants_dweight, dx)};
  if (wants_dweight)
    shares = at::zeros({at::get_num_threads(), depth}, x.options().dtype(at::kFloat));
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *g = data_of<T>(dy), *in = data_of<T>(x), *w = data_of<T>(weight);
    const float *scale = data_of<float>(rstd);
    T *out = mutable_data_of<T>(dx);
    float *dw = wants_dweight ? mutable_data_of<float>(shares) : nullptr;
    at::parallel_for(0, rows, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      int64_t at = begin * depth;
      kernels<T>().rms_norm_backward(g + at, in + at, w, scale + begin, end - begin, depth, out + at,
                                     dw ? dw + at::get_thread_num() * depth : nullptr);
    });
  });
  return {dx, wants_dweight ? shares.sum(0).to(weight.scalar_type()) : at::Tensor()};
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight, double eps) {
    Norm norm = conquer::forward(x, weight, eps, true);
    ctx->save_for_backward({x, weight, norm.rstd});
    return norm.y;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto [dx, dweight] =
        conquer::backward(grads[0].contiguous(), saved[0], saved[1], saved[2], ctx->needs_input_grad(1));
    return {dx, dweight, {}};
  }
};

void check_norm(const at::Tensor &x, const at::Tensor &weight) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && x.size(-1) == weight.size(0), "rms_norm: x ", x.sizes(),
              " does not end in the weight's length ", weight.sizes());
}

bool takes(const at::Tensor &x, const at::Tensor &weight) {
  if (!has_kernel_type(x) || weight.scalar_type() != x.scalar_type() || x.numel() == 0)
    return false;
  return x.is_cpu() ? weight.is_cpu()
                    : face_of(x) && face_of(weight) && weight.numel() % 16 == 0 && weight.numel() <= 8192 &&
                          !(records_grad(x, weight) && x.scalar_type() == at::kHalf);
}

} // namespace

} // namespace conquer

using namespace conquer;

at::Tensor conquer::normalized(const at::Tensor &x, const at::Tensor &weight, double eps) {
  check_norm(x, weight);
  return recomputable([=] {
    if (!takes(x, weight))
      return rms_norm_reference(x, weight, eps);
    if (records_grad(x, weight))
      return RmsNorm::apply(x.contiguous(), weight.contiguous(), eps);
    return forward(x.contiguous(), weight.contiguous(), eps, false).y;
  });
}

int cq_rms_norm(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::rms_norm");
    return give(out, normalized(tensor_of(x), tensor_of(weight), eps));
  });
}

int cq_rms_norm_reference(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out) {
  return guarded([&] { return give(out, rms_norm_reference(tensor_of(x), tensor_of(weight), eps)); });
}
