// rope.cpp: cq_rope_qkv and cq_rope_qkv_cache.
//
// Attention wants [B,H,L,P]; a projection leaves [B,L,H,P]. The rotation reads and writes every
// element anyway, so it writes them where attention wants them, and the transposition is free. The
// backward pass writes the three gradients into one [B,L,(H+2K)P] tensor, where autograd's slices
// would fill three with zeros and add them up.
#include "operators.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

at::Tensor rotate_reference(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin) {
  const int64_t half = cos.size(-1), width = x.size(-1);
  at::Tensor wide = x.transpose(1, 2).to(at::kFloat), c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  at::Tensor a = wide.narrow(-1, 0, half), b = wide.narrow(-1, half, half),
             rest = wide.narrow(-1, 2 * half, width - 2 * half);
  return at::cat({a * c - b * s, b * c + a * s, rest}, -1).to(x.scalar_type());
}

// q, k and v of qkv [B,L,(H+2K)P], as [B,H,L,P], [B,K,L,P] and [B,K,L,P].
std::array<at::Tensor, 3> rope_reference(const at::Tensor &qkv, int64_t H, int64_t K,
                                         const at::Tensor &cos, const at::Tensor &sin) {
  at::Tensor heads = qkv.unflatten(-1, {H + 2 * K, qkv.size(-1) / (H + 2 * K)});
  return {rotate_reference(heads.narrow(2, 0, H), cos, sin),
          rotate_reference(heads.narrow(2, H, K), cos, sin),
          heads.narrow(2, H + K, K).transpose(1, 2).contiguous()};
}

const Device *kernels_for(const at::Tensor &qkv, int64_t P, const at::Tensor &cos) {
  const Device *device = device_for(qkv);
  const bool fits = device && P % device->limits.width_multiple == 0 &&
                    cos.size(-1) % device->limits.width_multiple == 0 &&
                    cos.size(-1) <= device->limits.rotary_angles &&
                    (has_gradients(*device, qkv.scalar_type()) || !records_grad(qkv));
  return fits ? device : nullptr;
}

// [B,H,L,P] in the order of tokens: attention's result has q's layout, so that
// the output projection reads whole rows.
at::Tensor empty_queries(const at::Tensor &qkv, int64_t H, int64_t P) {
  return at::empty({qkv.size(0), qkv.size(1), H, P}, qkv.options()).transpose(1, 2);
}

variable_list rope_kernel(const at::Tensor &qkv, int64_t H, int64_t K, int64_t P,
                          const at::Tensor &cos, const at::Tensor &sin) {
  const int64_t B = qkv.size(0), L = qkv.size(1);
  variable_list out = {empty_queries(qkv, H, P), at::empty({B, K, L, P}, qkv.options()),
                       at::empty({B, K, L, P}, qkv.options())};
  registered_device(qkv).rope_qkv(qkv, cos, sin, {}, out[0], out[1], out[2]);
  return out;
}

class RopeQKV : public torch::autograd::Function<RopeQKV> {
public:
  static variable_list forward(AutogradContext *ctx, const at::Tensor &qkv, int64_t H, int64_t K,
                               int64_t P, const at::Tensor &cos, const at::Tensor &sin) {
    ctx->save_for_backward({cos, sin});
    ctx->set_materialize_grads(false);
    ctx->saved_data["H"] = H;
    ctx->saved_data["K"] = K;
    ctx->saved_data["P"] = P;
    ctx->saved_data["sizes"] = qkv.sizes().vec();
    ctx->saved_data["type"] = qkv.scalar_type();
    return rope_kernel(qkv, H, K, P, cos, sin);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    at::Tensor dqkv = at::empty(ctx->saved_data["sizes"].toIntVector(),
                                saved[0].options().dtype(ctx->saved_data["type"].toScalarType()));
    const int64_t H = ctx->saved_data["H"].toInt(), K = ctx->saved_data["K"].toInt(),
                  P = ctx->saved_data["P"].toInt();
    for (int i = 0; i < 3; i++) {
      if (!grads[i].defined())
        grads[i] = at::zeros({dqkv.size(0), i ? K : H, dqkv.size(1), P}, dqkv.options());
      if (grads[i].stride(-1) != 1)
        grads[i] = grads[i].contiguous();
    }
    registered_device(dqkv).rope_qkv_grad(grads[0], grads[1], grads[2], saved[0], saved[1], dqkv);
    return {dqkv, {}, {}, {}, {}, {}};
  }
};

