// cpu.h: the CPU's kernels on tensors, which device.cpp registers, and their helpers. The files of
// this folder divide an operator's work among threads, which run the inner loops of kernels.h. ops/
// checks arguments and records gradients.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "../ops/device.h"
#include "kernels.h"
#include "threads.h"

namespace conquer::cpu {

// Calls f with a value of the element type that the kernels use for `type`.
template <class F> auto with_type(at::ScalarType type, F &&f) {
  switch (type) {
  case at::kFloat:
    return f(float{});
  case at::kBFloat16:
    return f(bf16{});
  case at::kHalf:
    return f(f16{});
  default:
    TORCH_CHECK(false, "no kernel for elements of type ", type,
                ": expected float32, bfloat16 or float16");
  }
}

// The elements, or a null pointer for an undefined tensor.
template <class T> const T *data_of(const at::Tensor &t) {
  return t.defined() ? static_cast<const T *>(t.const_data_ptr()) : nullptr;
}
template <class T> T *mutable_data_of(const at::Tensor &t) {
  return t.defined() ? static_cast<T *>(t.mutable_data_ptr()) : nullptr;
}

// How many rows of `width` elements are worth waking a thread for (some 2 us of work).
inline int64_t rows_per_share(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1));
}

// Multiply-adds that one thread does in the time it takes to wake another: 2 us at 20 G a second
// from the cache.
constexpr int64_t one_thread = 32 * 1024;

// Throws unless every position (int64) lies in a cache of S rows.
void check_positions(const at::Tensor &positions, int64_t S);

// The entries of ops::Device; device.h describes each.
void rms_norm(const at::Tensor &x, const at::Tensor &weight, double eps, const at::Tensor &y,
              const at::Tensor &rstd);
at::Tensor rms_norm_grad(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &weight,
                         const at::Tensor &rstd, bool wants_dweight, const at::Tensor &dx);
void rope_qkv(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
              const at::Tensor &columns, const at::Tensor &q, const at::Tensor &k,
              const at::Tensor &v);
void rope_qkv_grad(const at::Tensor &dq, const at::Tensor &dk, const at::Tensor &dv,
                   const at::Tensor &cos, const at::Tensor &sin, const at::Tensor &dqkv);
void swiglu(const at::Tensor &x, const at::Tensor &y);
void swiglu_grad(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &dx);
void cross_entropy(const ops::CrossEntropyRows &rows);
at::Tensor linear(const at::Tensor &x, const at::Tensor &norm, double eps, const at::Tensor &weight,
                  const at::Tensor &bias, const at::Tensor &residual);
void block_linear(const at::Tensor &x, const std::vector<ops::BlockPart> &parts,
                  const at::Tensor &out);
void block_unpack(const ops::BlockPart &part, int64_t first, int64_t rows, const at::Tensor &out);
bool block_pack(const ops::BlockPart &part, const ops::BlockPart &packed);
void attention(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
               const at::Tensor &mask, bool causal, double scale, const at::Tensor &out,
               const at::Tensor &lse);
std::vector<at::Tensor> attention_grad(const at::Tensor &q, const at::Tensor &k,
                                       const at::Tensor &v, const at::Tensor &mask, bool causal,
                                       double scale, const at::Tensor &out, const at::Tensor &lse,
                                       const at::Tensor &dy);
at::Tensor decode_attention(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
                            const at::Tensor &k, const at::Tensor &v, const at::Tensor &lengths,
                            const at::Tensor &starts, double scale);
void cache_write(const at::Tensor &cache, const at::Tensor &fresh, const at::Tensor &positions);
void cache_write_q8(const at::Tensor &cache, const at::Tensor &fresh, const at::Tensor &positions);
void cache_unpack(const at::Tensor &cache, const at::Tensor &out);
// n positions of a head of a cache in Q8_0, of P numbers each.
BlockRows cache_rows(const at::Tensor &cache, int64_t b, int64_t k, int64_t first, int64_t n,
                     int64_t P);
void add_rows(const at::Tensor &grad, const at::Tensor &ids, const at::Tensor &dy);
void adamw(const ops::OptimizerStep &step);
void lion(const ops::OptimizerStep &step);
double sum_of_squares(const std::vector<at::Tensor> &tensors);
void ssd_scan(const ops::ScanInput &in, const ops::ScanOptions &options, at::Tensor &y,
              at::Tensor &final_state, std::vector<at::Tensor> &saved);
void ssd_scan_grad(const ops::ScanInput &in, const ops::ScanOptions &options,
                   const std::vector<at::Tensor> &saved, const at::Tensor &dy,
                   const at::Tensor &dfinal, ops::ScanGradients &gradients);
void ssd_step(const at::Tensor &state, const ops::ScanInput &in, const at::Tensor &z,
              const ops::ScanOptions &options, at::Tensor &y);
at::Tensor causal_conv1d(const ops::ConvInput &in);
void causal_conv1d_grad(const ops::ConvInput &in, const at::Tensor &dy,
                        ops::ConvGradients &gradients);
at::Tensor conv1d_step(const at::Tensor &state, const ops::ConvInput &in);
at::Tensor gated_rms_norm(const ops::GatedNormInput &in);
void gated_rms_norm_grad(const ops::GatedNormInput &in, const at::Tensor &dy,
                         ops::GatedNormGradients &gradients);

} // namespace conquer::cpu
