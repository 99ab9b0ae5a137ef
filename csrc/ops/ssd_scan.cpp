// ssd_scan.cpp: cq_ssd_scan.
#include "operators.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

enum { X, DT, A, B, C, D, DT_BIAS, INITIAL, SEGMENT, INPUTS };

ScanInput input_of(const variable_list &t) {
  return {t[X], t[DT], t[A], t[B], t[C], t[D], t[DT_BIAS], t[INITIAL], t[SEGMENT]};
}

struct ScanFunction : torch::autograd::Function<ScanFunction> {
  static variable_list
  forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &dt, const at::Tensor &a,
          const at::Tensor &b, const at::Tensor &c, const std::optional<at::Tensor> &d,
          const std::optional<at::Tensor> &dt_bias, const std::optional<at::Tensor> &initial,
          const std::optional<at::Tensor> &segment, const ScanOptions &options) {
    variable_list inputs = {x,
                            dt,
                            a,
                            b,
                            c,
                            or_undefined(d),
                            or_undefined(dt_bias),
                            or_undefined(initial),
                            or_undefined(segment)};
    at::Tensor y, final_state;
    variable_list saved;
    registered_device(x).ssd_scan(input_of(inputs), options, y, final_state, saved);
    inputs.insert(inputs.end(), saved.begin(), saved.end());
    ctx->save_for_backward(inputs);
    ctx->saved_data["chunk_size"] = options.chunk_size;
    ctx->saved_data["window"] = options.window;
    ctx->saved_data["softplus"] = options.dt_softplus;
    ctx->saved_data["dt_min"] = options.dt_min;
    ctx->saved_data["dt_max"] = options.dt_max;
    ctx->set_materialize_grads(false);
    return {y, final_state};
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    ScanInput in = input_of(saved);
    variable_list kept(saved.begin() + INPUTS, saved.end());
    ScanOptions options{ctx->saved_data["chunk_size"].toInt(), ctx->saved_data["window"].toInt(),
                        ctx->saved_data["softplus"].toBool(), ctx->saved_data["dt_min"].toDouble(),
                        ctx->saved_data["dt_max"].toDouble()};
    ScanGradients g;
    at::Tensor dy = grads[0].defined() ? grads[0] : at::zeros_like(in.x);
    registered_device(in.x).ssd_scan_grad(in, options, kept, dy, grads[1], g);
    return {g.x, g.dt, g.a, g.b, g.c, g.d, g.dt_bias, g.initial, at::Tensor(), at::Tensor()};
  }
};

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

} // namespace

at::Tensor segments_of(const at::Tensor &seq_idx) {
  if (!seq_idx.defined())
    return seq_idx;
  at::Tensor changes = at::zeros_like(seq_idx, at::kInt);
  if (seq_idx.size(1) > 1)
    changes.slice(1, 1).copy_(seq_idx.slice(1, 1).ne(seq_idx.slice(1, 0, -1)));
  return changes.cumsum(1, at::kInt);
}

void check_scan(const at::Tensor &x, const ScanInput &in, const ScanOptions &options) {
  for (auto [name, t] : {std::pair<const char *, const at::Tensor &>{"x", x},
                         {"dt", in.dt},
                         {"B", in.b},
                         {"C", in.c}})
    check_dtype(name, t);
  auto lead = x.sizes().slice(0, x.dim() - 2);
  int64_t heads = x.size(-2), p = x.size(-1), groups = in.b.size(-2), n = in.b.size(-1);
  TORCH_CHECK(x.numel() > 0, "x has shape ", x.sizes(), ": every dimension must be at least 1");
  TORCH_CHECK(p >= 16 && p <= 128, "the head dimension is ", p, ", expected 16 to 128");
  TORCH_CHECK(n >= 16 && n <= 256, "the state is ", n, " wide, expected 16 to 256");
  TORCH_CHECK(groups > 0 && heads % groups == 0, groups, " groups do not divide ", heads, " heads");
  std::vector<int64_t> per_head(lead.begin(), lead.end()), per_group(per_head);
  per_head.push_back(heads);
  per_group.insert(per_group.end(), {groups, n});
  check_shape("dt", in.dt, per_head, x);
  check_shape("A", in.a, {heads}, x);
  check_shape("B", in.b, per_group, x);
  check_shape("C", in.c, per_group, x);
  check_shape("D", in.d, {heads}, x);
  check_shape("dt_bias", in.dt_bias, {heads}, x);
  TORCH_CHECK(options.dt_min <= options.dt_max, "dt's lower limit ", options.dt_min,
              " is above its upper limit ", options.dt_max);
}

} // namespace conquer::ops

using namespace conquer;

int cq_ssd_scan(const cq_scan *arguments, cq_tensor *y_out, cq_tensor *final_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::ssd_scan");
    const cq_scan &t = *arguments;
    ops::ScanInput in{tensor_of(t.x),
                      tensor_of(t.dt),
                      tensor_of(t.a),
                      tensor_of(t.b),
                      tensor_of(t.c),
                      tensor_of(t.d),
                      tensor_of(t.dt_bias),
                      tensor_of(t.initial_state),
                      {}};
    at::Tensor z = tensor_of(t.z), seq_idx = tensor_of(t.seq_idx);
    ops::ScanOptions options{t.chunk_size, t.window < 0 ? -1 : t.window, t.dt_softplus != 0,
                             t.dt_min, t.dt_max};
    TORCH_CHECK(in.x.dim() == 4, "x has shape ", in.x.sizes(),
                ", expected [batch, length, heads, head dimension]");
    TORCH_CHECK(in.b.dim() == 4, "B has shape ", in.b.sizes(),
                ", expected [batch, length, groups, state]");
    ops::check_scan(in.x, in, options);
    TORCH_CHECK(ops::power_of_two(t.chunk_size) && t.chunk_size >= 16 && t.chunk_size <= 256,
                "the chunk size is ", t.chunk_size, ", expected a power of two from 16 to 256");
    ops::check_shape("z", z, in.x.sizes(), in.x);
    ops::check_shape("the initial state", in.initial,
                     {in.x.size(0), in.x.size(2), in.x.size(3), in.b.size(3)}, in.x);
    ops::check_shape("seq_idx", seq_idx, {in.x.size(0), in.x.size(1)}, in.x);
    const int64_t chunks = (in.x.size(1) + t.chunk_size - 1) / t.chunk_size;
    if (options.window >= chunks)
      options.window = -1; // the window reaches back to the initial state
    // With a gate z, the gradients of y and z multiply each other; rounding either to 16 bits first
    // costs more than the tolerance. So a gated scan computes in float32. Bamba and Mamba-2 gate in
    // their norm instead.
    const auto dtype = in.x.scalar_type();
    if (z.defined() && dtype != at::kFloat)
      for (at::Tensor *gated : {&in.x, &in.b, &in.c, &z})
        *gated = gated->to(at::kFloat);
    auto out = ops::ScanFunction::apply(in.x, in.dt, in.a, in.b, in.c, ops::as_optional(in.d),
                                        ops::as_optional(in.dt_bias), ops::as_optional(in.initial),
                                        ops::as_optional(ops::segments_of(seq_idx)), options);
    at::Tensor y = z.defined() ? (out[0] * at::silu(z)).to(dtype) : out[0];
    if (final_out && give(final_out, out[1]))
      return 1;
    return give(y_out, y);
  });
}
