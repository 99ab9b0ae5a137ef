// attention.inl: attention of a block of queries to keys, and its gradients, without the L x S
// weights in memory (Dao, arXiv 2307.08691).
//
// The scores of a block of queries and a block of keys are a product in the first-level cache; the
// softmax is online, as in decode_attention.inl. Each pair of a query and a key takes 4 P
// operations forward and 10 P backward, nearly all in gemm. Its right operand is a matrix as it is
// stored (values, keys, queries, gradients) or was transposed once (Kᵀ and Vᵀ, in blocks of keys).

// How many of the n keys from `from` on a causal query may see.
template <class T>
inline int64_t keys_before(const FlashHead<T> &h, int64_t row, int64_t from, int64_t n) {
  return h.causal ? std::clamp<int64_t>(row + 1 - from, 0, n) : n;
}

// Whether the mask lets any of the queries see any of the keys.
template <class T>
bool sees_any(const FlashHead<T> &h, int64_t row, int64_t rows, int64_t from, int64_t n) {
  for (int64_t r = row; h.mask && r < row + rows; r++)
    if (memchr(h.mask + r * h.mask_row + from, 1, keys_before(h, r, from, n)))
      return true;
  return !h.mask;
}

// Sets the scores of keys that a query does not see to -inf.
template <class T>
void hide(const FlashHead<T> &h, int64_t row, int64_t rows, int64_t from, int64_t n,
          float *scores) {
  if (!h.mask && n == h.keys && keys_before(h, row, from, n) == n)
    return;
  for (int64_t r = row; r < row + rows; r++, scores += h.keys) {
    const int64_t before = keys_before(h, r, from, n);
    if (const bool *mask = h.mask ? h.mask + r * h.mask_row + from : nullptr)
      for (int64_t i = 0; i < before; i++)
        scores[i] = mask[i] ? scores[i] : -INFINITY;
    std::fill(scores + before, scores + h.keys, -INFINITY);
  }
}

// to[r, d] = from[r, d] * scale
template <class T>
void widen_rows(const T *from, int64_t from_row, int64_t rows, int64_t width, float scale,
                float *to) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < width; d += W)
      store(to + r * width + d, load(from + r * from_row + d) * scale);
}

template <class T>
void round_rows(const float *from, int64_t rows, int64_t width, float scale, T *to,
                int64_t to_row) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < width; d += W)
      store(to + r * to_row + d, load(from + r * width + d) * scale);
}

// The rows [row, row + rows) of h.out and h.lse; scratch holds rows * (2 P + keys + 2) floats.
template <class T> void flash(const FlashHead<T> &h, int64_t row, int64_t rows, float *scratch) {
  constexpr int64_t keys = FlashHead<T>::keys;
  const int64_t P = h.P;
  float *q = scratch, *sum = q + rows * P, *scores = sum + rows * P, *top = scores + rows * keys,
        *mass = top + rows;
  widen_rows(h.q + row * h.q_row, h.q_row, rows, P, h.scale, q);
  std::fill(sum, sum + rows * P, 0.f);
  std::fill(top, top + rows, -INFINITY);
  std::fill(mass, mass + rows, 0.f);
  const int64_t last = h.causal ? std::min(h.S, row + rows) : h.S;
  for (int64_t from = 0; from < last; from += keys) {
    const int64_t n = std::min(keys, h.S - from);
    if (!sees_any(h, row, rows, from, n))
      continue;
    gemm(rows, keys, P, q, P, 1, h.kt + from * P, keys, scores, keys, false);
    hide(h, row, rows, from, n, scores);
    for (int64_t r = 0; r < rows; r++) {
      float *s = scores + r * keys;
      Vec most = load(s);
      for (int64_t i = W; i < keys; i += W)
        most = maximum(most, load(s + i));
      const float next = std::max(top[r], largest(most));
      if (next == -INFINITY) { // no visible key so far
        std::fill(s, s + keys, 0.f);
        continue;
      }
      Vec total = {};
      for (int64_t i = 0; i < keys; i += W) {
        const Vec p = exp(load(s + i) - next);
        store(s + i, p);
        total += p;
      }
      const float fade = std::exp(top[r] - next);
      mass[r] = mass[r] * fade + CONQUER_ISA::sum(total);
      if (fade != 1)
        for (int64_t d = 0; d < P; d += W)
          store(sum + r * P + d, load(sum + r * P + d) * fade);
      top[r] = next;
    }
    gemm(rows, P, n, scores, keys, 1, h.v + from * h.v_row, h.v_row, sum, P, true);
  }
  for (int64_t r = 0; r < rows; r++) {
    round_rows(sum + r * P, 1, P, mass[r] > 0 ? 1 / mass[r] : 0, h.out + (row + r) * h.out_row,
               h.out_row);
    h.lse[row + r] =
        mass[r] > 0 ? top[r] + std::log(mass[r]) : 0; // all scores are -inf then: weights 0
  }
}

