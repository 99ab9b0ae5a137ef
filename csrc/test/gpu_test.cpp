// gpu_test.cpp: compares every operator of conquer.h on a GPU with the same operator written with
// libtorch in float64 on the CPU, forward and backward, over random shapes.
//   csrc_gpu_test [seed] [rounds] [family]     family: the name in a line of the output
#include "adamw.h"

#include <cmath>
#include <cstring>
#include <random>

namespace {

std::mt19937_64 rng;
int64_t pick(std::initializer_list<int64_t> list) { return *(list.begin() + rng() % list.size()); }
bool maybe() { return rng() % 2; }

double tolerance(at::ScalarType type) {
  return type == at::kFloat ? 1e-5 : type == at::kHalf ? 4e-3 : 3e-2;
}

at::Tensor random(at::IntArrayRef shape, at::ScalarType type) {
  return at::randn(shape).to(type).to(at::kCUDA);
}
at::Tensor exact(const at::Tensor &t) { return t.detach().to(at::kCPU).to(at::kDouble); }

// Compares results and gradients of an operator on the GPU with its plain form in float64 on the
// CPU.
using Op = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor> &)>;
void compare(const std::string &what, std::vector<at::Tensor> inputs, const Op &fast,
             const Op &plain, bool gradients) {
  auto type = inputs[0].scalar_type();
  std::vector<at::Tensor> doubles;
  for (auto &t : inputs)
    doubles.push_back(exact(t).requires_grad_(gradients));
  auto want = plain(doubles);
  if (gradients)
    for (auto &t : inputs)
      t.requires_grad_(true);
  std::vector<at::Tensor> got;
  if (gradients) {
    got = fast(inputs);
  } else {
    at::NoGradGuard no_grad;
    got = fast(inputs);
  }
  for (size_t i = 0; i < want.size(); i++)
    check(what + " result " + std::to_string(i), got[i].defined() ? exact(got[i]) : got[i],
          want[i].detach(), tolerance(type));
  if (!gradients || !got[0].defined())
    return;
  at::Tensor sum, exact_sum;
  for (size_t i = 0; i < want.size(); i++) {
    if (!got[i].requires_grad())
      continue;
    at::Tensor seed = random(got[i].sizes(), got[i].scalar_type());
    at::Tensor part = (got[i] * seed).sum(), exact_part = (want[i] * exact(seed)).sum();
    sum = sum.defined() ? sum + part : part;
    exact_sum = exact_sum.defined() ? exact_sum + exact_part : exact_part;
  }
  sum.backward();
  exact_sum.backward();
  for (size_t i = 0; i < inputs.size(); i++)
    if (doubles[i].grad().defined())
      check(what + " gradient " + std::to_string(i),
            inputs[i].grad().defined() ? exact(inputs[i].grad()) : at::Tensor(), doubles[i].grad(),
            2 * tolerance(type));
}

at::Tensor normalized(const at::Tensor &x, const at::Tensor &w) {
  return w * (x * at::rsqrt(x.pow(2).mean(-1, true) + 1e-5));
}
at::Tensor gate(const at::Tensor &x) {
  auto halves = x.chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}

void norms(at::ScalarType type) {
  int64_t rows = pick({1, 3, 40}), width = pick({48, 576, 2048, 4096, 5120, 8192});
  std::vector<at::Tensor> in = {random({rows, width}, type), random({width}, type)};
  compare(
      "rms_norm " + c10::str(in[0].sizes()), in,
      [](auto &t) {
        Arg x{t[0]}, w{t[1]};
        return call(1, [&](cq_tensor *out) { return cq_rms_norm(x, w, 1e-5, out); });
      },
      [](auto &t) { return std::vector<at::Tensor>{normalized(t[0], t[1])}; }, maybe());
}

at::Tensor turned(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin) {
  int64_t half = cos.size(-1);
  at::Tensor t = x.transpose(1, 2), c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  at::Tensor a = t.narrow(-1, 0, half), b = t.narrow(-1, half, half);
  return at::cat({a * c - b * s, b * c + a * s, t.narrow(-1, 2 * half, t.size(-1) - 2 * half)}, -1);
}

