// kernels_test.cpp: compares each CPU kernel with its libtorch reference over dtypes and edge
// sizes, and with `time` measures both.
//   csrc_test [check|time] [family]
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include <torch/csrc/autograd/autograd.h>

#include "../cpu/threads.h"
#include "adamw.h"

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
    for (int64_t n : {1, 2, 3, 5, 8, 9, 16, 17})
      for (auto [rows, depth] : std::vector<std::pair<int64_t, int64_t>>{
               {960, 576}, {577, 1536}, {5, 7}, {1, 1}, {33, 100}})
        for (bool bias : {false, true}) {
          auto x = at::randn({n, depth}).to(type),
               w = (at::randn({rows, depth}) / std::sqrt(double(depth))).to(type);
          auto b = bias ? at::randn({rows}).to(type) : at::Tensor();
          auto want = at::linear(x.to(at::kFloat), w.to(at::kFloat), bias ? b.to(at::kFloat) : b);
          check("linear", our_linear(x, w, b), want, tolerance(type) / 2);
        }
  report("linear");
}

void time_linear() {
  at::NoGradGuard no_grad;
  for (auto type : {at::kFloat, at::kBFloat16})
    for (int64_t n : {1, 4, 8, 16})
      for (auto [rows, depth] : std::vector<std::pair<int64_t, int64_t>>{
               {960, 576}, {3072, 576}, {576, 1536}, {49152, 576}}) {
        // Enough copies that none stays in a cache.
        int copies = std::max<int64_t>(1, 80'000'000 / (rows * depth * 4));
        std::vector<at::Tensor> ws;
        for (int i = 0; i < copies; i++)
          ws.push_back((at::randn({rows, depth}) / 24).to(type));
        auto x = at::randn({n, depth}).to(type);
        auto t = race(5, {[&] {
                            for (auto &w : ws)
                              our_linear(x, w);
                          },
                          [&] {
                            for (auto &w : ws)
                              at::linear(x, w);
                          }});
        double bytes = double(copies) * rows * depth * c10::elementSize(type);
        std::printf("%-9s n=%2ld %6ldx%4ld  %8.1f us %6.1f GB/s   at::linear %8.1f us  %5.2fx\n",
                    c10::toString(type), n, rows, depth, t[0] / copies * 1e3, bytes / t[0] / 1e6,
                    t[1] / copies * 1e3, t[1] / t[0]);
      }
}

// Compares the results and all gradients of a kernel and its reference on the same inputs. If
// `wide`, the reference runs in float32 on the same (rounded) inputs, so that it does not round
// itself.
using Op = std::function<std::vector<at::Tensor>(std::vector<at::Tensor> &)>;
void check_op(const std::string &what, std::vector<at::Tensor> inputs, Op ours, Op reference,
              double tol, bool wide = false, size_t differentiable = 100) {
  auto leaves = [&](bool widen) {
    std::vector<at::Tensor> result;
    for (size_t i = 0; i < inputs.size(); i++) {
      at::Tensor t = inputs[i].detach().clone(at::MemoryFormat::Preserve);
      if (widen && at::isFloatingType(t.scalar_type()))
        t = t.to(at::kFloat);
      if (i < differentiable)
        t.requires_grad_(true);
      result.push_back(t);
    }
    return result;
  };
  auto a = leaves(false), b = leaves(wide);
  auto got = ours(a), want = reference(b);
  std::vector<at::Tensor> plain;
  {
    at::NoGradGuard no_grad;
    plain = ours(a);
  }
  std::vector<at::Tensor> seeds, wide_seeds;
  for (size_t i = 0; i < want.size(); i++) {
    check(what + " result " + std::to_string(i), got[i], want[i], tol);
    check(what + " result without grad " + std::to_string(i), plain[i], got[i], 0);
    seeds.push_back(at::randn_like(got[i]));
    wide_seeds.push_back(seeds.back().to(want[i].scalar_type()));
  }
  torch::autograd::backward(got, seeds);
  torch::autograd::backward(want, wide_seeds);
  for (size_t i = 0; i < a.size() && i < differentiable; i++)
    check(what + " gradient " + std::to_string(i), a[i].grad(), b[i].grad(), tol);
}

