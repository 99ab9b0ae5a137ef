#include "keys.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

namespace conquer::triton {

bool is_fp32(Dtype dtype) { return std::strcmp(dtype, "fp32") == 0; }

int64_t power_of_two(int64_t n, int64_t least) {
  int64_t p = least;
  while (p < n)
    p *= 2;
  return p;
}

namespace keys {

namespace {

std::string key(const char *kernel, const std::string &dtype,
                std::initializer_list<int64_t> constants, const char *precision = nullptr) {
  std::string k = std::string(kernel) + "_" + dtype;
  for (int64_t c : constants)
    k += "_" + std::to_string(c);
  return precision ? k + "_" + precision : k;
}

const char *precision(Dtype dtype) { return is_fp32(dtype) ? "ieee" : "tf32"; }
// Three TF32 GEMMs give the precision of one in float32.
const char *scan_precision(Dtype dtype) { return is_fp32(dtype) ? "tf32x3" : "tf32"; }

} // namespace

std::string rms_norm(Dtype dtype, int64_t D) {
  return key("rms_norm", dtype, {fitting(tuning::rms_norm_BLOCK, D)});
}
std::string rms_norm_grad(Dtype dtype, bool wants_dweight, int64_t D) {
  return key("rms_norm_grad", dtype, {wants_dweight, fitting(tuning::rms_norm_grad_BLOCK, D)});
}
std::string rope_qkv(Dtype dtype, int64_t half) {
  return key("rope_qkv", dtype, {tuning::rope_qkv_HEADS, fitting(tuning::rope_qkv_BH, half)});
}
std::string rope_qkv_grad(Dtype dtype, int64_t half) {
  return key("rope_qkv_grad", dtype,
             {tuning::rope_qkv_grad_HEADS, fitting(tuning::rope_qkv_grad_BH, half)});
}
std::string swiglu(Dtype dtype) { return key("swiglu", dtype, {tuning::swiglu_BLOCK}); }
std::string swiglu_grad(Dtype dtype) {
  return key("swiglu_grad", dtype, {tuning::swiglu_grad_BLOCK});
}
std::string cross_entropy(Dtype dtype, bool grad, int64_t V) {
  return key("cross_entropy", dtype, {grad, tuning::cross_entropy_BLOCK, V % 16 != 0});
}
std::string gemv(Dtype dtype, int64_t M, bool norm) {
  return key("gemv", dtype, {M, norm, tuning::gemv_BN, tuning::gemv_BK(is_fp32(dtype), M)});
}
std::string gemv_swiglu(Dtype dtype, int64_t M, bool norm) {
  return key("gemv_swiglu", dtype,
             {M, norm, tuning::gemv_swiglu_BN(M), tuning::gemv_swiglu_BK(is_fp32(dtype), M)});
}
std::string split_k_gemm(Dtype dtype) {
  return key(
      "split_k_gemm", dtype,
      {tuning::split_k_gemm_BM, tuning::split_k_gemm_BN, tuning::split_k_gemm_BK(is_fp32(dtype))},
      precision(dtype));
}
std::string sum_splits(Dtype dtype) { return key("sum_splits", dtype, {tuning::sum_splits_BLOCK}); }
std::string sum_splits_swiglu(Dtype dtype) {
  return key("sum_splits_swiglu", dtype, {tuning::sum_splits_swiglu_BLOCK});
}
std::string block_tail(Dtype dtype, int64_t width) {
  return key("block_tail", dtype,
             {fitting(tuning::block_tail_WIDTH, width), tuning::block_tail_INNER});
}
std::string tail_gemm(Dtype dtype, bool gated, bool adds, int64_t M) {
  return key(
      "tail_gemm", dtype,
      {gated, adds, fitting(tuning::tail_gemm_BM, M), tuning::tail_gemm_BN, tuning::tail_gemm_BK});
}
std::string decode_attention(Dtype dtype, bool many, int64_t P) {
  return key("decode_attention", dtype,
             {tuning::decode_attention_G, fitting(tuning::decode_attention_BP, P),
              tuning::decode_attention_BS[many || is_fp32(dtype) ? 0 : 1]},
             precision(dtype));
}
std::string decode_attention_mha(Dtype dtype, int64_t P) {
  return key("decode_attention_mha", dtype,
             {fitting(tuning::decode_attention_mha_BP, P), tuning::decode_attention_mha_BS});
}
std::string block_gemv(Dtype dtype, int bits, int64_t rows) {
  return key("block_gemv", dtype, {bits, block_gemv_rows(rows), tuning::block_gemv_BG});
}
std::string block_gemv_swiglu(Dtype dtype, int bits) {
  return key("block_gemv_swiglu", dtype,
             {bits, tuning::block_gemv_swiglu_BN, tuning::block_gemv_swiglu_BG});
}
std::string block_gemm(Dtype dtype, int bits, int64_t M) {
  return key(
      "block_gemm", dtype,
      {bits, fitting(tuning::block_gemm_BM, M), tuning::block_gemm_BN, tuning::block_gemm_BG});
}
std::string block_unpack(Dtype dtype, int bits) {
  return key("block_unpack", dtype, {bits, tuning::block_unpack_BG});
}
std::string grouped_gemv(Dtype dtype) {
  return key("grouped_gemv", dtype, {tuning::grouped_gemv_BN, tuning::grouped_gemv_BK});
}
std::string grouped_gemm(Dtype dtype, bool across, int64_t rows) {
  return key("grouped_gemm", dtype,
             {across, rows, tuning::grouped_gemm_BN(rows), tuning::grouped_gemm_BK(rows),
              tuning::grouped_gemm_BE});
}
std::string grouped_grad_weight(Dtype dtype) {
  return key("grouped_grad_weight", dtype,
             {tuning::grouped_grad_weight_BM, tuning::grouped_grad_weight_BN,
              tuning::grouped_grad_weight_BK});
}
std::string argmax(Dtype dtype) {
  return key("argmax", dtype, {tuning::argmax_BLOCK, tuning::argmax_SPLITS});
}
std::string add_rows(Dtype dtype) { return key("add_rows", dtype, {tuning::add_rows_BLOCK}); }
std::string multiply(Dtype dtype) { return key("multiply", dtype, {tuning::multiply_BLOCK}); }
std::string adamw(Dtype dtype, bool master, bool narrow) {
  return key("adamw", dtype, {master, narrow, tuning::adamw_SPAN, tuning::adamw_BLOCK});
}
std::string adamw_8bit(Dtype dtype, bool master) {
  return key("adamw_8bit", dtype, {master, tuning::adamw_8bit_SPAN, tuning::adamw_8bit_ROWS});
}

std::string state_step(Dtype dtype, Dtype state, Dtype params, bool z, bool softplus, bool log_a,
                       int64_t rows, int64_t P, int64_t N) {
  bool mask = P % 16 || power_of_two(N) != N;
  return key("state_step", std::string(dtype) + "-" + state + "-" + params,
             {z, softplus, log_a, rows, power_of_two(N), mask});
}
std::string replay_inputs(Dtype params, int64_t N) {
  return key("replay_inputs", std::string("bf16-fp32-") + params,
             {tuning::replay_inputs_T, tuning::replay_inputs_HEADS, tuning::replay_inputs_BP, N});
}
std::string replay_state(Dtype state, bool z, int64_t N) {
  return key("replay_state", std::string("bf16-") + state + "-bf16",
             {z, tuning::replay_state_T, tuning::replay_state_BP, N});
}
std::string conv(Dtype dtype, bool silu, int64_t width, bool initial, bool segments,
                 bool unaligned) {
  return key("conv", dtype,
             {silu, width, initial, segments, tuning::conv_T, tuning::conv_BD, unaligned});
}
std::string conv_grad_pre(Dtype dtype, bool silu, int64_t width, bool initial, bool segments,
                          bool unaligned) {
  return key("conv_grad_pre", dtype,
             {silu, width, initial, segments, tuning::conv_grad_pre_T, tuning::conv_grad_pre_BD,
              unaligned});
}
std::string conv_grad_x(Dtype dtype, int64_t width, bool segments, bool unaligned) {
  return key("conv_grad_x", dtype,
             {width, segments, tuning::conv_grad_x_T, tuning::conv_grad_x_BD, unaligned});
}
std::string conv_step(Dtype dtype, bool silu, int64_t width) {
  return key("conv_step", dtype, {silu, width, tuning::conv_step_BD});
}

// Two sizes serve most widths; the full set has every power of two.
template <size_t Count>
static std::string gated(const char *kernel, Dtype dtype, bool z, int64_t D, int64_t group,
                         const std::array<int64_t, Count> &sizes) {
  bool mask = D % 16 || group % 16;
  return key(
      kernel, dtype,
      {z, mask || group > sizes.back() ? power_of_two(group, 256) : fitting(sizes, group), mask});
}
std::string gated_norm(Dtype dtype, bool z, int64_t D, int64_t group) {
  return gated("gated_norm", dtype, z, D, group, tuning::gated_norm_BLOCK);
}
std::string gated_norm_grad(Dtype dtype, bool z, int64_t D, int64_t group) {
  return gated("gated_norm_grad", dtype, z, D, group, tuning::gated_norm_grad_BLOCK);
}

// The scan's kernels always add D·x and the bias of dt (HAS_D, HAS_BIAS are 1); both are zeros if
// the layer has none.
std::string Scan::prepare(bool segments, bool softplus, bool keep) const {
  return key("prepare", dtype,
             {1, segments, softplus, is_fp32(dtype), keep, Q, tuning::prepare_HEADS});
}
std::string Scan::cb_gemm() const {
  return key("cb_gemm", dtype, {Q, power_of_two(N), mask}, scan_precision(dtype));
}
std::string Scan::carry_state(bool reverse, bool entry, bool store) const {
  return key("carry_state", dtype,
             {reverse, entry, store, !store, Q, power_of_two(P), power_of_two(N), mask},
             scan_precision(dtype)) +
         "_1";
}
std::string Scan::scan(bool segments, bool entry) const {
  return key("scan", dtype,
             {1, segments, entry, is_fp32(dtype), Q, power_of_two(P), power_of_two(N), mask},
             scan_precision(dtype)) +
         "_1";
}
bool Scan::fits_hopper() const {
  return !is_fp32(dtype) && !mask && Q == tuning::scan_hopper_Q && P == tuning::scan_hopper_P &&
         N == tuning::scan_hopper_N;
}
std::string Scan::scan_hopper(bool segments, bool entry) const {
  return key("scan_hopper", dtype, {1, segments, entry, Q, P, N, tuning::scan_hopper_STAGES});
}
std::string Scan::grad_x(bool segments, bool entry) const {
  return key("grad_x", dtype,
             {1, segments, entry, is_fp32(dtype), Q, power_of_two(P), power_of_two(N), mask},
             scan_precision(dtype)) +
         "_1";
}
std::string Scan::grad_bc() const {
  return key("grad_bc", dtype, {Q, power_of_two(P), power_of_two(N), mask}, scan_precision(dtype));
}
std::string Scan::grad_cb(bool segments) const {
  return key("grad_cb", dtype, {segments, is_fp32(dtype), Q, power_of_two(P), mask},
             scan_precision(dtype));
}
std::string Scan::grad_bc_sum() const {
  return key("grad_bc_sum", dtype, {Q, power_of_two(N), mask}, scan_precision(dtype));
}
std::string Scan::grad_dt(bool softplus, bool fixes) const {
  return key("grad_dt", dtype, {1, softplus, fixes, Q, tuning::grad_dt_HEADS});
}
std::string state_passing(bool reverse, bool initial) {
  return key("state_passing", "fp32", {reverse, initial, 1, tuning::state_passing_BLOCK});
}

int64_t scan_block(Dtype dtype, int64_t window, int64_t chunk_size) {
  int64_t block = tuning::ssd_Q(is_fp32(dtype));
  return window > 0 ? std::min(block, chunk_size) : block;
}

} // namespace keys

} // namespace conquer::triton