void ropes(at::ScalarType type) {
  int64_t B = pick({1, 3}), L = pick({1, 2, 33}), K = pick({1, 2, 8}), H = K * pick({1, 4}),
          P = pick({32, 64, 80, 128}), half = pick({16, P / 2 / 16 * 16});
  at::Tensor angles = at::rand({maybe() ? B : 1, L, half}) * 6;
  at::Tensor cos = angles.cos().to(at::kCUDA), sin = angles.sin().to(at::kCUDA);
  std::vector<at::Tensor> in = {random({B, L, (H + 2 * K) * P}, type)};
  auto plain = [=](auto &t) {
    auto heads = t[0].unflatten(-1, {H + 2 * K, P});
    at::Tensor c = exact(cos), s = exact(sin);
    return std::vector<at::Tensor>{turned(heads.narrow(2, 0, H), c, s),
                                   turned(heads.narrow(2, H, K), c, s),
                                   heads.narrow(2, H + K, K).transpose(1, 2)};
  };
  compare(
      "rope_qkv " + c10::str(in[0].sizes()), in,
      [=](auto &t) {
        Arg x{t[0]}, c{cos}, s{sin};
        return call(
            3, [&](cq_tensor *out) { return cq_rope_qkv(x, H, K, c, s, out, out + 1, out + 2); });
      },
      plain, maybe());
  int64_t S = L + 5;
  compare(
      "rope_qkv_cache", in,
      [=](auto &t) {
        Arg x{t[0].detach()}, c{cos}, s{sin}, k{at::full({B, K, S, P}, NAN, t[0].options())},
            v{at::full_like(k.t, NAN)},
            at{at::arange(L, cos.options().dtype(at::kLong)).unsqueeze(0) + 3};
        auto q =
            call(1, [&](cq_tensor *out) { return cq_rope_qkv_cache(x, H, c, s, at, k, v, out); });
        if (!k.t.narrow(2, 0, 3).isnan().all().template item<bool>() ||
            !k.t.narrow(2, 3 + L, 2).isnan().all().template item<bool>()) {
          std::printf("FAIL rope_qkv_cache wrote outside its columns\n");
          failures++;
        }
        return std::vector<at::Tensor>{q[0], k.t.narrow(2, 3, L), v.t.narrow(2, 3, L)};
      },
      plain, false);
}

void linears(at::ScalarType type) {
  int64_t rows = pick({1, 2, 3, 4, 7, 8, 16, 17, 40}), depth = pick({48, 512, 1040, 4096}),
          width = 2 * pick({16, 48, 500, 4096});
  bool has_bias = maybe(), gradients = maybe();
  std::vector<at::Tensor> in = {random({rows, depth}, type), random({width, depth}, type),
                                random({rows, width}, type)};
  in[1].mul_(1 / std::sqrt(double(depth)));
  if (has_bias)
    in.push_back(random({width}, type));
  std::string name = c10::str(rows, "x", depth, "x", width, has_bias ? " bias" : "");
  auto bias = [=](auto &t) { return has_bias ? t[3] : at::Tensor(); };
  auto linear = [=](auto &t) {
    return at::linear(t[0], t[1], has_bias ? std::optional<at::Tensor>(t[3]) : std::nullopt);
  };
  compare(
      "linear " + name, in,
      [=](auto &t) {
        Arg x{t[0]}, w{t[1]}, b{bias(t)};
        return call(1, [&](cq_tensor *out) { return cq_linear(x, w, b, out); });
      },
      [=](auto &t) { return std::vector<at::Tensor>{linear(t)}; }, false);
  compare(
      "linear_add " + name, in,
      [=](auto &t) {
        Arg x{t[0]}, w{t[1]}, r{t[2]}, b{bias(t)};
        return call(1, [&](cq_tensor *out) { return cq_linear_add(x, w, b, r, out); });
      },
      [=](auto &t) { return std::vector<at::Tensor>{linear(t) + t[2]}; }, gradients);
  for (auto &t : in)
    t = t.detach().clone();
  in[2] = random({depth}, type);
  auto normed = [=](auto &t) {
    return at::linear(normalized(t[0], t[2]), t[1],
                      has_bias ? std::optional<at::Tensor>(t[3]) : std::nullopt);
  };
  compare(
      "norm_linear " + name, in,
      [=](auto &t) {
        Arg x{t[0]}, n{t[2]}, w{t[1]}, b{bias(t)};
        return call(1, [&](cq_tensor *out) { return cq_norm_linear(x, n, 1e-5, w, b, out); });
      },
      [=](auto &t) { return std::vector<at::Tensor>{normed(t)}; }, gradients);
  for (auto &t : in)
    t = t.detach().clone();
  compare(
      "norm_linear_swiglu " + name, in,
      [=](auto &t) {
        Arg x{t[0]}, n{t[2]}, w{t[1]}, b{bias(t)};
        return call(1,
                    [&](cq_tensor *out) { return cq_norm_linear_swiglu(x, n, 1e-5, w, b, out); });
      },
      [=](auto &t) { return std::vector<at::Tensor>{gate(normed(t))}; }, gradients);
}

