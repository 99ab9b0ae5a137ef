// optimizer.inl: one step of an optimizer over n elements, and a sum of squares.
//
// Gradient and weight are T; the master weight is float32, and the weight is rounded from it (T =
// float: the master weight is the weight). Everything is read and written once; separate passes to
// widen the gradient, step, and round the weight would move half as much again.

// One step of AdamW for a vector of elements.
inline __attribute__((always_inline)) void adamw_step(Vec g, Vec &mean, Vec &square, Vec &weight,
                                                      const AdamWStep &s) {
  mean = fma(splat(1.f - s.beta1), g - mean, mean);
  square = fma(splat(1.f - s.beta2) * g, g, square * s.beta2);
  weight = weight * s.keep;
  weight = weight - s.rate * mean / (sqrt(square) * s.square_correction + s.eps);
}

// With float32 moments: 28 bytes of traffic for each element.
template <class T>
void adamw(T *weight, float *master, const T *gradient, float *mean, float *square, int64_t n,
           const AdamWStep &s) {
  for_vectors(n, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
    Vec a = load_some(mean + d, m), b = load_some(square + d, m), w = load_some(master + d, m);
    adamw_step(load_some(gradient + d, m) * s.gradient_scale, a, b, w, s);
    store_some(mean + d, a, m);
    store_some(square + d, b, m);
    store_some(master + d, w, m);
    if constexpr (!std::is_same_v<T, float>)
      store_some(weight + d, w, m);
  });
}

// 32 random bits for each of the elements from `at` on, which depend on the element's index and the
// key only (Wellons' lowbias32 hash).
inline VecU random_bits(int64_t at, uint32_t key) {
  VecU x;
  for (int i = 0; i < W; i++)
    x[i] = uint32_t(at) + uint32_t(i);
  x ^= key;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// a rounded stochastically to bfloat16, by 16 random bits.
inline Vec rounded_stochastically(Vec a, VecU random) {
  return (Vec)(((VecU)a + (random & 0xffff)) & 0xffff0000u);
}

// With bfloat16 moments, rounded stochastically, and so is a weight without a master weight. `from`
// is the index of the first element.
template <class T>
void adamw_bf16(T *weight, float *master, const T *gradient, bf16 *mean, bf16 *square, int64_t from,
                int64_t n, uint32_t key, const AdamWStep &s) {
  for_vectors(n, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
    Vec a = load_some(mean + d, m), b = load_some(square + d, m),
        w = master ? load_some(master + d, m) : load_some(weight + d, m);
    adamw_step(load_some(gradient + d, m) * s.gradient_scale, a, b, w, s);
    const VecU random = random_bits(from + d, key);
    store_some(mean + d, rounded_stochastically(a, random), m);
    store_some(square + d, rounded_stochastically(b, random >> 16), m);
    if (master)
      store_some(master + d, w, m);
    else
      w = rounded_stochastically(w, random_bits(from + d, ~key));
    if constexpr (!std::is_same_v<T, float>)
      store_some(weight + d, w, m);
  });
}

inline VecU load_codes(const uint8_t *p, int64_t n) {
  VecB bytes = {};
  n == W ? memcpy(&bytes, p, W) : memcpy(&bytes, p, n);
  return __builtin_convertvector(bytes, VecU);
}
inline void store_codes(uint8_t *p, VecU codes, int64_t n) {
  VecB bytes = __builtin_convertvector(codes, VecB);
  n == W ? memcpy(p, &bytes, W) : memcpy(p, &bytes, n);
}

inline Vec decoded(VecU code, uint32_t base) {
  return (Vec)(((code + base) << 20) & (VecU)(code != 0));
}

// The code of a >= 0, rounded by 20 random bits. A value below the smallest number becomes that
// number or zero. A nonzero square never becomes zero, since the mean is divided by its root.
inline VecU encoded(Vec a, uint32_t base, VecU random, bool square) {
  const Vec smallest = (Vec)(VecU{} + ((base + 1) << 20));
  const VecU code = (((VecU)a + random) >> 20) - base, below = (VecU)(a < smallest);
  const Vec bar =
      square ? Vec{} : smallest * (__builtin_convertvector((VecI)random, Vec) * 0x1p-20f);
  return (code & ~below) | ((VecU)(bar < a) & below & 1);
}

// With 8-bit moments and an exponent for each block, rounded stochastically, and so is a weight
// without a master weight. `from` is a multiple of the block.
template <class T>
void adamw_8bit(T *weight, float *master, const T *gradient, uint8_t *mean, uint8_t *square,
                uint8_t *mean_exponents, uint8_t *square_exponents, int64_t from, int64_t n,
                uint32_t key, const AdamWStep &s) {
  float means[moment_block], squares[moment_block];
  for (int64_t begin = 0; begin < n; begin += moment_block) {
    const int64_t size = std::min(moment_block, n - begin);
    uint8_t &mean_exponent = mean_exponents[begin / moment_block],
            &square_exponent = square_exponents[begin / moment_block];
    uint32_t mean_base = moment_base(mean_exponent, false),
             square_base = moment_base(square_exponent, true);
    Vec top_mean = {}, top_square = {};
    for_vectors(size, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
      const int64_t at = begin + d;
      const VecU code = load_codes(mean + at, m);
      Vec a = (Vec)((VecU)decoded(code & 127, mean_base) | (code >> 7) << 31),
          b = decoded(load_codes(square + at, m), square_base),
          w = master ? load_some(master + at, m) : load_some(weight + at, m);
      adamw_step(load_some(gradient + at, m) * s.gradient_scale, a, b, w, s);
      if (master)
        store_some(master + at, w, m);
      else
        w = rounded_stochastically(w, random_bits(from + at, ~key));
      if constexpr (!std::is_same_v<T, float>)
        store_some(weight + at, w, m);
      store(means + d, a);
      store(squares + d, b);
      top_mean = maximum(top_mean, (Vec)((VecU)a & 0x7fffffff));
      top_square = maximum(top_square, b);
    });
    mean_exponent = moment_exponent(largest(top_mean));
    square_exponent = moment_exponent(largest(top_square));
    mean_base = moment_base(mean_exponent, false), square_base = moment_base(square_exponent, true);
    for_vectors(size, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
      const VecU random = random_bits(from + begin + d, key), sign = (VecU)load(means + d) >> 31;
      const Vec a = (Vec)((VecU)load(means + d) & 0x7fffffff);
      store_codes(mean + begin + d,
                  encoded(a, mean_base, (random & 0xffff) << 4, false) | sign << 7, m);
      store_codes(square + begin + d,
                  encoded(load(squares + d), square_base, random >> 16 << 4, true), m);
    });
  }
}

// Steps by the sign of an average of gradients. 20 bytes of traffic for each element.
template <class T>
void lion(T *weight, float *master, const T *gradient, float *mean, int64_t n, const LionStep &s) {
  for_vectors(n, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
    const Vec g = load_some(gradient + d, m) * s.gradient_scale, a = load_some(mean + d, m);
    const Vec c = fma(splat(1.f - s.beta1), g - a, a);
    const Vec sign = (Vec)((((VecU)c & 0x80000000u) | 0x3f800000u) & (VecU)(c != 0.f));
    const Vec w = load_some(master + d, m) * s.keep - s.rate * sign;
    store_some(mean + d, fma(splat(1.f - s.beta2), g - a, a), m);
    store_some(master + d, w, m);
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
