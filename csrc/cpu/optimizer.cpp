// optimizer.cpp: cq_adamw and cq_global_norm. Both run over all weights in one parallel loop, cut into shares of one
// size, so that a weight of 28 million elements and one of 576 load the threads alike, and a sum does not depend on how
// many threads there are.
#include "cpu.h"

#include <cmath>

namespace conquer {

namespace {

constexpr int64_t share = 1 << 15;

struct Share {
  int tensor;
  int64_t from, n;
};

std::vector<Share> shares(const std::vector<at::Tensor> &tensors) {
  std::vector<Share> list;
  for (size_t i = 0; i < tensors.size(); i++)
    for (int64_t from = 0, size = tensors[i].numel(); from < size; from += share)
      list.push_back({int(i), from, std::min(share, size - from)});
  return list;
}

template <class F> void over(const std::vector<Share> &list, F f) {
  at::parallel_for(0, list.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      f(i, list[i]);
  });
}

// What libtorch offers for GPUs: its fused step on the originals, with the gradients widened and the weights rounded
// around it, in groups that bound the memory of the widened gradients.
void adamw_of_libtorch(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
                       const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means,
                       const std::vector<at::Tensor> &squares, const double *decays, int64_t step, double scale,
                       double rate, double beta1, double beta2, double eps) {
  constexpr int64_t together = 1 << 25;
  for (size_t begin = 0, end; begin < weights.size(); begin = end) {
    std::vector<at::Tensor> o, g, m, s, steps;
    int64_t elements = 0;
    for (end = begin; end < weights.size() && decays[end] == decays[begin] &&
                      (end == begin || elements + weights[end].numel() <= together);
         end++) {
      elements += weights[end].numel();
      at::Tensor wide = gradients[end].to(at::kFloat);
      g.push_back(scale == 1 ? wide : wide * scale);
      o.push_back(originals[end]), m.push_back(means[end]), s.push_back(squares[end]);
      steps.push_back(at::full({}, double(step), means[end].options()));
    }
    at::_fused_adamw_(o, g, m, s, /*max_exp_avg_sqs=*/{}, steps, rate, beta1, beta2, decays[begin], eps,
                      /*amsgrad=*/false,
                      /*maximize=*/false);
    for (size_t i = begin; i < end; i++)
      if (weights[i].scalar_type() != at::kFloat)
        weights[i].copy_(originals[i]);
  }
}

// Rounded up or down to T's 16 bits with the probabilities that keep the mean.
void round_at_random(const at::Tensor &into, const at::Tensor &wide) {
  at::Tensor bits = wide.contiguous().view(at::kInt);
  into.copy_((bits + at::randint(0, 1 << 16, bits.sizes(), bits.options())).bitwise_and(~0xFFFF).view(at::kFloat));
}

// Without originals, by libtorch: weights and averages in bfloat16.
void adamw_stochastic(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &gradients,
                      const std::vector<at::Tensor> &means, const std::vector<at::Tensor> &squares,
                      const double *decays, int64_t step, double scale, double rate, double beta1, double beta2,
                      double eps) {
  at::NoGradGuard no_grad;
  const double correction1 = 1 - std::pow(beta1, step), correction2 = std::sqrt(1 - std::pow(beta2, step));
  for (size_t i = 0; i < weights.size(); i++) {
    at::Tensor g = gradients[i].to(at::kFloat) * scale;
    at::Tensor m = means[i].to(at::kFloat) * beta1 + g * (1 - beta1);
    at::Tensor s = squares[i].to(at::kFloat) * beta2 + g * g * (1 - beta2);
    at::Tensor w = weights[i].to(at::kFloat) * (1 - rate * decays[i]);
    w = w - (m * (rate / correction1)) / (s.sqrt() / correction2 + eps);
    round_at_random(means[i], m);
    round_at_random(squares[i], s);
    round_at_random(weights[i], w);
  }
}

// Another device's step over all weights at once, where its kernels take every one of them.
bool adamw_elsewhere(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
                     const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means,
                     const std::vector<at::Tensor> &squares, const double *decays, int64_t step, double scale,
                     double rate, double beta1, double beta2, double eps, int64_t seed) {
  const Face *face = face_of(weights[0]);
  const auto type = weights[0].scalar_type();
  if (!face || type == at::kHalf)
    return false;
  for (size_t i = 0; i < weights.size(); i++)
    for (const at::Tensor *t : {&weights[i], &gradients[i], &means[i], &squares[i]})
      if (!t->is_contiguous() || t->numel() % 16 || !face_of(*t) ||
          (t == &weights[i] || t == &gradients[i] ? t->scalar_type() != type : false))
        return false;
  at::NoGradGuard no_grad;
  const bool own = type == at::kFloat; // a float32 weight is its own original
  face->adamw(weights, own ? std::vector<at::Tensor>{} : originals, gradients, means, squares, decays, rate, beta1,
              beta2, eps, scale, step, originals.empty(), seed);
  return true;
}

void adamw(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
           const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means,
           const std::vector<at::Tensor> &squares, const double *decays, int64_t step, double scale, double rate,
           double beta1, double beta2, double eps) {
  at::NoGradGuard no_grad;
  const size_t n = weights.size();
  std::vector<at::Tensor> from(n);
  for (size_t i = 0; i < n; i++) {
    const at::Tensor &w = weights[i], &g = gradients[i];
    TORCH_CHECK(w.is_contiguous() && w.sizes() == g.sizes() && w.sizes() == means[i].sizes() &&
                    w.sizes() == squares[i].sizes() && w.sizes() == originals[i].sizes() && has_kernel_type(w),
                "adamw: weight ", i, " of shape ", w.sizes(), " has a gradient of shape ", g.sizes(),
                " or a state that does not fit");
    from[i] = g.to(w.scalar_type()).contiguous();
  }
  const std::vector<Share> list = shares(weights);
  const double correction1 = 1 - std::pow(beta1, step), correction2 = 1 - std::pow(beta2, step);
  over(list, [&](int64_t, const Share &s) {
    const int i = s.tensor;
    const AdamWStep constants{float(scale),
                              float(beta1),
                              float(beta2),
                              float(1 - rate * decays[i]),
                              float(rate / correction1),
                              float(1 / std::sqrt(correction2)),
                              float(eps)};
    with_type(weights[i].scalar_type(), [&](auto element) {
      using T = decltype(element);
      kernels<T>().adamw(mutable_data_of<T>(weights[i]) + s.from, mutable_data_of<float>(originals[i]) + s.from,
                         data_of<T>(from[i]) + s.from, mutable_data_of<float>(means[i]) + s.from,
                         mutable_data_of<float>(squares[i]) + s.from, s.n, constants);
    });
  });
}

double global_norm(const std::vector<at::Tensor> &tensors) {
  at::NoGradGuard no_grad;
  if (tensors.empty())
    return 0;
  if (!tensors[0].is_cpu())
    return at::linalg_vector_norm(at::stack(at::_foreach_norm(tensors, 2, at::kFloat))).item<double>();
  std::vector<at::Tensor> from;
  for (const at::Tensor &t : tensors)
    from.push_back(t.contiguous());
  const std::vector<Share> list = shares(from);
  std::vector<double> sums(list.size());
  over(list, [&](int64_t at, const Share &s) {
    with_type(from[s.tensor].scalar_type(), [&](auto element) {
      using T = decltype(element);
      sums[at] = kernels<T>().sum_of_squares(data_of<T>(from[s.tensor]) + s.from, s.n);
    });
  });
  double total = 0;
  for (double s : sums)
    total += s;
  return std::sqrt(total);
}

} // namespace

} // namespace conquer