void check_norm() {
  for (auto type : types)
    for (auto shape :
         std::vector<std::vector<int64_t>>{{1, 1, 576}, {2, 37, 576}, {3, 5}, {1, 3}, {200, 100}}) {
      auto x = at::randn(shape).to(type), w = (at::randn({shape.back()}) * 0.2 + 1).to(type);
      check_op(
          "rms_norm", {x, w},
          [](auto &in) {
            return call(1,
                        [&](cq_tensor *o) { return cq_rms_norm(Arg{in[0]}, Arg{in[1]}, 1e-5, o); });
          },
          [](auto &in) {
            return call(1, [&](cq_tensor *o) {
              return cq_rms_norm_reference(Arg{in[0]}, Arg{in[1]}, 1e-5, o);
            });
          },
          tolerance(type), true);
      at::NoGradGuard no_grad;
      // Rounds as the reference does, except where the last bit of the mean differs.
      auto got = call(1, [&](cq_tensor *o) { return cq_rms_norm(Arg{x}, Arg{w}, 1e-5, o); })[0];
      auto want =
          call(1, [&](cq_tensor *o) { return cq_rms_norm_reference(Arg{x}, Arg{w}, 1e-5, o); })[0];
      double same = at::eq(got, want).to(at::kFloat).mean().item<double>();
      if (type != at::kFloat && same < 0.99) {
        std::printf("FAIL rms_norm rounding: %.4f of the elements equal\n", same);
        failures++;
      }
    }
  report("rms_norm");
}

void check_swiglu() {
  for (auto type : types)
    for (auto shape : std::vector<std::vector<int64_t>>{
             {1, 1, 3072}, {2, 37, 3072}, {3, 10}, {1, 2}, {200, 100}}) {
      auto x = (at::randn(shape) * 4).to(type);
      auto reference = [](auto &in) {
        return call(1, [&](cq_tensor *o) { return cq_swiglu_reference(Arg{in[0]}, o); });
      };
      auto ours = [](auto &in) {
        return call(1, [&](cq_tensor *o) { return cq_swiglu(Arg{in[0]}, o); });
      };
      check_op("swiglu", {x}, ours, reference, tolerance(type), true);
      std::vector<at::Tensor> in{x};
      double same =
          at::eq(ours(in)[0], reference(in)[0]).to(at::kFloat).mean().template item<double>();
      if (type != at::kFloat && same < 0.99) {
        std::printf("FAIL swiglu rounding: %.4f of the elements equal\n", same);
        failures++;
      }
    }
  auto extreme = at::tensor({-1e30f, -200.f, -88.f, 0.f, 88.f, 200.f, 1e30f, -0.f, 1.f, 1.f, 1.f,
                             1.f, 1.f, 1.f, 1.f, 1.f});
  check("swiglu of extremes", call(1, [&](cq_tensor *o) { return cq_swiglu(Arg{extreme}, o); })[0],
        call(1, [&](cq_tensor *o) { return cq_swiglu_reference(Arg{extreme}, o); })[0], 1e-6);
  report("swiglu");
}

void check_rope() {
  for (auto type : types)
    for (int64_t B : {1, 2})
      for (int64_t L : {1, 5, 33})
        for (auto [H, K, P, R] : std::vector<std::array<int64_t, 4>>{
                 {9, 3, 64, 64}, {4, 4, 64, 32}, {2, 1, 10, 6}, {2, 1, 128, 128}})
          for (int64_t TB : {int64_t(1), B}) {
            auto angle = at::rand({TB, L, R / 2}) * 6;
            auto cos = angle.cos(), sin = angle.sin();
            auto qkv = at::randn({B, L, (H + 2 * K) * P}).to(type);
            check_op(
                "rope_qkv", {qkv},
                [&, H = H, K = K](auto &in) {
                  return call(3, [&](cq_tensor *o) {
                    return cq_rope_qkv(Arg{in[0]}, H, K, Arg{cos}, Arg{sin}, o, o + 1, o + 2);
                  });
                },
                [&, H = H, K = K](auto &in) {
                  return call(3, [&](cq_tensor *o) {
                    return cq_rope_qkv_reference(Arg{in[0]}, H, K, Arg{cos}, Arg{sin}, o, o + 1,
                                                 o + 2);
                  });
                },
                tolerance(type, 1e-6) / 2, true);
          }
  report("rope, rope_qkv");
}

