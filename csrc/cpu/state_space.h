// state_space.h: helpers of the CPU's state-space kernels, which compute in float32.
#pragma once

#include "cpu.h"

namespace conquer::cpu {

inline at::Tensor as_float(const at::Tensor &t) {
  return t.defined() ? t.detach().to(at::kFloat).contiguous() : t;
}

// dt after bias, softplus and clamp, as float32.
inline at::Tensor processed_dt(const at::Tensor &dt, const at::Tensor &bias,
                               const ops::ScanOptions &o) {
  at::Tensor v = as_float(dt);
  if (bias.defined())
    v = v + as_float(bias);
  if (o.dt_softplus)
    v = at::softplus(v);
  return v.clamp(o.dt_min, o.dt_max);
}

} // namespace conquer::cpu
