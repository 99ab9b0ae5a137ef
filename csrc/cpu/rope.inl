// rope.inl: rotary position embedding of one token's heads, in Hugging Face's half-split
// convention: element i of the first half and element i of the second are the two coordinates that
// rotate by the i-th angle. Each element is read and written once.

// Rotates `heads` heads of `width` elements by the angles whose cosines and sines are given (`half`
// of each). Elements from 2 * half on are copied. direction -1 rotates back, which is the gradient.
template <class T>
void rotate(const T *x, int64_t x_stride, int64_t heads, int64_t width, const float *cos,
            const float *sin, int64_t half, float direction, T *y, int64_t y_stride) {
  for (int64_t h = 0; h < heads; h++, x += x_stride, y += y_stride) {
    for_vectors(half, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
      Vec a = load_some(x + d, n), b = load_some(x + half + d, n);
      Vec c = load_some(cos + d, n), s = load_some(sin + d, n) * direction;
      store_some(y + d, a * c - b * s, n);
      store_some(y + half + d, b * c + a * s, n);
    });
    if (2 * half < width)
      memcpy(y + 2 * half, x + 2 * half, (width - 2 * half) * sizeof(T));
  }
}
