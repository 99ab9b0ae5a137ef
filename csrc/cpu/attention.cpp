// attention.cpp: cq_decode_attention and cq_cache_write.
//
// The valid positions of all batches and key/value heads are laid end to end and cut into equal shares, one a thread,
// so a long context and a short one, three heads and two threads, all balance. A share that begins or ends inside a
// head's positions leaves a partial result; partials combine at the end. Share t's result for head i (counting heads
// over the batch) lies in slot i + t: shares follow one another, so that is one slot for each pair that meets, and
// heads + shares slots hold all of them.
#include "cpu.h"

#include <cmath>

namespace conquer {

namespace {

// Multiply-adds that one thread does in the time it takes to wake another.
constexpr int64_t one_thread = 32 * 1024;

at::Tensor decode_attention_reference(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                                      const at::Tensor &lengths, const at::Tensor &starts, double scale) {
  at::Tensor position = at::arange(k.size(2), lengths.options());
  at::Tensor mask = position < lengths.unsqueeze(1);
  if (starts.defined())
    mask = mask & (position >= starts.unsqueeze(1));
  return at::scaled_dot_product_attention(q, k, v, mask.unsqueeze(1).unsqueeze(1), 0, false, scale,
                                          /*enable_gqa=*/q.size(1) != k.size(1));
}

at::Tensor decode_attention(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const at::Tensor &lengths,
                            const at::Tensor &starts, double scale) {
  const int64_t B = q.size(0), H = q.size(1), P = q.size(3), K = k.size(1), S = k.size(2), G = H / K, heads = B * K;
  std::vector<int64_t> begin(B),
      before(heads + 1); // where valid positions begin; how many positions precede each head's
  const int64_t *length = data_of<int64_t>(lengths), *start = starts.defined() ? data_of<int64_t>(starts) : nullptr;
  for (int64_t b = 0; b < B; b++) {
    begin[b] = start ? start[b] : 0;
    TORCH_CHECK(begin[b] >= 0 && length[b] <= S, "decode_attention: positions ", begin[b], " to ", length[b],
                " of a cache of ", S);
    for (int64_t h = b * K; h < (b + 1) * K; h++)
      before[h + 1] = before[h] + std::max<int64_t>(0, length[b] - begin[b]);
  }
  const int64_t total = before[heads];
  const int64_t shares =
      at::in_parallel_region() ? 1 : std::clamp<int64_t>(total * G * P / one_thread, 1, at::get_num_threads());
  const int64_t slots = heads + shares;
  at::Tensor scratch = at::empty({B * H * P + slots * G * (P + 2)}, q.options().dtype(at::kFloat));
  float *query = mutable_data_of<float>(scratch), *sums = query + B * H * P, *tops = sums + slots * G * P,
        *masses = tops + slots * G;

  at::Tensor out = at::empty({B, H, 1, P}, q.options());
  with_type(q.scalar_type(), [&](auto element) {
    using T = decltype(element);
    kernels<T>().widen(data_of<T>(q), B * H * P, query);
    for (int64_t i = 0; i < B * H * P; i++)
      query[i] *= float(scale);
    const T *keys = data_of<T>(k), *values = data_of<T>(v);
    at::parallel_for(0, shares, 1, [&](int64_t first, int64_t past) {
      for (int64_t t = first; t < past; t++) {
        int64_t from = total * t / shares, to = total * (t + 1) / shares;
        int64_t h = std::upper_bound(before.begin(), before.end(), from) - before.begin() - 1;
        for (; h < heads && before[h] < to; h++) {
          const int64_t a = std::max(from, before[h]), n = std::min(to, before[h + 1]) - a;
          if (n <= 0)
            continue;
          const int64_t b = h / K, s = begin[b] + a - before[h], slot = h + t;
          kernels<T>().attend(query + h * G * P, G, keys + b * k.stride(0) + h % K * k.stride(1) + s * k.stride(2),
                              values + b * v.stride(0) + h % K * v.stride(1) + s * v.stride(2), k.stride(2),
                              v.stride(2), n, P, tops + slot * G, masses + slot * G, sums + slot * G * P);
        }
      }
    });

    T *y = mutable_data_of<T>(out);
    std::vector<float> row(P);
    for (int64_t h = 0; h < heads; h++)
      for (int64_t g = 0; g < G; g++) {
        // The shares that met head h: those whose stretch overlaps its positions.
        float top = -INFINITY, mass = 0;
        std::fill(row.begin(), row.end(), 0.f);
        for (int64_t t = 0; t < shares; t++)
          if (std::max(total * t / shares, before[h]) < std::min(total * (t + 1) / shares, before[h + 1])) {
            const int64_t slot = (h + t) * G + g;
            const float next = std::max(top, tops[slot]), old = std::exp(top - next),
                        fresh = std::exp(tops[slot] - next);
            for (int64_t d = 0; d < P; d++)
              row[d] = row[d] * old + sums[slot * P + d] * fresh;
            mass = mass * old + masses[slot] * fresh;
            top = next;
          }
        const float share = mass > 0 ? 1 / mass : 0; // no valid position: zero
        for (int64_t d = 0; d < P; d++)
          row[d] *= share;
        kernels<T>().round(row.data(), P, y + (h * G + g) * P);
      }
  });
  return out;
}

} // namespace

} // namespace conquer

