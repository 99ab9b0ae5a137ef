// ssd_replay.cpp: cq_ssd_fold, cq_ssd_ring_length, and the state update with a ring of inputs where
// a device has no kernel for it.
#include "ssd_replay.h"

using namespace conquer;

namespace conquer::ops {

namespace {

struct Weights {
  at::Tensor each, across; // w_j [B,H,T] of the entries, 0 for those not held, and e^{A·Σ dt} [B,H]
};

// Returns the weights of the first `count` [B] entries of the ring.
Weights weights(const Ring &ring, const at::Tensor &count, const at::Tensor &a) {
  at::Tensor entry = at::arange(ring.length(), count.options()).view({1, 1, -1});
  at::Tensor dt = at::where(entry.lt(count.view({-1, 1, 1})), ring.dt, 0.0);
  at::Tensor total = dt.sum(2, true);
  return {dt * (a.view({1, -1, 1}) * (total - dt.cumsum(2))).exp(),
          (a.view({1, -1}) * total.squeeze(2)).exp()};
}

// Adds the weighted inputs to the scaled state.
void fold(const at::Tensor &state, const Ring &ring, const Weights &w) {
  at::Tensor b = ring.b.to(at::kFloat).repeat_interleave(state.size(1) / ring.b.size(1), 1),
             x = ring.x.to(at::kFloat) * w.each.unsqueeze(3);
  x = at::where(w.each.unsqueeze(3).ne(0), x, 0.0); // an entry that was never written may be NaN
  b = at::where(w.each.unsqueeze(3).ne(0), b, 0.0);
  state.copy_(state.to(at::kFloat) * w.across.view({-1, state.size(1), 1, 1}) +
              at::matmul(x.transpose(2, 3), b));
}

} // namespace

void check_ring(const Ring &r, const at::Tensor &state, const at::Tensor &x, int64_t groups) {
  int64_t batch = state.size(0), heads = state.size(1), p = state.size(2), n = state.size(3);
  TORCH_CHECK(r.dt.defined() && r.dt.dim() == 3, "the ring's time steps are not [batch, heads, T]");
  int64_t length = r.length();
  TORCH_CHECK(length >= 2 && (length & (length - 1)) == 0, "a ring has ", length,
              " entries, expected a power of two");
  check_shape("the ring's time steps", r.dt, {batch, heads, length}, state);
  check_shape("the ring's x", r.x, {batch, heads, length, p}, state);
  check_shape("the ring's B", r.b, {batch, groups, length, n}, state);
  check_shape("the ring's counts", r.held, {batch}, state);
  TORCH_CHECK(r.held.scalar_type() == at::kInt && r.dt.scalar_type() == at::kFloat &&
                  r.x.scalar_type() == x.scalar_type() && r.b.scalar_type() == x.scalar_type(),
              "a ring has int32 counts, float32 time steps, and x and B in ", x.scalar_type());
}

void replay(const at::Tensor &state, const ScanInput &in, const at::Tensor &z, const ScanOptions &o,
            const Ring &ring, at::Tensor &y) {
  int64_t heads = state.size(1), length = ring.length();
  at::Tensor a = o.a_log ? -in.a.to(at::kFloat).exp() : in.a.to(at::kFloat),
             x = in.x.to(at::kFloat), dt = in.dt.to(at::kFloat);
  if (in.dt_bias.defined())
    dt = dt + in.dt_bias.to(at::kFloat);
  if (o.dt_softplus)
    dt = at::softplus(dt);
  at::Tensor newest = at::remainder(ring.held, length), at = newest.to(at::kLong);
  at::Tensor sequence = at::arange(state.size(0), at.options());
  auto append = [&](at::Tensor entries, const at::Tensor &values) {
    entries.index_put_({sequence, at::indexing::Slice(), at}, values);
  };
  append(ring.x, in.x);
  append(ring.b, in.b);
  append(ring.dt, at::clamp(dt, o.dt_min, o.dt_max));
  Weights w = weights(ring, newest + 1, a);
  auto heads_of = [&](const at::Tensor &t) {
    return t.to(at::kFloat).repeat_interleave(heads / t.size(1), 1);
  };
  at::Tensor c = heads_of(in.c).unsqueeze(3), held = w.each.unsqueeze(3).ne(0);
  at::Tensor met = at::matmul(at::where(held, heads_of(ring.b), 0.0), c) * w.each.unsqueeze(3);
  at::Tensor out = at::matmul(state.to(at::kFloat), c).squeeze(3) * w.across.unsqueeze(2) +
                   (met * at::where(held, ring.x.to(at::kFloat), 0.0)).sum(2);
  if (in.d.defined())
    out = out + in.d.to(at::kFloat).view({1, heads, 1}) * x;
  if (z.defined())
    out = out * at::silu(z.to(at::kFloat));
  y = out.to(in.x.scalar_type());
  at::Tensor full = newest.eq(length - 1), before = state.clone();
  fold(state, ring, w);
  state.copy_(at::where(full.view({-1, 1, 1, 1}), state, before));
}

} // namespace conquer::ops

int cq_ssd_ring_length(cq_tensor state_, int dtype, int64_t groups, int64_t *length) {
  return guarded([&] {
    at::Tensor state = tensor_of(state_);
    auto of = ops::registered_device(state).ssd_ring_length;
    *length = of ? of(state, static_cast<at::ScalarType>(dtype), groups) : 0;
    return 0;
  });
}

int cq_ssd_fold(cq_tensor state_, cq_tensor a_log, cq_tensor x, cq_tensor b, cq_tensor dt,
                cq_tensor held) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::ssd_fold");
    at::NoGradGuard no_grad;
    at::Tensor state = tensor_of(state_);
    ops::Ring ring{tensor_of(x), tensor_of(b), tensor_of(dt), tensor_of(held)};
    TORCH_CHECK(state.dim() == 4 && ring.b.defined() && ring.b.dim() == 4,
                "the state is not [batch, heads, head dimension, state], or B has no 4 dimensions");
    ops::check_ring(ring, state, ring.x, ring.b.size(1));
    ops::fold(state, ring,
              ops::weights(ring, at::remainder(ring.held, ring.length()),
                           -tensor_of(a_log).to(at::kFloat).exp()));
    return 0;
  });
}
