// optimizer.cpp: cq_adamw, cq_lion and cq_global_norm.
#include "operators.h"

#include <cmath>

namespace conquer::ops {

namespace {

// libtorch's fused AdamW on the master weights, with gradients widened before and weights rounded
// after it, in groups that bound the memory of the widened gradients.
void adamw_reference(const OptimizerStep &s) {
  constexpr int64_t together = 1 << 25;
  const auto &weights = s.weights, &master = s.master;
  for (size_t begin = 0, end; begin < weights.size(); begin = end) {
    std::vector<at::Tensor> o, g, m, v, steps;
    int64_t elements = 0;
    for (end = begin; end < weights.size() && s.decays[end] == s.decays[begin] &&
                      (end == begin || elements + weights[end].numel() <= together);
         end++) {
      elements += weights[end].numel();
      at::Tensor wide = s.gradients[end].to(at::kFloat);
      g.push_back(s.scale == 1 ? wide : wide * s.scale);
      o.push_back(master[end]), m.push_back(s.means[end]), v.push_back(s.squares[end]);
      steps.push_back(at::full({}, double(s.step), s.means[end].options()));
    }
    at::_fused_adamw_(o, g, m, v, /*max_exp_avg_sqs=*/{}, steps, s.rate, s.beta1, s.beta2,
                      s.decays[begin], s.eps,
                      /*amsgrad=*/false, /*maximize=*/false);
    for (size_t i = begin; i < end; i++)
      if (weights[i].scalar_type() != at::kFloat)
        weights[i].copy_(master[i]);
  }
}

// Rounds `wide` up or down to 16 bits with the probabilities that keep the mean.
void round_stochastically(const at::Tensor &into, const at::Tensor &wide) {
  at::Tensor bits = wide.contiguous().view(at::kInt);
  into.copy_((bits + at::randint(0, 1 << 16, bits.sizes(), bits.options()))
                 .bitwise_and(~0xFFFF)
                 .view(at::kFloat));
}

// Without master weights: weights and moments in bfloat16.
void adamw_stochastic_reference(const OptimizerStep &s) {
  const double correction1 = 1 - std::pow(s.beta1, s.step),
               correction2 = std::sqrt(1 - std::pow(s.beta2, s.step));
  for (size_t i = 0; i < s.weights.size(); i++) {
    at::Tensor g = s.gradients[i].to(at::kFloat) * s.scale;
    at::Tensor m = s.means[i].to(at::kFloat) * s.beta1 + g * (1 - s.beta1);
    at::Tensor v = s.squares[i].to(at::kFloat) * s.beta2 + g * g * (1 - s.beta2);
    at::Tensor w = s.weights[i].to(at::kFloat) * (1 - s.rate * s.decays[i]);
    w = w - (m * (s.rate / correction1)) / (v.sqrt() / correction2 + s.eps);
    round_stochastically(s.means[i], m);
    round_stochastically(s.squares[i], v);
    round_stochastically(s.weights[i], w);
  }
}

void lion_reference(const OptimizerStep &s) {
  for (size_t i = 0; i < s.weights.size(); i++) {
    const at::Tensor g = s.gradients[i].to(at::kFloat) * s.scale;
    at::Tensor o = s.master[i], m = s.means[i];
    o.mul_(1 - s.rate * s.decays[i]).sub_((m * s.beta1 + g * (1 - s.beta1)).sign_(), s.rate);
    m.mul_(s.beta2).add_(g, 1 - s.beta2);
    if (s.weights[i].scalar_type() != at::kFloat)
      s.weights[i].copy_(o);
  }
}

// Whether a device without small moments has kernels for every parameter.
bool fits(const Device &device, const OptimizerStep &s) {
  const auto type = s.weights[0].scalar_type();
  if (type == at::kHalf)
    return false;
  for (size_t i = 0; i < s.weights.size(); i++)
    for (const at::Tensor *t : {&s.weights[i], &s.gradients[i], &s.means[i], &s.squares[i]}) {
      const bool weight_or_gradient = t == &s.weights[i] || t == &s.gradients[i];
      if (!t->is_contiguous() || t->numel() % device.limits.width_multiple ||
          device_for(*t) != &device || (weight_or_gradient && t->scalar_type() != type))
        return false;
    }
  return true;
}

// The step's tensors; a null handle is an undefined tensor.
OptimizerStep step_of(const cq_parameter *parameters, int n) {
  OptimizerStep s{};
  for (int i = 0; i < n; i++) {
    const cq_parameter &p = parameters[i];
    s.weights.push_back(tensor_of(p.weight).detach());
    s.gradients.push_back(tensor_of(p.gradient));
    s.means.push_back(tensor_of(p.mean));
    if (p.master)
      s.master.push_back(tensor_of(p.master));
    if (p.square)
      s.squares.push_back(tensor_of(p.square));
    if (p.exponents)
      s.exponents.push_back(tensor_of(p.exponents));
    s.decays.push_back(p.decay);
  }
  for (const auto *list : {&s.master, &s.squares, &s.exponents})
    TORCH_CHECK(list->empty() || list->size() == s.weights.size(),
                "optimizer: some parameters lack a state that others have");
  return s;
}

// CPU kernels read gradients in the weight's dtype.
void match_gradients(OptimizerStep &s) {
  for (size_t i = 0; i < s.weights.size(); i++)
    s.gradients[i] = s.gradients[i].to(s.weights[i].scalar_type()).contiguous();
}

void check_step(const char *what, const OptimizerStep &s, const std::vector<at::Tensor> &moments) {
  for (size_t i = 0; i < s.weights.size(); i++) {
    const at::Tensor &w = s.weights[i], &g = s.gradients[i];
    TORCH_CHECK(
        w.is_contiguous() && w.sizes() == g.sizes() && w.sizes() == moments[i].sizes() &&
            (s.master.empty() || (w.sizes() == s.master[i].sizes() && s.master[i].is_contiguous() &&
                                  s.master[i].scalar_type() == at::kFloat)),
        what, ": weight ", i, " of shape ", w.sizes(), " has a gradient of shape ", g.sizes(),
        " or a state that does not fit");
  }
}

void check_moments(const OptimizerStep &s) {
  const auto kind = s.means[0].scalar_type();
  for (size_t i = 0; i < s.weights.size(); i++) {
    const auto mean = s.means[i].scalar_type(), square = s.squares[i].scalar_type();
    TORCH_CHECK(!s.master.empty() || (s.weights[i].scalar_type() == at::kBFloat16 &&
                                      mean == at::kBFloat16 && square == at::kBFloat16),
                "adamw: weight ", i, " is ", s.weights[i].scalar_type(),
                "; without master weights it and its moments must be bfloat16");
    TORCH_CHECK(mean == kind && square == kind && (kind == at::kByte) == !s.exponents.empty(),
                "adamw: the moments of weight ", i, " have another dtype than those of weight 0");
    if (!s.exponents.empty())
      check_moment8(s.means[i], s.exponents[i]);
  }
}

void adamw(OptimizerStep s) {
  check_moments(s);
  check_step("adamw", s, s.means);
  check_step("adamw", s, s.squares);
  const Device *device = device_for(s.weights[0]);
  if (device && device->limits.small_moments) {
    match_gradients(s);
    device->adamw(s);
    return;
  }
  TORCH_CHECK(s.master.empty() || s.means[0].scalar_type() == at::kFloat,
              "adamw: with float32 master weights, moments smaller than float32 need the CPU");
  if (device && device->adamw && fits(*device, s)) {
    if (s.weights[0].scalar_type() == at::kFloat)
      s.master.clear(); // a float32 weight is its own master
    device->adamw(s);
  } else if (s.master.empty())
    adamw_stochastic_reference(s);
  else
    adamw_reference(s);
}

void lion(OptimizerStep s) {
  check_step("lion", s, s.means);
  const Device *device = s.weights.empty() ? nullptr : device_for(s.weights[0]);
  if (!device || !device->lion)
    return lion_reference(s);
  match_gradients(s);
  device->lion(s);
}

double global_norm(const std::vector<at::Tensor> &tensors) {
  if (tensors.empty())
    return 0;
  const Device *device = device_for(tensors[0]);
  if (!device || !device->sum_of_squares)
    return at::linalg_vector_norm(at::stack(at::_foreach_norm(tensors, 2, at::kFloat)))
        .item<double>();
  return std::sqrt(device->sum_of_squares(tensors));
}

int lion_step(void (*step)(OptimizerStep), const cq_parameter *parameters, int n, double scale,
              double rate, double beta1, double beta2) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    OptimizerStep s = step_of(parameters, n);
    s.scale = scale, s.rate = rate, s.beta1 = beta1, s.beta2 = beta2;
    step(std::move(s));
    return 0;
  });
}

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_adamw(const cq_parameter *parameters, int n, const cq_adamw_options *o) {
  return guarded([&] {
    if (n == 0)
      return 0;
    at::NoGradGuard no_grad;
    ops::OptimizerStep s = ops::step_of(parameters, n);
    s.step = o->step, s.scale = o->scale, s.rate = o->rate, s.beta1 = o->beta1, s.beta2 = o->beta2,
    s.eps = o->eps;
    s.seed = o->seed;
    ops::adamw(std::move(s));
    return 0;
  });
}

int cq_lion(const cq_parameter *parameters, int n, double scale, double rate, double beta1,
            double beta2) {
  return ops::lion_step(ops::lion, parameters, n, scale, rate, beta1, beta2);
}

int cq_lion_reference(const cq_parameter *parameters, int n, double scale, double rate,
                      double beta1, double beta2) {
  return ops::lion_step([](ops::OptimizerStep s) { ops::lion_reference(s); }, parameters, n, scale,
                        rate, beta1, beta2);
}

int cq_global_norm(const cq_tensor *tensors, int n, double *out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    *out = ops::global_norm(tensors_of(tensors, n));
    return 0;
  });
}
