// ssd_scan.cpp: the C entry points of the state-space operations and their place in autograd. Each checks its
// arguments, then calls the face of the tensors' device: the C++ kernels beside this file or the Triton kernels of
// ../cuda. Models and gradients do not know which.
#include "../recompute.h"
#include "ssd.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

using namespace conquer;
using namespace conquer::ssd;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

static std::atomic<const Device *> cuda_device{nullptr};

void conquer::ssd::register_cuda(const Device *d) { cuda_device = d; }

const Device &conquer::ssd::face_of(const at::Tensor &t) {
  if (t.is_cpu())
    return cpu_device();
  const Device *d = t.is_cuda() ? cuda_device.load() : nullptr;
  TORCH_CHECK(d, "no state-space kernels for tensors on ", t.device());
  return *d;
}

namespace {

std::string shape_of(const at::Tensor &t) { return c10::str(t.sizes()); }

void check_shape(const char *name, const at::Tensor &t, at::IntArrayRef want, const at::Tensor &beside) {
  if (!t.defined())
    return;
  TORCH_CHECK(t.sizes() == want, name, " has shape ", shape_of(t), ", expected ", c10::str(want));
  TORCH_CHECK(t.device() == beside.device(), name, " is on ", t.device(), ", x on ", beside.device());
}

void check_dtype(const char *name, const at::Tensor &t) {
  auto type = t.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, name, " is ", type,
              ", expected float32, bfloat16 or float16");
}

// For each token the number of changes of sequence before it, so that a number used twice still means two sequences.
at::Tensor segments_of(const at::Tensor &seq_idx) {
  if (!seq_idx.defined())
    return seq_idx;
  at::Tensor changes = at::zeros_like(seq_idx, at::kInt);
  if (seq_idx.size(1) > 1)
    changes.slice(1, 1).copy_(seq_idx.slice(1, 1).ne(seq_idx.slice(1, 0, -1)));
  return changes.cumsum(1, at::kInt);
}

enum { X, DT, A, B, C, D, DT_BIAS, INITIAL, SEGMENT, INPUTS };

ScanInput input_of(const variable_list &t) {
  return {t[X], t[DT], t[A], t[B], t[C], t[D], t[DT_BIAS], t[INITIAL], t[SEGMENT]};
}

// Autograd takes an absent tensor as an empty optional.
using Maybe = std::optional<at::Tensor>;
Maybe maybe(const at::Tensor &t) { return t.defined() ? Maybe(t) : std::nullopt; }
at::Tensor or_none(const Maybe &t) { return t ? *t : at::Tensor(); }

struct ScanFunction : torch::autograd::Function<ScanFunction> {
  static variable_list forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &dt, const at::Tensor &a,
                               const at::Tensor &b, const at::Tensor &c, const Maybe &d, const Maybe &dt_bias,
                               const Maybe &initial, const Maybe &segment, const ScanOptions &options) {
    variable_list inputs = {x, dt, a, b, c, or_none(d), or_none(dt_bias), or_none(initial), or_none(segment)};
    at::Tensor y, final_state;
    variable_list saved;
    face_of(x).forward(input_of(inputs), options, y, final_state, saved);
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
    face_of(in.x).backward(in, options, kept, dy, grads[1], g);
    return {g.x, g.dt, g.a, g.b, g.c, g.d, g.dt_bias, g.initial, at::Tensor(), at::Tensor()};
  }
};

struct ConvFunction : torch::autograd::Function<ConvFunction> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight, const Maybe &bias,
                            const Maybe &initial, const Maybe &segment, bool silu) {
    variable_list t = {x, weight, or_none(bias), or_none(initial), or_none(segment)};
    ctx->save_for_backward(t);
    ctx->saved_data["silu"] = silu;
    return face_of(x).conv(x, weight, t[2], t[3], t[4], silu);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto t = ctx->get_saved_variables();
    at::Tensor dx, dweight, dbias, dinitial;
    face_of(t[0]).conv_grad(t[0], t[1], t[2], t[3], t[4], ctx->saved_data["silu"].toBool(), grads[0], dx, dweight,
                            dbias, dinitial);
    return {dx, dweight, dbias, dinitial, at::Tensor(), at::Tensor()};
  }
};

