// ssd_step.cpp: cq_ssd_step.
#include "ssd_replay.h"

using namespace conquer;

int cq_ssd_step(cq_tensor state_, const cq_step *arguments, cq_tensor *y_out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::ssd_step");
    at::NoGradGuard no_grad;
    const cq_step &t = *arguments;
    at::Tensor state = tensor_of(state_), z = tensor_of(t.z), y;
    const ops::ScanInput in{tensor_of(t.x),
                            tensor_of(t.dt),
                            tensor_of(t.a),
                            tensor_of(t.b),
                            tensor_of(t.c),
                            tensor_of(t.d),
                            tensor_of(t.dt_bias),
                            {},
                            {}};
    const at::Tensor &x = in.x;
    TORCH_CHECK(x.dim() == 3, "x has shape ", x.sizes(),
                ", expected [batch, heads, head dimension]");
    TORCH_CHECK(in.b.dim() == 3, "B has shape ", in.b.sizes(), ", expected [batch, groups, state]");
    const ops::ScanOptions options{0, -1, t.dt_softplus != 0, t.dt_min, t.dt_max, t.a_log != 0};
    ops::check_scan(x, in, options);
    ops::check_shape("z", z, x.sizes(), x);
    ops::check_shape("the state", state, {x.size(0), x.size(1), x.size(2), in.b.size(2)}, x);
    ops::check_dtype("the state", state);
    const ops::Device &device = ops::registered_device(x);
    ops::Ring ring{tensor_of(t.ring_x), tensor_of(t.ring_b), tensor_of(t.ring_dt),
                   tensor_of(t.held)};
    if (ring.held.defined()) {
      ops::check_ring(ring, state, x, in.b.size(1));
      (device.ssd_replay ? device.ssd_replay : ops::replay)(state, in, z, options, ring, y);
    } else {
      device.ssd_step(state, in, z, options, y);
    }
    return give(y_out, y);
  });
}
