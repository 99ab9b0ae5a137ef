// flash.cpp: attention of many queries on a CPU, forward and backward; cq_sdpa chooses it. libtorch's own widens
// bfloat16 to float32 and multiplies through a library that leaves half of an AMD processor idle.
//
// Forward, the blocks of queries of all heads are shared out among the threads; backward, the heads.
#include "cpu.h"

#include <torch/csrc/autograd/custom_function.h>

namespace conquer {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t block = 96; // queries at once: with 64 keys, scores of 24 KB

// [B,K,ceil(S/keys),P,keys] from x [B,K,S,P], for all heads.
template <class T> at::Tensor transposed(const at::Tensor &x) {
  const int64_t K = x.size(1), S = x.size(2), P = x.size(3), keys = FlashHead<T>::keys, blocks = (S + keys - 1) / keys;
  at::Tensor out = at::empty({x.size(0), K, blocks, P, keys}, x.options());
  at::parallel_for(0, x.size(0) * K * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t h = i / blocks, at = i % blocks * keys;
      kernels<T>().transpose_keys(data_of<T>(x) + h / K * x.stride(0) + h % K * x.stride(1) + at * x.stride(2),
                                  x.stride(2), std::min(keys, S - at), P, mutable_data_of<T>(out) + i * P * keys);
    }
  });
  return out;
}

// [B,H,L,P] that lies as [B,L,H,P], so that heads join without a copy.
at::Tensor heads_inside(int64_t B, int64_t H, int64_t L, int64_t P, const at::TensorOptions &options) {
  return at::empty({B, L, H, P}, options).transpose(1, 2);
}

struct Shape {
  at::Tensor q, k, v, mask; // mask [B,H,L,S] or undefined; the last dimension of each is dense
  bool causal;
  double scale;
  int64_t B = q.size(0), H = q.size(1), L = q.size(2), P = q.size(3), K = k.size(1), S = k.size(2);

  // Head i of B·H.
  template <class T>
  FlashHead<T> head(int64_t i, const at::Tensor &kt, const at::Tensor &out, const at::Tensor &lse) const {
    const int64_t b = i / H, h = i % H, g = h / (H / K);
    FlashHead<T> f;
    f.L = L, f.S = S, f.P = P, f.causal = causal, f.scale = float(scale);
    f.q = data_of<T>(q) + b * q.stride(0) + h * q.stride(1), f.q_row = q.stride(2);
    f.k = data_of<T>(k) + b * k.stride(0) + g * k.stride(1), f.k_row = k.stride(2);
    f.v = data_of<T>(v) + b * v.stride(0) + g * v.stride(1), f.v_row = v.stride(2);
    f.kt = data_of<T>(kt) + (b * K + g) * kt.stride(1);
    f.mask = mask.defined() ? mask.const_data_ptr<bool>() + b * mask.stride(0) + h * mask.stride(1) : nullptr;
    f.mask_row = mask.defined() ? mask.stride(2) : 0;
    f.out = const_cast<T *>(data_of<T>(out)) + b * out.stride(0) + h * out.stride(1), f.out_row = out.stride(2);
    f.lse = const_cast<float *>(data_of<float>(lse)) + i * L;
    return f;
  }
};

template <class T> void forward(const Shape &s, const at::Tensor &out, const at::Tensor &lse) {
  const at::Tensor kt = transposed<T>(s.k);
  const int64_t blocks = (s.L + block - 1) / block, tasks = s.B * s.H * blocks;
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(block * (2 * s.P + FlashHead<T>::keys + 2));
    for (int64_t i = begin; i < end; i++) {
      // Later blocks see more keys where attention is causal: a head's blocks come from both ends in turn.
      const int64_t turn = i % blocks, at = (turn % 2 ? blocks - 1 - turn / 2 : turn / 2) * block;
      kernels<T>().flash(s.head<T>(i / blocks, kt, out, lse), at, std::min(block, s.L - at), scratch.data());
    }
  });
}