using namespace conquer;

int cq_decode_attention(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor k_cache,
                        cq_tensor v_cache, cq_tensor lengths, cq_tensor starts, double scale, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::decode_attention");
    const at::Tensor x = tensor_of(qkv), c = tensor_of(cos), s = tensor_of(sin), k = tensor_of(k_cache),
                     v = tensor_of(v_cache), valid = tensor_of(lengths), from = tensor_of(starts);
    TORCH_CHECK(x.dim() == 3 && x.size(1) == 1 && k.dim() == 4 && k.sizes() == v.sizes() && k.size(0) == x.size(0) &&
                    heads % k.size(1) == 0 && x.size(2) == (heads + 2 * k.size(1)) * k.size(3),
                "decode_attention: qkv must be [B,1,(H+2K)P] and the caches [B,K,S,P] with K dividing H, not ",
                x.sizes(), " with ", heads, " heads, ", k.sizes(), " and ", v.sizes());
    const int64_t B = x.size(0), K = k.size(1), P = k.size(3);
    TORCH_CHECK(valid.scalar_type() == at::kLong && valid.numel() == B &&
                    (!from.defined() || (from.scalar_type() == at::kLong && from.numel() == B)),
                "decode_attention: lengths and starts must be int64 [", B, "]");
    TORCH_CHECK(c.dim() == 3 && c.sizes() == s.sizes() && (c.size(0) == B || c.size(0) == 1) && c.size(1) == 1 &&
                    2 * c.size(2) <= P && c.scalar_type() == at::kFloat && s.scalar_type() == at::kFloat,
                "decode_attention: cos and sin must be float32 [", B, " or 1, 1, at most ", P / 2, "], not ", c.sizes(),
                " and ", s.sizes());
    const bool alike = k.scalar_type() == x.scalar_type() && v.scalar_type() == x.scalar_type() && k.stride(3) == 1 &&
                       v.stride(3) == 1 && !records_grad(x, k, v);
    const Face *face = face_of(x);
    if (face && alike && face_of(k) && face_of(v) && k.strides() == v.strides() && P % 16 == 0 && P <= 128 &&
        c.size(2) % 16 == 0 && heads / K <= 16)
      return give(out, face->decode_attention(x.contiguous(), c.contiguous(), s.contiguous(), k, v, valid.contiguous(),
                                              from.defined() ? from.contiguous() : from, scale));
    const at::Tensor column = (valid - 1).view({B, 1});
    cq_tensor q;
    if (cq_rope_qkv_cache(qkv, heads, cos, sin, const_cast<at::Tensor *>(&column), k_cache, v_cache, &q))
      return 1;
    const at::Tensor query = tensor_of(q);
    const at::Tensor y = query.is_cpu() && k.is_cpu() && has_kernel_type(query) && alike
                             ? decode_attention(query.contiguous(), k, v, valid.contiguous(),
                                                from.defined() ? from.contiguous() : from, scale)
                             : decode_attention_reference(query, k, v, valid, from, scale);
    return give(out, y.reshape({B, 1, heads * P}));
  });
}

