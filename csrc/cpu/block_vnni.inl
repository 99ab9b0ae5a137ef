// block_vnni.inl: unpacks whole units into registers, for AVX-512 with VNNI and VBMI. A row times a
// few activations spends its time on this: memory delivers faster than the bytes are unpacked.
//
// Q is the four vectors of 64 levels of a unit. Kinds with blocks of 256 give the unit's 16 scales
// and minima in one vector each (Scales<1>); the others give those of each pair of blocks, spread
// over the lanes that they belong to (Scales<4>).

#if defined(CONQUER_AVX512_VNNI)
struct Levels {
  __m512i q[4];
};
template <int N> struct Scales {
  __m512 scale[N], minimum[N];
};

// Shift counts for the lower and the upper 32 bytes of a vector, or by turns for each 16.
inline __m512i halves(int64_t low, int64_t high) {
  return _mm512_set_epi64(high, high, high, high, low, low, low, low);
}
inline __m512i quarters(int64_t low, int64_t high) {
  return _mm512_set_epi64(high, high, low, low, high, high, low, low);
}
inline __m512i bytes_of(int8_t b) { return _mm512_set1_epi8(b); }
inline __m512i twice(const uint8_t *p) { // 32 bytes
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
// (a & b) | c
inline __m512i merge(__m512i a, __m512i b, __m512i c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0xea);
}

// A pair of blocks of 32: the 16 bytes of low and high halves at byte `at` of each block.
template <int BYTES, int AT> struct Pair {
  struct Index {
    alignas(64) uint8_t bytes[64];
    constexpr Index() : bytes() {
      for (int i = 0; i < 64; i++)
        bytes[i] = uint8_t(i / 32 * BYTES + AT + i % 16);
    }
  };
  struct Words { // the float16 at byte `where` of each block, for eight lanes each
    alignas(64) uint16_t words[32];
    constexpr explicit Words(int where) : words() {
      for (int i = 0; i < 16; i++)
        words[i] = uint16_t((i / 8 * BYTES + where) / 2);
    }
  };
  static __m512i load(const uint8_t *p) {
    return _mm512_maskz_loadu_epi8((uint64_t(1) << (2 * BYTES)) - 1, p);
  }
  static __m512i levels(__m512i raw) {
    static constexpr Index index;
    const __m512i bytes = _mm512_permutexvar_epi8(_mm512_load_si512(index.bytes), raw);
    return _mm512_and_si512(_mm512_srlv_epi64(bytes, quarters(0, 4)), bytes_of(15));
  }
  template <int WHERE> static __m512 halfs(__m512i raw) {
    static constexpr Words words(WHERE);
    return _mm512_cvtph_ps(
        _mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_load_si512(words.words), raw)));
  }
};

// The levels of one kind; `fast` kinds have one.
template <BlockKind K> struct Vnni {
  static constexpr bool fast = false;
};

template <int BYTES, int AT, bool MINIMA, bool FIFTH> struct PairsOf {
  static constexpr bool fast = true;
  static constexpr int scales = 4;
  static void unpack(const uint8_t *p, Levels &l, Scales<4> &s) {
    using P = Pair<BYTES, AT>;
    for (int i = 0; i < 4; i++, p += 2 * BYTES) {
      const __m512i raw = P::load(p);
      l.q[i] = P::levels(raw);
      if (FIFTH)
        l.q[i] = _mm512_mask_add_epi8(
            l.q[i], uint64_t(word_at(p + BYTES + AT - 4)) << 32 | word_at(p + AT - 4), l.q[i],
            bytes_of(16));
      s.scale[i] = P::template halfs<0>(raw);
      if (MINIMA)
        s.minimum[i] = P::template halfs<2>(raw); // of the opposite sign
    }
  }
};
template <> struct Vnni<BlockKind::Q4_0> : PairsOf<18, 2, false, false> {};
template <> struct Vnni<BlockKind::Q4_1> : PairsOf<20, 4, true, false> {};
template <> struct Vnni<BlockKind::Q5_0> : PairsOf<22, 6, false, true> {};
template <> struct Vnni<BlockKind::Q5_1> : PairsOf<24, 8, true, true> {};

template <> struct Vnni<BlockKind::IQ4_NL> {
  static constexpr bool fast = true;
  static constexpr int scales = 4;
  static void unpack(const uint8_t *p, Levels &l, Scales<4> &s) {
    Vnni<BlockKind::Q4_0>::unpack(p, l, s);
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(iq4_levels)));
    for (int i = 0; i < 4; i++)
      l.q[i] = _mm512_shuffle_epi8(table, l.q[i]);
  }
};

