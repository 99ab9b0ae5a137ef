// norm.cpp: cq_rms_norm and cq_add_rms_norm.
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
  at::Tensor total, y, rstd; // total: x + residual, undefined without one
};

Norm forward(const at::Tensor &x, const at::Tensor &residual, const at::Tensor &weight, double eps, bool keep_rstd) {
  const int64_t depth = weight.numel(), rows = x.numel() / depth;
  const bool adds = residual.defined();
  if (const Face *face = face_of(x)) {
    at::Tensor total = adds ? x + residual : x;
    Norm norm{adds ? total : at::Tensor(), at::empty(x.sizes(), x.options()),
              keep_rstd ? at::empty({rows}, x.options().dtype(at::kFloat)) : at::Tensor()};
    face->rms_norm(total, weight, eps, norm.y, norm.rstd);
    return norm;
  }
  Norm norm{adds ? at::empty(x.sizes(), x.options()) : at::Tensor(), at::empty(x.sizes(), x.options()),
            keep_rstd ? at::empty({rows}, x.options().dtype(at::kFloat)) : at::Tensor()};
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *in = data_of<T>(x), *other = adds ? data_of<T>(residual) : nullptr, *w = data_of<T>(weight);
    T *total = adds ? mutable_data_of<T>(norm.total) : nullptr, *out = mutable_data_of<T>(norm.y);
    float *rstd = keep_rstd ? mutable_data_of<float>(norm.rstd) : nullptr;
    at::parallel_for(0, rows, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      int64_t at = begin * depth;
      kernels<T>().rms_norm(in + at, adds ? other + at : nullptr, w, float(eps), end - begin, depth,
                            adds ? total + at : nullptr, out + at, rstd ? rstd + begin : nullptr);
    });
  });
  return norm;
}

// Gradients with respect to what was normalized and (if asked for) the weight.
std::pair<at::Tensor, at::Tensor> backward(const at::Tensor &dy, const at::Tensor &dtotal, const at::Tensor &x,
                                           const at::Tensor &weight, const at::Tensor &rstd, bool wants_dweight) {
  const int64_t depth = weight.numel(), rows = x.numel() / depth;
  at::Tensor dx = at::empty(x.sizes(), x.options()), shares;
  if (const Face *face = face_of(x)) {
    at::Tensor dweight = face->rms_norm_grad(dy, x, weight, rstd, wants_dweight, dx);
    return {dtotal.defined() ? dx.add_(dtotal) : dx, dweight};
  }
  if (wants_dweight)
    shares = at::zeros({at::get_num_threads(), depth}, x.options().dtype(at::kFloat));
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *g = data_of<T>(dy), *direct = dtotal.defined() ? data_of<T>(dtotal) : nullptr, *in = data_of<T>(x),
            *w = data_of<T>(weight);
    const float *scale = data_of<float>(rstd);
    T *out = mutable_data_of<T>(dx);
    float *dw = wants_dweight ? mutable_data_of<float>(shares) : nullptr;
    at::parallel_for(0, rows, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      int64_t at = begin * depth;
      kernels<T>().rms_norm_backward(g + at, direct ? direct + at : nullptr, in + at, w, scale + begin, end - begin,
                                     depth, out + at, dw ? dw + at::get_thread_num() * depth : nullptr);
    });
  });
  return {dx, wants_dweight ? shares.sum(0).to(weight.scalar_type()) : at::Tensor()};
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight, double eps) {
    Norm norm = conquer::forward(x, {}, weight, eps, true);
    ctx->save_for_backward({x, weight, norm.rstd});
    return norm.y;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto [dx, dweight] =
        conquer::backward(grads[0].contiguous(), {}, saved[0], saved[1], saved[2], ctx->needs_input_grad(1));
    return {dx, dweight, {}};
  }
};

class AddRmsNorm : public torch::autograd::Function<AddRmsNorm> {
public:
  static variable_list forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &residual,
                               const at::Tensor &weight, double eps) {
    Norm norm = conquer::forward(x, residual, weight, eps, true);
    ctx->save_for_backward({norm.total, weight, norm.rstd});
    ctx->set_materialize_grads(false);
    return {norm.total, norm.y};
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    if (!grads[1].defined()) // the norm was not used
      return {grads[0], grads[0], {}, {}};
    auto [dx, dweight] =
        conquer::backward(grads[1].contiguous(), grads[0].defined() ? grads[0].contiguous() : at::Tensor(), saved[0],
                          saved[1], saved[2], ctx->needs_input_grad(2));
    return {dx, dx, dweight, {}};
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
  if (!takes(x, weight))
    return rms_norm_reference(x, weight, eps);
  if (records_grad(x, weight))
    return RmsNorm::apply(x.contiguous(), weight.contiguous(), eps);
  return forward(x.contiguous(), {}, weight.contiguous(), eps, false).y;
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

int cq_add_rms_norm(cq_tensor x, cq_tensor residual, cq_tensor weight, double eps, cq_tensor *out_sum,
                    cq_tensor *out_norm) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::add_rms_norm");
    const at::Tensor input = tensor_of(x), other = tensor_of(residual), w = tensor_of(weight);
    check_norm(input, w);
    if (!takes(input, w) || other.sizes() != input.sizes() || other.scalar_type() != input.scalar_type() ||
        other.device() != input.device()) {
      at::Tensor total = input + other;
      return give_all({{out_sum, total}, {out_norm, rms_norm_reference(total, w, eps)}});
    }
    if (records_grad(input, other, w)) {
      auto both = AddRmsNorm::apply(input.contiguous(), other.contiguous(), w.contiguous(), eps);
      return give_all({{out_sum, both[0]}, {out_norm, both[1]}});
    }
    Norm norm = forward(input.contiguous(), other.contiguous(), w.contiguous(), eps, false);
    return give_all({{out_sum, norm.total}, {out_norm, norm.y}});
  });
}

int cq_add_rms_norm_reference(cq_tensor x, cq_tensor residual, cq_tensor weight, double eps, cq_tensor *out_sum,
                              cq_tensor *out_norm) {
  return guarded([&] {
    at::Tensor total = tensor_of(x) + tensor_of(residual);
    return give_all({{out_sum, total}, {out_norm, rms_norm_reference(total, tensor_of(weight), eps)}});
  });
}
