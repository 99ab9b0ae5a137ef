// rope.cpp: cq_rope_qkv.
//
// Attention wants [B,H,L,P]; a projection leaves [B,L,H,P]. Turning reads and writes every element anyway, so it writes
// them where attention wants them, and the transposition costs nothing of its own. The backward
// writes the three gradients straight into one [B,L,(H+2K)P] tensor, where slicing the projection's result by autograd
// would fill three with zeros and add them up.
#include "cpu.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer {

namespace {

at::Tensor rotate_reference(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin) {
  const int64_t half = cos.size(-1), width = x.size(-1);
  at::Tensor wide = x.transpose(1, 2).to(at::kFloat), c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  at::Tensor a = wide.narrow(-1, 0, half), b = wide.narrow(-1, half, half),
             rest = wide.narrow(-1, 2 * half, width - 2 * half);
  return at::cat({a * c - b * s, b * c + a * s, rest}, -1).to(x.scalar_type());
}

// Turns x [B,L,N,P] into y [B,L,N,P]; both may be strided but for P. With cos undefined it copies.
void rotate(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin, float direction, const at::Tensor &y) {
  const int64_t B = x.size(0), L = x.size(1), N = x.size(2), P = x.size(3), half = cos.defined() ? cos.size(-1) : 0;
  const int64_t xb = x.stride(0), xl = x.stride(1), xn = x.stride(2), yb = y.stride(0), yl = y.stride(1),
                yn = y.stride(2);
  const int64_t table_b = half && cos.size(0) > 1 ? L * half : 0;
  const float *c = half ? data_of<float>(cos) : nullptr, *s = half ? data_of<float>(sin) : nullptr;
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *in = data_of<T>(x);
    T *out = mutable_data_of<T>(y);
    at::parallel_for(0, B * L, rows_per_share(N * P), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / L, l = i % L, table = b * table_b + l * half;
        kernels<T>().rotate(in + b * xb + l * xl, xn, N, P, c + table, s + table, half, direction,
                            out + b * yb + l * yl, yn);
      }
    });
  });
}

// x with its last dimension contiguous.
at::Tensor dense_heads(const at::Tensor &x) { return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous(); }

// [B,L,N,P] turned, as [B,N,L,P].
at::Tensor rotated(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin) {
  at::Tensor y = at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options());
  rotate(dense_heads(x), cos, sin, 1, y.transpose(1, 2));
  return y;
}

// The gradient [B,N,L,P] of a turned tensor turned back into `into` [B,L,N,P]; none at all is zero.
void rotate_back(const at::Tensor &grad, const at::Tensor &cos, const at::Tensor &sin, at::Tensor into) {
  if (grad.defined())
    rotate(dense_heads(grad).transpose(1, 2), cos, sin, -1, into);
  else
    into.zero_();
}

// The three parts of qkv [B,L,(H+2K)P], each [B,L,N,P].
std::array<at::Tensor, 3> parts_of(const at::Tensor &qkv, int64_t H, int64_t K, int64_t P) {
  at::Tensor heads = qkv.unflatten(-1, {H + 2 * K, P});
  return {heads.narrow(2, 0, H), heads.narrow(2, H, K), heads.narrow(2, H + K, K)};
}

// Another device's kernels for qkv, where they take it.
const Face *face_for(const at::Tensor &qkv, int64_t P, const at::Tensor &cos) {
  const Face *face = face_of(qkv);
  return face && P % 16 == 0 && cos.size(-1) % 16 == 0 && cos.size(-1) <= 128 &&
                 !(records_grad(qkv) && qkv.scalar_type() == at::kHalf)
             ? face
             : nullptr;
}

