// face.h: the innermost part of each operation, as another device than the CPU provides it. The files of cpu/ check the
// arguments and record gradients for every device; where a tensor has a face they call it, and libtorch where it has
// none.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace conquer {

// Tensors are contiguous unless it says otherwise; results are allocated by the caller where they come as arguments.
// cq_tail's tensors; those that are not there are undefined.
struct Tail {
  at::Tensor norm, output, output_bias, mlp_norm, gate_up, gate_up_bias, down, down_bias, next_norm, next, next_bias;
  double eps, mlp_eps, next_eps;
};

// A key for what is drawn in an optimizer's step, in the tensor i.
inline uint32_t key_of(int64_t seed, int64_t step, int i) {
  uint64_t x = uint64_t(seed) * 0x9e3779b97f4a7c15u + uint64_t(step) * 0xbf58476d1ce4e5b9u + uint64_t(i);
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return uint32_t(x ^ x >> 31);
}

struct Face {
  // Whether the kernels serve elements of t: its dtype, rows of a width that they take, an address that they can start
  // at.
  bool (*takes)(const at::Tensor &t);
  // x [rows,D]; rstd float32 [rows], or undefined.
  void (*rms_norm)(const at::Tensor &x, const at::Tensor &weight, double eps, const at::Tensor &y,
                   const at::Tensor &rstd);
  // Returns the weight's gradient where it is wanted.
  at::Tensor (*rms_norm_grad)(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &weight,
                              const at::Tensor &rstd, bool wants_dweight, const at::Tensor &dx);
  // qkv [B,L,(H+2K)P] turned into q [B,H,L,P] (strided but for P), k and v [B,K,S,P] (strided but for P), whose row is
  // l, or columns[b,l] where columns (int64 [B or 1, L]) is there.
  void (*rope_qkv)(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin, const at::Tensor &columns,
                   const at::Tensor &q, const at::Tensor &k, const at::Tensor &v);
  // dq, dk and dv strided but for P.
  void (*rope_qkv_grad)(const at::Tensor &dq, const at::Tensor &dk, const at::Tensor &dv, const at::Tensor &cos,
                        const at::Tensor &sin, const at::Tensor &dqkv);
  void (*swiglu)(const at::Tensor &x, const at::Tensor &y);
  void (*swiglu_grad)(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &dx);
  // logits [N,V] become their gradient times scale where grad is set; nll float32 [N], 0 where the target is negative.
  void (*cross_entropy)(const at::Tensor &logits, const at::Tensor &targets, double scale, bool grad,
                        const at::Tensor &nll);
  // x [M,D] of few rows (few_rows at the most) times weight [N,D] transposed, plus bias and residual [M,N] where they
  // are there: [M,N].
  int64_t few_rows;
  // Where norm (a weight [D]) is there, x is rms_norm of what is given.
  at::Tensor (*linear)(const at::Tensor &x, const at::Tensor &norm, double eps, const at::Tensor &weight,
                       const at::Tensor &bias, const at::Tensor &residual);
  // The same with a weight of 2F rows, gate first: silu(gate)·up [M,F].
  at::Tensor (*linear_swiglu)(const at::Tensor &x, const at::Tensor &norm, double eps, const at::Tensor &weight,
                              const at::Tensor &bias);
  // cq_block_tail of what tail_apart has nothing against: empty where it is done, otherwise why this device has no
  // kernel for it. next stays undefined where there is none.
  std::string (*block_tail)(const at::Tensor &x, const at::Tensor &mixed, const Tail &tail, at::Tensor &y,
                            at::Tensor &next);
  // As cq_decode_attention; k and v strided but for P, and alike.
  at::Tensor (*decode_attention)(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
                                 const at::Tensor &k, const at::Tensor &v, const at::Tensor &lengths,
                                 const at::Tensor &starts, double scale);
  // int64 [B]: where the largest of logits [B,V] is, the first of equals, or -1 where one is no number.
  at::Tensor (*likeliest)(const at::Tensor &logits);
  // grad[ids[i]] += dy[i].
  void (*add_rows)(const at::Tensor &grad, const at::Tensor &ids, const at::Tensor &dy);
  // y *= factor (a float32 scalar there), at no price where it is one.
  void (*multiply)(const at::Tensor &y, const at::Tensor &factor);
  // A step over all tensors at once, as cq_adamw; every length a multiple of 16. originals is empty where the weights
  // are float32, and where stochastic is set.
  void (*adamw)(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
                const std::vector<at::Tensor> &grads, const std::vector<at::Tensor> &means,
                const std::vector<at::Tensor> &squares, const double *decays, double rate, double beta1, double beta2,
                double eps, double scale, int64_t step, bool stochastic, int64_t seed);
};

// Why the kernel block_tail cannot take these tensors, whatever the device: empty where it can (cpu/linear.cpp).
std::string tail_apart(const at::Tensor &x, const at::Tensor &mixed, const Tail &tail);

// The face of a tensor's device if it takes the tensor; nullptr for the CPU, and where libtorch has to do.
const Face *face_of(const at::Tensor &t);
void register_face(const Face *face); // libconquer_cuda.so, when it is opened

} // namespace conquer
