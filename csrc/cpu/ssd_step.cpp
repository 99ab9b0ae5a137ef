// ssd_step.cpp: one token of the state-space recurrence, heads shared out among the threads.
#include "state_space.h"

#include <cmath>

namespace conquer::cpu {

namespace {

// One time step after softplus and clamp. libtorch's softplus computes the last elements of a
// tensor by other instructions, so that a sequence's result would depend on the batch.
float time_step(float dt, const ops::ScanOptions &o) {
  if (o.dt_softplus && dt <= 20)
    dt = std::log1p(std::exp(dt));
  return std::clamp(dt, float(o.dt_min), float(o.dt_max));
}

} // namespace

void ssd_step(const at::Tensor &state, const ops::ScanInput &in, const at::Tensor &z,
              const ops::ScanOptions &o, at::Tensor &y) {
  at::Tensor x = as_float(in.x), dt = as_float(in.dt), bias = as_float(in.dt_bias),
             gate = as_float(z), a = as_float(in.a), b = as_float(in.b), c = as_float(in.c),
             d = as_float(in.d);
  if (o.a_log)
    a = a.exp().neg_();
  bool direct = state.scalar_type() == at::kFloat && state.is_contiguous();
  at::Tensor h = direct ? state : state.to(at::kFloat).contiguous();
  int64_t heads = x.size(1), p = x.size(2), groups = b.size(1), n = b.size(2);
  at::Tensor out = at::empty_like(x);
  const float *xs = data_of<float>(x), *dts = data_of<float>(dt), *as = data_of<float>(a),
              *gates = data_of<float>(gate), *biases = data_of<float>(bias),
              *bs = data_of<float>(b), *cs = data_of<float>(c), *ds = data_of<float>(d);
  float *hs = mutable_data_of<float>(h), *ys = mutable_data_of<float>(out);
  parallel_for(x.size(0) * heads, std::max<int64_t>(1, 32768 / (p * n)),
               [&](int64_t from, int64_t until) {
                 for (int64_t i = from; i < until; i++) {
                   int64_t head = i % heads, g = i / heads * groups + head / (heads / groups);
                   float step = time_step(dts[i] + (biases ? biases[head] : 0), o);
                   state_space_kernels().step(p, n, std::exp(step * as[head]), step,
                                              ds ? ds[head] : 0, xs + i * p, bs + g * n, cs + g * n,
                                              hs + i * p * n, ys + i * p);
                   if (gates)
                     state_space_kernels().gate(p, gates + i * p, ys + i * p);
                 }
               });
  if (!direct)
    state.copy_(h);
  y = out.to(in.x.scalar_type());
}

} // namespace conquer::cpu
