// block_tail.cpp: cq_block_tail. Devices that have kernels for it fuse the tail of a block over a
// few tokens; else it is the operators of linear.cpp, one after the other.
#include "blocks.h"

namespace conquer::ops {

namespace {

// Why the fused kernel of any device cannot take these tensors; empty if it can.
std::string unfused_reason(const at::Tensor &x, const at::Tensor &mixed, const BlockTail &t) {
  const int64_t from = mixed.size(-1), width = x.size(-1), inner = t.down.size(-1),
                ahead = t.next.defined() ? t.next.size(0) : 0;
  if (x.numel() == 0 || x.numel() / width != mixed.numel() / std::max<int64_t>(1, from))
    return "it takes as many rows of the block's input as of the mixer's result";
  if (x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kHalf)
    return c10::str("it takes bfloat16 and float16, not ",
                    x.scalar_type() == at::kFloat ? "float32" : x.dtype().name());
  for (const at::Tensor *w : {&t.output, &t.gate_up, &t.down, &t.next})
    if (blocks_of(*w))
      return "it takes no quantized weights";
  if (records_grad(x, mixed, t.norm, t.output, t.mlp_norm, t.gate_up, t.down, t.next_norm, t.next,
                   t.next_bias))
    return "gradients are recorded";
  if (t.output_bias.defined() || t.gate_up_bias.defined() || t.down_bias.defined())
    return "it takes no biases except the input projection's";
  auto fits = [&](const at::Tensor &w, int64_t rows, int64_t columns) {
    return w.dim() == 2 && w.size(0) == rows && w.size(1) == columns && rows % 16 == 0 &&
           columns % 16 == 0;
  };
  auto weighs = [&](const at::Tensor &w, int64_t rows) { return w.numel() == rows; };
  if (!fits(t.output, width, from) || !fits(t.gate_up, 2 * inner, width) ||
      !fits(t.down, width, inner) || !weighs(t.mlp_norm, width) ||
      (t.norm.defined() && !weighs(t.norm, from)) ||
      (ahead > 0 && (!fits(t.next, ahead, width) || !weighs(t.next_norm, width) ||
                     (t.next_bias.defined() && !weighs(t.next_bias, ahead)))))
    return c10::str("it takes widths that are multiples of 16, not ", width, " with ", from, ", ",
                    inner, " and ", ahead);
  for (const at::Tensor *w : {&x, &mixed, &t.norm, &t.output, &t.mlp_norm, &t.gate_up, &t.down,
                              &t.next_norm, &t.next, &t.next_bias})
    if (w->defined() &&
        (w->scalar_type() != x.scalar_type() || w->device() != x.device() || !w->is_contiguous()))
      return "it takes contiguous tensors of one dtype on one device";
  return "";
}

// Returns why the tail was not fused; empty if it was.
std::string block_tail(const at::Tensor &x, const at::Tensor &mixed, const BlockTail &t,
                       at::Tensor &y, at::Tensor &next) {
  std::string reason = unfused_reason(x, mixed, t);
  if (reason.empty()) {
    const Device *device = device_for(x);
    reason = device && device->block_tail ? device->block_tail(x, mixed, t, y, next)
                                          : "the tensors' device has no kernel for it";
  }
  if (reason.empty())
    return reason;
  at::Tensor z = t.norm.defined()
                     ? norm_linear_add(mixed, t.norm, t.eps, t.output, t.output_bias, x)
                     : linear_add(mixed, t.output, t.output_bias, x);
  y = linear_add(norm_linear_swiglu(z, t.mlp_norm, t.mlp_eps, t.gate_up, t.gate_up_bias), t.down,
                 t.down_bias, z);
  if (t.next.defined())
    next = norm_linear(y, t.next_norm, t.next_eps, t.next, t.next_bias);
  return reason;
}

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_block_tail(cq_tensor x, cq_tensor mixed, const cq_tail *t, cq_tensor *out,
                  cq_tensor *out_next, const char **unfused_reason) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::block_tail");
    const ops::BlockTail tail{tensor_of(t->norm),
                              tensor_of(t->output),
                              tensor_of(t->output_bias),
                              tensor_of(t->mlp_norm),
                              tensor_of(t->gate_up),
                              tensor_of(t->gate_up_bias),
                              tensor_of(t->down),
                              tensor_of(t->down_bias),
                              tensor_of(t->next_norm),
                              tensor_of(t->next),
                              tensor_of(t->next_bias),
                              t->eps,
                              t->mlp_eps,
                              t->next_eps};
    at::Tensor y, next;
    thread_local std::string reason;
    reason = ops::block_tail(tensor_of(x), tensor_of(mixed), tail, y, next);
    *unfused_reason = reason.empty() ? nullptr : reason.c_str();
    *out_next = nullptr;
    if (next.defined() && give(out_next, next))
      return 1;
    return give(out, y);
  });
}