struct NormFunction : torch::autograd::Function<NormFunction> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const Maybe &z, const at::Tensor &weight,
                            double eps, int64_t group) {
    ctx->save_for_backward({x, or_none(z), weight});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["group"] = group;
    return face_of(x).norm(x, or_none(z), weight, eps, group);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto t = ctx->get_saved_variables();
    at::Tensor dx, dz, dweight;
    face_of(t[0]).norm_grad(t[0], t[1], t[2], ctx->saved_data["eps"].toDouble(), ctx->saved_data["group"].toInt(),
                            grads[0], dx, dz, dweight);
    return {dx, dz, dweight, at::Tensor(), at::Tensor()};
  }
};

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// What the scan and the single step share: heads, head dimension, groups and state agree and are in range.
void check_widths(const at::Tensor &x, const at::Tensor &dt, const at::Tensor &a, const at::Tensor &b,
                  const at::Tensor &c, const at::Tensor &d, const at::Tensor &dt_bias) {
  for (auto [name, t] : {std::pair<const char *, const at::Tensor &>{"x", x}, {"dt", dt}, {"B", b}, {"C", c}})
    check_dtype(name, t);
  auto lead = x.sizes().slice(0, x.dim() - 2);
  int64_t heads = x.size(-2), p = x.size(-1), groups = b.size(-2), n = b.size(-1);
  TORCH_CHECK(x.numel() > 0, "x has shape ", shape_of(x), ": every dimension must be at least 1");
  TORCH_CHECK(p >= 16 && p <= 128, "the head dimension is ", p, ", expected 16 to 128");
  TORCH_CHECK(n >= 16 && n <= 256, "the state is ", n, " wide, expected 16 to 256");
  TORCH_CHECK(groups > 0 && heads % groups == 0, groups, " groups do not divide ", heads, " heads");
  std::vector<int64_t> per_head(lead.begin(), lead.end()), per_group(per_head);
  per_head.push_back(heads);
  per_group.insert(per_group.end(), {groups, n});
  check_shape("dt", dt, per_head, x);
  check_shape("A", a, {heads}, x);
  check_shape("B", b, per_group, x);
  check_shape("C", c, per_group, x);
  check_shape("D", d, {heads}, x);
  check_shape("dt_bias", dt_bias, {heads}, x);
}

void check_options(double dt_min, double dt_max) {
  TORCH_CHECK(dt_min <= dt_max, "dt's lower limit ", dt_min, " is above its upper limit ", dt_max);
}

} // namespace

int cq_ssd_scan(cq_tensor x_, cq_tensor dt_, cq_tensor a_, cq_tensor b_, cq_tensor c_, cq_tensor d_, cq_tensor z_,
                cq_tensor dt_bias_, cq_tensor initial_, cq_tensor seq_idx_, int64_t chunk_size, int64_t window,
                int dt_softplus, double dt_min, double dt_max, cq_tensor *y_out, cq_tensor *final_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::ssd_scan");
    at::Tensor x = tensor_of(x_), dt = tensor_of(dt_), a = tensor_of(a_), b = tensor_of(b_), c = tensor_of(c_),
               d = tensor_of(d_), z = tensor_of(z_), dt_bias = tensor_of(dt_bias_), initial = tensor_of(initial_),
               seq_idx = tensor_of(seq_idx_);
    TORCH_CHECK(x.dim() == 4, "x has shape ", shape_of(x), ", expected [batch, length, heads, head dimension]");
    TORCH_CHECK(b.dim() == 4, "B has shape ", shape_of(b), ", expected [batch, length, groups, state]");
    check_widths(x, dt, a, b, c, d, dt_bias);
    TORCH_CHECK(power_of_two(chunk_size) && chunk_size >= 16 && chunk_size <= 256, "the chunk size is ", chunk_size,
                ", expected a power of two from 16 to 256");
    check_options(dt_min, dt_max);
    check_shape("z", z, x.sizes(), x);
    check_shape("the initial state", initial, {x.size(0), x.size(2), x.size(3), b.size(3)}, x);
    check_shape("seq_idx", seq_idx, {x.size(0), x.size(1)}, x);
    int64_t chunks = (x.size(1) + chunk_size - 1) / chunk_size;
    if (window >= chunks)
      window = -1; // nothing, the initial state included, is further back than that
    // A gate's gradient multiplies y, and y's is the gate's times what comes back: rounding either to 16 bits before
    // the other meets it costs more than the result may err, so a gated scan is computed in float32 throughout. Bamba
    // and Mamba-2 gate in their norm instead.
    const auto dtype = x.scalar_type();
    if (z.defined() && dtype != at::kFloat) {
      x = x.to(at::kFloat);
      b = b.to(at::kFloat);
      c = c.to(at::kFloat);
      z = z.to(at::kFloat);
    }
    auto out =
        ScanFunction::apply(x, dt, a, b, c, maybe(d), maybe(dt_bias), maybe(initial), maybe(segments_of(seq_idx)),
                            ScanOptions{chunk_size, window < 0 ? -1 : window, dt_softplus != 0, dt_min, dt_max});
    at::Tensor y = z.defined() ? (out[0] * at::silu(z)).to(dtype) : out[0];
    if (final_out && give(final_out, out[1]))
      return 1;
    return give(y_out, y);
  });
}

