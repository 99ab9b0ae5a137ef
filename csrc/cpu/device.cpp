// device.cpp: registers the CPU's kernels.
#include "cpu.h"

#include <limits>

namespace conquer::cpu {

namespace {

bool accepts(const at::Tensor &t) {
  const auto type = t.scalar_type();
  return (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf) && t.numel() > 0;
}

constexpr int64_t any = std::numeric_limits<int64_t>::max();

ops::Device table() {
  ops::Device d{};
  d.accepts = accepts;
  d.limits.width_multiple = 1;
  d.limits.norm_width = d.limits.rotary_angles = d.limits.decode_head_width =
      d.limits.decode_group = any;
  // With more rows oneDNN's GEMMs are faster; in bfloat16 they use AVX-512's dot products.
  d.limits.linear_rows_float32 = 16;
  d.limits.linear_rows_16bit = 8;
  d.limits.linear_fuses = false;
  d.limits.float16_gradients = d.limits.loss_penalties = d.limits.any_parameter = true;
  d.rms_norm = rms_norm;
  d.rms_norm_grad = rms_norm_grad;
  d.rope_qkv = rope_qkv;
  d.rope_qkv_grad = rope_qkv_grad;
  d.swiglu = swiglu;
  d.swiglu_grad = swiglu_grad;
  d.cross_entropy = cross_entropy;
  d.linear = linear;
  d.block_linear = block_linear;
  d.block_unpack = block_unpack;
  d.block_pack = block_pack;
  d.limits.block_rows_float32 = d.limits.block_rows_16bit = block_kernels().gemm ? any : 16;
  d.attention = attention;
  d.attention_grad = attention_grad;
  d.decode_attention = decode_attention;
  d.cache_write = cache_write;
  d.cache_write_q8 = cache_write_q8;
  d.cache_unpack = cache_unpack;
  d.add_rows = add_rows;
  d.adamw = adamw;
  d.lion = lion;
  d.sum_of_squares = sum_of_squares;
  d.ssd_scan = ssd_scan;
  d.ssd_scan_grad = ssd_scan_grad;
  d.ssd_step = ssd_step;
  d.causal_conv1d = causal_conv1d;
  d.causal_conv1d_grad = causal_conv1d_grad;
  d.conv1d_step = conv1d_step;
  d.gated_rms_norm = gated_rms_norm;
  d.gated_rms_norm_grad = gated_rms_norm_grad;
  return d;
}

} // namespace

static const bool registered = [] {
  static const ops::Device device = table();
  ops::register_device(at::kCPU, &device);
  return true;
}();

} // namespace conquer::cpu
