// attention.cpp: attention of many queries and its gradients. Forward, the blocks of queries of all
// heads are shared out among the threads; backward, the heads.
#include "cpu.h"

namespace conquer::cpu {

namespace {

constexpr int64_t block = 96; // queries in a block; their scores of 64 keys take 24 KB

// [B,K,ceil(S/keys),P,keys] from x [B,K,S,P], for all heads.
template <class T> at::Tensor transposed(const at::Tensor &x) {
  const int64_t K = x.size(1), S = x.size(2), P = x.size(3), keys = FlashHead<T>::keys,
                blocks = (S + keys - 1) / keys;
  at::Tensor out = at::empty({x.size(0), K, blocks, P, keys}, x.options());
  parallel_for(x.size(0) * K * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t h = i / blocks, at = i % blocks * keys;
      kernels<T>().transpose_keys(
          data_of<T>(x) + h / K * x.stride(0) + h % K * x.stride(1) + at * x.stride(2), x.stride(2),
          std::min(keys, S - at), P, mutable_data_of<T>(out) + i * P * keys);
    }
  });
  return out;
}

// [B,H,L,P] stored as [B,L,H,P], so that heads join without a copy.
at::Tensor heads_inside(int64_t B, int64_t H, int64_t L, int64_t P,
                        const at::TensorOptions &options) {
  return at::empty({B, L, H, P}, options).transpose(1, 2);
}

struct Shape {
  at::Tensor q, k, v, mask; // mask [B,H,L,S] or undefined; the last dimension of each is dense
  bool causal;
  double scale;
  int64_t B = q.size(0), H = q.size(1), L = q.size(2), P = q.size(3), K = k.size(1), S = k.size(2);

  // Head i of B·H.
  template <class T>
  FlashHead<T> head(int64_t i, const at::Tensor &kt, const at::Tensor &out,
                    const at::Tensor &lse) const {
    const int64_t b = i / H, h = i % H, g = h / (H / K);
    FlashHead<T> f;
    f.L = L, f.S = S, f.P = P, f.causal = causal, f.scale = float(scale);
    f.q = data_of<T>(q) + b * q.stride(0) + h * q.stride(1), f.q_row = q.stride(2);
    f.k = data_of<T>(k) + b * k.stride(0) + g * k.stride(1), f.k_row = k.stride(2);
    f.v = data_of<T>(v) + b * v.stride(0) + g * v.stride(1), f.v_row = v.stride(2);
    f.kt = data_of<T>(kt) + (b * K + g) * kt.stride(1);
    f.mask = mask.defined() ? mask.const_data_ptr<bool>() + b * mask.stride(0) + h * mask.stride(1)
                            : nullptr;
    f.mask_row = mask.defined() ? mask.stride(2) : 0;
    f.out = const_cast<T *>(data_of<T>(out)) + b * out.stride(0) + h * out.stride(1),
    f.out_row = out.stride(2);
    f.lse = const_cast<float *>(data_of<float>(lse)) + i * L;
    return f;
  }
};

template <class T> void forward(const Shape &s, const at::Tensor &out, const at::Tensor &lse) {
  const at::Tensor kt = transposed<T>(s.k);
  const int64_t blocks = (s.L + block - 1) / block, tasks = s.B * s.H * blocks;
  parallel_for(tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(block * (2 * s.P + FlashHead<T>::keys + 2));
    for (int64_t i = begin; i < end; i++) {
      // Under causal attention later blocks see more keys, so a head's blocks are taken from both
      // ends in turn.
      const int64_t turn = i % blocks, at = (turn % 2 ? blocks - 1 - turn / 2 : turn / 2) * block;
      kernels<T>().flash(s.head<T>(i / blocks, kt, out, lse), at, std::min(block, s.L - at),
                         scratch.data());
    }
  });
}

template <class T>
std::vector<at::Tensor> backward(const Shape &s, const at::Tensor &out, const at::Tensor &lse,
                                 const at::Tensor &dy) {
  const at::Tensor kt = transposed<T>(s.k), vt = transposed<T>(s.v);
  at::Tensor dq = heads_inside(s.B, s.H, s.L, s.P, s.q.options());
  // Query heads that share keys and values have separate float32 gradients, which are added
  // afterwards.
  at::Tensor dk = at::empty({s.B, s.H, s.S, s.P}, s.k.options().dtype(at::kFloat)),
             dv = at::empty_like(dk);
  parallel_for(s.B * s.H, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(s.L * (s.P + 1) + block * (2 * s.P + 2 * FlashHead<T>::keys));
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / s.H, h = i % s.H;
      FlashGradients<T> g;
      g.dy = data_of<T>(dy) + b * dy.stride(0) + h * dy.stride(1), g.dy_row = dy.stride(2);
      g.vt = data_of<T>(vt) + (b * s.K + h / (s.H / s.K)) * vt.stride(1);
      g.dq = mutable_data_of<T>(dq) + b * dq.stride(0) + h * dq.stride(1), g.dq_row = dq.stride(2);
      g.dk = mutable_data_of<float>(dk) + i * s.S * s.P,
      g.dv = mutable_data_of<float>(dv) + i * s.S * s.P;
      kernels<T>().flash_backward(s.head<T>(i, kt, out, lse), g, block, scratch.data());
    }
  });
  auto shared = [&](const at::Tensor &grad) {
    at::Tensor all = s.H == s.K ? grad : grad.view({s.B, s.K, s.H / s.K, s.S, s.P}).sum(2);
    return all.to(s.k.scalar_type());
  };
  return {dq, shared(dk), shared(dv)};
}

} // namespace

void attention(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
               const at::Tensor &mask, bool causal, double scale, const at::Tensor &out,
               const at::Tensor &lse) {
  const Shape s{q, k, v, mask, causal, scale};
  with_type(q.scalar_type(), [&](auto element) { forward<decltype(element)>(s, out, lse); });
}

std::vector<at::Tensor> attention_grad(const at::Tensor &q, const at::Tensor &k,
                                       const at::Tensor &v, const at::Tensor &mask, bool causal,
                                       double scale, const at::Tensor &out, const at::Tensor &lse,
                                       const at::Tensor &dy) {
  const Shape s{q, k, v, mask, causal, scale};
  return with_type(q.scalar_type(),
                   [&](auto element) { return backward<decltype(element)>(s, out, lse, dy); });
}

} // namespace conquer::cpu