using namespace conquer;

int cq_adamw(const cq_tensor *weights, const cq_tensor *originals, const cq_tensor *gradients, const cq_tensor *means,
             const cq_tensor *squares, const double *decays, int n, int64_t step, double scale, double rate,
             double beta1, double beta2, double eps, int64_t seed) {
  return guarded([&] {
    if (n == 0)
      return 0;
    auto w = tensors_of(weights, n);
    for (auto &t : w)
      t = t.detach();
    auto o = originals ? tensors_of(originals, n) : std::vector<at::Tensor>{};
    auto g = tensors_of(gradients, n), m = tensors_of(means, n), s = tensors_of(squares, n);
    if (!originals)
      for (int i = 0; i < n; i++)
        TORCH_CHECK(w[i].scalar_type() == at::kBFloat16 && m[i].scalar_type() == at::kBFloat16 &&
                        s[i].scalar_type() == at::kBFloat16,
                    "adamw: weight ", i, " is ", w[i].scalar_type(), "; without originals all must be bfloat16");
    if (adamw_elsewhere(w, o, g, m, s, decays, step, scale, rate, beta1, beta2, eps, seed))
      return 0;
    if (!originals)
      adamw_stochastic(w, g, m, s, decays, step, scale, rate, beta1, beta2, eps);
    else
      (w[0].is_cpu() ? adamw : adamw_of_libtorch)(w, o, g, m, s, decays, step, scale, rate, beta1, beta2, eps);
    return 0;
  });
}

int cq_global_norm(const cq_tensor *tensors, int n, double *out) {
  return guarded([&] {
    *out = global_norm(tensors_of(tensors, n));
    return 0;
  });
}
