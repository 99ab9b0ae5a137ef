// optimizer.cpp: cq_adamw, cq_lion and cq_global_norm. They run over all weights in one parallel loop, cut into shares
// of one size, so that a weight of 28 million elements and one of 576 load the threads alike, and a sum does not depend
// on how many threads there are.
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
void adamw_stochastic_of_libtorch(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &,
                                  const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means,
                                  const std::vector<at::Tensor> &squares, const double *decays, int64_t step,
                                  double scale, double rate, double beta1, double beta2, double eps) {
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

void check_step(const char *what, const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
                const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means) {
  for (size_t i = 0; i < weights.size(); i++) {
    const at::Tensor &w = weights[i], &g = gradients[i];
    TORCH_CHECK(w.is_contiguous() && w.sizes() == g.sizes() && w.sizes() == means[i].sizes() &&
                    (originals.empty() || w.sizes() == originals[i].sizes()) && has_kernel_type(w),
                what, ": weight ", i, " of shape ", w.sizes(), " has a gradient of shape ", g.sizes(),
                " or a state that does not fit");
  }
}

// Originals may be empty where all is bfloat16; exponents are there where the averages have 8 bits.
void adamw(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
           const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means,
           const std::vector<at::Tensor> &squares, const std::vector<at::Tensor> &exponents, const double *decays,
           int64_t step, double scale, double rate, double beta1, double beta2, double eps, int64_t seed) {
  at::NoGradGuard no_grad;
  check_step("adamw", weights, originals, gradients, means);
  check_step("adamw", weights, originals, gradients, squares);
  std::vector<at::Tensor> from;
  for (size_t i = 0; i < weights.size(); i++)
    from.push_back(gradients[i].to(weights[i].scalar_type()).contiguous());
  const auto kind = means[0].scalar_type();
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
      T *w = mutable_data_of<T>(weights[i]) + s.from;
      const T *g = data_of<T>(from[i]) + s.from;
      float *o = originals.empty() ? nullptr : mutable_data_of<float>(originals[i]) + s.from;
      auto part = [&](const at::Tensor &t, auto type) { return mutable_data_of<decltype(type)>(t) + s.from; };
      if (kind == at::kFloat)
        kernels<T>().adamw(w, o, g, part(means[i], float{}), part(squares[i], float{}), s.n, constants);
      else if (kind == at::kBFloat16)
        kernels<T>().adamw_bf16(w, o, g, part(means[i], bf16{}), part(squares[i], bf16{}), s.from, s.n,
                                key_of(seed, step, i), constants);
      else {
        uint8_t *e = mutable_data_of<uint8_t>(exponents[i]) + s.from / average_block;
        kernels<T>().adamw_8bit(w, o, g, part(means[i], uint8_t{}), part(squares[i], uint8_t{}), e,
                                e + exponents[i].size(1), s.from, s.n, key_of(seed, step, i), constants);
      }
    });
  });
}

void lion(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
          const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means, const double *decays,
          double scale, double rate, double beta1, double beta2) {
  at::NoGradGuard no_grad;
  check_step("lion", weights, originals, gradients, means);
  std::vector<at::Tensor> from;
  for (size_t i = 0; i < weights.size(); i++)
    from.push_back(gradients[i].to(weights[i].scalar_type()).contiguous());
  over(shares(weights), [&](int64_t, const Share &s) {
    const int i = s.tensor;
    const LionStep constants{float(scale), float(beta1), float(beta2), float(1 - rate * decays[i]), float(rate)};
    with_type(weights[i].scalar_type(), [&](auto element) {
      using T = decltype(element);
      kernels<T>().lion(mutable_data_of<T>(weights[i]) + s.from, mutable_data_of<float>(originals[i]) + s.from,
                        data_of<T>(from[i]) + s.from, mutable_data_of<float>(means[i]) + s.from, s.n, constants);
    });
  });
}

void lion_reference(const std::vector<at::Tensor> &weights, const std::vector<at::Tensor> &originals,
                    const std::vector<at::Tensor> &gradients, const std::vector<at::Tensor> &means,
                    const double *decays, double scale, double rate, double beta1, double beta2) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < weights.size(); i++) {
    const at::Tensor g = gradients[i].to(at::kFloat) * scale;
    at::Tensor o = originals[i], m = means[i];
    o.mul_(1 - rate * decays[i]).sub_((m * beta1 + g * (1 - beta1)).sign_(), rate);
    m.mul_(beta2).add_(g, 1 - beta2);
    if (weights[i].scalar_type() != at::kFloat)
      weights[i].copy_(o);
  }
}

using Lion = decltype(&lion);

int lion_step(Lion how, const cq_tensor *weights, const cq_tensor *originals, const cq_tensor *gradients,
              const cq_tensor *means, const double *decays, int n, double scale, double rate, double beta1,
              double beta2) {
  return guarded([&] {
    auto w = tensors_of(weights, n);
    for (auto &t : w)
      t = t.detach();
    how(w, tensors_of(originals, n), tensors_of(gradients, n), tensors_of(means, n), decays, scale, rate, beta1, beta2);
    return 0;
  });
}