void choices(at::ScalarType type) {
  int64_t B = pick({1, 3}), V = pick({17, 32000, 128256});
  at::Tensor logits = random({B, V}, type);
  logits.select(1, at::randint(V, {1}).item<int64_t>()).fill_(9);
  logits.select(1, at::randint(V, {1}).item<int64_t>()).fill_(9);
  if (maybe())
    logits[0][at::randint(V, {1}).item<int64_t>()] = NAN;
  cq_sampling greedy = {1, 0, 0, 0, 0};
  Arg here{logits}, there{logits.cpu()};
  auto got =
      call(1, [&](cq_tensor *out) { return cq_choose(here, nullptr, nullptr, &greedy, out); });
  auto want =
      call(1, [&](cq_tensor *out) { return cq_choose(there, nullptr, nullptr, &greedy, out); });
  check("choose", exact(got[0]), exact(want[0]), 0);
}

// Each runs several times, since the kernel's programs meet at a counter that every call passes on
// to the next.
void tails(at::ScalarType type) {
  int64_t A = pick({64, 1024, 4096, 8192}), D = pick({64, 576, 2048}), F = pick({16, 1536, 5632}),
          N = pick({0, 48, 960, 6144}), M = pick({1, 1, 3, 8, 17, 64});
  auto weight = [&](int64_t rows, int64_t columns) {
    return random({rows, columns}, type) * std::pow(columns, -0.5);
  };
  bool normed = maybe(), has_bias = N > 0 && maybe();
  std::vector<at::Tensor> in = {random({M, D}, type),
                                random({M, A}, type),
                                random({A}, type),
                                weight(D, A),
                                random({D}, type),
                                weight(2 * F, D),
                                weight(D, F),
                                random({D}, type),
                                weight(std::max<int64_t>(N, 1), D),
                                random({std::max<int64_t>(N, 1)}, type)};
  auto plain = [=](auto &t) {
    at::Tensor z = t[0] + at::linear(normed ? normalized(t[1], t[2]) : t[1], t[3]);
    at::Tensor y = z + at::linear(gate(at::linear(normalized(z, t[4]), t[5])), t[6]);
    std::vector<at::Tensor> out = {y};
    if (N > 0)
      out.push_back(at::linear(normalized(y, t[7]), t[8],
                               has_bias ? std::optional<at::Tensor>(t[9]) : std::nullopt));
    return out;
  };
  for (int i = 0; i < 3; i++) {
    in[1] = random({M, A}, type);
    compare(
        "block_tail " + std::to_string(A) + " " + std::to_string(D) + " " + std::to_string(F) +
            " " + std::to_string(N),
        in,
        [=](auto &t) {
          Arg x{t[0]}, mixed{t[1]}, norm{normed ? t[2] : at::Tensor()}, output{t[3]},
              mlp_norm{t[4]}, gate_up{t[5]}, down{t[6]}, next_norm{t[7]},
              next{N > 0 ? t[8] : at::Tensor()}, next_bias{has_bias ? t[9] : at::Tensor()};
          cq_tail tail = {norm,    output,    nullptr, mlp_norm,  gate_up, nullptr, down,
                          nullptr, next_norm, next,    next_bias, 1e-5,    1e-5,    1e-5};
          return call(2, [&](cq_tensor *out) {
            const char *reason;
            return cq_block_tail(x, mixed, &tail, out, out + 1, &reason);
          });
        },
        plain, false);
  }
}

