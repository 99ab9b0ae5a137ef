// decode_attention.cpp: attention of one new position of each sequence to its cache.
//
// The valid positions of each key/value head are cut into pieces, which are shared out among the
// threads, so that contexts of different lengths and any number of heads balance. Each piece has a
// partial result; those of a head are combined in order. Pieces are counted from a sequence's first
// position, so its result depends neither on the other sequences nor on the number of threads.
#include "cpu.h"

#include <cmath>

namespace conquer::cpu {

namespace {

constexpr int64_t piece = 128; // positions

// Attention of q [B,H,1,P] to the positions starts to lengths - 1 of k and v.
at::Tensor attend(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                  const at::Tensor &lengths, const at::Tensor &starts, double scale) {
  const int64_t B = q.size(0), H = q.size(1), P = q.size(3), K = k.size(1), S = k.size(2),
                G = H / K, heads = B * K;
  std::vector<int64_t> begin(B), before(heads + 1); // how many pieces precede each head's
  const int64_t *length = data_of<int64_t>(lengths), *start = data_of<int64_t>(starts);
  for (int64_t b = 0; b < B; b++) {
    begin[b] = start ? start[b] : 0;
    TORCH_CHECK(begin[b] >= 0 && length[b] <= S, "decode_attention: positions ", begin[b], " to ",
                length[b], " of a cache of ", S);
    const int64_t pieces = (std::max<int64_t>(0, length[b] - begin[b]) + piece - 1) / piece;
    for (int64_t h = b * K; h < (b + 1) * K; h++)
      before[h + 1] = before[h] + pieces;
  }
  const int64_t pieces = before[heads];
  at::Tensor scratch = at::empty({B * H * P + pieces * G * (P + 2)}, q.options().dtype(at::kFloat));
  float *query = mutable_data_of<float>(scratch), *sums = query + B * H * P,
        *tops = sums + pieces * G * P, *masses = tops + pieces * G;

  at::Tensor out = at::empty({B, H, 1, P}, q.options());
  with_type(q.scalar_type(), [&](auto element) {
    using T = decltype(element);
    kernels<T>().widen(data_of<T>(q), B * H * P, query);
    for (int64_t i = 0; i < B * H * P; i++)
      query[i] *= float(scale);
    const bool q8 = k.scalar_type() == at::kByte;
    const T *keys = q8 ? nullptr : data_of<T>(k), *values = q8 ? nullptr : data_of<T>(v);
    const int64_t grain = std::max<int64_t>(1, one_thread / (piece * G * P));
    parallel_for(pieces, grain, [&](int64_t first, int64_t past) {
      int64_t h = std::upper_bound(before.begin(), before.end(), first) - before.begin() - 1;
      std::vector<float> wide(q8 ? 2 * piece * P : 0); // keys and values of a piece
      for (int64_t i = first; i < past; i++) {
        while (before[h + 1] <= i)
          h++;
        const int64_t b = h / K, s = begin[b] + (i - before[h]) * piece,
                      n = std::min(piece, length[b] - s);
        if (q8) {
          float *to = wide.data() + n * P;
          block_kernels().unpack(cache_rows(k, b, h % K, s, n, P), wide.data());
          block_kernels().unpack(cache_rows(v, b, h % K, s, n, P), to);
          kernels<float>().attend(query + h * G * P, G, wide.data(), to, P, P, n, P, tops + i * G,
                                  masses + i * G, sums + i * G * P);
          continue;
        }
        kernels<T>().attend(
            query + h * G * P, G, keys + b * k.stride(0) + h % K * k.stride(1) + s * k.stride(2),
            values + b * v.stride(0) + h % K * v.stride(1) + s * v.stride(2), k.stride(2),
            v.stride(2), n, P, tops + i * G, masses + i * G, sums + i * G * P);
      }
    });

    T *y = mutable_data_of<T>(out);
    const int64_t each = std::max<int64_t>(1, one_thread * heads / (B * H * P + pieces * G * P));
    parallel_for(heads, each, [&](int64_t first, int64_t past) {
      std::vector<float> row(P);
      for (int64_t h = first; h < past; h++)
        for (int64_t g = 0; g < G; g++) {
          float top = -INFINITY, mass = 0;
          std::fill(row.begin(), row.end(), 0.f);
          for (int64_t i = before[h]; i < before[h + 1]; i++) {
            const int64_t at = i * G + g;
            const float next = std::max(top, tops[at]), old = std::exp(top - next),
                        fresh = std::exp(tops[at] - next);
            for (int64_t d = 0; d < P; d++)
              row[d] = row[d] * old + sums[at * P + d] * fresh;
            mass = mass * old + masses[at] * fresh;
            top = next;
          }
          const float share = mass > 0 ? 1 / mass : 0; // no valid position: zero
          for (int64_t d = 0; d < P; d++)
            row[d] *= share;
          kernels<T>().round(row.data(), P, y + (h * G + g) * P);
        }
    });
  });
  return out;
}

} // namespace

at::Tensor decode_attention(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
                            const at::Tensor &k, const at::Tensor &v, const at::Tensor &lengths,
                            const at::Tensor &starts, double scale) {
  const bool q8 = k.scalar_type() == at::kByte;
  const int64_t B = k.size(0), K = k.size(1), P = q8 ? k.size(3) / 34 * 32 : k.size(3),
                H = qkv.size(2) / P - 2 * K;
  at::Tensor q = at::empty({B, H, 1, P}, qkv.options());
  const at::Tensor columns = (lengths - 1).view({B, 1});
  if (q8) {
    at::Tensor fresh_k = at::empty({B, K, 1, P}, qkv.options()), fresh_v = at::empty_like(fresh_k);
    rope_qkv(qkv, cos, sin, {}, q, fresh_k, fresh_v);
    cache_write_q8(k, fresh_k, columns);
    cache_write_q8(v, fresh_v, columns);
  } else {
    rope_qkv(qkv, cos, sin, columns, q, k, v);
  }
  return attend(q, k, v, lengths, starts, scale).view({B, 1, H * P});
}

} // namespace conquer::cpu
