// adamw.h: checks cq_adamw on a device against float64, with every kind of state.
#pragma once

#include "harness.h"

#include <cmath>

// How moments are stored.
enum class Moments { Float32, BFloat16, EightBits };

// A parameter with its state after some steps. The lengths make the last block of 8-bit moments
// incomplete, or are no multiple of what a device's kernel takes.
struct Parameter {
  at::Tensor weight, master, gradient, mean, square, exponents;

  Parameter(int64_t n, at::ScalarType type, bool has_master, Moments moments, at::Device device) {
    auto normal = [&] { return at::randn({n}).to(device); };
    // Values over some octaves, in blocks of different sizes.
    const at::Tensor block = at::arange(n, at::kFloat).div(256, "floor").to(device),
                     size = at::exp(normal() - block.remainder(8));
    weight = normal().to(type), gradient = (normal() * 0.1 * size).to(type);
    if (has_master) // a float32 weight is its own master
      master = type == at::kFloat ? weight : weight.to(at::kFloat) + 0.001 * normal();
    const at::Tensor m = normal() * 0.1 * size, v = 0.01 * size * size;
    if (moments == Moments::EightBits) {
      mean = at::zeros({n}, weight.options().dtype(at::kByte)), square = at::zeros_like(mean);
      exponents = at::zeros({2, (n + 255) / 256}, mean.options());
      for (int which : {0, 1}) {
        Arg values{which ? v : m}, codes{which ? square : mean}, e{exponents};
        if (cq_moment_pack(values, codes, e, which))
          std::printf("FAIL %s\n", cq_last_error()), failures++;
      }
    } else {
      const auto kind = moments == Moments::Float32 ? at::kFloat : at::kBFloat16;
      mean = m.to(kind), square = v.to(kind);
    }
  }

  // A moment in float64 on the CPU.
  at::Tensor moment(int which) const {
    const at::Tensor &t = which ? square : mean;
    if (!exponents.defined())
      return t.to(at::kCPU).to(at::kDouble);
    Arg codes{t}, e{exponents};
    return call(1, [&](cq_tensor *out) { return cq_moment_unpack(codes, e, which, out); })[0]
        .to(at::kCPU)
        .to(at::kDouble);
  }
};

// Values that were rounded stochastically: each is next to the exact one, and the mean of the
// errors, in units of the step between numbers, is zero within six standard deviations.
inline void check_rounded(const std::string &what, const at::Tensor &got, const at::Tensor &want,
                          const at::Tensor &step) {
  const at::Tensor error = (got - want) / step;
  const double largest = error.abs().max().item<double>(), mean = error.mean().item<double>(),
               bound = 6 * 0.5 / std::sqrt(double(error.numel())) + 1e-4;
  if (!(largest <= 1.001) || !(std::abs(mean) <= bound)) {
    std::printf("FAIL %s: off by up to %.4f steps, %.4f on average, at most 1 and %.4f allowed\n",
                what.c_str(), largest, mean, bound);
    failures++;
  }
}

// One step over several parameters, with the same kinds of state.
inline void check_adamw_kind(at::Device device, at::ScalarType type, bool has_master,
                             Moments moments) {
  std::vector<Parameter> list;
  for (int64_t n : {70'000, 4'096, 272, 77})
    list.emplace_back(n, type, has_master, moments, device);
  const cq_adamw_options o = {3, 0.5, 1e-2, 0.9, 0.95, 1e-8, 7};
  const double decay = 0.1;
  std::vector<std::vector<at::Tensor>> want; // weight, mean and square of each
  for (auto &p : list) {
    auto exact = [](const at::Tensor &t) { return t.to(at::kCPU).to(at::kDouble); };
    const at::Tensor g = exact(p.gradient) * o.scale, m = p.moment(0) * o.beta1 + g * (1 - o.beta1),
                     v = p.moment(1) * o.beta2 + g * g * (1 - o.beta2),
                     w = exact(has_master ? p.master : p.weight) * (1 - o.rate * decay) -
                         o.rate * (m / (1 - std::pow(o.beta1, o.step))) /
                             ((v / (1 - std::pow(o.beta2, o.step))).sqrt() + o.eps);
    want.push_back({w, m, v});
  }
  std::vector<Arg> args; // the step's handles point into it
  args.reserve(6 * list.size());
  auto handle = [&](const at::Tensor &t) -> cq_tensor {
    args.push_back({t});
    return args.back();
  };
  std::vector<cq_parameter> parameters;
  for (auto &p : list)
    parameters.push_back({handle(p.weight), handle(p.gradient), handle(p.master), handle(p.mean),
                          handle(p.square), handle(p.exponents), decay});
  if (cq_adamw(parameters.data(), int(parameters.size()), &o)) {
    std::printf("FAIL adamw: %s\n", cq_last_error());
    failures++;
    return;
  }
  for (size_t i = 0; i < list.size(); i++) {
    const Parameter &p = list[i];
    const std::string what = c10::str("adamw ", type, has_master ? " with" : " without",
                                      " master weights, moments ", int(moments), ", parameter ", i);
    const at::Tensor weight = p.weight.to(at::kCPU).to(at::kDouble);
    // Of bfloat16 numbers at t's size, or float32's error where terms cancel.
    auto spacing = [](const at::Tensor &t) {
      const at::Tensor size = t.abs().clamp_min(1e-30);
      return at::maximum(at::exp2(at::floor(at::log2(size)) - 7), 1e-6 * size.max());
    };
    if (has_master) {
      const at::Tensor master = p.master.to(at::kCPU);
      check(what + ": master weight", master, want[i][0], 1e-5);
      check(what + ": weight", weight, master.to(type), 0);
    } else
      check_rounded(what + ": weight", weight, want[i][0], spacing(want[i][0]) * 1.01);
    for (int which : {0, 1}) {
      const at::Tensor got = p.moment(which), exact = want[i][1 + which];
      const std::string moment = what + (which ? ": square" : ": mean");
      if (moments == Moments::Float32)
        check(moment, got, exact, 1e-5);
      else if (moments == Moments::BFloat16)
        check_rounded(moment, got, exact, spacing(exact) * 1.01);
      else { // 3 bits of mantissa, and a smallest number for each block
        const int64_t n = exact.numel();
        const at::Tensor blocks = at::constant_pad_nd(exact.abs(), {0, (n + 255) / 256 * 256 - n}),
                         top = blocks.view({-1, 256}).amax(1),
                         exponent = at::ceil(at::log2(top)) - (which ? 31 : 15),
                         least = 1.125 * at::exp2(exponent).repeat_interleave(256).narrow(0, 0, n);
        const at::Tensor octave = at::exp2(at::floor(at::log2(exact.abs().clamp_min(1e-30))) - 3);
        check_rounded(moment, got, exact, at::maximum(octave, least) * 1.01);
      }
    }
  }
}

inline void check_adamw(at::Device device) {
  at::NoGradGuard no_grad;
  for (auto moments : {Moments::Float32, Moments::BFloat16, Moments::EightBits}) {
    check_adamw_kind(device, at::kFloat, true, moments);
    check_adamw_kind(device, at::kBFloat16, true, moments);
    if (moments != Moments::Float32)
      check_adamw_kind(device, at::kBFloat16, false, moments);
  }
}
