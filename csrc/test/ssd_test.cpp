// ssd_test.cpp: compares the state-space operators of conquer.h with a token-by-token recurrence in
// float64, forward and every gradient, over random shapes.
//   csrc_ssd_test [cpu|cuda] [seed] [cases] [full]   40 random cases by default; full: every shape
//                                                    on a GPU too (a build with TRITON_FULL)
//   csrc_ssd_test cpu quick                          shorter sequences, fewer cases: `make test`
//   csrc_ssd_test cpu times                          prints times on the CPU instead
// Prints the largest relative error ‖out - ref‖ / ‖ref‖ of each quantity. Exits 1 if one is too
// large.
#include "../conquer.h"

#include <ATen/ATen.h>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/generated/variable_factories.h>

#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>

using at::Tensor;

static at::Device device = at::kCPU;
static std::map<std::string, double> worst; // by dtype and quantity
static int failures = 0;

static Tensor random(at::IntArrayRef size, double scale = 1) {
  return torch::randn(size, at::kDouble) * scale;
}

static void check(const std::string &name, const char *what, const Tensor &got, const Tensor &want,
                  at::ScalarType type, double at_least = 0) {
  Tensor g = got.detach().to(at::kCPU).to(at::kDouble), w = want.detach();
  double size = std::max(w.norm().item<double>(), at_least),
         error = (g - w).norm().item<double>() / (size > 0 ? size : 1);
  double limit = type == at::kFloat ? 1e-5 : type == at::kHalf ? 2e-3 : 1e-2;
  auto &most = worst[std::string(c10::toString(type)) + " " + what];
  if (!(error <= most))
    most = error;
  if (!(error < limit) || g.sizes() != w.sizes()) {
    failures++;
    std::printf("FAIL %s: %s %.3g\n", name.c_str(), what, error);
  }
}

static void require(int code) {
  if (code) {
    std::printf("error: %s\n", cq_last_error());
    std::exit(1);
  }
}

// A leaf on the device in `type`, and the float64 leaf with the same values. The gradient of a
// per-head parameter is a sum over tokens with cancelling signs, so its error is measured relative
// to the size of the terms: `terms` is the parameter repeated for each token.
struct Leaf {
  Tensor real, exact, terms;
  const Tensor &each(int64_t batch, int64_t length) {
    if (exact.defined()) {
      terms = exact.expand({batch, length, exact.size(0)});
      terms.retain_grad();
    }
    return terms;
  }
  Leaf() = default;
  Leaf(const Tensor &value, at::ScalarType type) {
    real = value.to(type).to(device).set_requires_grad(true);
    exact = value.to(type).to(at::kDouble).detach().set_requires_grad(true);
  }
  cq_tensor handle() { return real.defined() ? &real : nullptr; }
};

struct Case {
  int64_t batch, length, heads, p, n, groups, chunk, window;
  bool d, z, bias, initial, seq, softplus, limits;
  at::ScalarType type;
  std::string name() const {
    char text[256];
    std::snprintf(text, sizeof text,
                  "B%ld L%ld H%ld P%ld N%ld G%ld chunk%ld window%ld%s%s%s%s%s%s%s %s", batch,
                  length, heads, p, n, groups, chunk, window, d ? " D" : "", z ? " z" : "",
                  bias ? " bias" : "", initial ? " initial" : "", seq ? " seq" : "",
                  softplus ? "" : " raw", limits ? " clamp" : "", c10::toString(type));
    return text;
  }
};

