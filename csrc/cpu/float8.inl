// float8.inl: weights of 8 bits with four of exponent (E4M3). Shifted to the places of a float16,
// a number's bits are its value divided by 256. Activations stay float32.

inline float float8_value(uint8_t b) {
  if ((b & 0x7f) == 0x7f)
    return std::nanf("");
  return widen_f16(uint16_t((b & 0x80) << 8 | (b & 0x7f) << 7)) * 256;
}

// W numbers, divided by 256.
inline Vec float8_load(const uint8_t *p) {
#if defined(CONQUER_AVX512)
  const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  const __m256i number = _mm256_and_si256(v, _mm256_set1_epi16(0x7f));
  // (v << 8 & 0x8000) | number << 7
  const __m256i bits = _mm256_ternarylogic_epi32(_mm256_slli_epi16(v, 8), _mm256_set1_epi16(-32768),
                                                 _mm256_slli_epi16(number, 7), 0xea);
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(number, _mm256_set1_epi16(0x7f));
  return (Vec)_mm512_cvtph_ps(_mm256_mask_mov_epi16(bits, nan, _mm256_set1_epi16(0x7e00)));
#elif defined(CONQUER_AVX2)
  const __m128i v = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
  const __m128i number = _mm_and_si128(v, _mm_set1_epi16(0x7f));
  const __m128i nan =
      _mm_and_si128(_mm_cmpeq_epi16(number, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
  const __m128i sign = _mm_and_si128(_mm_slli_epi16(v, 8), _mm_set1_epi16(-32768));
  return (Vec)_mm256_cvtph_ps(_mm_or_si128(_mm_or_si128(sign, nan), _mm_slli_epi16(number, 7)));
#else
  Vec v;
  for (int i = 0; i < W; i++)
    v[i] = float8_value(p[i]) / 256;
  return v;
#endif
}

// The products of one row with M rows of x.
template <int M>
inline void float8_row(const Float8Rows &w, int64_t r, const float *x, float *y, int64_t y_stride) {
  const uint8_t *row = w.data + r * w.columns;
  const float *scales = w.scales_of(r);
  Vec acc[M] = {};
  float rest[M] = {};
  for (int64_t first = 0; first < w.columns; first += w.tile_columns, scales++) {
    const int64_t n = std::min(w.tile_columns, w.columns - first);
    Vec even[M] = {}, odd[M] = {};
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
      const int64_t at = first + i;
      __builtin_prefetch(row + at + 2048);
      const Vec a = float8_load(row + at), b = float8_load(row + at + W);
      for (int m = 0; m < M; m++) {
        even[m] = fma(a, load(x + m * w.columns + at), even[m]);
        odd[m] = fma(b, load(x + m * w.columns + at + W), odd[m]);
      }
    }
    for (; i < n; i++)
      for (int m = 0; m < M; m++)
        rest[m] += float8_value(row[first + i]) * x[m * w.columns + first + i] * *scales;
    for (int m = 0; m < M; m++)
      acc[m] = fma(even[m] + odd[m], splat(*scales), acc[m]);
  }
  for (int m = 0; m < M; m++)
    y[m * y_stride + r] = sum(acc[m]) * 256 + rest[m];
}

void float8_dot(const Float8Rows &w, const float *x, int64_t n, float *y, int64_t y_stride) {
  for (int64_t r = 0; r < w.rows; r++) {
    int64_t m = 0;
    for (; m + 4 <= n; m += 4)
      float8_row<4>(w, r, x + m * w.columns, y + m * y_stride, y_stride);
    for (; m + 2 <= n; m += 2)
      float8_row<2>(w, r, x + m * w.columns, y + m * y_stride, y_stride);
    if (m < n)
      float8_row<1>(w, r, x + m * w.columns, y + m * y_stride, y_stride);
  }
}

void float8_unpack(const Float8Rows &w, float *out) {
  for (int64_t r = 0; r < w.rows; r++) {
    const uint8_t *row = w.data + r * w.columns;
    const float *scales = w.scales_of(r);
    float *to = out + r * w.columns;
    for (int64_t first = 0; first < w.columns; first += w.tile_columns, scales++) {
      const int64_t last = std::min(first + w.tile_columns, w.columns);
      int64_t i = first;
      for (; i + W <= last; i += W)
        store(to + i, float8_load(row + i) * 256.f * *scales);
      for (; i < last; i++)
        to[i] = float8_value(row[i]) * *scales;
    }
  }
}
