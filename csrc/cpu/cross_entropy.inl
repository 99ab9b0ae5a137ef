// cross_entropy.inl: the cross-entropy of rows of logits, and its gradient, which overwrites the
// logits.
//
// A row (V elements: 98 KB of bfloat16 for V = 49,152) stays in the second-level cache over three
// passes: the maximum, the sum of exponentials, and for the gradient (softmax - onehot) * scale.
// The exponential is computed twice, since storing it in T would round the gradient twice. Label
// smoothing needs another pass, for the mean of the logits.

// nll[r] = lse - row[label] with lse = log sum exp(row). penalty[r] = smoothing * (row[label] -
// mean(row)) + z * lse^2; nll + penalty is the loss of conquer.h. scales[r] multiplies the row's
// gradient; without scales the logits are not changed.
template <class T>
void cross_entropy(T *logits, int64_t rows, int64_t width, const int64_t *labels,
                   const float *scales, const Penalties &p, float *nll, float *penalty) {
  for (int64_t r = 0; r < rows; r++, logits += width) {
    Vec most = splat(-INFINITY);
    int64_t d = 0;
    for (; d + W <= width; d += W)
      most = maximum(most, load(logits + d));
    float top = largest(most);
    for (; d < width; d++)
      top = std::max(top, widened(logits[d]));

    // Partial sums of 63 vectors are added in double, so that large vocabularies lose no accuracy.
    auto summed = [&](auto vector, auto scalar) {
      double all = 0;
      int64_t d = 0;
      while (d + W <= width) {
        Vec part = {};
        for (int64_t stop = std::min(width - W, d + 63 * W); d <= stop; d += W)
          part += vector(load(logits + d));
        all += sum(part);
      }
      for (; d < width; d++)
        all += scalar(widened(logits[d]));
      return all;
    };
    const float mass =
        float(summed([&](Vec x) __attribute__((always_inline)) { return exp(x - top); },
                     [&](float x) { return std::exp(x - top); }));

    const float target = widened(logits[labels[r]]), lse = std::log(mass) + top;
    nll[r] = std::log(mass) + (top - target);
    penalty[r] = p.z * lse * lse;
    if (p.smoothing != 0)
      penalty[r] += p.smoothing *
                    float(target - summed([&](Vec x) __attribute__((always_inline)) { return x; },
                                          [](float x) { return x; }) /
                                       width);
    if (!scales)
      continue;
    // d lse / d x = softmax, so z * lse^2 makes the softmax weigh more; smoothing spreads the label
    // over all.
    const float share = scales[r] * (1 + 2 * p.z * lse) / mass,
                spread = scales[r] * p.smoothing / width;
    for_vectors(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      store_some(logits + i, exp(load_some(logits + i, n) - top) * share - spread, n);
    });
    logits[labels[r]] =
        narrow<T>(std::exp(target - top) * share - spread - scales[r] * (1 - p.smoothing));
  }
}
