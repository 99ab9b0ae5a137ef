// harness.h: shared by the kernel checks and timings.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "../conquer.h"

inline int failures = 0;

// A tensor argument of a C function; NULL if undefined.
struct Arg {
  at::Tensor t;
  operator cq_tensor() { return t.defined() ? &t : nullptr; }
};

// Calls a C function that returns n tensors through trailing out pointers.
template <class F> std::vector<at::Tensor> call(int n, F f) {
  cq_scope_open();
  cq_tensor out[4] = {};
  std::vector<at::Tensor> result;
  if (f(out)) {
    std::printf("FAIL %s\n", cq_last_error());
    failures++;
    result.resize(n);
  } else
    for (int i = 0; i < n; i++)
      result.push_back(out[i] ? *static_cast<at::Tensor *>(out[i]) : at::Tensor());
  cq_scope_close();
  return result;
}

// The largest difference relative to the largest element of `want`.
inline double difference(const at::Tensor &got, const at::Tensor &want) {
  if (!got.defined() || !want.defined() || got.sizes() != want.sizes())
    return 1e30;
  if (got.numel() == 0)
    return 0;
  auto a = got.detach().to(at::kDouble), b = want.detach().to(at::kDouble);
  double scale = b.abs().max().item<double>();
  return (a - b).abs().max().item<double>() / (scale > 0 ? scale : 1);
}

inline double worst = 0;
inline void check(const std::string &what, const at::Tensor &got, const at::Tensor &want,
                  double tolerance) {
  double d = difference(got, want);
  worst = std::max(worst, d);
  if (!(d <= tolerance)) {
    std::printf("FAIL %s: differs by %.3g, at most %.3g allowed\n", what.c_str(), d, tolerance);
    failures++;
  }
}
inline void report(const char *family) {
  std::printf("%-28s largest relative difference %.3g\n", family, worst);
  worst = 0;
}

// Times functions in turn, so that other load on the machine affects all alike. Returns the best of
// `rounds` for each, in milliseconds.
inline std::vector<double> race(int rounds, std::vector<std::function<void()>> fs) {
  std::vector<double> best(fs.size(), 1e30);
  for (int r = 0; r < rounds; r++)
    for (size_t i = 0; i < fs.size(); i++) {
      auto start = std::chrono::steady_clock::now();
      fs[i]();
      best[i] = std::min(best[i], std::chrono::duration<double, std::milli>(
                                      std::chrono::steady_clock::now() - start)
                                      .count());
    }
  return best;
}
