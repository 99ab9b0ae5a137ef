// attention.cpp: cq_sdpa.
#include "operators.h"

#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>
#include <cmath>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

at::Tensor dense_rows(const at::Tensor &x) { return x.stride(-1) == 1 ? x : x.contiguous(); }

class Attention : public torch::autograd::Function<Attention> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &q_, const at::Tensor &k_,
                            const at::Tensor &v_, const std::optional<at::Tensor> &mask_,
                            bool causal, double scale) {
    at::NoGradGuard no_grad;
    const at::Tensor q = dense_rows(q_), k = dense_rows(k_), v = dense_rows(v_);
    const int64_t B = q.size(0), H = q.size(1), L = q.size(2), P = q.size(3);
    at::Tensor mask;
    if (mask_)
      mask = dense_rows(*mask_).expand({B, H, L, k.size(2)});
    // The result's tokens lie one after the other, so that heads join without a copy.
    at::Tensor out = at::empty({B, L, H, P}, q.options()).transpose(1, 2),
               lse = at::empty({B, H, L}, q.options().dtype(at::kFloat));
    registered_device(q).attention(q, k, v, mask, causal, scale, out, lse);
    ctx->save_for_backward({q, k, v, mask, out, lse});
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["scale"] = scale;
    return out;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const variable_list s = ctx->get_saved_variables();
    variable_list result = registered_device(s[0]).attention_grad(
        s[0], s[1], s[2], s[3], ctx->saved_data["causal"].toBool(),
        ctx->saved_data["scale"].toDouble(), s[4], s[5], dense_rows(grads[0]));
    result.resize(6);
    return result;
  }
};

bool has_kernel(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                const at::Tensor &mask) {
  const Device *device = device_for(q);
  if (!device || !device->attention)
    return false;
  auto fits = [&](const at::Tensor &x) {
    return device_for(x) == device && x.dim() == 4 && x.scalar_type() == q.scalar_type() &&
           x.size(3) == q.size(3) && x.size(0) == q.size(0);
  };
  return fits(q) && fits(k) && fits(v) && q.size(3) % 16 == 0 && k.size(2) == v.size(2) &&
         k.size(1) == v.size(1) && q.size(1) % k.size(1) == 0 &&
         (!mask.defined() || (mask.device() == q.device() && mask.scalar_type() == at::kBool &&
                              mask.size(-1) == k.size(2)));
}

// Which of libtorch's attention kernels a GPU tries first. cuDNN's are the fastest, half again as
// fast as flash's, but plan anew for each shape: training has few shapes, prompts have any.
void choose_attention(bool training) {
  static std::atomic<int> chosen{-1};
  if (chosen.exchange(training) == training)
    return;
  using at::SDPBackend;
  std::vector<int64_t> order;
  for (auto backend :
       training ? std::vector<SDPBackend>{SDPBackend::cudnn_attention, SDPBackend::flash_attention}
                : std::vector<SDPBackend>{SDPBackend::flash_attention, SDPBackend::cudnn_attention})
    order.push_back(static_cast<int64_t>(backend));
  order.push_back(static_cast<int64_t>(SDPBackend::efficient_attention));
  order.push_back(static_cast<int64_t>(SDPBackend::math));
  order.push_back(static_cast<int64_t>(SDPBackend::overrideable));
  at::globalContext().setSDPPriorityOrder(order);
}

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_sdpa(cq_tensor q, cq_tensor k, cq_tensor v, cq_tensor mask_, double dropout, int causal,
            double scale, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor query = tensor_of(q), mask = tensor_of(mask_);
    at::Tensor key = tensor_of(k), value = tensor_of(v);
    if (dropout == 0 && ops::has_kernel(query, key, value, mask)) {
      RECORD_USER_SCOPE("conquer::attention");
      return give(out,
                  ops::Attention::apply(query, key, value, ops::as_optional(mask), causal != 0,
                                        scale > 0 ? scale : 1 / std::sqrt(double(query.size(3)))));
    }
    bool grouped = query.size(-3) != key.size(-3);
    if (query.is_cuda()) {
      ops::choose_attention(at::GradMode::is_enabled() && query.requires_grad());
      if (grouped &&
          mask.defined()) { // no kernel takes both, and libtorch's fallback holds all L x S weights
        key = key.repeat_interleave(query.size(-3) / key.size(-3), -3);
        value = value.repeat_interleave(query.size(-3) / value.size(-3), -3);
        grouped = false;
      }
    }
    return give(out, at::scaled_dot_product_attention(
                         query, key, value, ops::as_optional(mask), dropout, causal != 0,
                         scale > 0 ? std::optional<double>(scale) : std::nullopt, grouped));
  });
}
