// optimizer.cpp: AdamW, Lion and sums of squares. All parameters run in one parallel loop, cut into
// shares of one size: a weight of 28 million elements and one of 576 load the threads alike, and a
// sum does not depend on the number of threads.
#include "cpu.h"

#include <cmath>

namespace conquer::cpu {

namespace {

constexpr int64_t share = 1 << 15; // elements, a multiple of moment_block

struct Share {
  int tensor;
  int64_t from, n;
};

std::vector<Share> shares_of(const std::vector<at::Tensor> &tensors) {
  std::vector<Share> list;
  for (size_t i = 0; i < tensors.size(); i++)
    for (int64_t from = 0, size = tensors[i].numel(); from < size; from += share)
      list.push_back({int(i), from, std::min(share, size - from)});
  return list;
}

template <class F> void each_share(const std::vector<Share> &list, F f) {
  parallel_for(list.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      f(i, list[i]);
  });
}

} // namespace

void adamw(const ops::OptimizerStep &o) {
  const auto kind = o.means[0].scalar_type();
  const double correction1 = 1 - std::pow(o.beta1, o.step),
               correction2 = 1 - std::pow(o.beta2, o.step);
  each_share(shares_of(o.weights), [&](int64_t, const Share &s) {
    const int i = s.tensor;
    const AdamWStep constants{float(o.scale),
                              float(o.beta1),
                              float(o.beta2),
                              float(1 - o.rate * o.decays[i]),
                              float(o.rate / correction1),
                              float(1 / std::sqrt(correction2)),
                              float(o.eps)};
    with_type(o.weights[i].scalar_type(), [&](auto element) {
      using T = decltype(element);
      T *w = mutable_data_of<T>(o.weights[i]) + s.from;
      const T *g = data_of<T>(o.gradients[i]) + s.from;
      float *master = o.master.empty() ? nullptr : mutable_data_of<float>(o.master[i]) + s.from;
      auto part = [&](const at::Tensor &t, auto type) {
        return mutable_data_of<decltype(type)>(t) + s.from;
      };
      const uint32_t key = o.keys[i];
      if (kind == at::kFloat)
        kernels<T>().adamw(w, master, g, part(o.means[i], float{}), part(o.squares[i], float{}),
                           s.n, constants);
      else if (kind == at::kBFloat16)
        kernels<T>().adamw_bf16(w, master, g, part(o.means[i], bf16{}), part(o.squares[i], bf16{}),
                                s.from, s.n, key, constants);
      else {
        uint8_t *e = mutable_data_of<uint8_t>(o.exponents[i]) + s.from / moment_block;
        kernels<T>().adamw_8bit(w, master, g, part(o.means[i], uint8_t{}),
                                part(o.squares[i], uint8_t{}), e, e + o.exponents[i].size(1),
                                s.from, s.n, key, constants);
      }
    });
  });
}

void lion(const ops::OptimizerStep &o) {
  each_share(shares_of(o.weights), [&](int64_t, const Share &s) {
    const int i = s.tensor;
    const LionStep constants{float(o.scale), float(o.beta1), float(o.beta2),
                             float(1 - o.rate * o.decays[i]), float(o.rate)};
    with_type(o.weights[i].scalar_type(), [&](auto element) {
      using T = decltype(element);
      kernels<T>().lion(mutable_data_of<T>(o.weights[i]) + s.from,
                        mutable_data_of<float>(o.master[i]) + s.from,
                        data_of<T>(o.gradients[i]) + s.from,
                        mutable_data_of<float>(o.means[i]) + s.from, s.n, constants);
    });
  });
}

double sum_of_squares(const std::vector<at::Tensor> &tensors) {
  std::vector<at::Tensor> from;
  for (const at::Tensor &t : tensors)
    from.push_back(t.contiguous());
  const std::vector<Share> list = shares_of(from);
  std::vector<double> sums(list.size());
  each_share(list, [&](int64_t at, const Share &s) {
    with_type(from[s.tensor].scalar_type(), [&](auto element) {
      using T = decltype(element);
      sums[at] = kernels<T>().sum_of_squares(data_of<T>(from[s.tensor]) + s.from, s.n);
    });
  });
  double total = 0;
  for (double s : sums)
    total += s;
  return total;
}

} // namespace conquer::cpu