// The recurrence (a, d and bias repeated for each token), with a separate state for each chunk of
// the window: parts[j + 1] is the state that chunk j contributed, parts[0] the initial state.
static std::pair<Tensor, Tensor> recurrence(const Case &c, const Tensor &x, Tensor dt,
                                            const Tensor &a, const Tensor &b, const Tensor &cc,
                                            const Tensor &d, const Tensor &z, const Tensor &bias,
                                            const Tensor &initial, const Tensor &seq, double lo,
                                            double hi) {
  if (bias.defined())
    dt = dt + bias;
  if (c.softplus)
    dt = at::softplus(dt);
  dt = dt.clamp(lo, hi);
  int64_t repeat = c.heads / c.groups, chunks = (c.length + c.chunk - 1) / c.chunk;
  Tensor bh = b.repeat_interleave(repeat, 2), ch = cc.repeat_interleave(repeat, 2);
  Tensor zero = torch::zeros({c.batch, c.heads, c.p, c.n}, at::kDouble);
  std::vector<Tensor> parts(chunks + 1), ys;
  parts[0] = initial.defined() ? initial : zero;
  auto seen = [&](int64_t chunk) {
    Tensor sum = zero;
    for (int64_t j = c.window < 0 ? 0 : std::max<int64_t>(0, chunk + 1 - c.window); j <= chunk + 1;
         j++)
      if (parts[j].defined())
        sum = sum + parts[j];
    return sum;
  };
  for (int64_t t = 0; t < c.length; t++) {
    int64_t chunk = t / c.chunk;
    Tensor decay = (dt.select(1, t) * a.select(1, t)).exp().view({c.batch, c.heads, 1, 1});
    if (seq.defined() && t > 0)
      decay = decay * seq.select(1, t).eq(seq.select(1, t - 1)).view({c.batch, 1, 1, 1});
    for (auto &part : parts)
      if (part.defined())
        part = part * decay;
    Tensor u = (x.select(1, t) * dt.select(1, t).unsqueeze(-1)).unsqueeze(-1) *
               bh.select(1, t).unsqueeze(2);
    auto &own = parts[chunk + 1];
    own = own.defined() ? own + u : u;
    Tensor y = (seen(chunk) * ch.select(1, t).unsqueeze(2)).sum(-1);
    if (d.defined())
      y = y + x.select(1, t) * d.select(1, t).unsqueeze(-1);
    ys.push_back(y);
  }
  Tensor y = at::stack(ys, 1);
  if (z.defined())
    y = y * at::silu(z);
  return {y, seen(chunks - 1)};
}

static void gradients(const std::string &name, at::ScalarType type,
                      const std::vector<std::pair<const char *, Leaf *>> &of,
                      const std::vector<Tensor> &outs, const std::vector<Tensor> &refs) {
  std::vector<Tensor> seeds, exact_seeds;
  for (size_t i = 0; i < outs.size(); i++) {
    Tensor seed = random(refs[i].sizes()).to(outs[i].scalar_type());
    seeds.push_back(seed.to(device));
    exact_seeds.push_back(seed.to(at::kDouble));
  }
  torch::autograd::backward(outs, seeds);
  torch::autograd::backward(refs, exact_seeds);
  for (auto &[what, leaf] : of)
    if (leaf->real.defined()) { // an input may have no gradient
      auto grad = [](const Tensor &t) {
        return t.grad().defined() ? t.grad() : at::zeros_like(t, at::kDouble);
      };
      double terms = leaf->terms.defined() && leaf->terms.grad().defined()
                         ? leaf->terms.grad().norm().item<double>()
                         : 0;
      check(name, what, grad(leaf->real), grad(leaf->exact), type, terms);
    }
}

