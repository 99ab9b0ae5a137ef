// kernels.h: the tables of inner loops, one for each instruction set.
//
// The inner loops (*.inl) work on plain pointers, on one thread. isa_*.cpp compile them for each
// instruction set from the same source. kernels<T>() and state_space_kernels() return the best
// table that the processor can run, so one binary serves plain x86-64, AVX2 and AVX-512; other
// processors get the portable table.
//
// T is the element type in memory. Arithmetic is float32: T is widened when loaded and rounded (to
// nearest, ties to even) when stored.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "blocks.h"

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
  float rate;              // rate / bias correction of the mean
  float square_correction; // factor of the square's root
  float eps;
};

// Label smoothing and z-loss of cross_entropy.inl.
struct Penalties {
  float smoothing, z;
};

// One head's attention, see attention.inl. Rows of q, k, v and out hold P elements, a multiple of
// 16, at stride *_row.
template <class T> struct FlashHead {
  static constexpr int64_t keys = 64; // in a block
  const T *q, *k, *v;
  int64_t q_row, k_row, v_row;
  const T *kt;      // k by transpose_keys
  const bool *mask; // [L, S], true where a query may see a key; or null
  int64_t mask_row;
  bool causal; // query i sees keys 0 to i
  float scale;
  int64_t L, S, P;
  T *out;
  int64_t out_row;
  float *lse; // [L]: log-sum-exp of each row
};
template <class T> struct FlashGradients {
  const T *dy, *vt; // vt: v by transpose_keys
  T *dq;
  int64_t dy_row, dq_row;
  float *dk, *dv; // dense
};

// The constants of one step of Lion.
struct LionStep {
  float gradient_scale, beta1, beta2, keep, rate;
};

// 8-bit moments, see conquer.h. A value's code is the upper 12 bits of its float32 (without the
// sign) minus a base, which depends on the largest value of a block; code 0 is zero. The block's
// exponent is that of the largest value rounded up, so that rounding never exceeds it.
constexpr int64_t moment_block = 256;
inline uint32_t moment_exponent(float largest) {
  uint32_t bits = __builtin_bit_cast(uint32_t, largest), exponent = (bits + 0xFFFFF) >> 23;
  return exponent < 31 ? 31 : exponent > 253 ? 253 : exponent;
}
inline uint32_t moment_base(uint32_t exponent, bool square) {
  return 8 * exponent + 7 - (square ? 255 : 127);
}

template <class T> struct Kernels {
  // y[m, r] = <weight[r], x[m]> + bias[r] for r < rows, m < n. The rows of weight lie `depth`
  // apart, those of x too (float32, whatever T), those of y `y_stride`. bias may be null. See
  // linear.inl.
  void (*linear)(const T *weight, const T *bias, const float *x, int64_t rows, int64_t depth,
                 int64_t n, T *y, int64_t y_stride);
  // Widens n elements.
  void (*widen)(const T *x, int64_t n, float *y);
  // Rounds n elements.
  void (*round)(const float *x, int64_t n, T *y);
  // See rms_norm.inl, swiglu.inl and rope.inl.
  void (*rms_norm)(const T *x, const T *weight, float eps, int64_t rows, int64_t depth, T *y,
                   float *rstd);
  void (*rms_norm_backward)(const T *dy, const T *x, const T *weight, const float *rstd,
                            int64_t rows, int64_t depth, T *dx, float *dweight);
  void (*swiglu)(const T *x, int64_t rows, int64_t width, T *y);
  void (*swiglu_backward)(const T *dy, const T *x, int64_t rows, int64_t width, T *dx);
  void (*rotate)(const T *x, int64_t x_stride, int64_t heads, int64_t width, const float *cos,
                 const float *sin, int64_t half, float direction, T *y, int64_t y_stride);
  // See decode_attention.inl.
  void (*attend)(const float *q, int64_t heads, const T *k, const T *v, int64_t k_stride,
                 int64_t v_stride, int64_t n, int64_t width, float *top, float *mass, float *out);
  // See attention.inl.
  void (*flash)(const FlashHead<T> &h, int64_t row, int64_t rows, float *scratch);
  void (*flash_backward)(const FlashHead<T> &h, const FlashGradients<T> &g, int64_t block,
                         float *scratch);
  void (*transpose_keys)(const T *from, int64_t from_row, int64_t n, int64_t width, T *to);
  // See cross_entropy.inl.
  void (*cross_entropy)(T *logits, int64_t rows, int64_t width, const int64_t *labels,
                        const float *scales, const Penalties &p, float *nll, float *penalty);
  // into += the sum of rows[which[i]] over i < n. See add_rows.inl.
  void (*add_rows)(const T *rows, const int64_t *which, int64_t n, int64_t width, T *into);
  // See optimizer.inl.
  void (*adamw)(T *weight, float *master, const T *gradient, float *mean, float *square, int64_t n,
                const AdamWStep &s);
  void (*adamw_bf16)(T *weight, float *master, const T *gradient, bf16 *mean, bf16 *square,
                     int64_t from, int64_t n, uint32_t key, const AdamWStep &s);
  void (*adamw_8bit)(T *weight, float *master, const T *gradient, uint8_t *mean, uint8_t *square,
                     uint8_t *mean_exponents, uint8_t *square_exponents, int64_t from, int64_t n,
                     uint32_t key, const AdamWStep &s);
  void (*lion)(T *weight, float *master, const T *gradient, float *mean, int64_t n,
               const LionStep &s);
  float (*sum_of_squares)(const T *x, int64_t n);
};

