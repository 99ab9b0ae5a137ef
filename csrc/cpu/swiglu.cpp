// swiglu.cpp: SwiGLU, its rows shared out among the threads.
#include "cpu.h"

namespace conquer::cpu {

void swiglu(const at::Tensor &gate_up, const at::Tensor &out) {
  const int64_t width = out.size(-1), rows = out.numel() / width;
  with_type(gate_up.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *x = data_of<T>(gate_up);
    T *y = mutable_data_of<T>(out);
    parallel_for(rows, rows_per_share(width), [&](int64_t begin, int64_t end) {
      kernels<T>().swiglu(x + begin * 2 * width, end - begin, width, y + begin * width);
    });
  });
}

void swiglu_grad(const at::Tensor &dy, const at::Tensor &gate_up, const at::Tensor &dx) {
  const int64_t width = dy.size(-1), rows = dy.numel() / width;
  with_type(dy.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *g = data_of<T>(dy), *x = data_of<T>(gate_up);
    T *out = mutable_data_of<T>(dx);
    parallel_for(rows, rows_per_share(width), [&](int64_t begin, int64_t end) {
      kernels<T>().swiglu_backward(g + begin * width, x + begin * 2 * width, end - begin, width,
                                   out + begin * 2 * width);
    });
  });
}

} // namespace conquer::cpu