// Compares a scan with the recurrence; with gradients if back is set, else only the result without
// gradients, which other kernels may compute.
static void scan(const Case &c, bool back = true) {
  at::AutoGradMode grad(back);
  auto half = c.type;
  Leaf x(random({c.batch, c.length, c.heads, c.p}), half),
      dt(random({c.batch, c.length, c.heads}), half),
      a(-torch::rand({c.heads}, at::kDouble) * 15 - 0.05, at::kFloat),
      b(random({c.batch, c.length, c.groups, c.n}), half),
      cc(random({c.batch, c.length, c.groups, c.n}), half), d, z, bias, initial;
  if (!c.softplus)
    dt = Leaf(torch::rand({c.batch, c.length, c.heads}, at::kDouble) * 0.2, half);
  if (c.d)
    d = Leaf(random({c.heads}), at::kFloat);
  if (c.z)
    z = Leaf(random({c.batch, c.length, c.heads, c.p}), half);
  if (c.bias)
    bias = Leaf(torch::rand({c.heads}, at::kDouble) - 4, at::kFloat);
  if (c.initial)
    initial = Leaf(random({c.batch, c.heads, c.p, c.n}), at::kFloat);
  Tensor seq, seq_device;
  if (c.seq) {
    seq = torch::randint(0, 10, {c.batch, c.length}, at::kInt)
              .eq(0)
              .cumsum(1, at::kInt)
              .remainder(3)
              .to(at::kInt);
    seq_device = seq.to(device);
  }
  double lo = c.limits ? 0.01 : 0, hi = c.limits ? 0.1 : INFINITY;
  cq_scope_open();
  cq_tensor y, last;
  auto run = [&] {
    const cq_scan in = {x.handle(),
                        dt.handle(),
                        a.handle(),
                        b.handle(),
                        cc.handle(),
                        d.handle(),
                        z.handle(),
                        bias.handle(),
                        initial.handle(),
                        c.seq ? &seq_device : nullptr,
                        c.chunk,
                        c.window,
                        c.softplus,
                        lo,
                        hi};
    require(cq_ssd_scan(&in, &y, &last));
  };
  auto [ref, ref_last] = recurrence(c, x.exact, dt.exact, a.each(c.batch, c.length), b.exact,
                                    cc.exact, d.each(c.batch, c.length), z.exact,
                                    bias.each(c.batch, c.length), initial.exact, seq, lo, hi);
  auto leaves = {&x, &dt, &a, &b, &cc, &d, &z, &bias, &initial};
  auto require_grad = [&](bool yes) {
    for (Leaf *leaf : leaves)
      if (leaf->real.defined())
        leaf->real.set_requires_grad(yes);
  };
  require_grad(false);
  run();
  check(c.name() + " alone", "y", *static_cast<Tensor *>(y), ref, c.type);
  check(c.name() + " alone", "final", *static_cast<Tensor *>(last), ref_last, c.type);
  if (!back) {
    cq_scope_close();
    return;
  }
  require_grad(true);
  run();
  Tensor out = *static_cast<Tensor *>(y), out_last = *static_cast<Tensor *>(last);
  check(c.name(), "y", out, ref, c.type);
  check(c.name(), "final", out_last, ref_last, c.type);
  gradients(c.name(), c.type,
            {{"dx", &x},
             {"ddt", &dt},
             {"dA", &a},
             {"dB", &b},
             {"dC", &cc},
             {"dD", &d},
             {"dz", &z},
             {"dbias", &bias},
             {"dinitial", &initial}},
            {out, out_last}, {ref, ref_last});
  cq_scope_close();
}

static void step(int64_t batch, int64_t heads, int64_t p, int64_t n, int64_t groups,
                 at::ScalarType type, at::ScalarType state_type) {
  Leaf x(random({batch, heads, p}), type), dt(random({batch, heads}), type),
      a(-torch::rand({heads}, at::kDouble) * 15 - 1, at::kFloat),
      a_log((torch::rand({heads}, at::kDouble) * 15 + 1).log(), type),
      b(random({batch, groups, n}), type), c(random({batch, groups, n}), type),
      d(random({heads}), at::kFloat), z(random({batch, heads, p}), type),
      bias(torch::rand({heads}, at::kDouble) - 4, at::kFloat),
      state(random({batch, heads, p, n}), state_type);
  Tensor h = state.real.detach().clone();
  static bool log = false;
  log = !log;
  cq_scope_open();
  cq_tensor y;
  const cq_step in = {x.handle(),
                      dt.handle(),
                      log ? a_log.handle() : a.handle(),
                      b.handle(),
                      c.handle(),
                      d.handle(),
                      z.handle(),
                      bias.handle(),
                      log,
                      1,
                      0,
                      INFINITY};
  require(cq_ssd_step(&h, &in, &y));
  int64_t repeat = heads / groups;
  Tensor step = at::softplus(dt.exact + bias.exact), bh = b.exact.repeat_interleave(repeat, 1),
         ch = c.exact.repeat_interleave(repeat, 1);
  Tensor want =
      state.exact * (step * (log ? -a_log.exact.exp() : a.exact)).exp().view({batch, heads, 1, 1}) +
      (x.exact * step.unsqueeze(-1)).unsqueeze(-1) * bh.unsqueeze(2);
  Tensor out =
      ((want * ch.unsqueeze(2)).sum(-1) + x.exact * d.exact.unsqueeze(-1)) * at::silu(z.exact);
  auto loose = type == at::kFloat && state_type == at::kFloat ? at::kFloat : at::kBFloat16;
  check("step", "step y", *static_cast<Tensor *>(y), out, loose);
  check("step", "step state", h, want, loose);
  cq_scope_close();
}

