// decode_attention.cpp: cq_decode_attention.
#include "operators.h"

namespace conquer::ops {

namespace {

at::Tensor decode_attention_reference(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                                      const at::Tensor &lengths, const at::Tensor &starts,
                                      double scale) {
  at::Tensor position = at::arange(k.size(2), lengths.options());
  at::Tensor mask = position < lengths.unsqueeze(1);
  if (starts.defined())
    mask = mask & (position >= starts.unsqueeze(1));
  return at::scaled_dot_product_attention(q, k, v, mask.unsqueeze(1).unsqueeze(1), 0, false, scale,
                                          /*enable_gqa=*/q.size(1) != k.size(1));
}

// P of a cache [B,K,S,P], or of one in 8 bits [B,K,S,P/32*34].
int64_t width_of(const at::Tensor &cache) {
  return cache.scalar_type() == at::kByte ? cache.size(3) / 34 * 32 : cache.size(3);
}

void check(const at::Tensor &qkv, int64_t heads, const at::Tensor &cos, const at::Tensor &sin,
           const at::Tensor &k, const at::Tensor &v, const at::Tensor &lengths,
           const at::Tensor &starts) {
  TORCH_CHECK(qkv.dim() == 3 && qkv.size(1) == 1 && k.dim() == 4 && k.sizes() == v.sizes() &&
                  k.size(0) == qkv.size(0) && heads % k.size(1) == 0 &&
                  k.scalar_type() == v.scalar_type() &&
                  qkv.size(2) == (heads + 2 * k.size(1)) * width_of(k),
              "decode_attention: qkv must be [B,1,(H+2K)P] and the caches [B,K,S,P] with K "
              "dividing H, not ",
              qkv.sizes(), " with ", heads, " heads, ", k.sizes(), " and ", v.sizes());
  const int64_t B = qkv.size(0), P = width_of(k);
  TORCH_CHECK(lengths.scalar_type() == at::kLong && lengths.numel() == B &&
                  (!starts.defined() || (starts.scalar_type() == at::kLong && starts.numel() == B)),
              "decode_attention: lengths and starts must be int64 [", B, "]");
  TORCH_CHECK(cos.dim() == 3 && cos.sizes() == sin.sizes() &&
                  (cos.size(0) == B || cos.size(0) == 1) && cos.size(1) == 1 &&
                  2 * cos.size(2) <= P && cos.scalar_type() == at::kFloat &&
                  sin.scalar_type() == at::kFloat,
              "decode_attention: cos and sin must be float32 [", B, " or 1, 1, at most ", P / 2,
              "], not ", cos.sizes(), " and ", sin.sizes());
}

const Device *kernels_for(const at::Tensor &qkv, int64_t heads, const at::Tensor &cos,
                          const at::Tensor &k, const at::Tensor &v) {
  const Device *device = device_for(qkv);
  if (!device)
    return nullptr;
  const Limits &limits = device->limits;
  const bool q8 = k.scalar_type() == at::kByte && device->cache_unpack && k.is_cpu(),
             same = q8 || (device_for(k) == device && device_for(v) == device &&
                           k.scalar_type() == qkv.scalar_type());
  const int64_t width = width_of(k);
  const bool fits = same && k.strides() == v.strides() && k.stride(3) == 1 &&
                    width % limits.width_multiple == 0 && width <= limits.decode_head_width &&
                    cos.size(2) % limits.width_multiple == 0 &&
                    heads / k.size(1) <= limits.decode_group && !records_grad(qkv, k, v);
  return fits ? device : nullptr;
}

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_decode_attention(const cq_decode *in, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::decode_attention");
    const at::Tensor qkv = tensor_of(in->qkv), cos = tensor_of(in->cos), sin = tensor_of(in->sin),
                     k = tensor_of(in->k_cache), v = tensor_of(in->v_cache),
                     lengths = tensor_of(in->lengths), starts = tensor_of(in->starts);
    ops::check(qkv, in->heads, cos, sin, k, v, lengths, starts);
    if (const ops::Device *device = ops::kernels_for(qkv, in->heads, cos, k, v))
      return give(out, device->decode_attention(qkv.contiguous(), cos.contiguous(),
                                                sin.contiguous(), k, v, lengths.contiguous(),
                                                starts.defined() ? starts.contiguous() : starts,
                                                in->scale));
    const int64_t B = qkv.size(0);
    at::Tensor column = (lengths - 1).view({B, 1});
    cq_tensor q;
    if (cq_rope_qkv_cache(in->qkv, in->heads, in->cos, in->sin, &column, in->k_cache, in->v_cache,
                          &q))
      return 1;
    at::Tensor keys = k, values = v;
    if (k.scalar_type() == at::kByte)
      for (at::Tensor *t : {&keys, &values}) {
        cq_tensor wide;
        if (cq_cache_unpack(t, int(qkv.scalar_type()), &wide))
          return 1;
        *t = tensor_of(wide);
      }
    const at::Tensor y =
        ops::decode_attention_reference(tensor_of(q), keys, values, lengths, starts, in->scale);
    return give(out, y.reshape({B, 1, in->heads * ops::width_of(k)}));
  });
}

int cq_decode_attention_reference(const cq_decode *in, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor k = tensor_of(in->k_cache), v = tensor_of(in->v_cache),
                     lengths = tensor_of(in->lengths);
    at::Tensor column = (lengths - 1).view({-1, 1});
    cq_tensor q, fresh_k, fresh_v;
    if (cq_rope_qkv_reference(in->qkv, in->heads, k.size(1), in->cos, in->sin, &q, &fresh_k,
                              &fresh_v) ||
        cq_cache_write_reference(in->k_cache, fresh_k, &column) ||
        cq_cache_write_reference(in->v_cache, fresh_v, &column))
      return 1;
    const at::Tensor y = ops::decode_attention_reference(tensor_of(q), k, v, lengths,
                                                         tensor_of(in->starts), in->scale);
    return give(out, y.reshape({y.size(0), 1, -1}));
  });
}