// The blocks of an average of 8 bits, by what is done with each: f(its values' first place, how many, its exponent).
template <class F> void each_block(const at::Tensor &codes, const at::Tensor &exponents, int which, F f) {
  const int64_t n = codes.numel(), blocks = (n + average_block - 1) / average_block;
  TORCH_CHECK(codes.is_contiguous() && codes.scalar_type() == at::kByte && exponents.is_contiguous() &&
                  exponents.scalar_type() == at::kByte && exponents.dim() == 2 && exponents.size(0) == 2 &&
                  exponents.size(1) == blocks && (which == 0 || which == 1),
              "averages of 8 bits: ", codes.sizes(), " codes do not go with exponents ", exponents.sizes());
  uint8_t *e = mutable_data_of<uint8_t>(exponents) + which * blocks;
  for (int64_t i = 0; i < blocks; i++)
    f(i * average_block, std::min(average_block, n - i * average_block), e[i]);
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
             const cq_tensor *squares, const cq_tensor *exponents, const double *decays, int n, int64_t step,
             double scale, double rate, double beta1, double beta2, double eps, int64_t seed) {
  return guarded([&] {
    if (n == 0)
      return 0;
    auto w = tensors_of(weights, n);
    for (auto &t : w)
      t = t.detach();
    auto o = originals ? tensors_of(originals, n) : std::vector<at::Tensor>{};
    auto e = exponents ? tensors_of(exponents, n) : std::vector<at::Tensor>{};
    auto g = tensors_of(gradients, n), m = tensors_of(means, n), s = tensors_of(squares, n);
    for (int i = 0; i < n; i++) {
      TORCH_CHECK(originals || (w[i].scalar_type() == at::kBFloat16 && m[i].scalar_type() == at::kBFloat16 &&
                                s[i].scalar_type() == at::kBFloat16),
                  "adamw: weight ", i, " is ", w[i].scalar_type(), "; without originals all must be bfloat16");
      TORCH_CHECK(m[i].scalar_type() == m[0].scalar_type() && s[i].scalar_type() == m[0].scalar_type() &&
                      (m[i].scalar_type() == at::kByte) == !e.empty(),
                  "adamw: the averages of weight ", i, " are not of the others' kind");
      if (!e.empty())
        each_block(m[i], e[i], 0, [](int64_t, int64_t, uint8_t &) {});
    }
    if (w[0].is_cpu()) {
      adamw(w, o, g, m, s, e, decays, step, scale, rate, beta1, beta2, eps, seed);
      return 0;
    }
    TORCH_CHECK(!originals || m[0].scalar_type() == at::kFloat,
                "adamw: averages smaller than float32 beside float32 originals are for the CPU");
    if (adamw_elsewhere(w, o, g, m, s, decays, step, scale, rate, beta1, beta2, eps, seed))
      return 0;
    (originals ? adamw_of_libtorch : adamw_stochastic_of_libtorch)(w, o, g, m, s, decays, step, scale, rate, beta1,
                                                                   beta2, eps);
    return 0;
  });
}

int cq_average_unpack(cq_tensor codes, cq_tensor exponents, int which, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor from = tensor_of(codes), values = at::empty(from.sizes(), from.options().dtype(at::kFloat));
    const uint8_t *code = data_of<uint8_t>(from);
    uint32_t *bits = mutable_data_of<uint32_t>(values);
    each_block(from, tensor_of(exponents), which, [&](int64_t first, int64_t n, uint8_t &exponent) {
      const uint32_t base = average_base(exponent, which), magnitude = which ? 255 : 127;
      for (int64_t i = first; i < first + n; i++) {
        const uint32_t k = code[i] & magnitude;
        bits[i] = (k ? (k + base) << 20 : 0) | uint32_t(code[i] & ~magnitude) << 24;
      }
    });
    return give(out, values.to(at::kBFloat16));
  });
}

int cq_average_pack(cq_tensor values, cq_tensor codes, cq_tensor exponents, int which) {
  return guarded([&] {
    const at::Tensor from = tensor_of(values).to(at::kFloat).contiguous(), into = tensor_of(codes);
    TORCH_CHECK(from.sizes() == into.sizes(), "averages of 8 bits: ", from.sizes(), " values for ", into.sizes());
    const float *value = data_of<float>(from);
    uint8_t *code = mutable_data_of<uint8_t>(into);
    each_block(into, tensor_of(exponents), which, [&](int64_t first, int64_t n, uint8_t &exponent) {
      float largest = 0;
      for (int64_t i = first; i < first + n; i++)
        largest = std::max(largest, std::abs(value[i]));
      exponent = average_exponent(largest);
      const uint32_t base = average_base(exponent, which);
      const float smallest = __builtin_bit_cast(float, (base + 1) << 20);
      for (int64_t i = first; i < first + n; i++) {
        const float a = std::abs(value[i]);
        uint32_t k = a > (which ? 0 : smallest / 2);
        if (a >= smallest)
          k = ((__builtin_bit_cast(uint32_t, a) + 0x80000) >> 20) - base;
        code[i] = uint8_t(k | (which == 0 && std::signbit(value[i]) ? 128 : 0));
      }
    });
    return 0;
  });
}

int cq_lion(const cq_tensor *weights, const cq_tensor *originals, const cq_tensor *gradients, const cq_tensor *means,
            const double *decays, int n, double scale, double rate, double beta1, double beta2) {
  const bool cpu = n > 0 && tensor_of(weights[0]).is_cpu();
  return lion_step(cpu ? lion : lion_reference, weights, originals, gradients, means, decays, n, scale, rate, beta1,
                   beta2);
}

int cq_lion_reference(const cq_tensor *weights, const cq_tensor *originals, const cq_tensor *gradients,
                      const cq_tensor *means, const double *decays, int n, double scale, double rate, double beta1,
                      double beta2) {
  return lion_step(lion_reference, weights, originals, gradients, means, decays, n, scale, rate, beta1, beta2);
}

int cq_global_norm(const cq_tensor *tensors, int n, double *out) {
  return guarded([&] {
    *out = global_norm(tensors_of(tensors, n));
    return 0;
  });
}