variable_list rope_qkv(const at::Tensor &qkv, int64_t H, int64_t K, int64_t P, const at::Tensor &cos,
                       const at::Tensor &sin) {
  if (const Face *face = face_for(qkv, P, cos)) {
    const int64_t B = qkv.size(0), L = qkv.size(1);
    // Attention lays its result out as q is: so that the product behind it can read whole rows.
    variable_list out = {at::empty({B, L, H, P}, qkv.options()).transpose(1, 2), at::empty({B, K, L, P}, qkv.options()),
                         at::empty({B, K, L, P}, qkv.options())};
    face->rope_qkv(qkv.contiguous(), cos, sin, {}, out[0], out[1], out[2]);
    return out;
  }
  auto parts = parts_of(qkv, H, K, P);
  return {rotated(parts[0], cos, sin), rotated(parts[1], cos, sin), rotated(parts[2], {}, {})};
}

class RopeQKV : public torch::autograd::Function<RopeQKV> {
public:
  static variable_list forward(AutogradContext *ctx, const at::Tensor &qkv, int64_t H, int64_t K, int64_t P,
                               const at::Tensor &cos, const at::Tensor &sin) {
    ctx->save_for_backward({cos, sin});
    ctx->set_materialize_grads(false);
    ctx->saved_data["H"] = H;
    ctx->saved_data["K"] = K;
    ctx->saved_data["P"] = P;
    ctx->saved_data["sizes"] = qkv.sizes().vec();
    ctx->saved_data["type"] = qkv.scalar_type();
    return rope_qkv(qkv, H, K, P, cos, sin);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    at::Tensor dqkv = at::empty(ctx->saved_data["sizes"].toIntVector(),
                                saved[0].options().dtype(ctx->saved_data["type"].toScalarType()));
    const int64_t H = ctx->saved_data["H"].toInt(), K = ctx->saved_data["K"].toInt(), P = ctx->saved_data["P"].toInt();
    if (const Face *face = face_for(dqkv, P, saved[0])) {
      const int64_t B = dqkv.size(0), L = dqkv.size(1);
      for (int i = 0; i < 3; i++) {
        if (!grads[i].defined())
          grads[i] = at::zeros({B, i ? K : H, L, P}, dqkv.options());
        grads[i] = dense_heads(grads[i]);
      }
      face->rope_qkv_grad(grads[0], grads[1], grads[2], saved[0], saved[1], dqkv);
      return {dqkv, {}, {}, {}, {}, {}};
    }
    auto parts = parts_of(dqkv, H, K, P);
    rotate_back(grads[0], saved[0], saved[1], parts[0]);
    rotate_back(grads[1], saved[0], saved[1], parts[1]);
    rotate_back(grads[2], {}, {}, parts[2]);
    return {dqkv, {}, {}, {}, {}, {}};
  }
};

void check_table(const at::Tensor &cos, const at::Tensor &sin, int64_t B, int64_t L, int64_t P) {
  TORCH_CHECK(cos.dim() == 3 && cos.sizes() == sin.sizes() && (cos.size(0) == B || cos.size(0) == 1) &&
                  cos.size(1) == L && 2 * cos.size(2) <= P && cos.scalar_type() == at::kFloat &&
                  sin.scalar_type() == at::kFloat,
              "rope: cos and sin must be float32 [", B, " or 1, ", L, ", at most ", P / 2, "], not ", cos.sizes(),
              " and ", sin.sizes());
}

} // namespace

} // namespace conquer

using namespace conquer;

static int rope_reference(const at::Tensor &q, const at::Tensor &k, const at::Tensor &cos, const at::Tensor &sin,
                          cq_tensor *q_out, cq_tensor *k_out) {
  return give_all({{q_out, rotate_reference(q, cos, sin)}, {k_out, rotate_reference(k, cos, sin)}});
}

static int rope_qkv_reference(const at::Tensor &qkv, int64_t H, int64_t K, const at::Tensor &cos, const at::Tensor &sin,
                              cq_tensor *q_out, cq_tensor *k_out, cq_tensor *v_out) {
  auto parts = parts_of(qkv, H, K, qkv.size(-1) / (H + 2 * K));
  if (rope_reference(parts[0], parts[1], cos, sin, q_out, k_out))
    return 1;
  return give(v_out, parts[2].transpose(1, 2).contiguous());
}

