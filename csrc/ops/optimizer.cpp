// optimizer.cpp: cq_adamw, cq_lion and cq_global_norm.
#include "operators.h"

#include <cmath>
#include <numeric>

namespace conquer::ops {

namespace {

// Rounds `wide` up or down to bfloat16 with the probabilities that keep the mean.
void round_stochastically(const at::Tensor &into, const at::Tensor &wide) {
  at::Tensor bits = wide.contiguous().view(at::kInt);
  into.copy_((bits + at::randint(0, 1 << 16, bits.sizes(), bits.options()))
                 .bitwise_and(~0xFFFF)
                 .view(at::kFloat));
}

// AdamW in plain libtorch, one parameter after the other.
void adamw_reference(const OptimizerStep &s) {
  const double correction1 = 1 - std::pow(s.beta1, s.step),
               correction2 = std::sqrt(1 - std::pow(s.beta2, s.step));
  for (size_t i = 0; i < s.weights.size(); i++) {
    const at::Tensor &weight = s.weights[i];
    const bool eight_bits = !s.exponents.empty(), has_master = !s.master.empty();
    auto moment = [&](const at::Tensor &t, int which) {
      return eight_bits ? unpacked_moment(t, s.exponents[i], which) : t.to(at::kFloat);
    };
    auto store = [&](const at::Tensor &value, const at::Tensor &into, int which) {
      if (eight_bits)
        pack_moment(value, into, s.exponents[i], which, /*stochastic=*/true);
      else if (into.scalar_type() == at::kBFloat16)
        round_stochastically(into, value);
      else
        into.copy_(value);
    };
    const at::Tensor g = s.gradients[i].to(at::kFloat) * s.scale;
    const at::Tensor m = moment(s.means[i], 0) * s.beta1 + g * (1 - s.beta1),
                     v = moment(s.squares[i], 1) * s.beta2 + g * g * (1 - s.beta2);
    at::Tensor w = (has_master ? s.master[i] : weight.to(at::kFloat)) * (1 - s.rate * s.decays[i]);
    w = w - (m * (s.rate / correction1)) / (v.sqrt() / correction2 + s.eps);
    store(m, s.means[i], 0);
    store(v, s.squares[i], 1);
    if (has_master)
      s.master[i].copy_(w);
    if (has_master || weight.scalar_type() == at::kFloat)
      weight.copy_(w);
    else
      round_stochastically(weight, w);
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

// Whether a device's kernel takes parameter i beside others with weights of a type.
bool fits(const Device &device, const OptimizerStep &s, size_t i, at::ScalarType type) {
  const auto multiple = device.limits.width_multiple;
  auto usable = [&](const at::Tensor &t) {
    return t.is_contiguous() && t.numel() % multiple == 0 && device_for(t) == &device;
  };
  auto aligned = [](const at::Tensor &t) { // codes of 8 bits, which no other kernel reads
    return t.is_contiguous() && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  };
  const bool eight_bits = !s.exponents.empty();
  return s.weights[i].scalar_type() == type && s.gradients[i].scalar_type() == type &&
         usable(s.weights[i]) && usable(s.gradients[i]) &&
         (eight_bits ? aligned(s.means[i]) && aligned(s.squares[i])
                     : usable(s.means[i]) && usable(s.squares[i]));
}

// A step over some of the parameters.
OptimizerStep some_of(const OptimizerStep &s, const std::vector<size_t> &which) {
  OptimizerStep part = s;
  auto choose = [&](auto &into, const auto &from) {
    into.clear();
    for (size_t i : which)
      if (!from.empty())
        into.push_back(from[i]);
  };
  choose(part.weights, s.weights), choose(part.master, s.master);
  choose(part.gradients, s.gradients), choose(part.means, s.means);
  choose(part.squares, s.squares), choose(part.exponents, s.exponents);
  choose(part.decays, s.decays), choose(part.keys, s.keys);
  return part;
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
    TORCH_CHECK(!s.master.empty() ||
                    (s.weights[i].scalar_type() == at::kBFloat16 && mean != at::kFloat),
                "adamw: weight ", i, " is ", s.weights[i].scalar_type(), " with moments in ", mean,
                "; without master weights it must be bfloat16, and its moments smaller than "
                "float32");
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
  for (size_t i = 0; i < s.weights.size(); i++)
    s.keys.push_back(rounding_key(s.seed, s.step, i));
  const Device *device = device_for(s.weights[0]);
  if (device && device->limits.any_parameter) {
    match_gradients(s);
    device->adamw(s);
    return;
  }
  std::vector<size_t> rest(s.weights.size());
  std::iota(rest.begin(), rest.end(), 0);
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    std::vector<size_t> fitting, others;
    for (size_t i : rest)
      (device && device->adamw && fits(*device, s, i, type) ? fitting : others).push_back(i);
    rest = others;
    if (fitting.empty())
      continue;
    OptimizerStep part = some_of(s, fitting);
    if (type == at::kFloat)
      part.master.clear(); // a float32 weight is its own master
    device->adamw(part);
  }
  adamw_reference(some_of(s, rest));
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
