// checks.cpp: checks of arguments that several operators make.
#include "operators.h"

namespace conquer::ops {

void check_shape(const char *name, const at::Tensor &t, at::IntArrayRef shape,
                 const at::Tensor &beside) {
  if (!t.defined())
    return;
  TORCH_CHECK(t.sizes() == shape, name, " has shape ", t.sizes(), ", expected ", shape);
  TORCH_CHECK(t.device() == beside.device(), name, " is on ", t.device(), ", x on ",
              beside.device());
}

void check_dtype(const char *name, const at::Tensor &t) {
  auto type = t.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, name, " is ", type,
              ", expected float32, bfloat16 or float16");
}

} // namespace conquer::ops
