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
    parallel_for(rows, rows_per_share(depth), [&](int64_t begin, int64_t end) {
      int64_t at = begin * depth;
      kernels<T>().rms_norm(in + at, w, float(eps), end - begin, depth, out + at,
                            scale ? scale + begin : nullptr);
    });
  });
}

at::Tensor rms_norm_grad(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &weight,
                         const at::Tensor &rstd, bool wants_dweight, const at::Tensor &dx) {
  const int64_t depth = weight.numel(), rows = x.numel() / depth;
  const int64_t parts = std::clamp<int64_t>(rows / rows_per_share(depth), 1, at::get_num_threads());
  at::Tensor sums; // of the weight's gradient, over the rows of each part
  if (wants_dweight)
    sums = at::zeros({parts, depth}, x.options().dtype(at::kFloat));
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *g = data_of<T>(dy), *in = data_of<T>(x), *w = data_of<T>(weight);
    const float *scale = data_of<float>(rstd);
    T *out = mutable_data_of<T>(dx);
    float *dw = wants_dweight ? mutable_data_of<float>(sums) : nullptr;
    parallel_for(parts, 1, [&](int64_t from, int64_t until) {
      for (int64_t part = from; part < until; part++) {
        const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts,
                      at = begin * depth;
        kernels<T>().rms_norm_backward(g + at, in + at, w, scale + begin, end - begin, depth,
                                       out + at, dw ? dw + part * depth : nullptr);
      }
    });
  });
  return wants_dweight ? sums.sum(0).to(weight.scalar_type()) : at::Tensor();
}

} // namespace conquer::cpu
