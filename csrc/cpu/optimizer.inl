// optimizer.inl: one step of AdamW over n elements, and a sum of squares.

// Gradient and weight are T; the original, the mean and the square are float32, and the weight is rounded from the
// original (T = float: the original is the weight). 28 bytes of traffic an element for 16-bit weights, 28 for float32:
// everything is read and written once, where separate passes (widen the gradient, step, round the weight) move 40.
template <class T>
void adamw(T *weight, float *original, const T *gradient, float *mean, float *square, int64_t n, const AdamWStep &s) {
  const Vec mean_share = splat(1.f - s.beta1), square_share = splat(1.f - s.beta2);
  for_vectors(n, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
    Vec g = load_some(gradient + d, m) * s.gradient_scale;
    Vec a = load_some(mean + d, m), b = load_some(square + d, m);
    a = fma(mean_share, g - a, a);
    b = fma(square_share * g, g, b * s.beta2);
    Vec w = load_some(original + d, m) * s.keep;
    w = w - s.rate * a / (sqrt(b) * s.square_correction + s.eps);
    store_some(mean + d, a, m);
    store_some(square + d, b, m);
    store_some(original + d, w, m);
    if constexpr (!std::is_same_v<T, float>)
      store_some(weight + d, w, m);
  });
}

template <class T> float sum_of_squares(const T *x, int64_t n) {
  Vec total[4] = {};
  int64_t d = 0;
  for (; d + 4 * W <= n; d += 4 * W)
    for (int i = 0; i < 4; i++) {
      Vec v = load(x + d + i * W);
      total[i] = fma(v, v, total[i]);
    }
  for (; d < n; d += W) {
    Vec v = load_some(x + d, std::min<int64_t>(W, n - d));
    total[0] = fma(v, v, total[0]);
  }
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}