void check_decode_attention() {
  at::NoGradGuard no_grad;
  for (auto type : types)
    for (auto [B, H, K, P, S] : std::vector<std::array<int64_t, 5>>{{1, 9, 3, 64, 700},
                                                                    {1, 1, 1, 64, 5000},
                                                                    {3, 10, 2, 40, 130},
                                                                    {2, 32, 8, 128, 65},
                                                                    {1, 8, 1, 7, 3},
                                                                    {4, 2, 2, 16, 1}})
      for (bool from : {false, true}) {
        auto qkv = at::randn({B, 1, (H + 2 * K) * P}).to(type),
             k = at::randn({B, K, S, P}).to(type), v = at::randn({B, K, S, P}).to(type);
        auto lengths = at::randint(1, S + 1, {B}, at::kLong);
        auto starts =
            from ? at::minimum(at::randint(0, S, {B}, at::kLong), lengths - 1) : at::Tensor();
        auto angles = at::rand({from ? B : 1, 1, P / 2}) * 6, cos = angles.cos(),
             sin = angles.sin();
        auto wide_k = k.to(at::kFloat, false, true), wide_v = v.to(at::kFloat, false, true);
        auto got = call(1, [&, H = H](cq_tensor *o) {
          Arg aq{qkv}, ac{cos}, as{sin}, ak{k}, av{v}, al{lengths}, af{starts};
          cq_decode in = {aq, H, ac, as, ak, av, al, af, 0.125};
          return cq_decode_attention(&in, o);
        })[0];
        auto want = call(1, [&, H = H](cq_tensor *o) {
          Arg aq{qkv.to(at::kFloat)}, ac{cos}, as{sin}, ak{wide_k}, av{wide_v}, al{lengths},
              af{starts};
          cq_decode in = {aq, H, ac, as, ak, av, al, af, 0.125};
          return cq_decode_attention_reference(&in, o);
        })[0];
        check("decode_attention", got, want, tolerance(type) / 2);
        for (int64_t b = 0; b < B; b++) { // a sequence's result does not depend on the others
          auto row = [&](const at::Tensor &t) {
            return !t.defined() || t.size(0) == 1 ? t : t.narrow(0, b, 1).contiguous();
          };
          auto alone = call(1, [&, H = H](cq_tensor *o) {
            Arg aq{row(qkv)}, ac{row(cos)}, as{row(sin)}, ak{row(k)}, av{row(v)}, al{row(lengths)},
                af{row(starts)};
            cq_decode in = {aq, H, ac, as, ak, av, al, af, 0.125};
            return cq_decode_attention(&in, o);
          })[0];
          check("decode_attention of one sequence", alone, got.narrow(0, b, 1), 0);
        }
        check("decode_attention's keys", k, wide_k, tolerance(type) / 2);
        check("decode_attention's values", v, wide_v, 0);

        int64_t L = std::min<int64_t>(S, 5);
        auto fresh = at::randn({B, L, K, P}).to(type).transpose(1, 2);
        auto positions = at::rand({from ? B : 1, S}).argsort(int64_t(1)).narrow(1, 0, L);
        auto a = k.clone(), b = k.clone();
        cq_cache_write(Arg{a}, Arg{fresh}, Arg{positions});
        cq_cache_write_reference(Arg{b}, Arg{fresh}, Arg{positions});
        check("cache_write", a, b, 0);
      }
  report("decode_attention, cache_write");
}

void time_decode_attention() {
  at::NoGradGuard no_grad;
  for (auto type : {at::kFloat, at::kBFloat16})
    for (int64_t n : {50, 200, 1000, 4000}) {
      std::vector<at::Tensor> ks, vs; // of thirty layers
      for (int i = 0; i < 30; i++) {
        ks.push_back(at::randn({1, 3, 4096, 64}).to(type));
        vs.push_back(at::randn({1, 3, 4096, 64}).to(type));
      }
      auto q = at::randn({1, 9, 1, 64}).to(type), qkv = at::randn({1, 1, 15 * 64}).to(type),
           lengths = at::full({1}, n, at::kLong), cos = at::ones({1, 1, 32}),
           sin = at::zeros({1, 1, 32});
      auto t = race(20, {[&] {
                           for (int i = 0; i < 30; i++)
                             call(1, [&](cq_tensor *o) {
                               Arg aq{qkv}, ac{cos}, as{sin}, ak{ks[i]}, av{vs[i]}, al{lengths};
                               cq_decode in = {aq, 9, ac, as, ak, av, al, nullptr, 0.125};
                               return cq_decode_attention(&in, o);
                             });
                         },
                         [&] {
                           for (int i = 0; i < 30; i++)
                             at::scaled_dot_product_attention(q, ks[i].narrow(2, 0, n),
                                                              vs[i].narrow(2, 0, n), {}, 0, false,
                                                              0.125, true);
                         }});
      std::printf("%-9s attention to %4ld positions %7.1f us %6.1f GB/s, sdpa %7.1f us %5.2fx\n",
                  c10::toString(type), n, t[0] / 30 * 1e3,
                  2. * 3 * n * 64 * c10::elementSize(type) * 30 / t[0] / 1e6, t[1] / 30 * 1e3,
                  t[1] / t[0]);
    }
}

