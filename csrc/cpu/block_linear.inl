// block_linear.inl: y = x Wᵀ for a weight in blocks.
//
// Activations are rounded to 8 bits in blocks of 32, so that products are sums of integers: an
// instruction of AVX-512 VNNI multiplies 64 pairs of bytes. dot reads each weight once and is bound
// by memory; it unpacks a unit of 256 weights into the first-level cache and multiplies it by a few
// rows of x. gemm unpacks 32 rows of the weight into the second-level cache, four columns of a row
// in each 32-bit lane, and multiplies them by many rows of x.

#include "block_kinds.inl"

#include "block_vnni.inl"

#include "float8.inl"

// acc plus, in each lane, the sum of four products of unsigned bytes of a and signed bytes of b.
inline VecI dot_bytes(VecI acc, VecI a, VecI b) {
#if defined(CONQUER_AVX512_VNNI)
  return (VecI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(CONQUER_AVX512)
  const __m512i u = (__m512i)a, s = (__m512i)b;
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)),
                                         _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
  return acc + (VecI)_mm512_add_epi32(even, odd);
#elif defined(CONQUER_AVX2)
  const __m256i u = (__m256i)a, s = (__m256i)b;
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return acc + (VecI)_mm256_add_epi32(even, odd);
#else
  // Four bytes of a lane, one after the other.
  for (int shift = 0; shift < 32; shift += 8)
    acc += (VecI)((VecU)a >> shift & 255) * ((VecI)((VecU)b << (24 - shift)) >> 24);
  return acc;
#endif
}

inline VecI load_bytes(const void *p) {
  VecI v;
  memcpy(&v, p, sizeof v);
  return v;
}

// Of 16 scales, those of the W lanes of vector p: each belongs to four lanes.
inline Vec spread(const float *scales, int p) {
#if defined(CONQUER_AVX512)
  const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  return (Vec)_mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(4 * p)),
                                    _mm512_load_ps(scales));
#elif defined(CONQUER_AVX2)
  return (Vec)_mm256_set_m128(_mm_set1_ps(scales[2 * p + 1]), _mm_set1_ps(scales[2 * p]));
#else
  return splat(scales[p]);
#endif
}

void quantize_row(const float *x, int64_t columns, ActivationUnit *out) {
  for (int64_t at = 0; at < columns; at += unit, out++) {
    const int64_t n = std::min(unit, columns - at);
    if (n < unit)
      memset(out, 0, sizeof *out);
    for (int64_t b = 0; b < n / 32; b++) {
      const float *from = x + at + 32 * b;
      int8_t *q = out->q + 32 * b;
      Vec most = {};
      for (int i = 0; i < 32; i += W)
        most = maximum(most, (Vec)((VecU)load(from + i) & 0x7fffffff));
      const float top = largest(most), scale = top / 127, inverse = top > 0 ? 127 / top : 0;
      for (int i = 0; i < 32; i += W) { // adding 1.5 * 2^23 rounds to an integer
        const Vec shifted = fma(load(from + i), splat(inverse), splat(12582912.f));
        const VecB level = __builtin_convertvector((VecU)shifted - 0x4b400000, VecB);
        memcpy(q + i, &level, W);
      }
      for (int h = 0; h < 2; h++) {
        int32_t level = 0;
        for (int i = 0; i < 4; i++) {
          const int8_t *four = q + 16 * h + 4 * i;
          const int32_t sum = four[0] + four[1] + four[2] + four[3];
          out->lane_scale[8 * b + 4 * h + i] = scale;
          out->lane_sum[8 * b + 4 * h + i] = scale * sum;
          level += sum;
        }
        out->scale[2 * b + h] = scale;
        out->level[2 * b + h] = level;
        out->sum[2 * b + h] = scale * level;
      }
      out->level_of_two[b] = out->level[2 * b] + out->level[2 * b + 1];
      out->sum_of_two[b] = scale * out->level_of_two[b];
    }
  }
}

// ---- few rows

