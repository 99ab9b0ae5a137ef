// ssd_rows.cpp: the operators around the scan on a GPU: launches the kernels of
// ../triton/kernels/rows.py.
#include "../ops/ssd_replay.h"
#include "triton.h"

#include <c10/cuda/CUDAGuard.h>

namespace conquer::cuda {

namespace {

using namespace triton;
using namespace ops;

// Returns t in `type`, contiguous, starting at a multiple of 16 bytes.
at::Tensor plain(const at::Tensor &t, at::ScalarType type) {
  if (!t.defined())
    return t;
  at::Tensor r = t.detach().to(type).contiguous();
  return reinterpret_cast<uintptr_t>(r.const_data_ptr()) % 16 ? r.clone() : r;
}

void step(const at::Tensor &state, const ScanInput &in, const at::Tensor &z_, const ScanOptions &o,
          at::Tensor &y) {
  c10::cuda::CUDAGuard guard(state.device());
  auto type = in.x.scalar_type();
  at::Tensor x = plain(in.x, type), dt = plain(in.dt, type), b = plain(in.b, type),
             c = plain(in.c, type), z = plain(z_, type),
             a = plain(in.a, o.a_log ? type : at::kFloat);
  int64_t batch = x.size(0), heads = x.size(1), p = x.size(2), groups = b.size(1), n = b.size(2);
  // D and the bias keep their dtype if it is that of x, since converting them takes as long as the
  // step.
  auto of = [&](at::ScalarType t) {
    return (!in.d.defined() || in.d.scalar_type() == t) &&
           (!in.dt_bias.defined() || in.dt_bias.scalar_type() == t);
  };
  auto params = of(type) ? type : at::kFloat;
  at::Tensor d =
      in.d.defined() ? plain(in.d, params) : at::zeros({heads}, x.options().dtype(params));
  at::Tensor bias = in.dt_bias.defined() ? plain(in.dt_bias, params)
                                         : at::zeros({heads}, x.options().dtype(params));
  bool direct =
      state.is_contiguous() && (state.scalar_type() == type || state.scalar_type() == at::kFloat);
  at::Tensor h = direct ? state : state.to(at::kFloat).contiguous();
  y = at::empty_like(x);
  Arguments args;
  args << ptr(h) << ptr(x) << ptr(dt) << (o.a_log ? nullptr : ptr(a))
       << (o.a_log ? ptr(a) : nullptr) << ptr(b) << ptr(c) << ptr(d) << ptr(z) << ptr(bias)
       << ptr(y) << heads << heads / groups << p << n << static_cast<float>(o.dt_min)
       << static_cast<float>(o.dt_max);
  auto [few, many] = tuning::state_step_BP; // few: many small programs start sooner
  int64_t rows = batch * heads > 512 && p % many == 0 ? many : few;
  launch(keys::state_step(dtype_name(type), dtype_name(h), dtype_name(params), z.defined(),
                          o.dt_softplus, o.a_log, rows, p, n),
         grid(batch * heads, ceil_div(p, rows)), args);
  if (!direct)
    state.copy_(h);
}

// The fewest sequences for which reading the state without writing it is faster, although it takes
// two kernels.
constexpr int64_t replay_rows = 4;

bool replays(const at::Tensor &state, at::ScalarType type, int64_t groups) {
  return type == at::kBFloat16 && state.is_contiguous() &&
         (state.scalar_type() == at::kFloat || state.scalar_type() == type) &&
         state.size(2) % tuning::replay_state_BP == 0 &&
         state.size(1) / groups % tuning::replay_inputs_HEADS == 0 && available() &&
         has(keys::replay_state(dtype_name(state), true, state.size(3)));
}

int64_t ring_length(const at::Tensor &state, at::ScalarType type, int64_t groups) {
  c10::cuda::CUDAGuard guard(state.device());
  return state.size(0) >= replay_rows && replays(state, type, groups) ? tuning::replay_state_T : 0;
}

void replay(const at::Tensor &state, const ScanInput &in, const at::Tensor &z_,
            const ScanOptions &o, const Ring &ring, at::Tensor &y) {
  c10::cuda::CUDAGuard guard(state.device());
  auto type = in.x.scalar_type();
  int64_t batch = state.size(0), heads = state.size(1), p = state.size(2), n = state.size(3),
          per_group = heads / in.b.size(1);
  if (!o.a_log || !o.dt_softplus || ring.length() != tuning::replay_state_T ||
      !replays(state, type, in.b.size(1)))
    return ops::replay(state, in, z_, o, ring, y);
  at::Tensor x = plain(in.x, type), dt = plain(in.dt, type), a = plain(in.a, type),
             b = plain(in.b, type), c = plain(in.c, type), z = plain(z_, type);
  auto params = in.d.defined() && in.dt_bias.defined() && in.d.scalar_type() == type &&
                        in.dt_bias.scalar_type() == type
                    ? type
                    : at::kFloat;
  auto or_zeros = [&](const at::Tensor &t) {
    return t.defined() ? plain(t, params) : at::zeros({heads}, x.options().dtype(params));
  };
  at::Tensor d = or_zeros(in.d), bias = or_zeros(in.dt_bias);
  at::Tensor weight = at::empty_like(ring.dt), scale = at::empty_like(ring.dt),
             across = at::empty({batch, heads}, ring.dt.options());
  y = at::empty_like(x);
  Arguments inputs;
  inputs << ptr(x) << ptr(dt) << ptr(a) << ptr(b) << ptr(c) << ptr(d) << ptr(bias) << ptr(ring.x)
         << ptr(ring.b) << ptr(ring.dt) << ptr(ring.held) << ptr(weight) << ptr(scale)
         << ptr(across) << heads << per_group << p << n << static_cast<float>(o.dt_min)
         << static_cast<float>(o.dt_max);
  launch(keys::replay_inputs(dtype_name(params), n),
         grid(batch, heads / tuning::replay_inputs_HEADS), inputs);
  Arguments args;
  args << ptr(state) << ptr(c) << ptr(z) << ptr(ring.x) << ptr(ring.b) << ptr(ring.held)
       << ptr(weight) << ptr(scale) << ptr(across) << ptr(y) << heads << per_group << p << n;
  launch(keys::replay_state(dtype_name(state), z.defined(), n),
         grid(batch * heads, p / tuning::replay_state_BP), args);
}

struct ConvArguments {
  at::Tensor x, weight, bias, initial, seg;
  int64_t batch, length, dim, width;
  bool unaligned;
  Dtype type;
  ConvArguments(const at::Tensor &x_, const at::Tensor &weight_, const at::Tensor &bias_,
                const at::Tensor &initial_, const at::Tensor &seg_)
      : weight(plain(weight_, x_.scalar_type())), seg(seg_) {
    type = dtype_name(x_.scalar_type());
    x = x_.detach();
    batch = x.size(0), length = x.size(1), dim = x.size(2), width = weight.size(1);
    bool rows_aligned = x.stride(0) % 16 == 0 && x.stride(1) % 16 == 0;
    if (x.stride(2) != 1 || reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 ||
        (dim % 16 == 0 && !rows_aligned))
      x = x.clone(at::MemoryFormat::Contiguous);
    bias = bias_.defined() ? plain(bias_, x.scalar_type()) : at::zeros({dim}, x.options());
    initial = plain(initial_, x.scalar_type());
    unaligned = dim % 16 || x.stride(0) % 16 || x.stride(1) % 16;
  }
  int64_t tiles() const { return ceil_div(length, tuning::conv_T); }
  dim3 blocks() const { return grid(tiles(), ceil_div(dim, tuning::conv_BD), batch); }
};

at::Tensor conv(const ConvInput &in) {
  const auto &[x, weight, bias, initial, segment, silu] = in;
  c10::cuda::CUDAGuard guard(x.device());
  ConvArguments a(x, weight, bias, initial, segment);
  at::Tensor y = at::empty({a.batch, a.length, a.dim}, x.options());
  Arguments args;
  args << ptr(a.x) << ptr(a.weight) << ptr(a.bias) << ptr(a.initial) << ptr(a.seg) << ptr(y)
       << a.length << a.dim << batch_stride(a.x) << a.x.stride(1);
  launch(keys::conv(a.type, silu, a.width, a.initial.defined(), a.seg.defined(), a.unaligned),
         a.blocks(), args);
  return y;
}

void conv_grad(const ConvInput &in, const at::Tensor &dy_, ConvGradients &gradients) {
  const auto &[x, weight, bias, initial, segment, silu] = in;
  auto &[dx, dweight, dbias, dinitial] = gradients;
  c10::cuda::CUDAGuard guard(x.device());
  ConvArguments a(x, weight, bias, initial, segment);
  at::Tensor dy = plain(dy_, x.scalar_type()),
             dpre = at::empty({a.batch, a.length, a.dim}, x.options().dtype(at::kFloat));
  at::Tensor part = at::empty({a.batch, a.tiles(), a.width + 1, a.dim}, dpre.options());
  Arguments args;
  args << ptr(a.x) << ptr(a.weight) << ptr(a.bias) << ptr(a.initial) << ptr(a.seg) << ptr(dy)
       << ptr(dpre) << ptr(part) << a.length << a.dim << batch_stride(a.x) << a.x.stride(1);
  launch(
      keys::conv_grad_pre(a.type, silu, a.width, a.initial.defined(), a.seg.defined(), a.unaligned),
      a.blocks(), args);
  dx = at::empty({a.batch, a.length, a.dim}, x.options());
  Arguments more;
  more << ptr(dpre) << ptr(a.weight) << ptr(a.seg) << ptr(dx) << a.length << a.dim;
  launch(keys::conv_grad_x(a.type, a.width, a.seg.defined(), a.unaligned), a.blocks(), more);
  at::Tensor sums = part.sum(at::IntArrayRef{0, 1});
  dweight = sums.slice(0, 0, a.width).t().contiguous().to(weight.scalar_type());
  if (bias.defined())
    dbias = sums.select(0, a.width).to(bias.scalar_type()).clone();
  if (!initial.defined())
    return;
  // Weight k multiplies row j of the initial state at token j - k. There are only a few rows.
  int64_t history = a.width - 1;
  at::Tensor grad = at::zeros({a.batch, history, a.dim}, dpre.options());
  for (int64_t j = 0; j < history; j++)
    for (int64_t k = 0; k <= j; k++) {
      int64_t t = j - k;
      if (t >= a.length)
        continue;
      at::Tensor term = dpre.select(1, t) * a.weight.select(1, k);
      if (segment.defined())
        term = term * segment.select(1, t).eq(segment.select(1, 0)).unsqueeze(1);
      grad.select(1, j).add_(term);
    }
  dinitial = grad.to(initial.scalar_type());
}

at::Tensor conv_step(const at::Tensor &state, const ConvInput &in) {
  const at::Tensor &x = in.x;
  const bool silu = in.silu;
  c10::cuda::CUDAGuard guard(state.device());
  auto type = x.scalar_type();
  int64_t batch = x.size(0), dim = x.size(1);
  at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous(), w = plain(in.weight, type),
             y = at::empty({batch, dim}, x.options());
  at::Tensor bias = in.bias.defined() ? plain(in.bias, type) : at::zeros({dim}, x.options());
  bool direct = state.is_contiguous() && state.scalar_type() == type;
  at::Tensor held = direct ? state : state.to(type).contiguous();
  Arguments args;
  args << ptr(held) << ptr(rows) << ptr(w) << ptr(bias) << ptr(y) << dim << rows.stride(0);
  launch(keys::conv_step(dtype_name(type), silu, w.size(1)),
         grid(ceil_div(dim, tuning::conv_step_BD), batch), args);
  if (!direct)
    state.copy_(held);
  return y;
}

struct NormArguments {
  at::Tensor x, z, weight;
  int64_t dim, group, rows;
  NormArguments(const at::Tensor &x_, const at::Tensor &z_, const at::Tensor &w, int64_t group)
      : x(plain(x_, x_.scalar_type())), z(plain(z_, x_.scalar_type())),
        weight(plain(w, x_.scalar_type())), dim(x.size(-1)), group(group), rows(x.numel() / dim) {}
};

at::Tensor norm(const GatedNormInput &in) {
  const auto &[x, z, weight, eps, group] = in;
  c10::cuda::CUDAGuard guard(x.device());
  NormArguments a(x, z, weight, group);
  at::Tensor y = at::empty_like(a.x);
  Arguments args;
  args << ptr(a.x) << ptr(a.z) << ptr(a.weight) << ptr(y) << a.dim << a.group
       << static_cast<float>(eps);
  launch(keys::gated_norm(dtype_name(a.x), z.defined(), a.dim, a.group),
         grid(a.rows, a.dim / a.group), args);
  return y;
}

void norm_grad(const GatedNormInput &in, const at::Tensor &dy_, GatedNormGradients &gradients) {
  const auto &[x, z, weight, eps, group] = in;
  auto &[dx, dz, dweight] = gradients;
  c10::cuda::CUDAGuard guard(x.device());
  NormArguments a(x, z, weight, group);
  at::Tensor dy = plain(dy_, x.scalar_type());
  dx = at::empty_like(a.x);
  if (z.defined())
    dz = at::empty_like(a.x);
  int64_t programs = std::min<int64_t>(a.rows, 528);
  at::Tensor part = at::empty({programs, a.dim}, a.x.options().dtype(at::kFloat));
  Arguments args;
  args << ptr(a.x) << ptr(a.z) << ptr(a.weight) << ptr(dy) << ptr(dx) << ptr(dz) << ptr(part)
       << a.rows << a.dim << a.group << static_cast<float>(eps);
  launch(keys::gated_norm_grad(dtype_name(a.x), z.defined(), a.dim, a.group),
         grid(programs, a.dim / a.group), args);
  dweight = part.sum(0).to(weight.scalar_type());
}

} // namespace

void add_state_space(Device &d) {
  d.ssd_step = step;
  d.ssd_replay = replay;
  d.ssd_ring_length = ring_length;
  d.causal_conv1d = conv;
  d.causal_conv1d_grad = conv_grad;
  d.conv1d_step = conv_step;
  d.gated_rms_norm = norm;
  d.gated_rms_norm_grad = norm_grad;
}

} // namespace conquer::cuda
