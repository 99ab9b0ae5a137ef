// vec.h: a float32 vector as wide as the instruction set of the including file, and its functions.
// Only isa.h includes it, inside a namespace. The compiler's vector types have + - * and
// comparisons on every processor; fused multiply-add, half precision and sums across lanes are
// written for each instruction set.

template <int N> struct Lanes {
  typedef float F __attribute__((vector_size(4 * N)));
  typedef float UnalignedF __attribute__((vector_size(4 * N), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(4 * N)));
  typedef uint32_t U __attribute__((vector_size(4 * N)));
  typedef uint16_t H __attribute__((vector_size(2 * N)));
  typedef uint16_t UnalignedH __attribute__((vector_size(2 * N), aligned(2), may_alias));
  typedef uint8_t B __attribute__((vector_size(N)));
};

#if defined(CONQUER_AVX512)
constexpr int W = 16;
#elif defined(CONQUER_AVX2)
constexpr int W = 8;
#else
constexpr int W = 4; // SSE2, NEON
#endif

using Vec = Lanes<W>::F;
using VecI = Lanes<W>::I;
using VecU = Lanes<W>::U;
using VecH = Lanes<W>::H;
using VecB = Lanes<W>::B;

inline Vec splat(float x) { return x - Vec{}; }

inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(CONQUER_AVX512)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(CONQUER_AVX2)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Vec maximum(Vec a, Vec b) {
#if defined(CONQUER_AVX512)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(CONQUER_AVX2)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline Vec sqrt(Vec a) {
#if defined(CONQUER_AVX512)
  return (Vec)_mm512_sqrt_ps((__m512)a);
#elif defined(CONQUER_AVX2)
  return (Vec)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < W; i++)
    a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

inline float sum(Vec a) {
#if defined(CONQUER_AVX512)
  return _mm512_reduce_add_ps((__m512)a);
#elif defined(CONQUER_AVX2)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
  return (a[0] + a[2]) + (a[1] + a[3]);
#endif
}

// out[i] = the sum of a[i]'s lanes, for four vectors at once, with a third of the shuffles of four
// sums.
inline void sum_four(const Vec *a, float *out) {
#if defined(CONQUER_AVX512)
  __m512 b[4] = {(__m512)a[0], (__m512)a[1], (__m512)a[2], (__m512)a[3]};
  // In each quarter: x0+x2, y0+y2, x1+x3, y1+y3.
  __m512 p = _mm512_add_ps(_mm512_unpacklo_ps(b[0], b[1]), _mm512_unpackhi_ps(b[0], b[1]));
  __m512 q = _mm512_add_ps(_mm512_unpacklo_ps(b[2], b[3]), _mm512_unpackhi_ps(b[2], b[3]));
  __m512 s = _mm512_add_ps(_mm512_shuffle_ps(p, q, 0x44), _mm512_shuffle_ps(p, q, 0xee));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(CONQUER_AVX2)
  __m256 s = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a[0], (__m256)a[1]),
                            _mm256_hadd_ps((__m256)a[2], (__m256)a[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
#else
  for (int i = 0; i < 4; i++)
    out[i] = sum(a[i]);
#endif
}

inline float largest(Vec a) {
#if defined(CONQUER_AVX512)
  return _mm512_reduce_max_ps((__m512)a);
#else
  float m = a[0];
  for (int i = 1; i < W; i++)
    m = a[i] > m ? a[i] : m;
  return m;
#endif
}

// ---- memory

inline Vec load(const float *p) {
  return (Vec) * reinterpret_cast<const Lanes<W>::UnalignedF *>(p);
}
inline void store(float *p, Vec a) { *reinterpret_cast<Lanes<W>::UnalignedF *>(p) = a; }

inline Vec load(const bf16 *p) {
  VecH bits = *reinterpret_cast<const Lanes<W>::UnalignedH *>(p);
  return (Vec)(__builtin_convertvector(bits, VecU) << 16);
}
inline void store(bf16 *p, Vec a) {
#if defined(CONQUER_AVX512_BF16)
  *reinterpret_cast<Lanes<W>::UnalignedH *>(p) = (VecH)(__m256i)_mm512_cvtneps_pbh((__m512)a);
#else
  VecU bits = (VecU)a;
  VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  VecU is_nan = (VecU)(a != a); // rounding could carry a NaN into infinity
  rounded = (rounded & ~is_nan) | (0x7fc0 & is_nan);
  *reinterpret_cast<Lanes<W>::UnalignedH *>(p) = __builtin_convertvector(rounded, VecH);
#endif
}

// Half precision for processors without an instruction for it.
inline float widen_f16(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
  if (magnitude >= 0x7c00) // infinity or NaN
    bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  else if (magnitude >= 0x400)
    bits = sign | ((magnitude << 13) + (112u << 23));
  else { // a subnormal is magnitude * 2^-24, exact in float32
    float f = float(magnitude) * 0x1p-24f;
    memcpy(&bits, &f, 4);
    bits |= sign;
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t round_f16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000)
    return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) // 65520 and beyond round to infinity
    return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) { // below 2^-14: adding 0.5 leaves round(f * 2^24) in the low bits
    float a;
    memcpy(&a, &magnitude, 4);
    a += 0.5f;
    memcpy(&magnitude, &a, 4);
    return uint16_t(sign | (magnitude - 0x3f000000));
  }
  magnitude += 0xfff + (magnitude >> 13 & 1) - (112u << 23);
  return uint16_t(sign | magnitude >> 13);
}