// Many tokens with a ring of inputs, for sequences whose rings fill at different times. The ring
// holds NaN where nothing was written. Then the ring is folded.
static void replay(int64_t batch, int64_t heads, int64_t p, int64_t n, int64_t groups,
                   at::ScalarType type, at::ScalarType state_type) {
  Leaf a_log((torch::rand({heads}, at::kDouble) * 15 + 1).log(), type), d(random({heads}), type),
      bias(torch::rand({heads}, at::kDouble) - 4, type),
      state(random({batch, heads, p, n}), state_type);
  Tensor h = state.real.detach().clone(), want = state.exact.detach().clone();
  int64_t length = 0;
  require(cq_ssd_ring_length(&h, static_cast<int>(type), groups, &length));
  if (length == 0)
    length = 4; // no kernel: libtorch's operators
  auto options = at::TensorOptions().device(device);
  Tensor ring_x = at::full({batch, heads, length, p}, NAN, options.dtype(type)),
         ring_b = at::full({batch, groups, length, n}, NAN, options.dtype(type)),
         ring_dt = at::full({batch, heads, length}, NAN, options.dtype(at::kFloat)),
         held = at::zeros({batch}, options.dtype(at::kInt));
  auto loose = type == at::kFloat && state_type == at::kFloat ? at::kFloat : at::kBFloat16;
  int64_t repeat = heads / groups, tokens = 2 * length + 3;
  for (int64_t t = 0; t < tokens; t++) {
    Leaf x(random({batch, heads, p}), type), dt(random({batch, heads}), type),
        b(random({batch, groups, n}), type), c(random({batch, groups, n}), type), z;
    if (t % 5)
      z = Leaf(random({batch, heads, p}), type);
    if (t == 3) { // sequence 1 begins anew
      held.select(0, 1).zero_();
      h.select(0, 1).fill_(0.5);
      want.select(0, 1).fill_(0.5);
    }
    cq_scope_open();
    cq_tensor y;
    const cq_step in = {x.handle(), dt.handle(), a_log.handle(), b.handle(),
                        c.handle(), d.handle(),  z.handle(),     bias.handle(),
                        1,          1,           0.001,          0.1,
                        &ring_x,    &ring_b,     &ring_dt,       &held};
    require(cq_ssd_step(&h, &in, &y));
    held.add_(1);
    Tensor step = at::clamp(at::softplus(dt.exact + bias.exact), 0.001, 0.1),
           bh = b.exact.repeat_interleave(repeat, 1), ch = c.exact.repeat_interleave(repeat, 1);
    want = want * (step * -a_log.exact.exp()).exp().view({batch, heads, 1, 1}) +
           (x.exact * step.unsqueeze(-1)).unsqueeze(-1) * bh.unsqueeze(2);
    want = want.detach();
    Tensor out = (want * ch.unsqueeze(2)).sum(-1) + x.exact * d.exact.unsqueeze(-1);
    if (z.exact.defined())
      out = out * at::silu(z.exact);
    check("replay", "replay y", *static_cast<Tensor *>(y), out, loose);
    cq_scope_close();
  }
  require(cq_ssd_fold(&h, a_log.handle(), &ring_x, &ring_b, &ring_dt, &held));
  check("replay", "replay state", h, want, loose);
}

