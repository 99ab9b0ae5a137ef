// add_rows.inl: adds the sum of n rows to another row: the gradient of an embedding row that n
// positions looked up. It is summed in float32 and rounded once.
template <class T>
void add_rows(const T *rows, const int64_t *which, int64_t n, int64_t width, T *into) {
  for_vectors(width, [&](int64_t d, int64_t m) __attribute__((always_inline)) {
    Vec total = {};
    for (int64_t i = 0; i < n; i++)
      total += load_some(rows + which[i] * width + d, m);
    store_some(into + d, load_some(into + d, m) + total, m);
  });
}
