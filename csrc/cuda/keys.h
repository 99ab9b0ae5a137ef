// keys.h: the key of each variant of a Triton kernel: the kernel's name, the dtype and the constants in the order of the kernel's
// signature, joined by underscores (csrc/triton/build/variants.py). Pure functions of dtypes, shapes and flags, which need no GPU:
// csrc/test/keys_test.cpp forms every key that a launch can ask for and looks it up in the manifest.
#pragma once

#include <cstdint>
#include <string>

#include "tuning.h"

namespace conquer::triton {

// "bf16", "fp16" or "fp32".
using Dtype = const char *;

bool is_fp32(Dtype dtype);

// The least power of two that is at least n and `least`.
int64_t power_of_two(int64_t n, int64_t least = 16);

// The first of the compiled sizes (ascending) that is at least n; n itself if none is, so that the launch names the missing variant.
template <size_t Count> int64_t fitting(const std::array<int64_t, Count> &sizes, int64_t n) {
  for (int64_t size : sizes)
    if (size >= n)
      return size;
  return n;
}

namespace keys {

// A transformer's operators. D: width of a row; half: half of the rotated dimensions of a head; P: head dimension.
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
std::string decode_attention(Dtype dtype, int64_t P);
std::string decode_attention_mha(Dtype dtype, int64_t P);
std::string argmax(Dtype dtype);
std::string add_rows(Dtype dtype);
std::string multiply(Dtype dtype);
std::string adamw(Dtype dtype, bool master, bool stochastic);

// What surrounds the scan. unaligned: rows may start anywhere, not only at multiples of 16 elements.
std::string state_step(Dtype dtype, Dtype state, Dtype params, bool z, bool softplus, bool log_a, int64_t rows, int64_t P, int64_t N);
std::string conv(Dtype dtype, bool silu, int64_t width, bool initial, bool segments, bool unaligned);
std::string conv_grad_pre(Dtype dtype, bool silu, int64_t width, bool initial, bool segments, bool unaligned);
std::string conv_grad_x(Dtype dtype, int64_t width, bool segments, bool unaligned);
std::string conv_step(Dtype dtype, bool silu, int64_t width);
// group: elements that are normalized together, of rows of D.
std::string gated_norm(Dtype dtype, bool z, int64_t D, int64_t group);
std::string gated_norm_grad(Dtype dtype, bool z, int64_t D, int64_t group);

// The chunked scan. segments: sequences are packed (seq_idx); entry: a state enters the scan's segments.
struct Scan {
  Dtype dtype;
  int64_t Q, P, N; // tokens of a block, head dimension, state
  bool mask;       // P or N is not a power of two, or rows may start anywhere

  std::string prepare(bool segments, bool softplus, bool keep) const;
  std::string cb_gemm() const;
  std::string carry_state(bool reverse, bool entry, bool store) const;
  std::string scan(bool segments, bool entry) const;
  // Whether the shape is that of scan_hopper, and its key.
  bool fits_hopper() const;
  std::string scan_hopper(bool segments, bool entry) const;
  std::string grad_x(bool segments, bool entry) const;
  std::string grad_bc() const;
  std::string grad_cb(bool segments) const;
  std::string grad_bc_sum() const;
  std::string grad_dt(bool softplus, bool fixes) const;
};
std::string state_passing(bool reverse, bool initial);

// Tokens of a scan's block. window: chunks that a chunk sees before itself, negative for all.
int64_t scan_block(Dtype dtype, int64_t window, int64_t chunk_size);

} // namespace keys

} // namespace conquer::triton