static void conv(int64_t batch, int64_t length, int64_t dim, int64_t width, bool has_bias,
                 bool silu, bool has_initial, bool has_seq, at::ScalarType type) {
  Leaf x(random({batch, length, dim}), type), w(random({dim, width}, 0.5), type), bias, initial;
  if (has_bias)
    bias = Leaf(random({dim}), type);
  if (has_initial)
    initial = Leaf(random({batch, width - 1, dim}), type);
  Tensor seq, seq_device;
  if (has_seq) {
    seq = torch::randint(0, 4, {batch, length}, at::kInt).eq(0).cumsum(1, at::kInt).to(at::kInt);
    seq_device = seq.to(device);
  }
  cq_scope_open();
  cq_tensor y, state;
  require(cq_causal_conv1d(x.handle(), w.handle(), bias.handle(), initial.handle(),
                           has_seq ? &seq_device : nullptr, silu, &y, &state));
  Tensor before = has_initial ? initial.exact : torch::zeros({batch, width - 1, dim}, at::kDouble);
  Tensor padded = at::cat({before, x.exact}, 1),
         out = torch::zeros({batch, length, dim}, at::kDouble);
  if (has_bias)
    out = out + bias.exact;
  for (int64_t k = 0; k < width; k++) {
    Tensor tap = padded.slice(1, k, k + length) * w.exact.select(1, k);
    if (has_seq)
      tap = tap * at::cat({seq.slice(1, 0, 1).expand({batch, width - 1}), seq}, 1)
                      .slice(1, k, k + length)
                      .eq(seq)
                      .unsqueeze(2);
    out = out + tap;
  }
  if (silu)
    out = at::silu(out);
  check("conv", "conv y", *static_cast<Tensor *>(y), out, type);
  check("conv", "conv state", *static_cast<Tensor *>(state), padded.slice(1, length), type);
  Tensor history = before.detach().to(type).to(device).clone(),
         stepped = torch::zeros_like(out.detach());
  if (!has_seq) {
    for (int64_t t = 0; t < length; t++) {
      Tensor token = x.real.detach().select(1, t).contiguous();
      cq_tensor one;
      require(cq_conv1d_step(&history, &token, w.handle(), bias.handle(), silu, &one));
      stepped.select(1, t).copy_(static_cast<Tensor *>(one)->to(at::kCPU));
    }
    check("conv", "conv step", stepped, out, type);
    check("conv", "conv step state", history, padded.slice(1, length), type);
  }
  gradients("conv", type,
            {{"conv dx", &x}, {"conv dw", &w}, {"conv dbias", &bias}, {"conv dinitial", &initial}},
            {*static_cast<Tensor *>(y)}, {out});
  cq_scope_close();
}

static void norm(int64_t rows, int64_t dim, int64_t group, bool gated, at::ScalarType type) {
  Leaf x(random({rows, dim}), type), w(random({dim}), type), z;
  if (gated)
    z = Leaf(random({rows, dim}), type);
  cq_scope_open();
  cq_tensor y;
  require(cq_gated_rms_norm(x.handle(), z.handle(), w.handle(), 1e-5, group, &y));
  Tensor v = gated ? x.exact * at::silu(z.exact) : x.exact,
         grouped = v.view({rows, -1, group ? group : dim});
  Tensor out =
      (grouped * (grouped.pow(2).mean(-1, true) + 1e-5).rsqrt()).view({rows, dim}) * w.exact;
  check("norm", "norm y", *static_cast<Tensor *>(y), out, type);
  gradients("norm", type, {{"norm dx", &x}, {"norm dz", &z}, {"norm dw", &w}},
            {*static_cast<Tensor *>(y)}, {out});
  cq_scope_close();
}

static int64_t pick(std::initializer_list<int64_t> of) {
  return of.begin()[std::rand() % of.size()];
}