template <> struct Vnni<BlockKind::Q8_0> {
  static constexpr bool fast = true;
  static constexpr int scales = 4;
  static __m128i half(const uint8_t *p) { return _mm_set1_epi16(int16_t(p[0] | p[1] << 8)); }
  static void unpack(const uint8_t *p, Levels &l, Scales<4> &s) {
    for (int i = 0; i < 4; i++, p += 68) {
      const __m512i low =
          _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 2)));
      l.q[i] = _mm512_xor_si512(
          _mm512_inserti64x4(low, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 36)), 1),
          bytes_of(-128));
      s.scale[i] = _mm512_cvtph_ps(_mm256_set_m128i(half(p + 34), half(p)));
    }
  }
};

// The scales, and the scales times the zero points with the opposite sign, of blocks of codes whose
// first words are in `word`.
inline void scales_of_codes(__m512i word, __m512 &scale, __m512 &minimum) {
  scale = _mm512_castsi512_ps(_mm512_andnot_si512(_mm512_set1_epi32(255), word));
  const __m512 zero = _mm512_cvtepi32_ps(_mm512_and_si512(word, _mm512_set1_epi32(255)));
  minimum = _mm512_mul_ps(scale, _mm512_sub_ps(_mm512_setzero_ps(), zero));
}
inline __m512i pair_of_words(const uint8_t *a, const uint8_t *b) {
  return _mm512_inserti64x4(_mm512_set1_epi32(int32_t(word_at(a))),
                            _mm256_set1_epi32(int32_t(word_at(b))), 1);
}

template <> struct Vnni<BlockKind::Codes4x32> {
  static constexpr bool fast = true;
  static constexpr int scales = 4;
  static void unpack(const uint8_t *p, Levels &l, Scales<4> &s) {
    using P = Pair<20, 4>;
    for (int i = 0; i < 4; i++, p += 40) {
      l.q[i] = P::levels(P::load(p));
      scales_of_codes(pair_of_words(p, p + 20), s.scale[i], s.minimum[i]);
    }
  }
};
template <> struct Vnni<BlockKind::Codes8x32> {
  static constexpr bool fast = true;
  static constexpr int scales = 4;
  static void unpack(const uint8_t *p, Levels &l, Scales<4> &s) {
    for (int i = 0; i < 4; i++, p += 72) {
      const __m512i low =
          _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 4)));
      l.q[i] =
          _mm512_inserti64x4(low, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 40)), 1);
      scales_of_codes(pair_of_words(p, p + 36), s.scale[i], s.minimum[i]);
    }
  }
};
template <int BITS> struct Codes128 {
  static constexpr bool fast = true;
  static constexpr int scales = 4;
  static void unpack(const uint8_t *p, Levels &l, Scales<4> &s) {
    for (int b = 0; b < 2; b++, p += 4 + 16 * BITS) {
      __m512 scale, minimum;
      scales_of_codes(_mm512_set1_epi32(int32_t(word_at(p))), scale, minimum);
      for (int i = 0; i < 2; i++) {
        l.q[2 * b + i] =
            BITS == 8 ? _mm512_loadu_si512(p + 4 + 64 * i)
                      : _mm512_and_si512(_mm512_srlv_epi64(twice(p + 4 + 32 * i), halves(0, 4)),
                                         bytes_of(15));
        s.scale[2 * b + i] = scale;
        s.minimum[2 * b + i] = minimum;
      }
    }
  }
};
template <> struct Vnni<BlockKind::Codes4x128> : Codes128<4> {};
template <> struct Vnni<BlockKind::Codes8x128> : Codes128<8> {};

inline __m512 times(const uint8_t *half, __m128i levels) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(levels)),
                       _mm512_set1_ps(half_at(half)));
}
inline __m512 times_signed(const uint8_t *half, __m128i levels) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)),
                       _mm512_set1_ps(half_at(half)));
}

