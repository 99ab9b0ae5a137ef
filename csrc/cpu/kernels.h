// kernels.h: the table of inner loops that exists once for each instruction set.
//
// Every operation here has two halves. The half that knows tensors (linear.cpp, norm.cpp, ...) checks shapes, splits
// the work over threads and records gradients. The half that knows vectors (*.inl) runs over plain pointers, on one
// thread, and is compiled once for each instruction set by isa_*.cpp, from the same source. kernels<T>() hands out the
// best table that this processor can run, so one binary serves a plain x86-64, an AVX2 and an AVX-512 machine, and
// other processors get the portable one.
//
// T is the element type in memory. Arithmetic is float32 throughout; T is widened when loaded and rounded (to nearest,
// ties to even) when stored.
#pragma once

#include <stdint.h>

namespace conquer {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// The constants of one step of AdamW, see optimizer.inl.
struct AdamWStep {
  float gradient_scale, beta1, beta2;
  float keep;              // 1 - rate * decay
  float rate;              // the rate over the mean's correction
  float square_correction; // what the square's root is multiplied by
  float eps;
};

// What is added to a row's cross-entropy, see cross_entropy.inl.
struct Penalties {
  float smoothing, z;
};

// One head's attention, see flash.inl. Rows of q, k, v and out hold P elements, a multiple of 16, and lie *_row apart.
template <class T> struct FlashHead {
  static constexpr int64_t keys = 64; // at once
  const T *q, *k, *v;
  int64_t q_row, k_row, v_row;
  const T *kt;      // k by transpose_keys
  const bool *mask; // [L, S] of what may be seen, or null
  int64_t mask_row;
  bool causal; // query i sees keys 0 to i
  float scale;
  int64_t L, S, P;
  T *out;
  int64_t out_row;
  float *lse; // [L]: the logarithm of the sum of a row's exponentials
};
template <class T> struct FlashGradients {
  const T *dy, *vt; // vt: v by transpose_keys
  T *dq;
  int64_t dy_row, dq_row;
  float *dk, *dv; // dense
};

// And of Lion.
struct LionStep {
  float gradient_scale, beta1, beta2, keep, rate;
};

// Averages of 8 bits, see conquer.h. The code of a value is the upper 12 bits of its float32 (without the sign) less a
// base, which the largest of a block decides; code 0 is zero. Its exponent is taken of the largest rounded up, so that
// no rounding leads beyond it.
constexpr int64_t average_block = 256;
inline uint32_t average_exponent(float largest) {
  uint32_t bits = __builtin_bit_cast(uint32_t, largest), exponent = (bits + 0xFFFFF) >> 23;
  return exponent < 31 ? 31 : exponent > 253 ? 253 : exponent;
}
inline uint32_t average_base(uint32_t exponent, bool square) { return 8 * exponent + 7 - (square ? 255 : 127); }

template <class T> struct Kernels {
  // y[m, r] = <weight[r], x[m]> + bias[r] for r < rows, m < n. The rows of weight lie `depth` apart, those of x too
  // (float32, whatever T), those of y `y_stride`. bias may be null. See linear.inl.
  void (*linear)(const T *weight, const T *bias, const float *x, int64_t rows, int64_t depth, int64_t n, T *y,
                 int64_t y_stride);
  // Widens n elements.
  void (*widen)(const T *x, int64_t n, float *y);
  // Rounds n elements.
  void (*round)(const float *x, int64_t n, T *y);
  // See norm.inl, swiglu.inl and rope.inl.
  void (*rms_norm)(const T *x, const T *weight, float eps, int64_t rows, int64_t depth, T *y, float *rstd);
  void (*rms_norm_backward)(const T *dy, const T *x, const T *weight, const float *rstd, int64_t rows, int64_t depth,
                            T *dx, float *dweight);
  void (*swiglu)(const T *x, int64_t rows, int64_t width, T *y);
  void (*swiglu_backward)(const T *dy, const T *x, int64_t rows, int64_t width, T *dx);
  void (*rotate)(const T *x, int64_t x_stride, int64_t heads, int64_t width, const float *cos, const float *sin,
                 int64_t half, float direction, T *y, int64_t y_stride);
  // See attention.inl.
  void (*attend)(const float *q, int64_t heads, const T *k, const T *v, int64_t k_stride, int64_t v_stride, int64_t n,
                 int64_t width, float *top, float *mass, float *out);
  // See flash.inl.
  void (*flash)(const FlashHead<T> &h, int64_t row, int64_t rows, float *scratch);
  void (*flash_backward)(const FlashHead<T> &h, const FlashGradients<T> &g, int64_t block, float *scratch);
  void (*transpose_keys)(const T *from, int64_t from_row, int64_t n, int64_t width, T *to);
  // See cross_entropy.inl.
  void (*cross_entropy)(T *logits, int64_t rows, int64_t width, const int64_t *labels, const float *scales,
                        const Penalties &p, float *nll, float *penalty);
  // into += the sum of rows[which[i]] over i < n. See embedding.inl.
  void (*add_rows)(const T *rows, const int64_t *which, int64_t n, int64_t width, T *into);
  // See optimizer.inl.
  void (*adamw)(T *weight, float *original, const T *gradient, float *mean, float *square, int64_t n,
                const AdamWStep &s);
  void (*adamw_bf16)(T *weight, float *original, const T *gradient, bf16 *mean, bf16 *square, int64_t from, int64_t n,
                     uint32_t key, const AdamWStep &s);
  void (*adamw_8bit)(T *weight, float *original, const T *gradient, uint8_t *mean, uint8_t *square,
                     uint8_t *mean_exponents, uint8_t *square_exponents, int64_t from, int64_t n, uint32_t key,
                     const AdamWStep &s);
  void (*lion)(T *weight, float *original, const T *gradient, float *mean, int64_t n, const LionStep &s);
  float (*sum_of_squares)(const T *x, int64_t n);
};

template <class T> const Kernels<T> &kernels();

// The tables of each instruction set; kernels.cpp chooses among them.
struct KernelSet {
  Kernels<float> f32;
  Kernels<bf16> b16;
  Kernels<f16> h16;
};
extern const KernelSet kernels_portable;
#if defined(__x86_64__)
extern const KernelSet kernels_avx2;
extern const KernelSet kernels_avx512;
extern const KernelSet kernels_avx512_bf16;
#endif

} // namespace conquer
