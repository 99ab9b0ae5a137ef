// rms_norm.cpp: RMS normalization, its rows shared out among the threads.
#include "cpu.h"

namespace conquer::cpu {

void rms_norm(const at::Tensor &x, const at::Tensor &weight, double eps, const at::Tensor &y,
              const at::Tensor &rstd) {
  const int64_t depth = weight.numel(), rows = x.numel() / depth;
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *in = data_of<T>(x), *w = data_of<T>(weight);
    T *out = mutable_data_of<T>(y);
    float *scale = rstd.defined() ? mutable_data_of<float>(rstd) : nullptr;
    at::parallel_for(0, rows, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      int64_t at = begin * depth;
      kernels<T>().rms_norm(in + at, w, float(eps), end - begin, depth, out + at,
                            scale ? scale + begin : nullptr);
    });
  });
}

at::Tensor rms_norm_grad(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &weight,
                         const at::Tensor &rstd, bool wants_dweight, const at::Tensor &dx) {
  const int64_t depth = weight.numel(), rows = x.numel() / depth;
  at::Tensor shares; // each thread's sum of the weight's gradient
  if (wants_dweight)
    shares = at::zeros({at::get_num_threads(), depth}, x.options().dtype(at::kFloat));
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *g = data_of<T>(dy), *in = data_of<T>(x), *w = data_of<T>(weight);
    const float *scale = data_of<float>(rstd);
    T *out = mutable_data_of<T>(dx);
    float *dw = wants_dweight ? mutable_data_of<float>(shares) : nullptr;
    at::parallel_for(0, rows, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      int64_t at = begin * depth;
      kernels<T>().rms_norm_backward(g + at, in + at, w, scale + begin, end - begin, depth,
                                     out + at, dw ? dw + at::get_thread_num() * depth : nullptr);
    });
  });
  return wants_dweight ? shares.sum(0).to(weight.scalar_type()) : at::Tensor();
}

} // namespace conquer::cpu
