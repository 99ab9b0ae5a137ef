// decode_attention.cpp: attention of one new position of each sequence to its cache.
//
// The valid positions of all sequences and key/value heads are concatenated and divided into equal
// shares, one for each thread, so that contexts of different lengths and any number of heads
// balance. A share that begins or ends inside a head's positions has a partial result; these are
// combined at the end. Share t's result for head i (counted over the batch) is in slot i + t.
// Shares are consecutive, so each overlapping pair has its own slot, and heads + shares slots
// suffice.
#include "cpu.h"

#include <cmath>

namespace conquer::cpu {

namespace {

// Attention of q [B,H,1,P] to the positions starts to lengths - 1 of k and v.
at::Tensor attend(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                  const at::Tensor &lengths, const at::Tensor &starts, double scale) {
  const int64_t B = q.size(0), H = q.size(1), P = q.size(3), K = k.size(1), S = k.size(2),
                G = H / K, heads = B * K;
  std::vector<int64_t> begin(B),
      before(heads + 1); // where valid positions begin; how many positions precede each head's
  const int64_t *length = data_of<int64_t>(lengths), *start = data_of<int64_t>(starts);
  for (int64_t b = 0; b < B; b++) {
    begin[b] = start ? start[b] : 0;
    TORCH_CHECK(begin[b] >= 0 && length[b] <= S, "decode_attention: positions ", begin[b], " to ",
                length[b], " of a cache of ", S);
    for (int64_t h = b * K; h < (b + 1) * K; h++)
      before[h + 1] = before[h] + std::max<int64_t>(0, length[b] - begin[b]);
  }
  const int64_t total = before[heads];
  const int64_t shares = at::in_parallel_region() ? 1
                                                  : std::clamp<int64_t>(total * G * P / one_thread,
                                                                        1, at::get_num_threads());
  const int64_t slots = heads + shares;
  at::Tensor scratch = at::empty({B * H * P + slots * G * (P + 2)}, q.options().dtype(at::kFloat));
  float *query = mutable_data_of<float>(scratch), *sums = query + B * H * P,
        *tops = sums + slots * G * P, *masses = tops + slots * G;

  at::Tensor out = at::empty({B, H, 1, P}, q.options());
  with_type(q.scalar_type(), [&](auto element) {
    using T = decltype(element);
    kernels<T>().widen(data_of<T>(q), B * H * P, query);
    for (int64_t i = 0; i < B * H * P; i++)
      query[i] *= float(scale);
    const T *keys = data_of<T>(k), *values = data_of<T>(v);
    parallel_for(shares, 1, [&](int64_t first, int64_t past) {
      for (int64_t t = first; t < past; t++) {
        int64_t from = total * t / shares, to = total * (t + 1) / shares;
        int64_t h = std::upper_bound(before.begin(), before.end(), from) - before.begin() - 1;
        for (; h < heads && before[h] < to; h++) {
          const int64_t a = std::max(from, before[h]), n = std::min(to, before[h + 1]) - a;
          if (n <= 0)
            continue;
          const int64_t b = h / K, s = begin[b] + a - before[h], slot = h + t;
          kernels<T>().attend(
              query + h * G * P, G, keys + b * k.stride(0) + h % K * k.stride(1) + s * k.stride(2),
              values + b * v.stride(0) + h % K * v.stride(1) + s * v.stride(2), k.stride(2),
              v.stride(2), n, P, tops + slot * G, masses + slot * G, sums + slot * G * P);
        }
      }
    });

    T *y = mutable_data_of<T>(out);
    std::vector<float> row(P);
    for (int64_t h = 0; h < heads; h++)
      for (int64_t g = 0; g < G; g++) {
        // The shares that overlap head h's positions.
        float top = -INFINITY, mass = 0;
        std::fill(row.begin(), row.end(), 0.f);
        for (int64_t t = 0; t < shares; t++)
          if (std::max(total * t / shares, before[h]) <
              std::min(total * (t + 1) / shares, before[h + 1])) {
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

at::Tensor decode_attention(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
                            const at::Tensor &k, const at::Tensor &v, const at::Tensor &lengths,
                            const at::Tensor &starts, double scale) {
  const int64_t B = k.size(0), K = k.size(1), P = k.size(3), H = qkv.size(2) / P - 2 * K;
  at::Tensor q = at::empty({B, H, 1, P}, qkv.options());
  rope_qkv(qkv, cos, sin, (lengths - 1).view({B, 1}), q, k, v);
  return attend(q, k, v, lengths, starts, scale).view({B, 1, H * P});
}

} // namespace conquer::cpu
