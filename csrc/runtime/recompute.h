// recompute.h: for operators whose results can be dropped; see recompute.cpp.
#pragma once

#include "handles.h"

namespace conquer {

// Returns compute(), and records it if the thread drops results. compute must return the same
// whenever it is called. It keeps its inputs alive.
at::Tensor recomputable(const std::function<at::Tensor()> &compute);

} // namespace conquer
