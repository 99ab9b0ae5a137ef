// linear.inl: y = x Wᵀ + b for a few rows x, as in a decode step.
//
// Each weight is used once for each of the n rows of x, so for small n the time is that of reading
// W once; x (n * depth floats) stays in the first-level cache. A block is R rows of W by M rows of
// x: R * M accumulators, R + M loads for R * M fused multiply-adds. R = 4 gives enough independent
// chains to hide the latency of the multiply-add, and four sequential streams for the prefetcher. M
// beyond 4 halves R, so that accumulators and operands fit 32 registers (on AVX2 the compiler
// spills a few of 16, still far above memory speed). Rows of W are adjacent in memory, so a block
// prefetches the same columns of the next block.

template <class T, int R, int M>
inline void linear_block(const T *weight, const T *bias, const float *x, int64_t depth, T *y,
                         int64_t y_stride) {
  Vec acc[R][M] = {};
  for_vectors(depth, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
    Vec xs[M];
    for (int m = 0; m < M; m++)
      xs[m] = load_some(x + m * depth + d, n);
    for (int r = 0; r < R; r++) {
      const T *row = weight + r * depth + d;
      __builtin_prefetch(row + R * depth);
      Vec w = load_some(row, n);
      for (int m = 0; m < M; m++)
        acc[r][m] = fma(w, xs[m], acc[r][m]);
    }
  });
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++)
      y[m * y_stride + r] = narrow<T>(sum(acc[r][m]) + (bias ? widened(bias[r]) : 0.f));
}

template <class T, int M>
void linear_rows(const T *weight, const T *bias, const float *x, int64_t rows, int64_t depth, T *y,
                 int64_t y_stride) {
  constexpr int R = M <= 4 ? 4 : 2;
  int64_t r = 0;
  for (; r + R <= rows; r += R)
    linear_block<T, R, M>(weight + r * depth, bias ? bias + r : nullptr, x, depth, y + r, y_stride);
  for (; r < rows; r++)
    linear_block<T, 1, M>(weight + r * depth, bias ? bias + r : nullptr, x, depth, y + r, y_stride);
}

template <class T>
void linear(const T *weight, const T *bias, const float *x, int64_t rows, int64_t depth, int64_t n,
            T *y, int64_t y_stride) {
  constexpr void (*by_n[])(const T *, const T *, const float *, int64_t, int64_t, T *, int64_t) = {
      linear_rows<T, 1>, linear_rows<T, 2>, linear_rows<T, 3>, linear_rows<T, 4>,
      linear_rows<T, 5>, linear_rows<T, 6>, linear_rows<T, 7>, linear_rows<T, 8>};
  // For more than eight rows of x, a strip of W that fits the first-level cache is reused, so W is
  // read once from memory.
  const int64_t strip =
      n <= 8 ? rows : std::max<int64_t>(4, 16384 / (depth * int64_t(sizeof(T))) / 4 * 4);
  for (int64_t r = 0; r < rows; r += strip)
    for (int64_t m = 0; m < n; m += 8)
      by_n[std::min<int64_t>(n - m, 8) - 1](weight + r * depth, bias ? bias + r : nullptr,
                                            x + m * depth, std::min(strip, rows - r), depth,
                                            y + m * y_stride + r, y_stride);
}

template <class T> void widen(const T *x, int64_t n, float *y) {
  for_vectors(n, [&](int64_t d, int64_t k)
                     __attribute__((always_inline)) { store_some(y + d, load_some(x + d, k), k); });
}

template <class T> void round(const float *x, int64_t n, T *y) {
  for_vectors(n, [&](int64_t d, int64_t k)
                     __attribute__((always_inline)) { store_some(y + d, load_some(x + d, k), k); });
}
