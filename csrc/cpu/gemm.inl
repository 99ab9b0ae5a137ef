// gemm.inl: products of small matrices in the first-level cache, for attention and the state-space
// scan. The accumulators fill the registers: six rows by four vectors with 32 registers, by two
// with 16.

constexpr int gemm_rows = 6;
constexpr int gemm_vectors = W == 16 ? 4 : 2;

// c[m, n] = (add ? c : 0) + a[m, k] b[k, n] for ROWS rows and VECTORS vectors. a may be a
// transposition.
template <int ROWS, int VECTORS, class T>
inline __attribute__((always_inline)) void gemm_tile(int64_t k, const float *a, int64_t a_row,
                                                     int64_t a_column, const T *b, int64_t b_row,
                                                     float *c, int64_t c_row, bool add) {
  Vec acc[ROWS][VECTORS];
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++)
      acc[i][j] = add ? load(c + i * c_row + j * W) : Vec{};
  for (int64_t x = 0; x < k; x++) {
    Vec row[VECTORS];
    for (int j = 0; j < VECTORS; j++)
      row[j] = load(b + x * b_row + j * W);
    for (int i = 0; i < ROWS; i++) {
      const Vec y = splat(a[i * a_row + x * a_column]);
      for (int j = 0; j < VECTORS; j++)
        acc[i][j] = fma(y, row[j], acc[i][j]);
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++)
      store(c + i * c_row + j * W, acc[i][j]);
}

template <int VECTORS, class T>
inline void gemm_strip(int64_t m, int64_t k, const float *a, int64_t a_row, int64_t a_column,
                       const T *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  int64_t i = 0;
  for (; i + gemm_rows <= m; i += gemm_rows)
    gemm_tile<gemm_rows, VECTORS>(k, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row,
                                  add);
  for (; i + 4 <= m; i += 4)
    gemm_tile<4, VECTORS>(k, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
  for (; i + 2 <= m; i += 2)
    gemm_tile<2, VECTORS>(k, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
  for (; i < m; i++)
    gemm_tile<1, VECTORS>(k, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
}

// The same for n a multiple of 16.
template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column,
          const T *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  int64_t j = 0;
  for (; j + gemm_vectors * W <= n; j += gemm_vectors * W)
    gemm_strip<gemm_vectors>(m, k, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
  for (; j < n; j += W)
    gemm_strip<1>(m, k, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
}
