// block_kinds.inl: unpacks each kind of block into levels and scales.
//
// A unit's number i is scale[i / 16] * (q[i] - zero) - minimum[i / 16], where only kinds with zero
// = 0 have minima. A scale times a level has at most 24 significant bits, so it is exact in float32
// and fused multiply-adds do not change a result. Kinds with blocks of 32 unpack n <= 8 of them;
// the rest of the unit has scales of 0.

struct Unit {
  alignas(64) uint8_t q[unit];
  alignas(64) float scale[groups];
  alignas(64) float minimum[groups];
};

inline float half_at(const uint8_t *p) {
  f16 h;
  memcpy(&h, p, 2);
#if defined(CONQUER_AVX2) || defined(CONQUER_AVX512)
  return _cvtsh_ss(h.bits);
#else
  return widen_f16(h.bits);
#endif
}
inline uint32_t word_at(const uint8_t *p) {
  uint32_t w;
  memcpy(&w, p, 4);
  return w;
}

inline void clear_from(Unit &u, int block) {
  for (int g = 2 * block; g < groups; g++)
    u.scale[g] = u.minimum[g] = 0;
  memset(u.q + 32 * block, 0, unit - 32 * block);
}

// ---- levels of four and five bits, 32 in each block

inline void low_high(const uint8_t *p, uint8_t *q) {
#if defined(CONQUER_AVX2) || defined(CONQUER_AVX512)
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(b), _mm_srli_epi16(b, 4), 1);
  _mm256_store_si256(reinterpret_cast<__m256i *>(q), _mm256_and_si256(both, _mm256_set1_epi8(15)));
#else
  for (int i = 0; i < 16; i++) {
    q[i] = p[i] & 15;
    q[16 + i] = p[i] >> 4;
  }
#endif
}

// Adds 16 to the levels whose bit is set.
inline void add_fifth(uint32_t bits, uint8_t *q) {
#if defined(CONQUER_AVX512)
  __m256i *at = reinterpret_cast<__m256i *>(q);
  const __m256i levels = _mm256_load_si256(at);
  _mm256_store_si256(at, _mm256_or_si256(levels, _mm256_maskz_set1_epi8(bits, 16)));
#else
  for (int i = 0; i < 32; i++)
    q[i] |= (bits >> i & 1) << 4;
#endif
}

// Replaces levels of four bits by entries of a table.
inline void look_up(const uint8_t *table, uint8_t *q, int n) {
#if defined(CONQUER_AVX2) || defined(CONQUER_AVX512)
  const __m256i t =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table)));
  for (int i = 0; i < n; i += 32) {
    __m256i *at = reinterpret_cast<__m256i *>(q + i);
    _mm256_store_si256(at, _mm256_shuffle_epi8(t, _mm256_load_si256(at)));
  }
#else
  for (int i = 0; i < n; i++)
    q[i] = table[q[i]];
#endif
}

inline void set_scale(Unit &u, int block, float scale, float minimum) {
  u.scale[2 * block] = u.scale[2 * block + 1] = scale;
  u.minimum[2 * block] = u.minimum[2 * block + 1] = minimum;
}

template <BlockKind> struct Kind;

template <> struct Kind<BlockKind::Q4_0> {
  static constexpr int block = 32, bytes = 18, zero = 8, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    for (int b = 0; b < n; b++, p += bytes) {
      set_scale(u, b, half_at(p), 0);
      low_high(p + 2, u.q + 32 * b);
    }
  }
};

template <> struct Kind<BlockKind::Q4_1> {
  static constexpr int block = 32, bytes = 20, zero = 0, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    for (int b = 0; b < n; b++, p += bytes) {
      set_scale(u, b, half_at(p), -half_at(p + 2));
      low_high(p + 4, u.q + 32 * b);
    }
  }
};

template <> struct Kind<BlockKind::Q5_0> {
  static constexpr int block = 32, bytes = 22, zero = 16, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    for (int b = 0; b < n; b++, p += bytes) {
      set_scale(u, b, half_at(p), 0);
      low_high(p + 6, u.q + 32 * b);
      add_fifth(word_at(p + 2), u.q + 32 * b);
    }
  }
};

template <> struct Kind<BlockKind::Q5_1> {
  static constexpr int block = 32, bytes = 24, zero = 0, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    for (int b = 0; b < n; b++, p += bytes) {
      set_scale(u, b, half_at(p), -half_at(p + 2));
      low_high(p + 8, u.q + 32 * b);
      add_fifth(word_at(p + 4), u.q + 32 * b);
    }
  }
};

template <> struct Kind<BlockKind::Q8_0> {
  static constexpr int block = 32, bytes = 34, zero = 128, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    for (int b = 0; b < n; b++, p += bytes) {
      set_scale(u, b, half_at(p), 0);
      for (int i = 0; i < 32; i++)
        u.q[32 * b + i] = p[2 + i] ^ 128;
    }
  }
};

// ggml's non-linear levels, plus 128.
constexpr uint8_t iq4_levels[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                    129, 141, 153, 166, 181, 197, 217, 241};