// All gradients of one head: g.dq [L, P], g.dk and g.dv [S, P]. With weights p = exp(score - lse)
// and e = rowsum(dy y):
//     dv = pᵀ dy      ds = p (dy vᵀ - e)      dq = scale ds k      dk = scale dsᵀ q
// scratch holds L (P + 1) + block (2 P + 2 keys) floats.
template <class T>
void flash_backward(const FlashHead<T> &h, const FlashGradients<T> &g, int64_t block,
                    float *scratch) {
  constexpr int64_t keys = FlashHead<T>::keys;
  const int64_t P = h.P, L = h.L;
  float *dq = scratch, *e = dq + L * P, *q = e + L, *dy = q + block * P, *p = dy + block * P,
        *ds = p + block * keys;
  std::fill(dq, dq + L * P, 0.f);
  for (int64_t r = 0; r < L; r++) {
    Vec dot = {};
    for (int64_t d = 0; d < P; d += W)
      dot = fma(load(h.out + r * h.out_row + d), load(g.dy + r * g.dy_row + d), dot);
    e[r] = sum(dot);
  }
  for (int64_t from = 0; from < h.S; from += keys) {
    const int64_t n = std::min(keys, h.S - from);
    float *dk = g.dk + from * P, *dv = g.dv + from * P;
    std::fill(dk, dk + n * P, 0.f);
    std::fill(dv, dv + n * P, 0.f);
    for (int64_t row = h.causal ? from / block * block : 0; row < L; row += block) {
      const int64_t rows = std::min(block, L - row);
      if (!sees_any(h, row, rows, from, n))
        continue;
      const T *queries = h.q + row * h.q_row, *grads = g.dy + row * g.dy_row;
      widen_rows(queries, h.q_row, rows, P, h.scale, q);
      widen_rows(grads, g.dy_row, rows, P, 1, dy);
      gemm(rows, keys, P, q, P, 1, h.kt + from * P, keys, p, keys, false);
      gemm(rows, keys, P, dy, P, 1, g.vt + from * P, keys, ds, keys, false);
      hide(h, row, rows, from, n, p);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < keys; i += W) {
          float *weight = p + r * keys + i, *grad = ds + r * keys + i;
          const Vec w = exp(load(weight) - h.lse[row + r]);
          store(weight, w);
          store(grad, w * (load(grad) - e[row + r]));
        }
      gemm(n, P, rows, p, 1, keys, dy, P, dv, P, true);
      gemm(n, P, rows, ds, 1, keys, q, P, dk, P, true); // q is scaled already
      gemm(rows, P, n, ds, keys, 1, h.k + from * h.k_row, h.k_row, dq + row * P, P, true);
    }
  }
  round_rows(dq, L, P, h.scale, g.dq, g.dq_row);
}

// to[x / keys][d][x % keys] = from[x, d], zero beyond n.
template <class T>
void transpose_keys(const T *from, int64_t from_row, int64_t n, int64_t width, T *to) {
  constexpr int64_t keys = FlashHead<T>::keys;
  for (int64_t x = 0; x < n; x += keys, to += keys * width)
    for (int64_t d = 0; d < width; d++)
      for (int64_t i = 0; i < keys; i++)
        to[d * keys + i] = x + i < n ? from[(x + i) * from_row + d] : T{};
}