// Grouped heads, masks of every broadcastable shape (including rows that see no key), lengths that
// do not fill a block.
void check_sdpa() {
  auto draw = [](int64_t low, int64_t high) {
    return at::randint(low, high + 1, {1}).item<int64_t>();
  };
  for (auto type : types)
    for (int i = 0; i < 24; i++) {
      const int64_t B = draw(1, 2), K = draw(1, 3), H = K * draw(1, 3), L = draw(1, 230),
                    P = 16 * draw(1, 8), S = i % 3 ? L : draw(1, 300);
      auto rows = [&](int64_t heads, int64_t n) {
        return at::randn({B, n, heads, P}).to(type).transpose(1, 2);
      };
      const bool causal = i % 2 == 0;
      at::Tensor mask;
      if (i % 4 == 3)
        mask = at::rand({draw(0, 1) ? B : 1, draw(0, 1) ? H : 1, L, S}) < 0.1;
      else if (i % 4 == 1 && L == S) { // packed samples
        auto sample = at::arange(S).div(100, "floor");
        mask = (sample.unsqueeze(1) == sample).tril();
      }
      check_op(
          "attention", {rows(H, L), rows(K, S), rows(K, S)},
          [&](auto &in) {
            return call(1, [&](cq_tensor *o) {
              return cq_sdpa(Arg{in[0]}, Arg{in[1]}, Arg{in[2]}, Arg{mask}, 0, causal, 0, o);
            });
          },
          [&](auto &in) -> std::vector<at::Tensor> {
            auto q = in[0].to(at::kDouble), k = in[1].to(at::kDouble).repeat_interleave(H / K, 1),
                 v = in[2].to(at::kDouble).repeat_interleave(H / K, 1);
            auto scores = q.matmul(k.transpose(-1, -2)) / std::sqrt(double(P));
            auto hidden = at::zeros({L, S}, at::kBool);
            if (causal)
              hidden = at::ones({L, S}, at::kBool).triu(1);
            if (mask.defined())
              hidden = hidden | ~mask;
            auto weights = scores.masked_fill(hidden, -1e300).softmax(-1).masked_fill(hidden, 0);
            return {weights.matmul(v).to(in[0].scalar_type())};
          },
          tolerance(type), true);
    }
  report("attention");
}

void time_sdpa() {
  for (auto type : {at::kFloat, at::kBFloat16})
    for (int64_t L : {256, 512, 2048}) {
      auto rows = [&](int64_t heads) {
        return at::randn({1, L, heads, 64}).to(type).transpose(1, 2).requires_grad_();
      };
      auto q = rows(9), k = rows(3), v = rows(3), dy = at::randn({1, 9, L, 64}).to(type);
      auto run = [&](bool ours, bool backward) {
        at::AutoGradMode mode(backward);
        auto y = ours ? call(1,
                             [&](cq_tensor *o) {
                               return cq_sdpa(Arg{q}, Arg{k}, Arg{v}, nullptr, 0, 1, 0, o);
                             })[0]
                      : at::scaled_dot_product_attention(q, k, v, {}, 0, true, {}, true);
        if (backward)
          torch::autograd::backward({y}, {dy});
      };
      auto t = race(5, {[&] { run(true, false); }, [&] { run(false, false); },
                        [&] { run(true, true); }, [&] { run(false, true); }});
      std::printf("%-9s causal attention of %4ld %7.2f ms, libtorch %7.2f ms %5.2fx; with backward "
                  "%7.2f, %7.2f %5.2fx\n",
                  c10::toString(type), L, t[0], t[1], t[1] / t[0], t[2], t[3], t[3] / t[2]);
    }
}