template <> struct Kind<BlockKind::IQ4_NL> {
  static constexpr int block = 32, bytes = 18, zero = 128, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    Kind<BlockKind::Q4_0>::unpack(p, n, u);
    look_up(iq4_levels, u.q, 32 * n);
  }
};

template <> struct Kind<BlockKind::MXFP4> {
  static constexpr int block = 32, bytes = 17, zero = 12, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    // twice the values of E2M1, plus 12
    constexpr uint8_t levels[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    for (int b = 0; b < n; b++, p += bytes) {
      const uint32_t bits = p[0] < 2 ? 0x00200000u << p[0] : uint32_t(p[0] - 1) << 23;
      float scale; // 2^(e - 128)
      memcpy(&scale, &bits, 4);
      set_scale(u, b, scale, 0);
      low_high(p + 1, u.q + 32 * b);
    }
    look_up(levels, u.q, 32 * n);
  }
};

// ---- blocks of 256

// The eight scales and minima, six bits each, of Q4_K and Q5_K.
inline void scales_of_k(const uint8_t *p, Unit &u) {
  const float d = half_at(p), least = half_at(p + 2);
  const uint32_t a = word_at(p + 4), b = word_at(p + 8), c = word_at(p + 12);
  const uint32_t words[4] = {a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030),
                             b & 0x3f3f3f3f, (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)};
#if defined(CONQUER_AVX512)
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i *>(words));
  const __m128i twice = _mm_set_epi8(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const __m512 scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_shuffle_epi8(all, twice)));
  const __m512 minimum = _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_shuffle_epi8(all, _mm_add_epi8(twice, _mm_set1_epi8(8)))));
  _mm512_store_ps(u.scale, _mm512_mul_ps(scale, _mm512_set1_ps(d)));
  _mm512_store_ps(u.minimum, _mm512_mul_ps(minimum, _mm512_set1_ps(least)));
#else
  uint8_t bytes[16];
  memcpy(bytes, words, 16);
  for (int j = 0; j < 8; j++)
    set_scale(u, j, d * bytes[j], least * bytes[8 + j]);
#endif
}

template <> struct Kind<BlockKind::Q4_K> {
  static constexpr int block = 256, bytes = 144, zero = 0, share = 32;
  static void unpack(const uint8_t *p, int, Unit &u) {
    scales_of_k(p, u);
    for (int j = 0; j < 4; j++)
      for (int i = 0; i < 32; i++) {
        u.q[64 * j + i] = p[16 + 32 * j + i] & 15;
        u.q[64 * j + 32 + i] = p[16 + 32 * j + i] >> 4;
      }
  }
};

template <> struct Kind<BlockKind::Q5_K> {
  static constexpr int block = 256, bytes = 176, zero = 0, share = 32;
  static void unpack(const uint8_t *p, int, Unit &u) {
    scales_of_k(p, u);
    for (int j = 0; j < 4; j++)
      for (int i = 0; i < 32; i++) {
        const uint8_t q = p[48 + 32 * j + i], fifth = p[16 + i] >> 2 * j;
        u.q[64 * j + i] = (q & 15) | (fifth & 1) << 4;
        u.q[64 * j + 32 + i] = q >> 4 | (fifth & 2) << 3;
      }
  }
};

template <> struct Kind<BlockKind::Q6_K> {
  static constexpr int block = 256, bytes = 210, zero = 32, share = 16;
  static void unpack(const uint8_t *p, int, Unit &u) {
    const float d = half_at(p + 208);
    for (int g = 0; g < groups; g++)
      u.scale[g] = d * int8_t(p[192 + g]);
    for (int h = 0; h < 2; h++) {
      const uint8_t *low = p + 64 * h, *high = p + 128 + 32 * h;
      uint8_t *q = u.q + 128 * h;
      for (int i = 0; i < 32; i++) {
        q[i] = (low[i] & 15) | (high[i] & 3) << 4;
        q[32 + i] = (low[32 + i] & 15) | (high[i] & 12) << 2;
        q[64 + i] = low[i] >> 4 | (high[i] & 48);
        q[96 + i] = low[32 + i] >> 4 | (high[i] & 192) >> 2;
      }
    }
  }
};

template <> struct Kind<BlockKind::Q2_K> {
  static constexpr int block = 256, bytes = 84, zero = 0, share = 16;
  static void unpack(const uint8_t *p, int, Unit &u) {
    const float d = half_at(p + 80), least = half_at(p + 82);
    for (int g = 0; g < groups; g++) {
      u.scale[g] = d * (p[g] & 15);
      u.minimum[g] = least * (p[g] >> 4);
    }
    for (int h = 0; h < 2; h++)
      for (int j = 0; j < 4; j++)
        for (int i = 0; i < 32; i++)
          u.q[128 * h + 32 * j + i] = p[16 + 32 * h + i] >> 2 * j & 3;
  }
};

