// rms_norm.inl: root-mean-square normalization of rows, with the rounding of Hugging Face's
// LlamaRMSNorm: normalized in float32, rounded to T, then multiplied by the weight and rounded
// again.
//
// The second pass over a row finds it in the first-level cache, so memory sees one read and one
// write. The backward pass reads dy and x once from memory and writes dx; dweight stays in the
// cache, as `depth` floats for each thread.

template <class T>
void rms_norm(const T *x, const T *weight, float eps, int64_t rows, int64_t depth, T *y,
              float *rstd) {
  for (int64_t r = 0; r < rows; r++, x += depth, y += depth) {
    Vec squares = {};
    for_vectors(depth, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vec v = load_some(x + d, n);
      squares = fma(v, v, squares);
    });
    const float scale = 1.f / std::sqrt(sum(squares) / float(depth) + eps);
    for_vectors(depth, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vec v = rounded_as<T>(load_some(x + d, n) * scale);
      store_some(y + d, v * load_some(weight + d, n), n);
    });
    if (rstd)
      rstd[r] = scale;
  }
}

// With h = x * rstd and g = dy * weight: dx = rstd * (g - h * mean(g * h)), dweight = sum over rows
// of dy * h. dweight (or null) is accumulated.
template <class T>
void rms_norm_backward(const T *dy, const T *x, const T *weight, const float *rstd, int64_t rows,
                       int64_t depth, T *dx, float *dweight) {
  for (int64_t r = 0; r < rows; r++, x += depth, dy += depth, dx += depth) {
    const float scale = rstd[r];
    Vec dot = {};
    for_vectors(depth, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vec h = load_some(x + d, n) * scale, g = load_some(dy + d, n);
      if (dweight)
        store_some(dweight + d, fma(g, rounded_as<T>(h), load_some(dweight + d, n)), n);
      dot = fma(g * load_some(weight + d, n), h, dot);
    });
    const float mean = sum(dot) / float(depth);
    for_vectors(depth, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vec h = load_some(x + d, n) * scale, g = load_some(dy + d, n) * load_some(weight + d, n);
      store_some(dx + d, (g - h * mean) * scale, n);
    });
  }
}