int cq_rope_qkv(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos, cq_tensor sin, cq_tensor *q_out,
                cq_tensor *k_out, cq_tensor *v_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::rope_qkv");
    const at::Tensor x = tensor_of(qkv), c = tensor_of(cos), s = tensor_of(sin);
    const int64_t all = heads + 2 * kv_heads;
    TORCH_CHECK(x.dim() == 3 && heads > 0 && kv_heads > 0 && x.size(2) % all == 0, "rope: qkv ", x.sizes(),
                " does not hold ", heads, " + 2 * ", kv_heads, " heads");
    const int64_t P = x.size(2) / all;
    check_table(c, s, x.size(0), x.size(1), P);
    if (!has_kernel_type(x) || (!x.is_cpu() && !face_for(x, P, c)))
      return rope_qkv_reference(x, heads, kv_heads, c, s, q_out, k_out, v_out);
    auto three = records_grad(x) ? RopeQKV::apply(x, heads, kv_heads, P, c.contiguous(), s.contiguous())
                                 : rope_qkv(x, heads, kv_heads, P, c.contiguous(), s.contiguous());
    return give_all({{q_out, three[0]}, {k_out, three[1]}, {v_out, three[2]}});
  });
}

int cq_rope_qkv_cache(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor columns, cq_tensor k_cache,
                      cq_tensor v_cache, cq_tensor *q_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::rope_qkv_cache");
    const at::Tensor x = tensor_of(qkv), c = tensor_of(cos), s = tensor_of(sin), where = tensor_of(columns),
                     k = tensor_of(k_cache), v = tensor_of(v_cache);
    TORCH_CHECK(k.dim() == 4 && k.sizes() == v.sizes() && k.scalar_type() == x.scalar_type(),
                "rope: the caches must be [B,K,S,P] of ", x.scalar_type(), ", not ", k.sizes(), " and ", v.sizes());
    const int64_t K = k.size(1), P = k.size(3);
    TORCH_CHECK(x.dim() == 3 && x.size(2) == (heads + 2 * K) * P && x.size(0) == k.size(0), "rope: qkv ", x.sizes(),
                " does not hold ", heads, " heads and what goes into caches of ", k.sizes());
    const int64_t B = x.size(0), L = x.size(1);
    check_table(c, s, B, L, P);
    TORCH_CHECK(where.scalar_type() == at::kLong && where.dim() == 2 && (where.size(0) == B || where.size(0) == 1) &&
                    where.size(1) == L,
                "rope: columns must be int64 [", B, " or 1, ", L, "], not ", where.sizes());
    const Face *face = face_for(x, P, c);
    if (face && face_of(k) && face_of(v) && k.stride(3) == 1 && k.strides() == v.strides() && !records_grad(x)) {
      at::Tensor q = at::empty({B, L, heads, P}, x.options()).transpose(1, 2); // as in rope_qkv
      face->rope_qkv(x.contiguous(), c.contiguous(), s.contiguous(), where.contiguous(), q, k, v);
      return give(q_out, q);
    }
    cq_tensor fresh_k, fresh_v;
    return int(cq_rope_qkv(qkv, heads, K, cos, sin, q_out, &fresh_k, &fresh_v) ||
               cq_cache_write(k_cache, fresh_k, columns) || cq_cache_write(v_cache, fresh_v, columns));
  });
}

int cq_rope_qkv_reference(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos, cq_tensor sin,
                          cq_tensor *q_out, cq_tensor *k_out, cq_tensor *v_out) {
  return guarded([&] {
    return rope_qkv_reference(tensor_of(qkv), heads, kv_heads, tensor_of(cos), tensor_of(sin), q_out, k_out, v_out);
  });
}
