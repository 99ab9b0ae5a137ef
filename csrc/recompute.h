// recompute.h: for the operations whose results can be dropped, see recompute.cpp.
#pragma once

#include "internal.h"

namespace conquer {

// compute(), which must give the same again whenever it is called. What it reads stays as long as the result may be
// asked for.
at::Tensor recomputable(const std::function<at::Tensor()> &compute);

} // namespace conquer