// The eight scales and minima of Q4_K and Q5_K, each for two groups: six bits each in twelve bytes,
// of which the first four hold scales 0 to 3 and the upper two bits of scales 4 to 7, the next four
// the same of minima, and the last four the lower four bits of scales and minima 4 to 7.
inline void vnni_scales_of_k(const uint8_t *p, Scales<1> &s) {
  const __m256i raw =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  const __m256i first = _mm256_set_epi8(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8,
                                        15, 15, 14, 14, 13, 13, 12, 12, 7, 7, 6, 6, 5, 5, 4, 4);
  const __m256i second = _mm256_set_epi8(11, 11, 10, 10, 9, 9, 8, 8, -1, -1, -1, -1, -1, -1, -1, -1,
                                         7, 7, 6, 6, 5, 5, 4, 4, -1, -1, -1, -1, -1, -1, -1, -1);
  const int64_t six = 0x3f3f3f3f3f3f3f3f, four = 0x0f0f0f0f0f0f0f0f;
  const __m256i low = _mm256_and_si256(
      _mm256_srlv_epi64(_mm256_shuffle_epi8(raw, first), _mm256_set_epi64x(4, 0, 0, 0)),
      _mm256_set_epi64x(four, six, four, six));
  const __m256i high = _mm256_srli_epi64(_mm256_shuffle_epi8(raw, second), 2);
  // low | (high & 48)
  const __m256i all = _mm256_ternarylogic_epi64(high, _mm256_set1_epi8(48), low, 0xea);
  const __m512 both = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_loadu_si32(p)));
  s.scale[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(all))),
                             _mm512_permutexvar_ps(_mm512_setzero_si512(), both));
  s.minimum[0] =
      _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_extracti128_si256(all, 1))),
                    _mm512_permutexvar_ps(_mm512_set1_epi32(1), both));
}

// A kind whose second 32 levels of each vector lie in the upper halves of bytes may leave them
// there: they are 16 times too large, and `part` of the scale makes up for it.
inline __m512 parts_of_scale() {
  const float part = 1 / 16.f;
  return _mm512_set_ps(part, part, 1, 1, part, part, 1, 1, part, part, 1, 1, part, part, 1, 1);
}

template <> struct Vnni<BlockKind::Q4_K> {
  static constexpr bool fast = true;
  static constexpr int scales = 1;
  static void unpack(const uint8_t *p, Levels &l, Scales<1> &s) {
    vnni_scales_of_k(p, s);
    for (int i = 0; i < 4; i++)
      l.q[i] = _mm512_and_si512(twice(p + 16 + 32 * i),
                                halves(0x0f0f0f0f0f0f0f0f, int64_t(0xf0f0f0f0f0f0f0f0)));
  }
};

template <> struct Vnni<BlockKind::Q5_K> {
  static constexpr bool fast = true;
  static constexpr int scales = 1;
  static void unpack(const uint8_t *p, Levels &l, Scales<1> &s) {
    vnni_scales_of_k(p, s);
    const __m512i fifth = twice(p + 16);
    for (int i = 0; i < 4; i++) { // rotates bit 2 i, or 2 i + 1, to bit 4
      const __m512i low =
          _mm512_and_si512(_mm512_srlv_epi64(twice(p + 48 + 32 * i), halves(0, 4)), bytes_of(15));
      l.q[i] = merge(_mm512_rolv_epi64(fifth, halves(4 - 2 * i, 3 - 2 * i)), bytes_of(16), low);
    }
  }
};

template <> struct Vnni<BlockKind::Q6_K> {
  static constexpr bool fast = true;
  static constexpr int scales = 1;
  static void unpack(const uint8_t *p, Levels &l, Scales<1> &s) {
    s.scale[0] = times_signed(p + 208, _mm_loadu_si128(reinterpret_cast<const __m128i *>(p + 192)));
    for (int h = 0; h < 2; h++) {
      const __m512i low = _mm512_loadu_si512(p + 64 * h), high = twice(p + 128 + 32 * h);
      l.q[2 * h] = merge(_mm512_sllv_epi64(high, halves(4, 2)), bytes_of(48),
                         _mm512_and_si512(low, bytes_of(15)));
      l.q[2 * h + 1] = merge(_mm512_srlv_epi64(high, halves(0, 2)), bytes_of(48),
                             _mm512_and_si512(_mm512_srli_epi64(low, 4), bytes_of(15)));
    }
  }
};

template <> struct Vnni<BlockKind::Q2_K> {
  static constexpr bool fast = true;
  static constexpr int scales = 1;
  static void unpack(const uint8_t *p, Levels &l, Scales<1> &s) {
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    s.scale[0] = times(p + 80, _mm_and_si128(both, _mm_set1_epi8(15)));
    s.minimum[0] = times(p + 82, _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15)));
    for (int i = 0; i < 4; i++)
      l.q[i] = _mm512_and_si512(
          _mm512_srlv_epi64(twice(p + 16 + 32 * (i / 2)), halves(i % 2 * 4, i % 2 * 4 + 2)),
          bytes_of(3));
  }
};

