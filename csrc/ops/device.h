// device.h: the device table. A device provides its kernels as one ops::Device, an entry for each
// operator, and registers it once: cpu/device.cpp for the CPU, cuda/device.cpp for CUDA. The
// operators of this folder check arguments, record gradients and call the entry of the tensors'
// device. Without an entry, or for tensors that the kernels do not accept, they compute with
// libtorch; the state-space operators, which have no such form, fail.
//
// Tensors are contiguous unless an entry says otherwise. An undefined tensor stands for an absent
// one. Results that come as arguments are allocated by the caller. Letters are those of conquer.h.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

namespace conquer::ops {

// The weights and constants of a block tail; see cq_tail.
struct BlockTail {
  at::Tensor norm, output, output_bias, mlp_norm, gate_up, gate_up_bias, down, down_bias, next_norm,
      next, next_bias;
  double eps, mlp_eps, next_eps;
};

// Some rows of a weight that stay in the blocks in which a file stores them; see ops/blocks.h.
struct BlockPart {
  int kind; // as in cpu/blocks.h; 0 for rows that are not quantized
  int64_t rows, columns;
  at::Tensor data; // uint8 [rows, bytes of a row]; of kind 0 float32 [rows,columns]
  // Of Float8: the size of the tiles that share a scale, which are float32 in `scales`, and the
  // place of the first row among the rows of the tiles.
  int64_t tile_rows = 0, tile_columns = 0, first = 0;
  // Column i of data is column order[i] of the weight: int64 [columns], undefined for none.
  at::Tensor order = {};
  // On a GPU: 4 or 8 bits of a code, with data and scales as ../triton/kernels/blocks.py has them
  // (int32 [rows,groups,4] and [rows,groups]), else 0.
  int bits = 0;
  at::Tensor scales = {};
};

// Some rows of a batch's logits, whose cross-entropy is computed.
struct CrossEntropyRows {
  at::Tensor logits;  // [N,V]; replaced by their gradient if gradient is set
  at::Tensor targets; // int64 [N]
  at::Tensor nll;     // float32 [N]: receives lse - logit of the target
  bool gradient;
  double scale;          // the gradient's factor, for every row
  at::Tensor row_scales; // float32 [N], replaces scale; needs Limits::loss_penalties
  // Label smoothing and z-loss are added to the loss; `penalty` float32 [N] receives what they add.
  // They need Limits::loss_penalties.
  double label_smoothing = 0, z_loss = 0;
  at::Tensor penalty;
};

// One optimizer step over several parameters.
struct OptimizerStep {
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> master; // float32 master weights; empty if there are none
  std::vector<at::Tensor> gradients, means;
  std::vector<at::Tensor> squares;   // AdamW's second moments
  std::vector<at::Tensor> exponents; // of 8-bit moments, else empty
  std::vector<double> decays;
  std::vector<uint32_t> keys; // AdamW: of the stochastic rounding
  int64_t step;               // counted from 1
  double scale;               // of the gradients
  double rate, beta1, beta2, eps;
  int64_t seed; // of the stochastic rounding
};

// The random key that one parameter's rounding draws from in one step.
inline uint32_t rounding_key(int64_t seed, int64_t step, int parameter) {
  uint64_t x = uint64_t(seed) * 0x9e3779b97f4a7c15u + uint64_t(step) * 0xbf58476d1ce4e5b9u +
               uint64_t(parameter);
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return uint32_t(x ^ x >> 31);
}

struct ScanOptions {
  int64_t chunk_size, window;
  bool dt_softplus;
  double dt_min, dt_max;
  bool a_log = false; // of ssd_step: a holds log(-A)
};

// The last T inputs of a layer, which its state does not hold yet (see cq_step).
struct Ring {
  at::Tensor x, b, dt; // [B,H,T,P], [B,G,T,N], float32 [B,H,T]
  at::Tensor held;     // int32 [B]
  int64_t length() const { return dt.size(2); }
};

struct ScanInput {
  at::Tensor x, dt, a, b, c;
  at::Tensor d, dt_bias, initial; // optional
  at::Tensor segment; // optional, int32 [B,L]: the number of sequence changes before each token
};

struct ScanGradients {
  at::Tensor x, dt, a, b, c, d, dt_bias, initial;
};

struct ConvInput {
  at::Tensor x, weight;              // [B,L,D], [D,W]
  at::Tensor bias, initial, segment; // optional
  bool silu;
};

struct ConvGradients {
  at::Tensor x, weight, bias, initial;
};

struct GatedNormInput {
  at::Tensor x, z, weight; // z is optional
  double eps;
  int64_t group; // channels that are normalized together
};

struct GatedNormGradients {
  at::Tensor x, z, weight;
};

// The shapes and dtypes that a device's kernels accept beyond what Device::accepts says about one
// tensor.
struct Limits {
  int64_t width_multiple; // row widths, head dimensions and lengths of parameters must be multiples
                          // of it
  int64_t norm_width;     // widest row of rms_norm
  int64_t rotary_angles;  // most angles of a head
  int64_t decode_head_width;   // widest head of decode_attention
  int64_t decode_group;        // most query heads for each key head in decode_attention
  int64_t linear_rows_float32; // most rows of linear, by the dtype of its input
  int64_t linear_rows_16bit;
  int64_t groups;             // most groups of grouped_linear
  int64_t block_rows_float32; // most rows of block_linear, by the dtype of its input
  int64_t block_rows_16bit;
  bool linear_fuses;      // linear takes a norm and a residual, and linear_swiglu is there
  bool float16_gradients; // kernels have backward passes in float16
  bool loss_penalties;    // cross_entropy takes row scales, label smoothing and z-loss
  bool any_parameter;     // adamw takes parameters of every length, in float16 too
};

struct Device {
  // Whether the kernels can read and write elements of t: its dtype and its address.
  bool (*accepts)(const at::Tensor &t);
  Limits limits;