// Prints the milliseconds of the scan, forward and backward, at growing lengths (the best of five),
// and the process's peak memory.
static void times(at::ScalarType type) {
  for (int64_t length : {512, 1024, 2048, 4096, 8192}) {
    Leaf x(random({1, length, 16, 64}), type), dt(random({1, length, 16}), type),
        a(-torch::rand({16}, at::kDouble) * 15 - 1, at::kFloat),
        b(random({1, length, 1, 128}), type), c(random({1, length, 1, 128}), type);
    double best[2] = {1e9, 1e9};
    for (int i = 0; i < 5; i++) {
      cq_scope_open();
      cq_tensor y;
      auto start = std::chrono::steady_clock::now();
      const cq_scan in = {x.handle(), dt.handle(), a.handle(), b.handle(), c.handle(),
                          nullptr,    nullptr,     nullptr,    nullptr,    nullptr,
                          256,        -1,          1,          0,          INFINITY};
      require(cq_ssd_scan(&in, &y, nullptr));
      auto middle = std::chrono::steady_clock::now();
      Tensor out = *static_cast<Tensor *>(y);
      torch::autograd::backward({out}, {at::ones_like(out)});
      auto end = std::chrono::steady_clock::now();
      best[0] =
          std::min(best[0], std::chrono::duration<double, std::milli>(middle - start).count());
      best[1] = std::min(best[1], std::chrono::duration<double, std::milli>(end - middle).count());
      cq_scope_close();
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    std::printf("%s L%ld H16 P64 N128: forward %.2f ms, backward %.2f ms, peak %ld MB\n",
                c10::toString(type), length, best[0], best[1], usage.ru_maxrss / 1024);
  }
}

int main(int argc, char **argv) {
  const std::string where = argc > 1 ? argv[1] : "cpu", mode = argc > 2 ? argv[2] : "";
  const bool quick = mode == "quick";
  const int seed = argc > 2 && !quick ? std::atoi(argv[2]) : 1, count = argc > 3
                                                                            ? std::atoi(argv[3])
                                                                        : quick ? 10
                                                                                : 40;
  const bool gpu = where == "cuda", full = argc > 4 && std::string(argv[4]) == "full";
  const bool usual = gpu && !full; // only the shapes of the plain set of kernels
  if (gpu) {
    require(cq_cuda_load());
    device = at::Device(at::kCUDA, 0);
  }
  if (mode == "times") {
    times(at::kFloat);
    times(at::kBFloat16);
    return 0;
  }
  at::manual_seed(seed);
  std::srand(seed);
  for (int i = 0; i < count; i++) {
    Case c;
    c.type = i % 2 ? at::kFloat : i % 4 ? at::kBFloat16 : i % 8 ? at::kHalf : at::kFloat;
    c.groups = pick({1, 1, 2, 3});
    c.heads = c.groups * pick({1, 1, 2, 4});
    c.batch = pick({1, 1, 2, 3});
    c.length = quick ? pick({1, 15, 17, 64, 65, 100})
                     : pick({1, 2, 15, 16, 17, 63, 64, 65, 100, 128, 130, 200, 257, 300});
    c.p = usual ? 64 : pick({16, 20, 32, 64, 64, 128});
    c.n = usual ? 128 : pick({16, 24, 32, 64, 128, 256});
    c.chunk = pick({16, 32, 64, 128, 256});
    c.window = pick({-1, -1, -1, 0, 0, 1, 2, 3, 5});
    if (usual && c.window > 0)
      c.chunk = std::max<int64_t>(c.chunk, 64);
    c.d = pick({0, 1}), c.z = pick({0, 0, 1}), c.bias = pick({0, 1, 1}), c.initial = pick({0, 1}),
    c.seq = pick({0, 0, 1});
    c.softplus = pick({1, 1, 1, 0}), c.limits = pick({0, 0, 0, 1});
    scan(c);
  }
  // Sequences long enough for several segments on a GPU; more heads, and more segments, than it has
  // SMs.
  const int64_t longest = quick ? 600 : 4500;
  for (bool seq : {false, true})
    scan({1, longest, 2, 64, 128, 1, 64, -1, true, false, true, true, seq, true, false,
          at::kBFloat16},
         false);
  scan({2, 70, 80, 64, 128, 2, 64, -1, true, false, true, false, false, true, false, at::kHalf},
       false);
  scan({2, 200, 40, 64, 128, 1, 64, 1, true, false, true, true, false, true, false, at::kBFloat16},
       false);
  for (auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (auto state : {type, at::kFloat}) {
      step(1, 4, 64, 128, 1, type, state);
      step(3, 6, 64, 128, 3, type, state);
      replay(2, 4, 16, 32, 2, type, state);
      replay(5, 8, 64, 128, 1, type, state); // has kernels in bfloat16
      replay(4, 8, 128, 128, 2, type, state);
    }
    if (usual) {
      conv(1, 1, 64, 4, true, true, false, false, type);
      conv(2, 130, 320, 4, true, true, true, false, type);
      conv(2, 77, 144, 4, false, true, true, true, type);
      conv(2, 33, 144, 4, false, true, false, true, type);
      norm(70, 96, 32, true, type);
      norm(5, 4096, 0, true, type);
      norm(3, 8192, 0, false, type);
      continue;
    }
    for (int64_t width = 2; width <= 4; width++) {
      conv(1, 1, 24, width, true, true, false, false, type);
      conv(2, 37, 80, width, true, true, true, false, type);
      conv(2, 50, 33, width, false, false, width % 2, true, type);
      conv(1, 130, 300, width, width % 2, true, true, true, type);
    }
    norm(5, 256, 0, true, type);
    norm(70, 96, 32, true, type);
    norm(3, 1000, 0, false, type);
  }
  for (auto &[what, error] : worst)
    std::printf("%-24s %.2e\n", what.c_str(), error);
  std::printf(failures ? "%d failures\n" : "all within limits\n", failures);
  return failures ? 1 : 0;
}