// Adds the products of unit i, unpacked to memory, with M rows of activations.
template <BlockKind K, int M>
inline void any_unit(const BlockRows &w, const uint8_t *row, int64_t i, const ActivationUnit *x,
                     int64_t units, Vec *acc) {
  Unit u;
  unpack_unit<K>(w, row, i, u);
  for (int g = 0; g < groups; g += W) // the part of the result that needs no products
    store(u.minimum + g,
          Kind<K>::zero ? load(u.scale + g) * float(Kind<K>::zero) : load(u.minimum + g));
  for (int m = 0; m < M; m++) {
    const ActivationUnit &a = x[m * units + i];
    alignas(64) float scale[groups];
    for (int g = 0; g < groups; g += W) {
      store(scale + g, load(u.scale + g) * load(a.scale + g));
      acc[m] = acc[m] - load(u.minimum + g) * load(a.sum + g);
    }
    for (int p = 0; p < unit / (4 * W); p++) {
      const VecI products =
          dot_bytes(VecI{}, load_bytes(u.q + 4 * W * p), load_bytes(a.q + 4 * W * p));
      acc[m] = fma(__builtin_convertvector(products, Vec), spread(scale, p), acc[m]);
    }
  }
}

template <BlockKind K, int M>
void dot_rows(const BlockRows &w, const ActivationUnit *x, float *y, int64_t y_stride) {
  const int64_t units = w.units();
  for (int64_t r = 0; r < w.rows; r++) {
    const uint8_t *row = w.data + r * w.row_bytes;
    Vec acc[M] = {};
    int64_t i = 0;
#if defined(CONQUER_AVX512_VNNI)
    if constexpr (Vnni<K>::fast) {
      constexpr int64_t bytes = unit / Kind<K>::block * Kind<K>::bytes;
      constexpr int chains = 4 / M > 0 ? 4 / M : 1;
      __m512 sums[M][chains], rest[M];
      for (int m = 0; m < M; m++) {
        rest[m] = _mm512_setzero_ps();
        for (int c = 0; c < chains; c++)
          sums[m][c] = _mm512_setzero_ps();
      }
      for (; i < w.columns / unit; i++) {
        for (int64_t line = 0; line < bytes; line += 64)
          __builtin_prefetch(row + i * bytes + 2048 + line);
        vnni_unit<K, M, chains>(row + i * bytes, x + i, units, sums, rest);
      }
      // Q4_1 and Q5_1 store minima of the opposite sign.
      const float sign = Kind<K>::zero || Vnni<K>::scales == 1 ? -1 : 1;
      for (int m = 0; m < M; m++) {
        for (int c = 0; c < chains; c++)
          acc[m] = acc[m] + (Vec)sums[m][c];
        acc[m] = fma((Vec)rest[m], splat(sign * (Kind<K>::zero ? Kind<K>::zero : 1)), acc[m]);
      }
    }
#endif
    for (; i < units; i++)
      any_unit<K, M>(w, row, i, x, units, acc);
    for (int m = 0; m < M; m++)
      y[m * y_stride + r] = sum(acc[m]);
  }
}

template <BlockKind K> struct Dot {
  static void run(const BlockRows &w, const ActivationUnit *x, int64_t n, float *y,
                  int64_t y_stride) {
    int64_t m = 0;
    const int64_t units = w.units();
    for (; m + 4 <= n; m += 4)
      dot_rows<K, 4>(w, x + m * units, y + m * y_stride, y_stride);
    for (; m + 2 <= n; m += 2)
      dot_rows<K, 2>(w, x + m * units, y + m * y_stride, y_stride);
    if (m < n)
      dot_rows<K, 1>(w, x + m * units, y + m * y_stride, y_stride);
  }
};

void block_dot(const BlockRows &w, const ActivationUnit *x, int64_t n, float *y, int64_t y_stride) {
  // A strip of the weight that fits the first-level cache is used for all rows of x.
  const int64_t strip = n <= 4 ? w.rows : std::max<int64_t>(1, 16384 / w.row_bytes);
  for (int64_t r = 0; r < w.rows; r += strip)
    by_kind<Dot>(w.kind, w.from(r, std::min(strip, w.rows - r)), x, n, y + r, y_stride);
}