template <> struct Vnni<BlockKind::Q3_K> {
  static constexpr bool fast = true;
  static constexpr int scales = 1;
  static void unpack(const uint8_t *p, Levels &l, Scales<1> &s) {
    const uint32_t a = word_at(p + 96), b = word_at(p + 100), c = word_at(p + 104);
    const uint32_t low = 0x0f0f0f0f, two = 0x03030303;
    s.scale[0] =
        times_signed(p + 108, _mm_sub_epi8(_mm_set_epi32((b >> 4 & low) | (c >> 6 & two) << 4,
                                                         (a >> 4 & low) | (c >> 4 & two) << 4,
                                                         (b & low) | (c >> 2 & two) << 4,
                                                         (a & low) | (c & two) << 4),
                                           _mm_set1_epi8(32)));
    const __m512i third = twice(p);
    for (int i = 0; i < 4; i++) { // rotates bit 2 i, or 2 i + 1, to bit 2
      const __m512i rest = _mm512_and_si512(
          _mm512_srlv_epi64(twice(p + 32 + 32 * (i / 2)), halves(i % 2 * 4, i % 2 * 4 + 2)),
          bytes_of(3));
      l.q[i] = merge(_mm512_rolv_epi64(third, halves(2 - 2 * i, 1 - 2 * i)), bytes_of(4), rest);
    }
  }
};

template <> struct Vnni<BlockKind::IQ4_XS> {
  static constexpr bool fast = true;
  static constexpr int scales = 1;
  static void unpack(const uint8_t *p, Levels &l, Scales<1> &s) {
    // Scale b has four bits in half b of the word at 4, and two at bit 2 b of the half-word at 2.
    const uint64_t pairs = 0x0303030303030303, fours = 0x0f0f0f0f0f0f0f0f;
    const uint64_t low = _pdep_u64(word_at(p + 4), fours),
                   high = _pdep_u64(p[2] | p[3] << 8, pairs);
    const __m128i first = _mm_set_epi8(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    s.scale[0] = times_signed(
        p, _mm_sub_epi8(_mm_shuffle_epi8(_mm_cvtsi64_si128(int64_t(low | high << 4)), first),
                        _mm_set1_epi8(32)));
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(iq4_levels)));
    for (int i = 0; i < 4; i++) {
      const __m512i bytes = twice(p + 8 + 32 * i);
      const __m512i each = _mm512_shuffle_i64x2(bytes, bytes, 0x50); // 16 bytes, twice each
      l.q[i] = _mm512_shuffle_epi8(
          table, _mm512_and_si512(_mm512_srlv_epi64(each, quarters(0, 4)), bytes_of(15)));
    }
  }
};

// Adds the products of a unit with n rows of activations to the accumulators of each row.
template <BlockKind K, int M, int CHAINS>
inline __attribute__((always_inline)) void vnni_unit(const uint8_t *p, const ActivationUnit *x,
                                                     int64_t stride, __m512 (*acc)[CHAINS],
                                                     __m512 *rest) {
  constexpr int N = Vnni<K>::scales;
  constexpr bool minima = Kind<K>::zero == 0;
  Levels l;
  Scales<N> s;
  Vnni<K>::unpack(p, l, s);
  const __m512 scale =
      K == BlockKind::Q4_K ? _mm512_mul_ps(s.scale[0], parts_of_scale()) : s.scale[0];
  for (int m = 0; m < M; m++) {
    const ActivationUnit &a = x[m * stride];
    __m512 all;
    if (N == 1) {
      all = _mm512_mul_ps(scale, _mm512_load_ps(a.scale));
      rest[m] = _mm512_fmadd_ps(minima ? s.minimum[0] : s.scale[0], _mm512_load_ps(a.sum), rest[m]);
    }
    for (int i = 0; i < 4; i++) {
      const __m512 products = _mm512_cvtepi32_ps(
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), l.q[i], _mm512_load_si512(a.q + 64 * i)));
      __m512 factor;
      if (N == 1) {
        const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        factor = _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(4 * i)), all);
      } else {
        factor = _mm512_mul_ps(s.scale[i % N], _mm512_load_ps(a.lane_scale + 16 * i));
        rest[m] = _mm512_fmadd_ps(minima ? s.minimum[i % N] : s.scale[i % N],
                                  _mm512_load_ps(a.lane_sum + 16 * i), rest[m]);
      }
      acc[m][i % CHAINS] = _mm512_fmadd_ps(products, factor, acc[m][i % CHAINS]);
    }
  }
}
#endif
