// tensor_parallel.cpp: autograd for layers whose weights are sharded over the processes of a group:
// collectives in the forward or backward pass, and the cross-entropy of logits whose columns are
// sharded.
//
// All collectives go through the callback that Go registered with cq_set_group_run, so that a
// failure is explained in one place.
#include "../runtime/handles.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cstdlib>

using namespace conquer;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

static cq_group_run group_run;

void cq_set_group_run(cq_group_run run) { group_run = run; }

namespace {

void run(int64_t group, int what, at::Tensor output, at::Tensor input) {
  if (char *reason = group_run(static_cast<uintptr_t>(group), what, &output, &input)) {
    std::string message = reason;
    std::free(reason);
    TORCH_CHECK(false, message);
  }
}

// Replaces t, which is contiguous, by the sum of all processes' t.
void sum_over(int64_t group, const at::Tensor &t) { run(group, CQ_GROUP_SUM, t, t); }

// All processes' rows of t [N, ...].
at::Tensor gathered(const at::Tensor &t, int64_t size, int64_t group) {
  std::vector<int64_t> shape = t.sizes().vec();
  shape[0] *= size;
  at::Tensor all = at::empty(shape, t.options().requires_grad(false));
  run(group, CQ_GROUP_GATHER, all, t.contiguous());
  return all;
}

// This process's rows of the sum of all processes' t.
at::Tensor scattered(const at::Tensor &t, int64_t size, int64_t group) {
  std::vector<int64_t> shape = t.sizes().vec();
  TORCH_CHECK(shape[0] % size == 0, size, " processes cannot share equally ", shape[0], " rows");
  shape[0] /= size;
  at::Tensor rows = at::empty(shape, t.options().requires_grad(false));
  run(group, CQ_GROUP_SCATTER, rows, t.contiguous());
  return rows;
}

// A tensor that may be overwritten: t itself if nothing else holds its memory, else a copy.
at::Tensor mine(at::Tensor t) {
  const bool alone = t.is_contiguous() && t.use_count() == 1 && t.storage().use_count() == 1;
  return alone ? t : t.clone(at::MemoryFormat::Contiguous);
}

class Spread : public torch::autograd::Function<Spread> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, int64_t group) {
    ctx->saved_data["group"] = group;
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    at::Tensor grad = std::move(grads[0]);
    grads.clear();
    grad = mine(std::move(grad));
    sum_over(ctx->saved_data["group"].toInt(), grad);
    return {grad, {}};
  }
};

at::Tensor summed(const at::Tensor &x, int64_t group) {
  at::Tensor y = x.is_contiguous() ? x.variable_data() : x.contiguous().variable_data();
  sum_over(group, y);
  return y;
}

class Collect : public torch::autograd::Function<Collect> {
public:
  static at::Tensor forward(AutogradContext *, const at::Tensor &x, int64_t group) {
    at::Tensor y = summed(x, group);
    // The sum overwrote x's memory: with a new version autograd rejects saved copies of x.
    torch::autograd::impl::bump_version(x);
    return y;
  }
  static variable_list backward(AutogradContext *, variable_list grads) { return {grads[0], {}}; }
};

class Gather : public torch::autograd::Function<Gather> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, int64_t size,
                            int64_t group) {
    ctx->saved_data["size"] = size;
    ctx->saved_data["group"] = group;
    return gathered(x, size, group);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    return {scattered(grads[0], ctx->saved_data["size"].toInt(), ctx->saved_data["group"].toInt()),
            {},
            {}};
  }
};

class Scatter : public torch::autograd::Function<Scatter> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, int64_t size,
                            int64_t group) {
    ctx->saved_data["size"] = size;
    ctx->saved_data["group"] = group;
    return scattered(x, size, group);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    return {gathered(grads[0], ctx->saved_data["size"].toInt(), ctx->saved_data["group"].toInt()),
            {},
            {}};
  }
};

constexpr int64_t ignored = -100;

struct Loss {
  at::Tensor loss, nll, dhidden, dweight;
};