// The arguments of one scan: float32, contiguous, dt after softplus and clamp.
//
// A chunk is the unit of the window; a block is the extent of one matrix product. A chunk is
// chunk_blocks whole blocks, or the whole sequence if the window is unlimited (window < 0).
struct Scan {
  int64_t batch, length, heads, head_dim, groups, state;
  int64_t block;          // tokens in a block, a power of two from 16 to 64
  int64_t blocks;         // blocks in the sequence
  int64_t chunk_blocks;   // blocks in a chunk
  int64_t window;         // chunks that state is carried across; negative: all
  const float *x;         // [B,L,H,P]
  const float *dt;        // [B,H,L]
  const float *a;         // [H]
  const float *b, *c;     // [B,L,G,N]
  const float *d;         // [H] or null
  const float *cb;        // [B,G,blocks,block,block]: C_t·B_s within each block
  const float *initial;   // [B,H,P,N] or null
  const int32_t *segment; // [B,L] or null: the number of sequence changes before each token
};

struct ScanOut {
  float *y;      // [B,L,H,P]
  float *final_; // [B,H,P,N]
};

struct ScanGrad {
  const float *dy;     // [B,L,H,P]
  const float *dfinal; // [B,H,P,N] or null
  float *dx;           // [B,L,H,P]
  float *ddt;          // [B,H,L], of the processed dt
  float *da, *dd;      // [B,H], a partial sum for each row of the batch
  float *dinitial;     // [B,H,P,N] or null
};

// Sums over the heads of one slice of a group. The heads add to them in turn, so the result does
// not depend on threads.
struct SliceGrad {
  float *db, *dc; // [L,N padded to 16]: the gradients through the states
  float *dcb;     // [blocks,block,block]: the gradient of cb
};

// Columns of the state-space kernels' matrices are padded to whole vectors.
inline int64_t pad16(int64_t n) { return (n + 15) / 16 * 16; }

// The inner loops of the state-space operators (state_space.inl, ssd_scan.inl), in float32.
struct StateSpaceKernels {
  // Products of one batch row and group: cb of `blocks` blocks.
  void (*cb)(const Scan &, int64_t b, int64_t g, float *cb);
  void (*forward)(const Scan &, const ScanOut &, int64_t b, int64_t h);
  void (*backward)(const Scan &, const ScanGrad &, const SliceGrad &, int64_t b, int64_t h);
  // db, dc [L,N] at row stride `stride`: sums the slices, adds the gradients through cb and removes
  // the padding.
  void (*finish)(const Scan &, const SliceGrad *slices, int n, int64_t b, int64_t g, float *db,
                 float *dc, int64_t stride);
  // One token: state [P,N] in place; y [P].
  void (*step)(int64_t p, int64_t n, float decay, float dt, float d, const float *x, const float *b,
               const float *c, float *state, float *y);
  // y *= silu(z), over n values.
  void (*gate)(int64_t n, const float *z, float *y);
  // Rows [t0,t1) of a causal depthwise convolution over [L,D]; `history` holds the width-1 rows
  // before the sequence or is null. weight is [W,D]. `pre` (or null) receives the sums before the
  // SiLU.
  void (*conv)(int64_t t0, int64_t t1, int64_t dim, int64_t width, const float *x,
               const float *weight, const float *bias, const float *history, const int32_t *segment,
               bool silu, float *y, float *pre);
  // dpre = dy·silu'(pre), over n values.
  void (*silu_grad)(int64_t n, const float *pre, const float *dy, float *dpre);
  // One row of gated RMS normalization by groups: y = norm(x·silu(z))·weight. z may be null: no
  // gate.
  void (*norm)(int64_t dim, int64_t group, float eps, const float *x, const float *z,
               const float *weight, float *y);
  // Its gradient; adds to dweight.
  void (*norm_grad)(int64_t dim, int64_t group, float eps, const float *x, const float *z,
                    const float *weight, const float *dy, float *dx, float *dz, float *dweight);
};

template <class T> const Kernels<T> &kernels();
const StateSpaceKernels &state_space_kernels();
// Whether they use AVX-512.
bool has_avx512();

// The tables of each instruction set; kernels.cpp chooses among them.
struct KernelSet {
  Kernels<float> f32;
  Kernels<bf16> b16;
  Kernels<f16> h16;
  StateSpaceKernels state_space;
  BlockKernels blocks;
};
extern const KernelSet kernels_portable;
#if defined(__x86_64__)
extern const KernelSet kernels_avx2;
extern const KernelSet kernels_avx512;
extern const KernelSet kernels_avx512_bf16;
#endif

} // namespace conquer
