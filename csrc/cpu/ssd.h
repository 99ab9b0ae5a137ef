// ssd.h: what the state-space scan's files share: the argument blocks of one scan, the table of functions that each
// instruction set provides (ssd_head.h, compiled once for each), and the hook through which the CUDA library adds its
// face.
#pragma once

#include "../internal.h"

#include <cstdint>
#include <optional>

namespace conquer::ssd {

// The scan of one call as the CPU kernels see it: everything float32, contiguous, dt already softplus'd and clamped.
//
// A chunk is what the caller's window counts in; a block is what one matrix product spans. A chunk is one or more whole
// blocks (chunk_blocks), or, when state flows everywhere (window < 0), the whole sequence is one chunk.
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
  float *da, *dd;      // [B,H], one partial sum a batch row
  float *dinitial;     // [B,H,P,N] or null
};

// Sums over the heads of one slice of a group, added to by each head in turn (so the order, and the result, is fixed).
struct SliceGrad {
  float *db, *dc; // [L,N padded to 16]: what goes through the states
  float *dcb;     // [blocks,block,block]: the gradient of cb
};

struct Kernels {
  // Products of one batch row and group: cb of `blocks` blocks.
  void (*cb)(const Scan &, int64_t b, int64_t g, float *cb);
  void (*forward)(const Scan &, const ScanOut &, int64_t b, int64_t h);
  void (*backward)(const Scan &, const ScanGrad &, const SliceGrad &, int64_t b, int64_t h);
  // db, dc [L,N] at row stride `stride`: adds what goes through cb, and drops the slices' padding.
  void (*finish)(const Scan &, const SliceGrad *slices, int n, int64_t b, int64_t g, float *db, float *dc,
                 int64_t stride);
  // One token: state [P,N] in place; y [P].
  void (*step)(int64_t p, int64_t n, float decay, float dt, float d, const float *x, const float *b, const float *c,
               float *state, float *y);
  // Rows [t0,t1) of a causal depthwise convolution over [L,D]; `history` holds the width-1 rows before the sequence or
  // is null. weight is [W,D]. `pre` (or null) receives the sums before the SiLU.
  void (*conv)(int64_t t0, int64_t t1, int64_t dim, int64_t width, const float *x, const float *weight,
               const float *bias, const float *history, const int32_t *segment, bool silu, float *y, float *pre);
  // dpre = dy·silu'(pre), over n values.
  void (*silu_grad)(int64_t n, const float *pre, const float *dy, float *dpre);
  // One row of gated RMS normalization; z null: no gate. Returns nothing: y = norm(x·silu(z))·weight by groups.
  void (*norm)(int64_t dim, int64_t group, float eps, const float *x, const float *z, const float *weight, float *y);
  // Its gradient; dweight is added to.
  void (*norm_grad)(int64_t dim, int64_t group, float eps, const float *x, const float *z, const float *weight,
                    const float *dy, float *dx, float *dz, float *dweight);
};

const Kernels &kernels_generic();
const Kernels *kernels_avx2(); // null where the processor or the compiler lacks it
const Kernels *kernels_avx512();
const Kernels &kernels(); // the best of them, chosen once

// ---- what the C entry points hand to a device
// ------------------------------------------------------------------------

struct ScanOptions {
  int64_t chunk_size, window;
  bool dt_softplus;
  double dt_min, dt_max;
  bool a_log = false; // of a step: a is log(-A)
};

struct ScanInput {
  at::Tensor x, dt, a, b, c;
  at::Tensor d, dt_bias, initial, segment; // each may be undefined
};

struct ScanGradients {
  at::Tensor x, dt, a, b, c, d, dt_bias, initial;
};

// Filled in by libconquer_cuda.so when it is opened; each function mirrors the CPU's below.
struct Device {
  // `saved` receives what the backward wants to keep.
  void (*forward)(const ScanInput &, const ScanOptions &, at::Tensor &y, at::Tensor &final_state,
                  std::vector<at::Tensor> &saved);
  void (*backward)(const ScanInput &, const ScanOptions &, const std::vector<at::Tensor> &saved, const at::Tensor &dy,
                   const at::Tensor &dfinal, ScanGradients &);
  void (*step)(const at::Tensor &state, const ScanInput &, const at::Tensor &z, const ScanOptions &, at::Tensor &y);
  at::Tensor (*conv)(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias, const at::Tensor &initial,
                     const at::Tensor &segment, bool silu);
  void (*conv_grad)(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias, const at::Tensor &initial,
                    const at::Tensor &segment, bool silu, const at::Tensor &dy, at::Tensor &dx, at::Tensor &dweight,
                    at::Tensor &dbias, at::Tensor &dinitial);
  at::Tensor (*conv_step)(const at::Tensor &state, const at::Tensor &x, const at::Tensor &weight,
                          const at::Tensor &bias, bool silu);
  at::Tensor (*norm)(const at::Tensor &x, const at::Tensor &z, const at::Tensor &weight, double eps, int64_t group);
  void (*norm_grad)(const at::Tensor &x, const at::Tensor &z, const at::Tensor &weight, double eps, int64_t group,
                    const at::Tensor &dy, at::Tensor &dx, at::Tensor &dz, at::Tensor &dweight);
};

const Device &cpu_device();
// The device of a tensor; throws where the CUDA library is not loaded.
const Device &face_of(const at::Tensor &);
void register_cuda(const Device *);

} // namespace conquer::ssd