void check_table(const at::Tensor &cos, const at::Tensor &sin, int64_t B, int64_t L, int64_t P) {
  TORCH_CHECK(cos.dim() == 3 && cos.sizes() == sin.sizes() &&
                  (cos.size(0) == B || cos.size(0) == 1) && cos.size(1) == L &&
                  2 * cos.size(2) <= P && cos.scalar_type() == at::kFloat &&
                  sin.scalar_type() == at::kFloat,
              "rope: cos and sin must be float32 [", B, " or 1, ", L, ", at most ", P / 2,
              "], not ", cos.sizes(), " and ", sin.sizes());
}

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_rope_qkv(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos, cq_tensor sin,
                cq_tensor *q_out, cq_tensor *k_out, cq_tensor *v_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::rope_qkv");
    const at::Tensor x = tensor_of(qkv), c = tensor_of(cos).contiguous(),
                     s = tensor_of(sin).contiguous();
    const int64_t all = heads + 2 * kv_heads;
    TORCH_CHECK(x.dim() == 3 && heads > 0 && kv_heads > 0 && x.size(2) % all == 0, "rope: qkv ",
                x.sizes(), " does not hold ", heads, " + 2 * ", kv_heads, " heads");
    const int64_t P = x.size(2) / all;
    ops::check_table(c, s, x.size(0), x.size(1), P);
    if (!ops::kernels_for(x, P, c)) {
      auto [q, k, v] = ops::rope_reference(x, heads, kv_heads, c, s);
      return ops::give_all({{q_out, q}, {k_out, k}, {v_out, v}});
    }
    auto out = ops::records_grad(x) ? ops::RopeQKV::apply(x.contiguous(), heads, kv_heads, P, c, s)
                                    : ops::rope_kernel(x.contiguous(), heads, kv_heads, P, c, s);
    return ops::give_all({{q_out, out[0]}, {k_out, out[1]}, {v_out, out[2]}});
  });
}

int cq_rope_qkv_cache(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor columns,
                      cq_tensor k_cache, cq_tensor v_cache, cq_tensor *q_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::rope_qkv_cache");
    const at::Tensor x = tensor_of(qkv), c = tensor_of(cos), s = tensor_of(sin),
                     where = tensor_of(columns), k = tensor_of(k_cache), v = tensor_of(v_cache);
    const bool q8 = k.scalar_type() == at::kByte; // in blocks of 32
    TORCH_CHECK(k.dim() == 4 && k.sizes() == v.sizes() && k.scalar_type() == v.scalar_type() &&
                    (k.scalar_type() == x.scalar_type() || (q8 && k.size(3) % 34 == 0)),
                "rope: the caches must be [B,K,S,P] of ", x.scalar_type(), ", not ", k.sizes(),
                " and ", v.sizes());
    const int64_t K = k.size(1), P = q8 ? k.size(3) / 34 * 32 : k.size(3);
    TORCH_CHECK(x.dim() == 3 && x.size(2) == (heads + 2 * K) * P && x.size(0) == k.size(0),
                "rope: qkv ", x.sizes(), " does not hold ", heads,
                " heads and keys and values for caches of ", k.sizes());
    const int64_t B = x.size(0), L = x.size(1);
    ops::check_table(c, s, B, L, P);
    TORCH_CHECK(where.scalar_type() == at::kLong && where.dim() == 2 &&
                    (where.size(0) == B || where.size(0) == 1) && where.size(1) == L,
                "rope: columns must be int64 [", B, " or 1, ", L, "], not ", where.sizes());
    const ops::Device *device = ops::kernels_for(x, P, c);
    if (!q8 && device && ops::device_for(k) == device && ops::device_for(v) == device &&
        k.stride(3) == 1 && k.strides() == v.strides() && !ops::records_grad(x)) {
      at::Tensor q = ops::empty_queries(x, heads, P);
      device->rope_qkv(x.contiguous(), c.contiguous(), s.contiguous(), where.contiguous(), q, k, v);
      return give(q_out, q);
    }
    cq_tensor fresh_k, fresh_v;
    return int(cq_rope_qkv(qkv, heads, K, cos, sin, q_out, &fresh_k, &fresh_v) ||
               cq_cache_write(k_cache, fresh_k, columns) ||
               cq_cache_write(v_cache, fresh_v, columns));
  });
}

int cq_rope_qkv_reference(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos,
                          cq_tensor sin, cq_tensor *q_out, cq_tensor *k_out, cq_tensor *v_out) {
  return guarded([&] {
    auto [q, k, v] =
        ops::rope_reference(tensor_of(qkv), heads, kv_heads, tensor_of(cos), tensor_of(sin));
    return ops::give_all({{q_out, q}, {k_out, k}, {v_out, v}});
  });
}
