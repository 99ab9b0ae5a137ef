// Holds each CPU kernel against its libtorch reference over dtypes and edge sizes, and (with `time`) races the two.
//   csrc_test [check|time] [family]
#include <cstring>

#include "harness.h"

namespace {

const std::vector<at::ScalarType> types = {at::kFloat, at::kBFloat16, at::kHalf};

double tolerance(at::ScalarType type, double f32 = 2e-5) {
  return type == at::kFloat ? f32 : type == at::kBFloat16 ? 1.6e-2 : 2e-3;
}

at::Tensor our_linear(at::Tensor x, at::Tensor w, at::Tensor b = {}) {
  return call(1, [&](cq_tensor *out) { return cq_linear(Arg{x}, Arg{w}, Arg{b}, out); })[0];
}

void check_linear() {
  at::NoGradGuard no_grad;
  for (auto type : types)
    for (int64_t n : {1, 2, 3, 5, 8, 9})
      for (auto [rows, depth] : std::vector<std::pair<int64_t, int64_t>>{{960, 576}, {577, 1536}, {5, 7}, {1, 1}, {33, 100}})
        for (bool bias : {false, true}) {
          auto x = at::randn({n, depth}).to(type), w = (at::randn({rows, depth}) / std::sqrt(double(depth))).to(type);
          auto b = bias ? at::randn({rows}).to(type) : at::Tensor();
          auto want = at::linear(x.to(at::kFloat), w.to(at::kFloat), bias ? b.to(at::kFloat) : b);
          check("linear", our_linear(x, w, b), want, tolerance(type) / 2);
        }
  report("linear");
}

void time_linear() {
  at::NoGradGuard no_grad;
  for (auto type : {at::kFloat, at::kBFloat16})
    for (int64_t n : {1, 2, 4, 8, 12, 16})
      for (auto [rows, depth] : std::vector<std::pair<int64_t, int64_t>>{{960, 576}, {3072, 576}, {576, 1536}, {49152, 576}}) {
        // Enough copies that none is still in a cache when its turn comes.
        int copies = std::max<int64_t>(1, 160'000'000 / (rows * depth * 4));
        std::vector<at::Tensor> ws;
        for (int i = 0; i < copies; i++)
          ws.push_back((at::randn({rows, depth}) / 24).to(type));
        auto x = at::randn({n, depth}).to(type);
        auto t = race(5, {[&] { for (auto &w : ws) our_linear(x, w); }, [&] { for (auto &w : ws) at::linear(x, w); }});
        double bytes = double(copies) * rows * depth * c10::elementSize(type);
        std::printf("%-9s n=%2ld %6ldx%4ld  %8.1f us %6.1f GB/s   at::linear %8.1f us  %5.2fx\n", c10::toString(type), n, rows,
                    depth, t[0] / copies * 1e3, bytes / t[0] / 1e6, t[1] / copies * 1e3, t[1] / t[0]);
      }
}

struct Family {
  const char *name;
  void (*check)(), (*time)();
};
const Family families[] = {
    {"linear", check_linear, time_linear},
};

} // namespace

int main(int argc, char **argv) {
  bool timing = argc > 1 && !std::strcmp(argv[1], "time");
  at::manual_seed(1);
  for (auto &family : families)
    if (argc <= 2 || !std::strcmp(argv[2], family.name)) {
      if (timing && family.time)
        family.time();
      else if (!timing)
        family.check();
    }
  if (failures)
    std::printf("%d failures\n", failures);
  return failures != 0;
}