int cq_ssd_step(cq_tensor state_, cq_tensor x_, cq_tensor dt_, cq_tensor a_, int a_log, cq_tensor b_, cq_tensor c_,
                cq_tensor d_, cq_tensor z_, cq_tensor dt_bias_, int dt_softplus, double dt_min, double dt_max,
                cq_tensor *y_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::ssd_step");
    at::NoGradGuard no_grad;
    at::Tensor state = tensor_of(state_), x = tensor_of(x_), z = tensor_of(z_), y;
    ScanInput in{x, tensor_of(dt_), tensor_of(a_), tensor_of(b_), tensor_of(c_), tensor_of(d_), tensor_of(dt_bias_), {},
                 {}};
    TORCH_CHECK(x.dim() == 3, "x has shape ", shape_of(x), ", expected [batch, heads, head dimension]");
    TORCH_CHECK(in.b.dim() == 3, "B has shape ", shape_of(in.b), ", expected [batch, groups, state]");
    check_widths(x, in.dt, in.a, in.b, in.c, in.d, in.dt_bias);
    check_options(dt_min, dt_max);
    check_shape("z", z, x.sizes(), x);
    check_shape("the state", state, {x.size(0), x.size(1), x.size(2), in.b.size(2)}, x);
    check_dtype("the state", state);
    face_of(x).step(state, in, z, ScanOptions{0, -1, dt_softplus != 0, dt_min, dt_max, a_log != 0}, y);
    return give(y_out, y);
  });
}

static void check_conv(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias, int64_t dim) {
  check_dtype("x", x);
  check_dtype("the weight", weight);
  TORCH_CHECK(weight.dim() == 2 && weight.size(0) == dim, "the weight has shape ", shape_of(weight), ", expected [",
              dim, ", width]");
  TORCH_CHECK(weight.size(1) >= 2 && weight.size(1) <= 4, "the convolution is ", weight.size(1),
              " wide, expected 2 to 4");
  check_shape("the bias", bias, {dim}, x);
}

int cq_causal_conv1d(cq_tensor x_, cq_tensor weight_, cq_tensor bias_, cq_tensor initial_, cq_tensor seq_idx_, int silu,
                     cq_tensor *y_out, cq_tensor *state_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::causal_conv1d");
    at::Tensor x = tensor_of(x_), weight = tensor_of(weight_), bias = tensor_of(bias_), initial = tensor_of(initial_),
               seq_idx = tensor_of(seq_idx_);
    TORCH_CHECK(x.dim() == 3 && x.numel() > 0, "x has shape ", shape_of(x), ", expected [batch, length, channels]");
    check_conv(x, weight, bias, x.size(2));
    int64_t history = weight.size(1) - 1, length = x.size(1);
    check_shape("the initial state", initial, {x.size(0), history, x.size(2)}, x);
    check_shape("seq_idx", seq_idx, {x.size(0), length}, x);
    if (state_out) {
      at::Tensor tail = x.slice(1, std::max<int64_t>(0, length - history));
      if (length < history) {
        at::Tensor before = initial.defined() ? initial.slice(1, length).to(x.scalar_type())
                                              : at::zeros({x.size(0), history - length, x.size(2)}, x.options());
        tail = at::cat({before, tail}, 1);
      }
      if (give(state_out, tail.detach().clone()))
        return 1;
    }
    const Maybe segments = maybe(segments_of(seq_idx));
    return give(y_out, recomputable([=] {
                  return ConvFunction::apply(x, weight, maybe(bias), maybe(initial), segments, silu != 0);
                }));
  });
}

int cq_conv1d_step(cq_tensor state_, cq_tensor x_, cq_tensor weight_, cq_tensor bias_, int silu, cq_tensor *y_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::conv1d_step");
    at::NoGradGuard no_grad;
    at::Tensor state = tensor_of(state_), x = tensor_of(x_), weight = tensor_of(weight_), bias = tensor_of(bias_);
    TORCH_CHECK(x.dim() == 2 && x.numel() > 0, "x has shape ", shape_of(x), ", expected [batch, channels]");
    check_conv(x, weight, bias, x.size(1));
    check_shape("the state", state, {x.size(0), weight.size(1) - 1, x.size(1)}, x);
    return give(y_out, face_of(x).conv_step(state, x, weight, bias, silu != 0));
  });
}

int cq_gated_rms_norm(cq_tensor x_, cq_tensor z_, cq_tensor weight_, double eps, int64_t group_size, cq_tensor *y_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::gated_rms_norm");
    at::Tensor x = tensor_of(x_), z = tensor_of(z_), weight = tensor_of(weight_);
    TORCH_CHECK(x.dim() >= 1 && x.numel() > 0, "x has shape ", shape_of(x), ": there is nothing to normalize");
    check_dtype("x", x);
    int64_t dim = x.size(-1), group = group_size > 0 ? group_size : dim;
    TORCH_CHECK(dim % group == 0, "groups of ", group, " do not divide ", dim, " channels");
    check_shape("z", z, x.sizes(), x);
    check_shape("the weight", weight, {dim}, x);
    return give(y_out, recomputable([=] { return NormFunction::apply(x, maybe(z), weight, eps, group); }));
  });
}