int cq_decode_attention_reference(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor k_cache,
                                  cq_tensor v_cache, cq_tensor lengths, cq_tensor starts, double scale,
                                  cq_tensor *out) {
  return guarded([&] {
    const at::Tensor k = tensor_of(k_cache), v = tensor_of(v_cache), valid = tensor_of(lengths),
                     column = (valid - 1).view({-1, 1});
    at::Tensor *at = const_cast<at::Tensor *>(&column);
    cq_tensor q, fresh_k, fresh_v;
    if (cq_rope_qkv_reference(qkv, heads, k.size(1), cos, sin, &q, &fresh_k, &fresh_v) ||
        cq_cache_write_reference(k_cache, fresh_k, at) || cq_cache_write_reference(v_cache, fresh_v, at))
      return 1;
    const at::Tensor y = decode_attention_reference(tensor_of(q), k, v, valid, tensor_of(starts), scale);
    return give(out, y.reshape({y.size(0), 1, -1}));
  });
}

int cq_cache_write(cq_tensor cache, cq_tensor fresh, cq_tensor positions) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::cache_write");
    at::NoGradGuard no_grad;
    const at::Tensor into = tensor_of(cache), from = tensor_of(fresh), where = tensor_of(positions);
    TORCH_CHECK(into.dim() == 4 && from.dim() == 4 && into.size(0) == from.size(0) && into.size(1) == from.size(1) &&
                    into.size(3) == from.size(3) && into.scalar_type() == from.scalar_type(),
                "cache_write: ", from.sizes(), " of ", from.scalar_type(), " does not go into a cache ", into.sizes(),
                " of ", into.scalar_type());
    const int64_t B = from.size(0), K = from.size(1), L = from.size(2), P = from.size(3), S = into.size(2);
    TORCH_CHECK(where.scalar_type() == at::kLong && where.dim() == 2 && (where.size(0) == B || where.size(0) == 1) &&
                    where.size(1) == L,
                "cache_write: positions must be int64 [", B, " or 1, ", L, "], not ", where.sizes());
    if (!into.is_cpu()) {
      into.scatter_(2, where.unsqueeze(1).unsqueeze(3).expand({B, K, L, P}), from);
      return 0;
    }
    const at::Tensor source = from.stride(3) == 1 ? from : from.contiguous(), at = where.contiguous();
    TORCH_CHECK(into.stride(3) == 1, "cache_write: the cache's last dimension must be contiguous");
    const size_t bytes = into.element_size();
    char *to = static_cast<char *>(into.mutable_data_ptr());
    const char *data = static_cast<const char *>(source.const_data_ptr());
    const int64_t *position = data_of<int64_t>(at), row = where.size(0) > 1 ? L : 0;
    for (int64_t i = 0; i < at.numel(); i++)
      TORCH_CHECK(position[i] >= 0 && position[i] < S, "cache_write: position ", position[i], " of a cache of ", S);
    at::parallel_for(0, B * K, rows_per_share(L * P), [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; h++) {
        const int64_t b = h / K, k = h % K;
        for (int64_t l = 0; l < L; l++)
          std::memcpy(to + bytes * (b * into.stride(0) + k * into.stride(1) + position[b * row + l] * into.stride(2)),
                      data + bytes * (b * source.stride(0) + k * source.stride(1) + l * source.stride(2)), bytes * P);
      }
    });
    return 0;
  });
}

int cq_cache_write_reference(cq_tensor cache, cq_tensor fresh, cq_tensor positions) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const at::Tensor from = tensor_of(fresh);
    tensor_of(cache).scatter_(2, tensor_of(positions).unsqueeze(1).unsqueeze(3).expand_as(from), from);
    return 0;
  });
}
