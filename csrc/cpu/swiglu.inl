// swiglu.inl: silu(gate) * up over rows that hold gate and up side by side, as a fused projection
// computes them. As in Hugging Face, silu(gate) is rounded to T before the multiplication. Memory
// traffic (three elements for each element of the result, five in the backward pass) hides the
// sigmoid.

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exp(-x)); }

template <class T> void swiglu(const T *x, int64_t rows, int64_t width, T *y) {
  for (int64_t r = 0; r < rows; r++, x += 2 * width, y += width)
    for_vectors(width, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vec gate = load_some(x + d, n), up = load_some(x + width + d, n);
      store_some(y + d, rounded_as<T>(gate * sigmoid(gate)) * up, n);
    });
}

// silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g).
template <class T>
void swiglu_backward(const T *dy, const T *x, int64_t rows, int64_t width, T *dx) {
  for (int64_t r = 0; r < rows; r++, x += 2 * width, dx += 2 * width, dy += width)
    for_vectors(width, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vec gate = load_some(x + d, n), up = load_some(x + width + d, n), g = load_some(dy + d, n);
      Vec s = sigmoid(gate);
      store_some(dx + d, rounded_as<T>(g * up) * s * (1.f + gate * (1.f - s)), n);
      store_some(dx + width + d, g * rounded_as<T>(gate * s), n);
    });
}