  // x [rows,D]. rstd float32 [rows] receives 1/rms unless undefined.
  void (*rms_norm)(const at::Tensor &x, const at::Tensor &weight, double eps, const at::Tensor &y,
                   const at::Tensor &rstd);
  // Returns the weight's gradient if wants_dweight is set, else an undefined tensor.
  at::Tensor (*rms_norm_grad)(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &weight,
                              const at::Tensor &rstd, bool wants_dweight, const at::Tensor &dx);
  // Rotates q and k of qkv [B,L,(H+2K)P] and splits it into q [B,H,L,P], k and v [B,K,S,P], which
  // may be strided except in P. Token l goes to row l of k and v, or to row columns[b,l] if columns
  // (int64 [B or 1, L]) is defined.
  void (*rope_qkv)(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
                   const at::Tensor &columns, const at::Tensor &q, const at::Tensor &k,
                   const at::Tensor &v);
  // dq, dk and dv [B,N,L,P] may be strided except in P.
  void (*rope_qkv_grad)(const at::Tensor &dq, const at::Tensor &dk, const at::Tensor &dv,
                        const at::Tensor &cos, const at::Tensor &sin, const at::Tensor &dqkv);
  void (*swiglu)(const at::Tensor &x, const at::Tensor &y);
  void (*swiglu_grad)(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &dx);
  // nll is 0 where the target is negative.
  void (*cross_entropy)(const CrossEntropyRows &rows);
  // x [...,D] times weight [N,D] transposed, plus bias and residual [...,N] if defined: [...,N]. If
  // norm [D] is defined, rms_norm of x is multiplied instead. For the few rows that Limits allows,
  // without gradients.
  at::Tensor (*linear)(const at::Tensor &x, const at::Tensor &norm, double eps,
                       const at::Tensor &weight, const at::Tensor &bias,
                       const at::Tensor &residual);
  // The same with a weight of 2F rows, gate first: silu(gate)·up [...,F].
  at::Tensor (*linear_swiglu)(const at::Tensor &x, const at::Tensor &norm, double eps,
                              const at::Tensor &weight, const at::Tensor &bias);
  // x [M,D] float32 times the rows of all parts, one after the other: out float32 [M,N],
  // contiguous. Activations are rounded to 8 bits in blocks of 32. Columns of parts of kind 0 are
  // not written. On a GPU x and out have the dtype of the activations, which are not rounded.
  void (*block_linear)(const at::Tensor &x, const std::vector<BlockPart> &parts,
                       const at::Tensor &out);
  // Row i of x [N,D] times the weight of its group index[i] (int64, ascending): weight
  // [count·R,D] gives [N,R]. across: x is [N,R], the weight is not transposed, and the result is
  // [N,D]. Null if there are no kernels.
  at::Tensor (*grouped_linear)(const at::Tensor &x, const at::Tensor &weight,
                               const at::Tensor &index, int64_t count, bool across);
  // The gradient of the weight [count·R,D] for x [N,D] and dy [N,R].
  at::Tensor (*grouped_grad_weight)(const at::Tensor &x, const at::Tensor &dy,
                                    const at::Tensor &index, int64_t count);
  // The values of rows [first, first + rows) of a part, exactly: out float32 [rows,D].
  // On a GPU out has any dtype that the kernels accept.
  void (*block_unpack)(const BlockPart &part, int64_t first, int64_t rows, const at::Tensor &out);
  // The CPU's: a part in a GPU's form, of part.bits. Returns false if a scale is not a finite
  // float16.
  bool (*block_pack)(const BlockPart &part, const BlockPart &packed);
  // cq_block_tail of tensors that ops::unfused_reason accepts. Returns an empty string, or why this
  // device cannot fuse it. next_out stays undefined if tail.next is.
  std::string (*block_tail)(const at::Tensor &x, const at::Tensor &mixed, const BlockTail &tail,
                            at::Tensor &y, at::Tensor &next_out);
  // Attention of many queries: q [B,H,L,P], k and v [B,K,S,P], strided except in P; mask bool
  // [B,H,L,S] or undefined. out [B,H,L,P]; lse float32 [B,H,L] receives the logarithm of each row's
  // sum of exponentials.
  void (*attention)(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                    const at::Tensor &mask, bool causal, double scale, const at::Tensor &out,
                    const at::Tensor &lse);
  // Returns the gradients of q, k and v.
  std::vector<at::Tensor> (*attention_grad)(const at::Tensor &q, const at::Tensor &k,
                                            const at::Tensor &v, const at::Tensor &mask,
                                            bool causal, double scale, const at::Tensor &out,
                                            const at::Tensor &lse, const at::Tensor &dy);
  // As cq_decode_attention; k and v have the same strides and are contiguous in P.
  at::Tensor (*decode_attention)(const at::Tensor &qkv, const at::Tensor &cos,
                                 const at::Tensor &sin, const at::Tensor &k, const at::Tensor &v,
                                 const at::Tensor &lengths, const at::Tensor &starts, double scale);
  // As cq_cache_write; cache and fresh are contiguous in P.
  void (*cache_write)(const at::Tensor &cache, const at::Tensor &fresh,
                      const at::Tensor &positions);
  // The same for a cache in Q8_0: uint8 [B,K,S,P/32*34], rows contiguous; fresh is [B,K,L,P].
  void (*cache_write_q8)(const at::Tensor &cache, const at::Tensor &fresh,
                         const at::Tensor &positions);
  // The values of such a cache: out float32 [B,K,S,P].
  void (*cache_unpack)(const at::Tensor &cache, const at::Tensor &out);
  // int64 [B]: the index of the largest of logits [B,V], the first among equals, or -1 if one is
  // NaN.
  at::Tensor (*argmax)(const at::Tensor &logits);
  // grad[ids[i]] += dy[i].
  void (*add_rows)(const at::Tensor &grad, const at::Tensor &ids, const at::Tensor &dy);
  // y *= factor, a float32 scalar on the device. Costs nothing if the factor is 1.
  void (*multiply)(const at::Tensor &y, const at::Tensor &factor);
  // master is empty if the weights are float32, and for stochastic rounding.
  void (*adamw)(const OptimizerStep &step);
  void (*lion)(const OptimizerStep &step);
  // The sum of squares of all elements.
  double (*sum_of_squares)(const std::vector<at::Tensor> &tensors);