void check_linear_many() {
  for (auto type : types)
    for (auto [n, rows, depth] : std::vector<std::array<int64_t, 3>>{
             {40, 96, 64}, {512, 33, 100}, {9, 5, 7}, {10, 1, 1}, {9, 17'000, 1'000}})
      for (bool bias : {false, true}) {
        if (bias && rows > 10'000) // large enough to be widened in parts; once is enough
          continue;
        std::vector<at::Tensor> in = {
            at::randn({2, n, depth}).to(type),
            (at::randn({rows, depth}) / std::sqrt(double(depth))).to(type)};
        if (bias)
          in.push_back(at::randn({rows}).to(type));
        auto get = [](auto &in) { return in.size() > 2 ? in[2] : at::Tensor(); };
        check_op(
            "linear of many rows", in,
            [&](auto &in) {
              return call(1, [&](cq_tensor *o) {
                return cq_linear(Arg{in[0]}, Arg{in[1]}, Arg{get(in)}, o);
              });
            },
            [&](auto &in) {
              return call(1, [&](cq_tensor *o) {
                return cq_linear_reference(Arg{in[0]}, Arg{in[1]}, Arg{get(in)}, o);
              });
            },
            tolerance(type), true);
      }
  report("linear of many rows");
  for (auto type : types) {
    std::vector<at::Tensor> in = {at::randn({70, 33}).to(type), at::randn({33, 20}).to(type),
                                  at::randn({70, 20}).to(type)};
    check_op(
        "matmul", {in[0], in[1]},
        [](auto &in) {
          return call(1, [&](cq_tensor *o) { return cq_matmul(Arg{in[0]}, Arg{in[1]}, o); });
        },
        [](auto &in) { return std::vector<at::Tensor>{at::matmul(in[0], in[1])}; },
        4 * tolerance(type), true);
    check_op(
        "matmul added", in,
        [](auto &in) {
          at::Tensor sum = in[2] * 1;
          if (cq_add_matmul(Arg{sum}, Arg{in[0]}, Arg{in[1]}))
            std::printf("FAIL %s\n", cq_last_error()), failures++;
          return std::vector<at::Tensor>{sum};
        },
        [](auto &in) { return std::vector<at::Tensor>{in[2] + at::matmul(in[0], in[1])}; },
        4 * tolerance(type), true);
  }
  report("matmul");
}

void time_linear_many() {
  for (auto type : {at::kFloat, at::kBFloat16})
    for (auto [rows, depth] :
         std::vector<std::pair<int64_t, int64_t>>{{960, 576}, {3072, 576}, {576, 1536}}) {
      auto x = at::randn({512, depth}).to(type).requires_grad_(),
           w = at::randn({rows, depth}).to(type).requires_grad_(),
           dy = at::randn({512, rows}).to(type);
      auto run = [&](bool ours) {
        auto y =
            ours ? call(1, [&](cq_tensor *o) { return cq_linear(Arg{x}, Arg{w}, nullptr, o); })[0]
                 : at::linear(x, w);
        torch::autograd::grad({y}, {x, w}, {dy});
      };
      auto t = race(8, {[&] { run(true); }, [&] { run(false); }});
      const double flops = 6. * 512 * rows * depth;
      std::printf("%-9s 512 rows by %ldx%ld with gradients %7.2f ms %4.0f GFLOP/s, at::linear "
                  "%7.2f ms %4.0f %5.2fx\n",
                  c10::toString(type), rows, depth, t[0], flops / t[0] / 1e6, t[1],
                  flops / t[1] / 1e6, t[1] / t[0]);
    }
}

using HeadFunction = int (*)(cq_tensor, cq_tensor, cq_tensor, cq_tensor, const cq_loss *,
                             cq_tensor *, cq_tensor *);

void check_cross_entropy() {
  for (auto type : types)
    for (auto [N, D, V] : std::vector<std::array<int64_t, 3>>{
             {1, 16, 33}, {40, 64, 1000}, {7, 3, 5}, {1500, 8, 70}, {70, 8, 200'000}})
      for (double divisor : {0., 37.})
        for (double ignore : {0., 0.4, 1.}) {
          auto hidden = at::randn({N, D}).to(type),
               weight = (at::randn({V, D}) / std::sqrt(double(D)) * 2).to(type);
          auto labels = at::randint(0, V, {N}, at::kLong);
          labels.masked_fill_(at::rand({N}) < ignore, -100);
          const bool penalized = at::rand({}).item<double>() < 0.5,
                     weighted = at::rand({}).item<double>() < 0.5;
          const cq_loss loss{divisor, penalized ? 0.1 : 0, penalized ? 0.01 : 0};
          const at::Tensor by = weighted ? at::rand({N}) + 0.1 : at::Tensor();
          auto run = [&](HeadFunction f, bool wide, bool train_weight) {
            auto kind =
                wide ? at::kDouble : type; // float32 sums of 200,000 terms depend on their order
            auto h = hidden.to(kind).clone().requires_grad_(true),
                 w = weight.to(kind).clone().requires_grad_(train_weight);
            auto out = call(2, [&](cq_tensor *o) {
              return f(Arg{h}, Arg{w}, Arg{labels}, Arg{by}, &loss, o, o + 1);
            });
            torch::autograd::backward({out[0]}, {at::full({}, 0.5)});
            return std::vector<at::Tensor>{out[0], out[1], h.grad(),
                                           train_weight ? w.grad() : at::Tensor()};
          };
          auto got = run(cq_cross_entropy_head, false, true),
               want = run(cq_cross_entropy_head_reference, true, true);
          double tol = tolerance(type, 1e-5);
          const char *names[] = {"loss", "nll", "gradient of hidden", "gradient of weight"};
          for (int i = 0; i < 4; i++)
            check(std::string("cross_entropy_head ") + names[i], got[i], want[i],
                  i < 2 ? tol : 2 * tol);
          auto frozen = run(cq_cross_entropy_head, false, false);
          for (int i = 0; i < 3; i++)
            check(std::string("cross_entropy_head, frozen weight, ") + names[i], frozen[i], got[i],
                  0);
          at::NoGradGuard no_grad;
          auto plain = call(2, [&](cq_tensor *o) {
            return cq_cross_entropy_head(Arg{hidden}, Arg{weight}, Arg{labels}, Arg{}, &loss, o,
                                         o + 1);
          });
          check("cross_entropy_head without grad", plain[1], got[1], 0);
          // Against the float32 softmax of the same logits.
          auto same = at::cross_entropy_loss(at::mm(hidden, weight.t()).to(at::kFloat), labels, {},
                                             at::Reduction::Sum, -100);
          check("cross_entropy_head against the same logits", plain[1].sum(), same,
                type == at::kFloat ? 1e-5 : 1e-3);
        }
  report("cross_entropy_head");
}

void time_cross_entropy() {
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto hidden = at::randn({512, 576}).to(type).requires_grad_(true),
         weight = (at::randn({49152, 576}) / 24).to(type).requires_grad_(true);
    auto labels = at::randint(0, 49152, {512}, at::kLong);
    const cq_loss loss{};
    auto run = [&](HeadFunction f) {
      hidden.mutable_grad().reset();
      weight.mutable_grad().reset();
      auto out = call(2, [&](cq_tensor *o) {
        return f(Arg{hidden}, Arg{weight}, Arg{labels}, Arg{}, &loss, o, o + 1);
      });
      torch::autograd::backward({out[0]}, {});
    };
    auto t = race(
        4, {[&] { run(cq_cross_entropy_head); }, [&] { run(cq_cross_entropy_head_reference); }});
    std::printf(
        "%-9s head and loss, 512 rows, forward and backward %7.1f ms, libtorch %7.1f ms %5.2fx\n",
        c10::toString(type), t[0], t[1], t[1] / t[0]);
    at::NoGradGuard no_grad;
    auto buffer = at::empty({512, 49152}, hidden.options()),
         dw = at::empty({49152, 576}, hidden.options());
    for (int64_t n : {64, 128, 256, 512}) {
      auto x = hidden.narrow(0, 0, n);
      auto b = buffer.narrow(0, 0, n);
      auto p = race(3, {[&] { at::mm_out(b, x, weight.t()); }, [&] { at::mm(b, weight); },
                        [&] { at::mm_out(dw, b.t(), x); }, [&] { dw.addmm_(b.t(), x); }});
      std::printf("   %3ld rows, GFLOP/s: logits %.0f, hidden's gradient %.0f, weight's %.0f "
                  "(added on: %.0f)\n",
                  n, 2e-6 * n * 49152 * 576 / p[0], 2e-6 * n * 49152 * 576 / p[1],
                  2e-6 * n * 49152 * 576 / p[2], 2e-6 * n * 49152 * 576 / p[3]);
    }
  }
}

void check_embedding() {
  for (auto type : types)
    for (auto [V, D, N] :
         std::vector<std::array<int64_t, 3>>{{1000, 576, 600}, {5, 7, 40}, {50, 100, 1}})
      for (bool there : {false, true}) {
        auto weight = at::randn({V, D}).to(type), ids = at::randint(0, V, {1, N}, at::kLong),
             already = at::randn({V, D}).to(type);
        auto dy = at::randn({1, N, D}).to(type);
        auto run = [&](decltype(cq_embedding) *f, bool wide) {
          auto kind = wide ? at::kFloat : type;
          auto w = weight.to(kind).clone().requires_grad_(true);
          if (there)
            w.mutable_grad() = already.to(kind).clone();
          auto out = call(1, [&](cq_tensor *o) { return f(Arg{w}, Arg{ids}, o); });
          torch::autograd::backward(out, {dy.to(kind)});
          return std::vector<at::Tensor>{out[0], w.grad()};
        };
        auto got = run(cq_embedding, false), want = run(cq_embedding_reference, true);
        check("embedding", got[0], want[0], 0);
        check("embedding's gradient", got[1], want[1], tolerance(type, 1e-6) / 2);
      }
  report("embedding");
}

// A decode step with random weights in the shape of SmolLM2-135M: the kernels together, the time to
// read the weights alone, and the time of each kernel.
void time_decode() {
  at::NoGradGuard no_grad;
  const int64_t layers = 30, D = 576, H = 9, K = 3, P = 64, F = 1536, V = 49152, S = 1024,
                position = 200;
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto make = [&](std::vector<int64_t> shape) { return (at::randn(shape) / 24).to(type); };
    struct Layer {
      Arg norm1, qkv, o, norm2, gate_up, down, k, v;
    };
    std::vector<Layer> model;
    int64_t bytes = 0;
    for (int64_t i = 0; i < layers; i++) {
      model.push_back({{at::ones({D}).to(type)},
                       {make({(H + 2 * K) * P, D})},
                       {make({D, H * P})},
                       {at::ones({D}).to(type)},
                       {make({2 * F, D})},
                       {make({D, F})},
                       {make({1, K, S, P})},
                       {make({1, K, S, P})}});
      auto &l = model.back();
      for (auto *w : {&l.qkv, &l.o, &l.gate_up, &l.down})
        bytes += w->t.nbytes();
    }
    Arg head{make({V, D})}, norm{at::ones({D}).to(type)};
    bytes += head.t.nbytes();
    Arg cos{at::ones({1, 1, P / 2})}, sin{at::zeros({1, 1, P / 2})},
        lengths{at::full({1}, position + 1, at::kLong)}, start{make({1, 1, D})};

    // The fifth percentile over layers and rounds is the time of an undisturbed call on a shared
    // machine.
    const char *names[] = {"norms", "qkv", "attention", "o", "gate_up", "swiglu", "down", "head"};
    std::vector<std::vector<double>> spent(8);
    auto step = [&] {
      auto mark = std::chrono::steady_clock::now();
      auto lap = [&](int i) {
        auto now = std::chrono::steady_clock::now();
        spent[i].push_back(std::chrono::duration<double, std::milli>(now - mark).count());
        mark = std::chrono::steady_clock::now();
      };
      cq_scope_open();
      cq_tensor h = start, x, qkv, a;
      for (auto &l : model) {
        cq_rms_norm(h, l.norm1, 1e-5, &x), lap(0);
        cq_linear(x, l.qkv, nullptr, &qkv), lap(1);
        cq_decode in = {qkv, H, cos, sin, l.k, l.v, lengths, nullptr, 0.125};
        cq_decode_attention(&in, &a), lap(2);
        cq_linear_add(a, l.o, nullptr, h, &h), lap(3);
        cq_rms_norm(h, l.norm2, 1e-5, &x), lap(0);
        cq_linear(x, l.gate_up, nullptr, &a), lap(4);
        cq_swiglu(a, &a), lap(5);
        cq_linear_add(a, l.down, nullptr, h, &h), lap(6);
      }
      cq_rms_norm(h, norm, 1e-5, &x), lap(0);
      cq_linear(x, head, nullptr, &a), lap(7);
      cq_scope_close();
    };
    // The lower bound: summing every weight on all threads.
    auto sweep = [&](const at::Tensor &t) {
      const uint64_t *p = static_cast<const uint64_t *>(t.const_data_ptr());
      std::atomic<uint64_t> all{0};
      at::parallel_for(0, int64_t(t.nbytes() / 8), 1, [&](int64_t a, int64_t b) {
        uint64_t s = 0;
        for (int64_t i = a; i < b; i++)
          s += p[i];
        all += s;
      });
      return all.load();
    };
    uint64_t sink = 0;
    auto floor = [&] {
      for (auto &l : model)
        for (auto *w : {&l.qkv, &l.o, &l.gate_up, &l.down})
          sink += sweep(w->t);
      sink += sweep(head.t);
    };
    // libtorch's GEMMs alone.
    auto gemms = [&] {
      auto x = start.t, wide = make({1, 1, F});
      for (auto &l : model)
        at::linear(x, l.qkv.t), at::linear(x, l.o.t), at::linear(x, l.gate_up.t),
            at::linear(wide, l.down.t);
      at::linear(x, head.t);
    };
    const int rounds = 30;
    auto t = race(rounds, {step, floor, gemms});
    std::printf("%-9s decode step %6.2f ms (%.1f tok/s, %.1f GB/s); reading alone %.2f ms (%.1f "
                "GB/s); libtorch's "
                "GEMMs %.2f ms  [%d]\n",
                c10::toString(type), t[0], 1e3 / t[0], bytes / t[0] / 1e6, t[1], bytes / t[1] / 1e6,
                t[2], int(sink & 1));
    double undisturbed = 0;
    for (int i = 0; i < 8; i++) {
      std::sort(spent[i].begin(), spent[i].end());
      double typical = spent[i][spent[i].size() / 20] * spent[i].size() / rounds;
      std::printf("   %-9s %6.3f ms\n", names[i], typical);
      undisturbed += typical;
    }
    std::printf("   undisturbed %.2f ms (%.1f tok/s)\n", undisturbed, 1e3 / undisturbed);
  }
}

// Lion against its reference in libtorch, which other devices use.
void check_lion() {
  at::NoGradGuard no_grad;
  for (auto type : types)
    for (int64_t n : {1, 17, 576, 100'003}) {
      auto weight = at::randn({n}).to(type),
           master = type == at::kFloat ? weight : weight.to(at::kFloat);
      auto mean = at::randn({n}), gradient = at::randn({n}).to(type);
      std::vector<at::Tensor> results[2];
      for (bool reference : {false, true}) {
        auto w = weight.clone(), m = mean.clone(), o = type == at::kFloat ? w : master.clone();
        Arg aw{w}, ao{o}, ag{gradient}, am{m};
        cq_parameter parameter = {aw, ag, ao, am, nullptr, nullptr, 0.1};
        if ((reference ? cq_lion_reference : cq_lion)(&parameter, 1, 0.5, 1e-2, 0.9, 0.99))
          check(cq_last_error(), w, weight.isnan(), 0);
        results[reference] = {w, o, m};
      }
      for (int i = 0; i < 3; i++)
        check(std::string("lion ") + c10::toString(type), results[0][i], results[1][i],
              i ? 1e-6 : tolerance(type, 1e-6));
    }
  report("lion");
}

// AdamW, libtorch's AdamW and libtorch's embedding gradient, with the time to copy as many bytes.
void time_training() {
  at::NoGradGuard no_grad;
  const int64_t n = 20'000'000;
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto p = at::randn({n}).to(type), g = at::randn({n}).to(type), m = at::zeros({n}),
         v = at::zeros({n});
    auto master = type == at::kFloat ? p : p.to(at::kFloat), copy = at::empty({n}),
         step = at::zeros({});
    Arg ap{p}, ao{master}, ag{g}, am{m}, av{v};
    cq_parameter parameter = {ap, ag, ao, am, av, nullptr, 0.01};
    cq_adamw_options options = {1, 1, 1e-3, 0.9, 0.999, 1e-8, 0};
    auto weight = at::randn({49152, 576}).to(type), grad = at::zeros({49152, 576}).to(type),
         dy = at::randn({512, 576}).to(type);
    auto ids = at::randint(0, 49152, {512}, at::kLong);
    auto t = race(5, {[&] { cq_adamw(&parameter, 1, &options); },
                      [&] {
                        at::_fused_adamw_({master}, {g.to(at::kFloat)}, {m}, {v}, {}, {step}, 1e-3,
                                          0.9, 0.999, 0.01, 1e-8, false, false);
                        p.copy_(master);
                      },
                      [&] { copy.copy_(m); },
                      [&] { grad.add_(at::embedding_backward(dy, ids, 49152, -1, false, false)); },
                      [&] { grad.index_add_(0, ids, dy); }});
    std::printf("%-9s adamw %6.1f ms, %.1f GB/s (copy %.1f); libtorch's, widened and rounded %6.1f "
                "ms; embedding's dense "
                "gradient, added %6.1f ms; index_add %6.2f ms\n",
                c10::toString(type), t[0], 28.0 * n / t[0] / 1e6, 8.0 * n / t[2] / 1e6, t[1], t[3],
                t[4]);
  }
}

// Every index is visited once, by pieces that begin at multiples of the grain: for two threads that
// run loops at once, inside a loop, and after the number of threads has changed.
void check_threads() {
  std::atomic<int> faults{0};
  auto loops = [&](unsigned seed) {
    for (int round = 0; round < 4000; round++) {
      if (round % 64 == 0)
        at::set_num_threads(1 + rand_r(&seed) % 6);
      const int64_t n = rand_r(&seed) % 1000, grain = 1 + rand_r(&seed) % 50;
      std::vector<int> visits(n);
      conquer::cpu::parallel_for(n, grain, [&](int64_t begin, int64_t end) {
        faults += begin % grain != 0;
        std::atomic<int64_t> inner{0}; // a loop of one piece leaves the threads to those inside it
        conquer::cpu::parallel_for(3, 1,
                                   [&](int64_t from, int64_t until) { inner += until - from; });
        faults += inner != 3;
        for (int64_t i = begin; i < end; i++)
          visits[i]++;
      });
      for (int v : visits)
        faults += v != 1;
      if (round % 512 == 0) // long enough for the workers to fall asleep
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  const int before = at::get_num_threads();
  std::thread other(loops, 2);
  loops(1);
  other.join();
  at::set_num_threads(before);
  if (faults) {
    std::printf("FAIL threads: %d faults\n", faults.load());
    failures++;
  }
  report("threads");
}

// An empty loop, whose time is that of handing out its pieces, beside OpenMP's.
void time_threads() {
  auto t = race(20, {[] {
                       for (int i = 0; i < 1000; i++)
                         conquer::cpu::parallel_for(64, 1, [](int64_t, int64_t) {});
                     },
                     [] {
                       for (int i = 0; i < 1000; i++)
                         at::parallel_for(0, 64, 1, [](int64_t, int64_t) {});
                     }});
  std::printf("an empty loop on %d threads: %.2f us; OpenMP's %.2f us\n", at::get_num_threads(),
              t[0], t[1]);
}

struct Family {
  const char *name;
  void (*check)(), (*time)();
};
const Family families[] = {
    {"threads", check_threads, time_threads},
    {"linear", check_linear, time_linear},
    {"many", check_linear_many, time_linear_many},
    {"norm", check_norm, nullptr},
    {"swiglu", check_swiglu, nullptr},
    {"rope", check_rope, nullptr},
    {"decode_attention", check_decode_attention, time_decode_attention},
    {"attention", check_sdpa, time_sdpa},
    {"cross_entropy", check_cross_entropy, time_cross_entropy},
    {"embedding", check_embedding, nullptr},
    {"decode", nullptr, time_decode},
    {"lion", check_lion, nullptr},
    {"adamw", [] { check_adamw(at::kCPU); }, nullptr},
    {"training", nullptr, time_training},
};

} // namespace

int main(int argc, char **argv) {
  bool timing = argc > 1 && !std::strcmp(argv[1], "time");
  at::manual_seed(1);
  for (auto &family : families)
    if (argc <= 2 || !std::strcmp(argv[2], family.name)) {
      if (timing && family.time)
        family.time();
      else if (!timing && family.check)
        family.check();
    }
  if (failures)
    std::printf("%d failures\n", failures);
  return failures != 0;
}