inline Vec load(const f16 *p) {
#if defined(CONQUER_AVX512)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif defined(CONQUER_AVX2)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#else
  Vec a;
  for (int i = 0; i < W; i++)
    a[i] = widen_f16(p[i].bits);
  return a;
#endif
}
inline void store(f16 *p, Vec a) {
#if defined(CONQUER_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p),
                      _mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT));
#elif defined(CONQUER_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                   _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < W; i++)
    p[i].bits = round_f16(a[i]);
#endif
}

// The last n < W elements of a row; the other lanes are zero.
template <class T> inline Vec load_first(const T *p, int64_t n) {
  T padded[W] = {};
  memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
template <class T> inline void store_first(T *p, Vec a, int64_t n) {
  T padded[W];
  store(padded, a);
  memcpy(p, padded, n * sizeof(T));
}

// a rounded to T.
template <class T> inline Vec rounded_as(Vec a) {
  T copy[W];
  store(copy, a);
  return load(copy);
}
template <> inline Vec rounded_as<float>(Vec a) { return a; }

template <class T> inline T narrow(float x) {
  T result;
  store_first(&result, splat(x), 1);
  return result;
}
template <> inline float narrow<float>(float x) { return x; }
template <class T> inline float widened(T x) { return load_first(&x, 1)[0]; }
template <> inline float widened<float>(float x) { return x; }

// Calls body(d, n) for d = 0, W, 2W, ... below size. n is W, except in a shorter last step. In
// whole steps n is a constant, so load_some and store_some are free.
template <class F> inline __attribute__((always_inline)) void for_vectors(int64_t size, F body) {
  int64_t d = 0;
  for (; d + W <= size; d += W)
    body(d, int64_t(W));
  if (d < size)
    body(d, size - d);
}
template <class T> inline Vec load_some(const T *p, int64_t n) {
  return n == W ? load(p) : load_first(p, n);
}
template <class T> inline void store_some(T *p, Vec a, int64_t n) {
  n == W ? store(p, a) : store_first(p, a, n);
}

// ---- exp

// e^x to within 2 ulp for x <= 88; 0 below -87; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by the degree-6 polynomial of Cephes, 2^n through the
// exponent bits.
inline Vec exp(Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer, held in the low mantissa bits.
  const Vec magic = splat(12582912.f);
  Vec clamped = x < -87.f ? splat(-87.f) : x;
  clamped = clamped > 88.f ? splat(88.f) : clamped;
  Vec shifted = fma(clamped, splat(1.44269504f), magic);
  Vec n = shifted - magic;
  Vec r = fma(n, splat(-0.693359375f), clamped); // ln 2 in two parts, so that n ln 2 loses nothing
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.f;
  Vec power = (Vec)(((VecI)shifted << 23) + (VecI)splat(1.f));
  Vec result = p * power;
  return x < -87.f ? splat(0.f) : result;
}