template <> struct Kind<BlockKind::Q3_K> {
  static constexpr int block = 256, bytes = 110, zero = 4, share = 16;
  static void unpack(const uint8_t *p, int, Unit &u) {
    const float d = half_at(p + 108);
    const uint32_t a = word_at(p + 96), b = word_at(p + 100), c = word_at(p + 104);
    const uint32_t low = 0x0f0f0f0f, two = 0x03030303;
    const uint32_t words[4] = {(a & low) | (c & two) << 4, (b & low) | (c >> 2 & two) << 4,
                               (a >> 4 & low) | (c >> 4 & two) << 4,
                               (b >> 4 & low) | (c >> 6 & two) << 4};
    uint8_t bytes_[16];
    memcpy(bytes_, words, 16);
    for (int g = 0; g < groups; g++)
      u.scale[g] = d * (int(bytes_[g]) - 32);
    for (int h = 0; h < 2; h++)
      for (int j = 0; j < 4; j++)
        for (int i = 0; i < 32; i++)
          u.q[128 * h + 32 * j + i] = (p[32 + 32 * h + i] >> 2 * j & 3) | (p[i] >> (4 * h + j) & 1)
                                                                              << 2;
  }
};

template <> struct Kind<BlockKind::IQ4_XS> {
  static constexpr int block = 256, bytes = 136, zero = 128, share = 32;
  static void unpack(const uint8_t *p, int, Unit &u) {
    const float d = half_at(p);
    const int high = p[2] | p[3] << 8;
    for (int b = 0; b < 8; b++) {
      const int level = (p[4 + b / 2] >> 4 * (b % 2) & 15) | (high >> 2 * b & 3) << 4;
      set_scale(u, b, d * (level - 32), 0);
      low_high(p + 8 + 16 * b, u.q + 32 * b);
    }
    look_up(iq4_levels, u.q, unit);
  }
};

// ---- integer codes

// The scale and the zero point in the first 4 bytes of a block of codes.
inline float code_scale(const uint8_t *p) {
  const uint32_t bits = word_at(p) & 0xffffff00;
  float scale;
  memcpy(&scale, &bits, 4);
  return scale;
}

// Blocks of 128 hold the codes of 64 columns in 32 bytes: the first 32 in the lower halves.
template <int BLOCK, int BITS> struct CodesOf {
  static constexpr int block = BLOCK, bytes = 4 + BLOCK * BITS / 8, zero = 0, share = 32;
  static void unpack(const uint8_t *p, int n, Unit &u) {
    for (int b = 0; b < n; b++, p += bytes) {
      const float scale = code_scale(p), minimum = scale * p[0];
      for (int i = 0; i < BLOCK / 32; i++)
        set_scale(u, b * (BLOCK / 32) + i, scale, minimum);
      uint8_t *q = u.q + BLOCK * b;
      if (BITS == 8) {
        memcpy(q, p + 4, BLOCK);
      } else if (BLOCK == 32) {
        low_high(p + 4, q);
      } else {
        for (int j = 0; j < BLOCK / 64; j++)
          for (int i = 0; i < 32; i++) {
            q[64 * j + i] = p[4 + 32 * j + i] & 15;
            q[64 * j + 32 + i] = p[4 + 32 * j + i] >> 4;
          }
      }
    }
  }
};
template <> struct Kind<BlockKind::Codes4x32> : CodesOf<32, 4> {};
template <> struct Kind<BlockKind::Codes4x128> : CodesOf<128, 4> {};
template <> struct Kind<BlockKind::Codes8x32> : CodesOf<32, 8> {};
template <> struct Kind<BlockKind::Codes8x128> : CodesOf<128, 8> {};

// Unpacks unit i of a row.
template <BlockKind K>
inline __attribute__((always_inline)) void unpack_unit(const BlockRows &w, const uint8_t *row,
                                                       int64_t i, Unit &u) {
  constexpr int per_unit = unit / Kind<K>::block;
  const int n = std::min<int64_t>(per_unit, w.columns / Kind<K>::block - i * per_unit);
  Kind<K>::unpack(row + i * per_unit * Kind<K>::bytes, n, u);
  if (per_unit > 1 && n < per_unit)
    clear_from(u, n * Kind<K>::block / 32);
}

// Calls F<kind>::run(arguments...).
template <template <BlockKind> class F, class... A>
inline void by_kind(BlockKind kind, const A &...arguments) {
  switch (kind) {
#define CONQUER_KIND(name)                                                                         \
  case BlockKind::name:                                                                            \
    return F<BlockKind::name>::run(arguments...);
    CONQUER_KIND(Q4_0)
    CONQUER_KIND(Q4_1)
    CONQUER_KIND(Q5_0)
    CONQUER_KIND(Q5_1)
    CONQUER_KIND(Q8_0)
    CONQUER_KIND(Q2_K)
    CONQUER_KIND(Q3_K)
    CONQUER_KIND(Q4_K)
    CONQUER_KIND(Q5_K)
    CONQUER_KIND(Q6_K)
    CONQUER_KIND(IQ4_NL)
    CONQUER_KIND(IQ4_XS)
    CONQUER_KIND(MXFP4)
    CONQUER_KIND(Codes4x32)
    CONQUER_KIND(Codes4x128)
    CONQUER_KIND(Codes8x32)
    CONQUER_KIND(Codes8x128)
#undef CONQUER_KIND
  case BlockKind::Float8:
    return;
  }
}