// A weight [rows,columns] in random blocks of a kind: ggml's number, the bytes and numbers of a
// block, where its scales (float16) are, and their size.
struct Kind {
  int number;
  int64_t bytes, numbers;
  std::vector<int64_t> scales;
  double size;
};
at::Tensor random_blocks(const Kind &kind, int64_t rows, int64_t columns) {
  at::Tensor data = at::randint(0, 256, {rows, columns / kind.numbers, kind.bytes},
                                at::TensorOptions().dtype(at::kByte));
  for (int64_t at : kind.scales)
    data.narrow(2, at, 2).copy_(((at::rand({rows, columns / kind.numbers, 1}) + 1) * kind.size)
                                    .to(at::kHalf)
                                    .view(at::kByte));
  Arg bytes{data.view({rows, -1}).contiguous()};
  const cq_block_part part = {kind.number, bytes, nullptr, nullptr, 0, 0};
  return call(1, [&](cq_tensor *out) { return cq_block_weight(&part, 1, columns, out); })[0];
}

void quantized(at::ScalarType type) {
  const Kind kinds[] = {{2, 18, 32, {0}, 0.01},       {3, 20, 32, {0, 2}, 0.01},
                        {8, 34, 32, {0}, 1e-3},       {12, 144, 256, {0, 2}, 2e-4},
                        {13, 176, 256, {0, 2}, 1e-4}, {14, 210, 256, {208}, 1e-4}};
  const Kind &kind = kinds[rng() % std::size(kinds)];
  const int64_t D = 256 * pick({1, 3, 8}), F = pick({16, 176, 4224}),
                M = pick({1, 1, 3, 16, 40, 64});
  at::Tensor blocks = random_blocks(kind, 2 * F, D);
  Arg host{blocks};
  at::Tensor moved = call(
      1, [&](cq_tensor *out) { return cq_blocks_to_gpu(host, 0, static_cast<int>(type), out); })[0];
  auto values = [&](const at::Tensor &blocks) {
    Arg w{blocks};
    return exact(call(1, [&](cq_tensor *out) {
      return cq_blocks_unpack(w, 0, 2 * F, static_cast<int>(at::kFloat), out);
    })[0]);
  };
  const std::string what = c10::str(" kind ", kind.number, " ", M, "x", D, "x", F);
  at::Tensor weight = values(moved);
  check("blocks" + what, weight, values(blocks), 1e-3); // the GPU rounds scales to float16
  std::vector<at::Tensor> in = {random({M, D}, type), random({D}, type), random({M, 2 * F}, type)};
  compare(
      "block linear" + what, {in[0]},
      [=](auto &t) {
        Arg x{t[0]}, w{moved};
        return call(1, [&](cq_tensor *out) { return cq_linear(x, w, nullptr, out); });
      },
      [=](auto &t) { return std::vector<at::Tensor>{at::linear(t[0], weight)}; }, maybe());
  compare(
      "block norm_linear_swiglu" + what, {in[0], in[1]},
      [=](auto &t) {
        Arg x{t[0]}, n{t[1]}, w{moved};
        return call(
            1, [&](cq_tensor *out) { return cq_norm_linear_swiglu(x, n, 1e-5, w, nullptr, out); });
      },
      [=](auto &t) {
        return std::vector<at::Tensor>{gate(at::linear(normalized(t[0], t[1]), weight))};
      },
      false);
  compare(
      "block linear_add" + what, {in[0], in[2]},
      [=](auto &t) {
        Arg x{t[0]}, r{t[1]}, w{moved};
        return call(1, [&](cq_tensor *out) { return cq_linear_add(x, w, nullptr, r, out); });
      },
      [=](auto &t) { return std::vector<at::Tensor>{t[1] + at::linear(t[0], weight)}; }, false);
  at::Tensor ids = at::randint(0, 2 * F, {3, 5}, at::kLong);
  Arg w{moved}, index{ids.to(at::kCUDA)};
  auto rows = call(1, [&](cq_tensor *out) { return cq_embedding(w, index, out); });
  check("block embedding" + what, exact(rows[0]), at::embedding(weight, ids), tolerance(type));
}