  // The state-space operators take tensors of any layout. `saved` receives what the backward pass
  // keeps.
  void (*ssd_scan)(const ScanInput &in, const ScanOptions &options, at::Tensor &y,
                   at::Tensor &final_state, std::vector<at::Tensor> &saved);
  void (*ssd_scan_grad)(const ScanInput &in, const ScanOptions &options,
                        const std::vector<at::Tensor> &saved, const at::Tensor &dy,
                        const at::Tensor &dfinal, ScanGradients &gradients);
  // state [B,H,P,N] is updated in place.
  void (*ssd_step)(const at::Tensor &state, const ScanInput &in, const at::Tensor &z,
                   const ScanOptions &options, at::Tensor &y);
  // As ssd_step with a ring, or null: ops::replay then does it.
  void (*ssd_replay)(const at::Tensor &state, const ScanInput &in, const at::Tensor &z,
                     const ScanOptions &options, const Ring &ring, at::Tensor &y);
  // The T of a ring for a state [B,H,P,N] of a layer of this dtype, 0 for none. May be null.
  int64_t (*ssd_ring_length)(const at::Tensor &state, at::ScalarType type, int64_t groups);
  at::Tensor (*causal_conv1d)(const ConvInput &in);
  void (*causal_conv1d_grad)(const ConvInput &in, const at::Tensor &dy, ConvGradients &gradients);
  // state [B,W-1,D] is updated in place; in.x is [B,D].
  at::Tensor (*conv1d_step)(const at::Tensor &state, const ConvInput &in);
  at::Tensor (*gated_rms_norm)(const GatedNormInput &in);
  void (*gated_rms_norm_grad)(const GatedNormInput &in, const at::Tensor &dy,
                              GatedNormGradients &gradients);
};

// Makes `device`, which must live as long as the process, the table of all tensors on devices of
// this type.
void register_device(at::DeviceType type, const Device *device);

// The table of t's device if it accepts t, else nullptr. An undefined tensor has none.
const Device *device_for(const at::Tensor &t);

// The table of t's device. Throws if none is registered.
const Device &registered_device(const at::Tensor &t);

} // namespace conquer::ops
