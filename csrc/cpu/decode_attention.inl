// decode_attention.inl: one new position's attention to a cache of keys and values.
//
// Each valid key and value is read once for the G query heads that share it; the arithmetic is 4 G
// P operations for each position. Positions come in tiles whose keys and values stay in the
// first-level cache: the scores of a tile, a vectorized exponential over them, then the weighted
// sum of the values, with the accumulators of up to four query heads in registers. The softmax is
// online: `top` is the largest score so far, `mass` the sum of exp(score - top), `out` the sum of
// the values with the same weights. Partial results over different ranges of the cache combine by
// the same rule.

constexpr int64_t tile = 64;
constexpr int head_block = 4;
constexpr int vector_block = W == 16 ? 4 : 2;

// scores[g][s] = <q[g], k[s]> for s < n and G heads. The tile's other scores become -inf.
template <class T, int G>
inline void tile_scores(const float *q, const T *k, int64_t stride, int64_t n, int64_t width,
                        float (*scores)[tile]) {
  int64_t s = 0;
  for (; s + 4 <= n; s += 4) {
    Vec dot[G][4] = {};
    for_vectors(width, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
      Vec xs[4];
      for (int i = 0; i < 4; i++)
        xs[i] = load_some(k + (s + i) * stride + d, m);
      for (int g = 0; g < G; g++) {
        Vec y = load_some(q + g * width + d, m);
        for (int i = 0; i < 4; i++)
          dot[g][i] = fma(xs[i], y, dot[g][i]);
      }
    });
    for (int g = 0; g < G; g++)
      sum_four(dot[g], scores[g] + s);
  }
  for (; s < n; s++)
    for (int g = 0; g < G; g++) {
      Vec dot = {};
      for_vectors(width, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
        dot = fma(load_some(k + s * stride + d, m), load_some(q + g * width + d, m), dot);
      });
      scores[g][s] = sum(dot);
    }
  for (int g = 0; g < G; g++)
    for (int64_t s = n; s < tile; s++)
      scores[g][s] = -INFINITY;
}

// out[g][d] = out[g][d] * fade[g] + sum over s < n of p[g][s] v[s][d], for V vectors of d (the last
// one `last` long).
template <class T, int G, int V>
inline void tile_values(const float (*p)[tile], const float *fade, const T *v, int64_t stride,
                        int64_t n, int64_t width, int64_t last, float *out) {
  Vec acc[G][V];
  for (int g = 0; g < G; g++)
    for (int i = 0; i < V; i++)
      acc[g][i] = load_some(out + g * width + i * W, i == V - 1 ? last : W) * fade[g];
  for (int64_t s = 0; s < n; s++)
    for (int i = 0; i < V; i++) {
      Vec x = load_some(v + s * stride + i * W, i == V - 1 ? last : W);
      for (int g = 0; g < G; g++)
        acc[g][i] = fma(splat(p[g][s]), x, acc[g][i]);
    }
  for (int g = 0; g < G; g++)
    for (int i = 0; i < V; i++)
      store_some(out + g * width + i * W, acc[g][i], i == V - 1 ? last : W);
}

template <class T, int G>
void attend_heads(const float *q, const T *k, const T *v, int64_t k_stride, int64_t v_stride,
                  int64_t n, int64_t width, float *top, float *mass, float *out) {
  for (int g = 0; g < G; g++) {
    top[g] = -INFINITY;
    mass[g] = 0;
  }
  std::fill(out, out + G * width, 0.f);
  alignas(64) float scores[G][tile];
  for (int64_t s = 0; s < n; s += tile) {
    const int64_t here = std::min(tile, n - s);
    tile_scores<T, G>(q, k + s * k_stride, k_stride, here, width, scores);
    float fade[G];
    for (int g = 0; g < G; g++) {
      Vec most = load(scores[g]), total = {};
      for (int64_t i = W; i < tile; i += W)
        most = maximum(most, load(scores[g] + i));
      const float next = std::max(top[g], largest(most));
      fade[g] = std::exp(top[g] - next);
      for (int64_t i = 0; i < tile; i += W) {
        Vec p = exp(load(scores[g] + i) - next);
        store(scores[g] + i, p);
        total += p;
      }
      mass[g] = mass[g] * fade[g] + sum(total);
      top[g] = next;
    }
    const T *values = v + s * v_stride;
    int64_t d = 0;
    for (; d + vector_block * W <= width; d += vector_block * W)
      tile_values<T, G, vector_block>(scores, fade, values + d, v_stride, here, width, W, out + d);
    for (; d < width; d += W)
      tile_values<T, G, 1>(scores, fade, values + d, v_stride, here, width,
                           std::min<int64_t>(W, width - d), out + d);
  }
}

// q [heads, width] float32 and scaled; k, v: n > 0 positions; top, mass [heads] and out [heads,
// width] are set.
template <class T>
void attend(const float *q, int64_t heads, const T *k, const T *v, int64_t k_stride,
            int64_t v_stride, int64_t n, int64_t width, float *top, float *mass, float *out) {
  constexpr void (*by_heads[])(const float *, const T *, const T *, int64_t, int64_t, int64_t,
                               int64_t, float *, float *, float *) = {
      attend_heads<T, 1>, attend_heads<T, 2>, attend_heads<T, 3>, attend_heads<T, 4>};
  for (int64_t h = 0; h < heads; h += head_block)
    by_heads[std::min<int64_t>(head_block, heads - h) - 1](
        q + h * width, k, v, k_stride, v_stride, n, width, top + h, mass + h, out + h * width);
}