void grouped(at::ScalarType type) {
  if (type == at::kFloat) // there are no kernels
    return;
  const int64_t E = pick({1, 5, 64}), N = pick({1, 16, 17, 300, 2500}), R = 16 * pick({1, 5, 20}),
                D = 16 * pick({1, 9, 40});
  at::Tensor index = std::get<0>((at::rand({N}).pow(pick({1, 4})) * E).to(at::kLong).sort());
  const std::string what = c10::str(" ", N, " rows of ", E, " groups, ", D, " to ", R);
  compare(
      "grouped linear" + what, {random({N, D}, type), random({E * R, D}, type)},
      [=](auto &t) {
        Arg x{t[0]}, w{t[1]}, i{index.to(at::kCUDA)};
        return call(1, [&](cq_tensor *out) { return cq_grouped_linear(x, w, i, E, out); });
      },
      [=](auto &t) {
        at::Tensor each = t[1].view({E, R, D}).index_select(0, index);
        return std::vector<at::Tensor>{at::bmm(each, t[0].unsqueeze(2)).squeeze(2)};
      },
      type != at::kHalf && maybe());
}

void attention(at::ScalarType type) {
  int64_t B = pick({1, 3}), K = pick({1, 2, 8, 32}), H = K * pick({1, 4, 8}),
          P = pick({16, 64, 80, 128}), S = pick({1, 70, 500, 3000});
  at::Tensor lengths = at::randint(1, S + 1, {B}, at::kLong),
             starts = maybe() ? (at::rand({B}) * lengths).to(at::kLong) : at::Tensor();
  at::Tensor angles =
      at::rand({maybe() ? B : 1, 1, pick({P / 2, std::min(P / 2, 16 * ((P / 4 + 15) / 16))})}) * 6;
  at::Tensor cos = angles.cos().to(at::kCUDA), sin = angles.sin().to(at::kCUDA);
  std::vector<at::Tensor> in = {random({B, 1, (H + 2 * K) * P}, type), random({B, K, S, P}, type),
                                random({B, K, S, P}, type)};
  at::Tensor last = lengths - 1;
  compare(
      c10::str("decode_attention B", B, " H", H, " K", K, " S", S, " P", P), in,
      [=](auto &t) {
        Arg x{t[0]}, c{cos}, si{sin}, k{t[1].clone()}, v{t[2].clone()}, n{lengths.to(at::kCUDA)},
            s{starts.defined() ? starts.to(at::kCUDA) : starts};
        auto out = call(1, [&](cq_tensor *out) {
          cq_decode in = {x, H, c, si, k, v, n, s, 1 / std::sqrt(double(P))};
          return cq_decode_attention(&in, out);
        });
        out.insert(out.end(), {k.t, v.t});
        return out;
      },
      [=](auto &t) {
        auto heads = t[0].unflatten(-1, {H + 2 * K, P});
        at::Tensor c = exact(cos), s = exact(sin), k = t[1].clone(), v = t[2].clone();
        for (int64_t b = 0; b < B; b++) {
          int64_t at = last[b].template item<int64_t>();
          k.select(0, b).select(1, at).copy_(
              turned(heads.narrow(2, H, K), c, s).select(0, b).select(1, 0));
          v.select(0, b).select(1, at).copy_(heads.select(0, b).select(0, 0).narrow(0, H + K, K));
        }
        at::Tensor at = at::arange(S), mask = at < lengths.unsqueeze(1);
        if (starts.defined())
          mask = mask & (at >= starts.unsqueeze(1));
        at::Tensor y = at::scaled_dot_product_attention(turned(heads.narrow(2, 0, H), c, s), k, v,
                                                        mask.unsqueeze(1).unsqueeze(1), 0, false,
                                                        std::nullopt, true);
        return std::vector<at::Tensor>{y.reshape({B, 1, H * P}), k, v};
      },
      false);
  // Attention of whole sequences, with libtorch's kernels.
  int64_t L = pick({2, 65, 256});
  if (type == at::kFloat)
    return;
  std::vector<at::Tensor> whole = {random({B, H, L, P}, type), random({B, K, L, P}, type),
                                   random({B, K, L, P}, type)};
  compare(
      "sdpa", whole,
      [=](auto &t) {
        Arg q{t[0]}, k{t[1]}, v{t[2]};
        return call(1, [&](cq_tensor *out) { return cq_sdpa(q, k, v, nullptr, 0, 1, 0, out); });
      },
      [=](auto &t) {
        return std::vector<at::Tensor>{
            at::scaled_dot_product_attention(t[0], t[1], t[2], {}, 0, true, std::nullopt, true)};
      },
      true);
}

