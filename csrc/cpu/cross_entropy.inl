// cross_entropy.inl: the cross-entropy of rows of logits, and its gradient in the logits' place.
//
// A row (V elements: 98 KB of bfloat16 for V = 49,152) stays in the second-level cache over three passes: the maximum,
// the sum of exponentials, and, where a gradient is wanted, (softmax - onehot) * scale written over the logits.
// The exponential is computed twice rather than kept, because keeping it in T would round the gradient twice.

// nll[r] = log sum exp(row) - row[label]. With scale 0 the logits are left alone.
template <class T>
void cross_entropy(T *logits, int64_t rows, int64_t width, const int64_t *labels, float scale, float *nll) {
  for (int64_t r = 0; r < rows; r++, logits += width) {
    Vec most = splat(-INFINITY);
    int64_t d = 0;
    for (; d + W <= width; d += W)
      most = maximum(most, load(logits + d));
    float top = largest(most);
    for (; d < width; d++)
      top = std::max(top, widened(logits[d]));

    // Summed in stretches, so that a vocabulary of 200,000 loses no more than one of 1,000.
    double all = 0;
    for (d = 0; d + W <= width;) {
      Vec part = {};
      for (int64_t stop = std::min(width - W, d + 63 * W); d <= stop; d += W)
        part += exp(load(logits + d) - top);
      all += sum(part);
    }
    for (; d < width; d++)
      all += std::exp(widened(logits[d]) - top);
    const float mass = float(all);

    const float target = widened(logits[labels[r]]);
    nll[r] = std::log(mass) + (top - target);
    if (scale == 0)
      continue;
    const float share = scale / mass;
    for_vectors(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      store_some(logits + i, exp(load_some(logits + i, n) - top) * share, n);
    });
    logits[labels[r]] = narrow<T>(std::exp(target - top) * share - scale);
  }
}