template <class T>
variable_list backward(const Shape &s, const at::Tensor &out, const at::Tensor &lse, const at::Tensor &dy) {
  const at::Tensor kt = transposed<T>(s.k), vt = transposed<T>(s.v);
  at::Tensor dq = heads_inside(s.B, s.H, s.L, s.P, s.q.options());
  // Each query head has its own gradients of the keys and values that it shares, in float32 until they are added.
  at::Tensor dk = at::empty({s.B, s.H, s.S, s.P}, s.k.options().dtype(at::kFloat)), dv = at::empty_like(dk);
  at::parallel_for(0, s.B * s.H, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(s.L * (s.P + 1) + block * (2 * s.P + 2 * FlashHead<T>::keys));
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / s.H, h = i % s.H;
      FlashGradients<T> g;
      g.dy = data_of<T>(dy) + b * dy.stride(0) + h * dy.stride(1), g.dy_row = dy.stride(2);
      g.vt = data_of<T>(vt) + (b * s.K + h / (s.H / s.K)) * vt.stride(1);
      g.dq = mutable_data_of<T>(dq) + b * dq.stride(0) + h * dq.stride(1), g.dq_row = dq.stride(2);
      g.dk = mutable_data_of<float>(dk) + i * s.S * s.P, g.dv = mutable_data_of<float>(dv) + i * s.S * s.P;
      kernels<T>().flash_backward(s.head<T>(i, kt, out, lse), g, block, scratch.data());
    }
  });
  auto shared = [&](const at::Tensor &grad) {
    at::Tensor all = s.H == s.K ? grad : grad.view({s.B, s.K, s.H / s.K, s.S, s.P}).sum(2);
    return all.to(s.k.scalar_type());
  };
  return {dq, shared(dk), shared(dv)};
}

at::Tensor dense_rows(const at::Tensor &x) { return x.stride(-1) == 1 ? x : x.contiguous(); }

class Flash : public torch::autograd::Function<Flash> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                            const std::optional<at::Tensor> &mask, bool causal, double scale) {
    at::NoGradGuard no_grad;
    Shape s{dense_rows(q), dense_rows(k), dense_rows(v), {}, causal, scale};
    if (mask)
      s.mask = dense_rows(*mask).expand({s.B, s.H, s.L, s.S});
    at::Tensor out = heads_inside(s.B, s.H, s.L, s.P, q.options()), lse = at::empty({s.B, s.H, s.L}, at::kFloat);
    with_type(q.scalar_type(), [&](auto element) { conquer::forward<decltype(element)>(s, out, lse); });
    ctx->save_for_backward({s.q, s.k, s.v, s.mask, out, lse});
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["scale"] = scale;
    return out;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    Shape s{saved[0],
            saved[1],
            saved[2],
            saved[3],
            ctx->saved_data["causal"].toBool(),
            ctx->saved_data["scale"].toDouble()};
    variable_list result;
    with_type(s.q.scalar_type(), [&](auto element) {
      result = conquer::backward<decltype(element)>(s, saved[4], saved[5], dense_rows(grads[0]));
    });
    result.resize(6);
    return result;
  }
};

} // namespace

bool flash_serves(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const at::Tensor &mask) {
  auto fits = [&](const at::Tensor &x) {
    return x.is_cpu() && x.dim() == 4 && x.scalar_type() == q.scalar_type() && x.size(3) == q.size(3) &&
           x.size(0) == q.size(0);
  };
  return fits(q) && fits(k) && fits(v) && has_kernel_type(q) && q.size(3) % 16 == 0 && q.numel() > 0 && k.numel() > 0 &&
         k.size(2) == v.size(2) && k.size(1) == v.size(1) && q.size(1) % k.size(1) == 0 &&
         (!mask.defined() || (mask.is_cpu() && mask.scalar_type() == at::kBool && mask.size(-1) == k.size(2)));
}

at::Tensor flash_attention(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const at::Tensor &mask,
                           bool causal, double scale) {
  RECORD_USER_SCOPE("conquer::attention");
  return Flash::apply(q, k, v, mask.defined() ? std::optional<at::Tensor>(mask) : std::nullopt, causal,
                      scale > 0 ? scale : 1 / std::sqrt(double(q.size(3))));
}

} // namespace conquer