// As in ops/cross_entropy.cpp a chunk of rows at a time, but with libtorch. Each process has some
// columns of a row's logits. The processes exchange, for each row, the log-sum-exp of their logits,
// the label's logit (0 if another process has it) and the sum of their logits: each fills its
// entries of a table of zeros, and the tables are summed.
Loss sharded_loss(const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &labels,
                  const at::Tensor &row_weights, const cq_loss &wanted, const cq_group_part &part,
                  bool wants_dhidden, bool wants_dweight) {
  const int64_t N = hidden.size(0), D = hidden.size(1), V = weight.size(0);
  const double smoothing = wanted.label_smoothing, z = wanted.z_loss;
  const auto wide = hidden.options().dtype(at::kFloat);
  const at::Tensor counted = labels.ne(ignored), shifted = labels.sub(part.first);
  const at::Tensor here =
      shifted.ge(0).logical_and(shifted.lt(V)).logical_and(counted).to(at::kFloat);
  const at::Tensor column = shifted.clamp(0, V - 1).unsqueeze(1);
  const at::Tensor divisor = wanted.divisor > 0 ? at::full({}, wanted.divisor, wide)
                                                : counted.sum().clamp_min(1).to(at::kFloat);
  at::Tensor scales = counted.to(at::kFloat).div_(divisor);
  if (row_weights.defined())
    scales.mul_(row_weights);

  Loss result;
  result.nll = at::empty({N}, wide);
  at::Tensor loss = at::zeros({}, wide.dtype(at::kDouble));
  if (wants_dhidden)
    result.dhidden = at::empty({N, D}, hidden.options());
  if (wants_dweight)
    result.dweight = at::empty({V, D}, hidden.options());
  // The same number of chunks in every process, even if their shards differ by a row.
  const int64_t most_columns = (part.whole + part.size - 1) / part.size;
  const int64_t bytes = int64_t(hidden.is_cuda() ? 512 : 64) << 20,
                tallest = hidden.is_cuda() ? 4096 : 1024;
  const int64_t most = std::clamp<int64_t>(bytes / (most_columns * 4) / 64 * 64, 64, tallest);
  const int64_t chunks = (N + most - 1) / most, height = (N + chunks - 1) / chunks;
  for (int64_t begin = 0; begin < N; begin += height) {
    const int64_t n = std::min(height, N - begin);
    auto rows = [&](const at::Tensor &t) { return t.narrow(0, begin, n); };
    const at::Tensor x = rows(hidden), scale = rows(scales);
    at::Tensor logits = at::mm(x, weight.t()).to(at::kFloat);
    at::Tensor table = at::zeros({part.size, 3, n}, wide), mine = table.select(0, part.rank);
    mine.select(0, 0).copy_(logits.logsumexp(1));
    mine.select(0, 1).copy_(logits.gather(1, rows(column)).squeeze(1).mul_(rows(here)));
    if (smoothing != 0)
      mine.select(0, 2).copy_(logits.sum(1));
    sum_over(int64_t(part.group), table);
    const at::Tensor lse = table.select(1, 0).logsumexp(0), target = table.select(1, 1).sum(0);
    const at::Tensor nll = lse.sub(target);
    rows(result.nll).copy_(nll.mul(rows(counted)));
    at::Tensor each = nll;
    if (smoothing != 0 || z != 0)
      each = nll + smoothing * (target - table.select(1, 2).sum(0) / double(part.whole)) +
             z * lse.square();
    loss.add_(each.mul(scale).sum(0, false, at::kDouble));
    if (!wants_dhidden && !wants_dweight)
      continue;
    logits.sub_(lse.unsqueeze(1)).exp_().mul_((1 + 2 * z * lse).mul_(scale).unsqueeze(1));
    if (smoothing != 0)
      logits.sub_(scale.mul(smoothing / double(part.whole)).unsqueeze(1));
    logits.scatter_add_(1, rows(column), scale.mul(rows(here)).mul_(smoothing - 1).unsqueeze(1));
    logits = logits.to(hidden.scalar_type());
    if (wants_dhidden) {
      at::Tensor into = rows(result.dhidden);
      at::mm_out(into, logits, weight);
    }
    if (wants_dweight) {
      if (begin == 0)
        at::mm_out(result.dweight, logits.t(), x);
      else
        result.dweight.addmm_(logits.t(), x);
    }
  }
  result.loss = loss.to(at::kFloat);
  return result;
}