// ---- the values

template <BlockKind K> struct Unpack {
  static void run(const BlockRows &w, float *out) {
    for (int64_t r = 0; r < w.rows; r++)
      for (int64_t i = 0; i < w.units(); i++) {
        Unit u;
        unpack_unit<K>(w, w.data + r * w.row_bytes, i, u);
        const int64_t n = std::min(unit, w.columns - i * unit);
        float *to = out + r * w.columns + i * unit;
        for (int64_t g = 0; g < n / group; g++)
          for (int k = 0; k < group; k++) {
            const float level = int(u.q[group * g + k]) - Kind<K>::zero;
            to[group * g + k] =
                Kind<K>::zero ? u.scale[g] * level : u.scale[g] * level - u.minimum[g];
          }
      }
  }
};

void block_unpack(const BlockRows &w, float *out) { by_kind<Unpack>(w.kind, w, out); }

// ---- a GPU's form

inline uint32_t half_of(float x, bool *fits) {
  const uint32_t bits = round_f16(x);
  *fits = *fits && (bits & 0x7c00) != 0x7c00;
  return bits;
}

template <BlockKind K> struct Pack {
  static void run(const BlockRows &w, int bits, uint32_t *codes, uint32_t *scales, bool *fits) {
    const int numbers = 128 / bits; // of a group there
    for (int64_t r = 0; r < w.rows; r++)
      for (int64_t i = 0; i < w.units(); i++) {
        Unit u;
        unpack_unit<K>(w, w.data + r * w.row_bytes, i, u);
        const int64_t n = std::min(unit, w.columns - i * unit);
        for (int64_t first = 0; first < n; first += numbers, codes += 4, scales++) {
          const float scale = u.scale[first / group], minimum = u.minimum[first / group];
          *scales = half_of(scale, fits) |
                    half_of(Kind<K>::zero ? scale * Kind<K>::zero : minimum, fits) << 16;
          for (int word = 0; word < 4; word++) {
            codes[word] = 0;
            for (int s = 0; s < 32 / bits; s++)
              codes[word] |= uint32_t(u.q[first + 4 * s + word]) << (s * bits);
          }
        }
      }
  }
};

bool block_pack(const BlockRows &w, int bits, uint32_t *codes, uint32_t *scales) {
  bool fits = true;
  by_kind<Pack>(w.kind, w, bits, codes, scales, &fits);
  return fits;
}

// ---- many rows

#if defined(CONQUER_AVX512_VNNI)
// A tile of 32 rows: for each unit its levels [64][32][4], scales [16][32] and minima [16][32].
// Rows beyond the weight are zero.
constexpr int64_t tile_levels = unit * block_tile, tile_scales = groups * block_tile;
constexpr int64_t tile_unit = tile_levels / 4 + 2 * tile_scales; // floats

template <BlockKind K> inline void fill_tile(const BlockRows &w, float *tile) {
  constexpr int every = Kind<K>::share / group;
  for (int64_t i = 0; i < w.units(); i++) {
    float *scales = tile + i * tile_unit + tile_levels / 4, *minima = scales + tile_scales;
    uint8_t *levels = reinterpret_cast<uint8_t *>(tile + i * tile_unit);
    for (int64_t r = 0; r < block_tile; r++) {
      Unit u;
      if (r < w.rows)
        unpack_unit<K>(w, w.data + r * w.row_bytes, i, u);
      else
        clear_from(u, 0);
      for (int64_t k = 0; k < unit / 4; k++)
        memcpy(levels + (k * block_tile + r) * 4, u.q + 4 * k, 4);
      for (int64_t g = 0; g < groups; g += every) {
        scales[g / every * block_tile + r] = u.scale[g];
        if (Kind<K>::zero == 0)
          minima[g / every * block_tile + r] = u.minimum[g];
      }
    }
  }
}