void losses(at::ScalarType type) {
  int64_t N = pick({1, 9, 300}), D = pick({48, 512}), V = pick({101, 512, 32000});
  at::Tensor labels = at::randint(0, V, {N}, at::kLong);
  if (N > 1)
    labels[0] = -100;
  const bool penalized = maybe(); // libtorch computes it, a chunk at a time
  const cq_loss loss{maybe() ? 0. : 7., penalized ? 0.1 : 0, penalized ? 0.01 : 0};
  at::Tensor by = maybe() ? at::rand({N}) : at::Tensor();
  std::vector<at::Tensor> in = {random({N, D}, type), random({V, D}, type)};
  in[1].mul_(1 / std::sqrt(double(D)));
  compare(
      c10::str("cross_entropy_head ", N, "x", D, "x", V), in,
      [=](auto &t) {
        Arg h{t[0]}, w{t[1]}, l{labels.to(at::kCUDA)}, b{by.defined() ? by.to(at::kCUDA) : by};
        return call(2, [&](cq_tensor *out) {
          return cq_cross_entropy_head(h, w, l, b, &loss, out, out + 1);
        });
      },
      [=](auto &t) {
        at::Tensor logits = at::linear(t[0], t[1]);
        at::Tensor nll = at::cross_entropy_loss(logits, labels, {}, at::Reduction::None, -100);
        at::Tensor total = at::cross_entropy_loss(logits, labels, {}, at::Reduction::None, -100,
                                                  loss.label_smoothing) +
                           loss.z_loss * logits.logsumexp(1).square() * (labels >= 0);
        double count = loss.divisor
                           ? loss.divisor
                           : std::max<int64_t>(1, (labels >= 0).sum().template item<int64_t>());
        return std::vector<at::Tensor>{(by.defined() ? total * by : total).sum() / count, nll};
      },
      // In float16 the gradients of so many logits are subnormal numbers.
      maybe() && (type != at::kHalf || V < 32000));
}

void elementwise(at::ScalarType type) {
  std::vector<at::Tensor> in = {random({pick({1, 30}), 2 * pick({48, 1536, 11008})}, type)};
  compare(
      "swiglu", in,
      [](auto &t) {
        Arg x{t[0]};
        return call(1, [&](cq_tensor *out) { return cq_swiglu(x, out); });
      },
      [](auto &t) { return std::vector<at::Tensor>{gate(t[0])}; }, true);
  int64_t V = pick({5, 300}), n = pick({1, 70});
  at::Tensor ids = at::randint(0, V, {n}, at::kLong);
  compare(
      "embedding", {random({V, pick({48, 1040})}, type)},
      [=](auto &t) {
        Arg w{t[0]}, i{ids.to(at::kCUDA)};
        return call(1, [&](cq_tensor *out) { return cq_embedding(w, i, out); });
      },
      [=](auto &t) { return std::vector<at::Tensor>{at::embedding(t[0], ids)}; }, true);
}

} // namespace

int main(int argc, char **argv) {
  if (cq_cuda_load()) {
    std::printf("SKIPPED: %s\n", cq_last_error());
    return 0;
  }
  uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  int rounds = argc > 2 ? std::atoi(argv[2]) : 6;
  const char *only = argc > 3 ? argv[3] : "";
  rng.seed(seed);
  at::manual_seed(seed);
  struct Family {
    const char *name;
    void (*run)(at::ScalarType);
  } families[] = {{"norms", norms},         {"ropes", ropes},     {"linears", linears},
                  {"attention", attention}, {"losses", losses},   {"elementwise", elementwise},
                  {"quantized", quantized}, {"grouped", grouped}, {"tails", tails},
                  {"choices", choices}};
  for (auto &family : families) {
    if (*only && std::strcmp(only, family.name) != 0)
      continue;
    for (auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      int before = failures;
      worst = 0;
      for (int i = 0; i < rounds; i++)
        try {
          family.run(type);
        } catch (const std::exception &e) {
          std::printf("FAIL %s: %s\n", family.name, std::string(e.what()).substr(0, 300).c_str());
          failures++;
        }
      std::printf("%-12s %-9s largest difference %.2e%s\n", family.name, c10::toString(type), worst,
                  failures > before ? "  FAILED" : "");
    }
  }
  if (!*only || std::strcmp(only, "adamw") == 0) {
    check_adamw(at::kCUDA);
    std::printf("%-12s checked\n", "adamw");
  }
  std::printf(failures ? "%d FAILURES (seed %llu)\n" : "all within limits\n", failures,
              (unsigned long long)seed);
  return failures != 0;
}
