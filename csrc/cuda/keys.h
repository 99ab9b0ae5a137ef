// keys.h: the keys of the variants of the Triton kernels: the kernel's name, the dtype and the
// constants in the order of the kernel's signature, joined by underscores
// (csrc/triton/build/variants.py). They are pure functions of dtypes, shapes and flags, so that
// csrc/test/keys_test.cpp can form every key without a GPU and look it up in the manifest.
#pragma once

#include <cstdint>
#include <string>

#include "tuning.h"

namespace conquer::triton {

// "bf16", "fp16" or "fp32".
using Dtype = const char *;

bool is_fp32(Dtype dtype);

// Returns the smallest power of two that is at least n and at least `least`.
int64_t power_of_two(int64_t n, int64_t least = 16);

// Returns the first of the compiled sizes (ascending) that is at least n. If there is none it
// returns n, and the launch fails with the name of the missing variant.
template <size_t Count> int64_t fitting(const std::array<int64_t, Count> &sizes, int64_t n) {
  for (int64_t size : sizes)
    if (size >= n)
      return size;
  return n;
}

// The rows of a weight in blocks that one program of block_gemv reads.
inline int64_t block_gemv_rows(int64_t rows) { return tuning::block_gemv_BN[rows < 8192 ? 0 : 1]; }

namespace keys {

// A transformer's operators. D: width of a row. half: half the number of rotated dimensions of a
// head. P: head dimension. V: vocabulary. M: rows of x.
std::string rms_norm(Dtype dtype, int64_t D);
std::string rms_norm_grad(Dtype dtype, bool wants_dweight, int64_t D);
std::string rope_qkv(Dtype dtype, int64_t half);
std::string rope_qkv_grad(Dtype dtype, int64_t half);
std::string swiglu(Dtype dtype);
std::string swiglu_grad(Dtype dtype);
std::string cross_entropy(Dtype dtype, bool grad, int64_t V);
std::string gemv(Dtype dtype, int64_t M, bool norm);
std::string gemv_swiglu(Dtype dtype, int64_t M, bool norm);
std::string split_k_gemm(Dtype dtype);
std::string sum_splits(Dtype dtype);
std::string sum_splits_swiglu(Dtype dtype);
// width: the wider of the residual stream and the mixer's output.
std::string block_tail(Dtype dtype, int64_t width);
// gated, adds: which of the kernel's three forms. For bfloat16 only.
std::string tail_gemm(Dtype dtype, bool gated, bool adds, int64_t M);
// many: there are many cache rows.
std::string decode_attention(Dtype dtype, bool many, int64_t P);
std::string decode_attention_mha(Dtype dtype, int64_t P);
// A weight in blocks: bits of a code, 4 or 8; rows of the weight.
std::string block_gemv(Dtype dtype, int bits, int64_t rows);
std::string block_gemv_swiglu(Dtype dtype, int bits);
std::string block_gemm(Dtype dtype, int bits, int64_t M); // not in float32
std::string block_unpack(Dtype dtype, int bits);
// Layers whose rows have weights of their groups, not in float32. rows: rows per program, one of
// tuning::grouped_gemm_BM.
std::string grouped_gemv(Dtype dtype);
std::string grouped_gemm(Dtype dtype, bool across, int64_t rows);
std::string grouped_grad_weight(Dtype dtype);
std::string argmax(Dtype dtype);
std::string add_rows(Dtype dtype);
std::string multiply(Dtype dtype);
std::string adamw(Dtype dtype, bool master, bool narrow);
std::string adamw_8bit(Dtype dtype, bool master);

// The other operators of a Mamba-2 layer. unaligned: rows may start anywhere, not only at multiples
// of 16 elements. rows: rows of the state per program, one of tuning::state_step_BP.
std::string state_step(Dtype dtype, Dtype state, Dtype params, bool z, bool softplus, bool log_a,
                       int64_t rows, int64_t P, int64_t N);
// The state update that replays the last inputs of a layer, in bfloat16.
std::string replay_inputs(Dtype params, int64_t N);
std::string replay_state(Dtype state, bool z, int64_t N);
std::string conv(Dtype dtype, bool silu, int64_t width, bool initial, bool segments,
                 bool unaligned);
std::string conv_grad_pre(Dtype dtype, bool silu, int64_t width, bool initial, bool segments,
                          bool unaligned);
std::string conv_grad_x(Dtype dtype, int64_t width, bool segments, bool unaligned);
std::string conv_step(Dtype dtype, bool silu, int64_t width);
// group: elements of a row of D that are normalized together.
std::string gated_norm(Dtype dtype, bool z, int64_t D, int64_t group);
std::string gated_norm_grad(Dtype dtype, bool z, int64_t D, int64_t group);

// The chunked scan. segments: several sequences are packed in a row. entry: a state enters the
// segments. keep: a backward pass follows.
struct Scan {
  Dtype dtype;
  int64_t Q, P, N; // tokens of a block, head dimension, state
  bool mask;       // P or N is not a power of two, or rows may start anywhere

  std::string prepare(bool segments, bool softplus, bool keep) const;
  std::string cb_gemm() const;
  std::string carry_state(bool reverse, bool entry, bool store) const;
  std::string scan(bool segments, bool entry) const;
  // Whether scan_hopper is compiled for the shape.
  bool fits_hopper() const;
  std::string scan_hopper(bool segments, bool entry) const;
  std::string grad_x(bool segments, bool entry) const;
  std::string grad_bc() const;
  std::string grad_cb(bool segments) const;
  std::string grad_bc_sum() const;
  std::string grad_dt(bool softplus, bool fixes) const;
};
std::string state_passing(bool reverse, bool initial);

// Returns the tokens per block of a scan. window: number of earlier chunks that a chunk sees,
// negative for all.
int64_t scan_block(Dtype dtype, int64_t window, int64_t chunk_size);

} // namespace keys

} // namespace conquer::triton