// M rows of x times the tile, added up in 2 M vectors of integers for each scale and 2 M of floats.
template <BlockKind K, int M>
inline void tile_rows(const float *tile, const ActivationUnit *x, int64_t units, int64_t columns,
                      float (*out)[block_tile]) {
  constexpr int steps = Kind<K>::share / 4, every = Kind<K>::share / group;
  Vec acc[M][2] = {};
  for (int64_t i = 0; i < units; i++) {
    const float *scales = tile + i * tile_unit + tile_levels / 4, *minima = scales + tile_scales;
    const uint8_t *levels = reinterpret_cast<const uint8_t *>(tile + i * tile_unit);
    const int64_t parts = std::min(unit, columns - i * unit) / Kind<K>::share;
    for (int64_t g = 0; g < parts; g++) {
      __m512i sums[M][2];
      for (int m = 0; m < M; m++) {
        const ActivationUnit &a = x[m * units + i];
        const int32_t level = every == 2 ? a.level_of_two[g] : a.level[g];
        sums[m][0] = sums[m][1] = _mm512_set1_epi32(-Kind<K>::zero * level);
      }
      const uint8_t *at = levels + g * steps * block_tile * 4;
#pragma GCC unroll 8
      for (int s = 0; s < steps; s++) {
        const __m512i w0 = _mm512_load_si512(at + s * block_tile * 4),
                      w1 = _mm512_load_si512(at + s * block_tile * 4 + 64);
        for (int m = 0; m < M; m++) {
          int32_t four;
          memcpy(&four, x[m * units + i].q + (g * steps + s) * 4, 4);
          const __m512i b = _mm512_set1_epi32(four);
          sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], w0, b);
          sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], w1, b);
        }
      }
      for (int v = 0; v < 2; v++) {
        const Vec scale = load(scales + g * block_tile + v * W);
        for (int m = 0; m < M; m++) {
          const ActivationUnit &a = x[m * units + i];
          acc[m][v] =
              fma((Vec)_mm512_cvtepi32_ps(sums[m][v]), scale * a.scale[g * every], acc[m][v]);
          if (Kind<K>::zero == 0)
            acc[m][v] = acc[m][v] - load(minima + g * block_tile + v * W) *
                                        (every == 2 ? a.sum_of_two[g] : a.sum[g]);
        }
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2; v++)
      store(out[m] + v * W, acc[m][v]);
}

template <BlockKind K> struct Gemm {
  static void run(const BlockRows &w, const ActivationUnit *x, int64_t n, float *y,
                  int64_t y_stride, float *tile) {
    constexpr int M = 6;
    const int64_t units = w.units();
    fill_tile<K>(w, tile);
    for (int64_t m = 0; m < n; m += M) {
      float out[M][block_tile];
      const int64_t rows = std::min<int64_t>(M, n - m);
      const ActivationUnit *from = x + m * units;
      switch (rows) {
      case 6:
        tile_rows<K, 6>(tile, from, units, w.columns, out);
        break;
      case 5:
        tile_rows<K, 5>(tile, from, units, w.columns, out);
        break;
      case 4:
        tile_rows<K, 4>(tile, from, units, w.columns, out);
        break;
      case 3:
        tile_rows<K, 3>(tile, from, units, w.columns, out);
        break;
      case 2:
        tile_rows<K, 2>(tile, from, units, w.columns, out);
        break;
      default:
        tile_rows<K, 1>(tile, from, units, w.columns, out);
      }
      for (int64_t i = 0; i < rows; i++)
        memcpy(y + (m + i) * y_stride, out[i], w.rows * sizeof(float));
    }
  }
};

void block_gemm(const BlockRows &w, const ActivationUnit *x, int64_t n, float *y, int64_t y_stride,
                float *scratch) {
  by_kind<Gemm>(w.kind, w, x, n, y, y_stride, scratch);
}
#endif

constexpr BlockKernels block_table() {
  BlockKernels t{};
  t.quantize = quantize_row;
  t.dot = block_dot;
  t.unpack = block_unpack;
  t.pack = block_pack;
  t.float8_dot = float8_dot;
  t.float8_unpack = float8_unpack;
#if defined(CONQUER_AVX512_VNNI)
  t.gemm = block_gemm;
#endif
  return t;
}