class ShardedCrossEntropy : public torch::autograd::Function<ShardedCrossEntropy> {
public:
  static variable_list forward(AutogradContext *ctx, const at::Tensor &hidden,
                               const at::Tensor &weight, const at::Tensor &labels,
                               const std::optional<at::Tensor> &row_weights, const cq_loss &wanted,
                               const cq_group_part &part) {
    Loss done = sharded_loss(hidden, weight, labels, row_weights.value_or(at::Tensor()), wanted,
                             part, hidden.requires_grad(), weight.requires_grad());
    ctx->saved_data["dhidden"] = done.dhidden;
    ctx->saved_data["dweight"] = done.dweight;
    ctx->mark_non_differentiable({done.nll});
    return {done.loss, done.nll};
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    TORCH_CHECK(!ctx->saved_data.empty(), "an earlier backward pass used up the gradients");
    at::Tensor dhidden = ctx->saved_data["dhidden"].toTensor(),
               dweight = ctx->saved_data["dweight"].toTensor();
    ctx->saved_data.clear();
    for (at::Tensor *t : {&dhidden, &dweight})
      if (t->defined())
        t->mul_(grads[0]);
    return {dhidden, dweight, {}, {}, {}, {}};
  }
};

bool records(const at::Tensor &a) { return at::GradMode::is_enabled() && a.requires_grad(); }

} // namespace

int cq_group_spread(cq_tensor x, uintptr_t group, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor input = tensor_of(x);
    return give(out, records(input) ? Spread::apply(input, int64_t(group)) : input);
  });
}

int cq_group_collect(cq_tensor x, uintptr_t group, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor input = tensor_of(x);
    return give(out, records(input) ? Collect::apply(input, int64_t(group))
                                    : summed(input, int64_t(group)));
  });
}

int cq_group_gather(cq_tensor x, int size, uintptr_t group, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor input = tensor_of(x);
    return give(out, records(input) ? Gather::apply(input, int64_t(size), int64_t(group))
                                    : gathered(input, size, int64_t(group)));
  });
}

int cq_group_scatter(cq_tensor x, int size, uintptr_t group, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor input = tensor_of(x);
    return give(out, records(input) ? Scatter::apply(input, int64_t(size), int64_t(group))
                                    : scattered(input, size, int64_t(group)));
  });
}

int cq_group_cross_entropy(cq_tensor hidden, cq_tensor weight, cq_tensor labels,
                           cq_tensor row_weights, const cq_loss *loss, const cq_group_part *part,
                           cq_tensor *out_loss, cq_tensor *out_nll) {
  return guarded([&] {
    const at::Tensor x = tensor_of(hidden).contiguous(), w = tensor_of(weight).contiguous();
    const at::Tensor target = tensor_of(labels).contiguous();
    TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1) && target.dim() == 1 &&
                    target.size(0) == x.size(0) && target.scalar_type() == at::kLong &&
                    x.dtype() == w.dtype(),
                "hidden must be [N,D], weight [V,D] and labels int64 [N], not ", x.sizes(), ", ",
                w.sizes(), " and ", target.sizes());
    if (records(x) || records(w)) {
      auto both = ShardedCrossEntropy::apply(x, w, target, optional_of(row_weights), *loss, *part);
      return give(out_loss, both[0]) || give(out_nll, both[1]);
    }
    Loss done = sharded_loss(x, w, target, tensor_of(row_weights), *loss, *part, false, false);
    return give(out_loss, done.loss) || give(out_nll, done.nll);
  });
}
