// linear.cpp: a linear layer of few rows, the weight's rows shared out among the threads.
#include "cpu.h"

namespace conquer::cpu {

at::Tensor linear(const at::Tensor &x, const at::Tensor &, double, const at::Tensor &weight,
                  const at::Tensor &bias, const at::Tensor &) {
  const int64_t depth = weight.size(1), rows = weight.size(0), n = x.numel() / depth;
  auto shape = x.sizes().vec();
  shape.back() = rows;
  at::Tensor out = at::empty(shape, x.options());
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto &k = kernels<T>();
    const T *w = data_of<T>(weight), *b = data_of<T>(bias);
    T *y = mutable_data_of<T>(out);
    const float *wide;
    std::vector<float> buffer;
    if constexpr (std::is_same_v<T, float>) {
      wide = data_of<float>(x);
    } else {
      buffer.resize(n * depth);
      k.widen(data_of<T>(x), n * depth, buffer.data());
      wide = buffer.data();
    }
    // A multiple of the four rows that the inner loop takes at once.
    const int64_t grain = std::max<int64_t>(4, one_thread / (n * depth) / 4 * 4);
    parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
      k.linear(w + begin * depth, b ? b + begin : nullptr, wide, end - begin, depth, n, y + begin,
               rows);
    });
  });
  return out;
}

} // namespace conquer::cpu
