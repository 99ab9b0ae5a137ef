// ssd_replay.h: the state update of one token with a ring of the last inputs (see cq_step).
#pragma once

#include "operators.h"

namespace conquer::ops {

// Throws if the ring does not fit the state [B,H,P,N] and x.
void check_ring(const Ring &ring, const at::Tensor &state, const at::Tensor &x, int64_t groups);

// The update in libtorch's operators, on any device.
void replay(const at::Tensor &state, const ScanInput &in, const at::Tensor &z,
            const ScanOptions &options, const Ring &ring, at::Tensor &y);

} // namespace conquer::ops
