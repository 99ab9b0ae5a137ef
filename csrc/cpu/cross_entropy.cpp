// cross_entropy.cpp: cq_cross_entropy_head, the last product of a language model and its loss in one operation.
//
// The logits of a whole batch are the largest tensor of a training step: 2 x 256 tokens by 49,152 words are 100 MB in
// float32, and softmax, its log and their gradients would each hold as much again. Here a chunk of rows at a time goes
// through the product, the loss and (where gradients are wanted) both products of the backward, while it is at hand;
// the backward proper only scales what the forward left. Rows whose label is ignored are dropped first: they would cost
// as much as the others and contribute nothing. Per counted row: 2 V D operations for the loss, 4 V D more for both
// gradients.
#include "cpu.h"

#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer {

namespace {

constexpr int64_t ignored = -100;

// A chunk must be tall enough for the products to run at speed and for the weight's gradient, read and written once a
// chunk, not to matter; beyond that more rows only take memory.
int64_t rows_per_chunk(int64_t vocabulary, int64_t element_size) {
  return std::clamp<int64_t>((int64_t(64) << 20) / (vocabulary * element_size) / 64 * 64, 64, 1024);
}

struct Head {
  at::Tensor loss, nll, dhidden, dweight;
};

// What the loss of a row is, and which gradients of it are wanted.
struct Wanted {
  cq_loss loss;
  at::Tensor weights; // float32 [N], or undefined
  bool dhidden, dweight;

  bool gradient() const { return dhidden || dweight; }
  bool plain() const { return loss.label_smoothing == 0 && loss.z_loss == 0; }
};

Head head_reference(const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &labels,
                    const Wanted &wanted) {
  at::Tensor logits = at::linear(hidden, weight);
  if (logits.scalar_type() != at::kDouble)
    logits = logits.to(at::kFloat);
  at::Tensor nll = at::cross_entropy_loss(logits, labels, {}, at::Reduction::None, ignored), loss = nll;
  if (!wanted.plain()) {
    at::Tensor smooth =
        at::cross_entropy_loss(logits, labels, {}, at::Reduction::None, ignored, wanted.loss.label_smoothing);
    loss = smooth + wanted.loss.z_loss * logits.logsumexp(1).square() * (labels != ignored);
  }
  if (wanted.weights.defined())
    loss = loss * wanted.weights;
  at::Tensor count = wanted.loss.divisor > 0 ? at::full({}, wanted.loss.divisor, nll.options())
                                             : (labels != ignored).sum().clamp_min(1);
  return {loss.sum() / count, nll.detach(), {}, {}};
}

Head head(const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &labels, const Wanted &wanted) {
  const int64_t N = hidden.size(0), D = hidden.size(1), V = weight.size(0);
  const auto options = hidden.options();
  const int64_t *label = data_of<int64_t>(labels);
  std::vector<int64_t> rows, targets;
  for (int64_t i = 0; i < N; i++)
    if (label[i] != ignored) {
      TORCH_CHECK(label[i] >= 0 && label[i] < V, "cross_entropy_head: label ", label[i], " of row ", i,
                  " is outside the vocabulary of ", V);
      rows.push_back(i);
      targets.push_back(label[i]);
    }
  const int64_t counted = rows.size();
  const bool all = counted == N;
  const at::Tensor index = at::from_blob(rows.data(), {counted}, at::kLong);
  const at::Tensor input = all ? hidden : hidden.index_select(0, index);

  const double divisor = wanted.loss.divisor > 0 ? wanted.loss.divisor : double(std::max<int64_t>(counted, 1));
  // float16 would lose (softmax - onehot) / divisor below its smallest number, so there the division comes afterwards.
  const double inside = hidden.scalar_type() == at::kHalf ? 1 : 1 / divisor, after = 1 / divisor / inside;
  std::vector<float> weights(counted, 1), scales(counted, float(inside));
  if (wanted.weights.defined())
    for (int64_t i = 0; i < counted; i++) {
      weights[i] = data_of<float>(wanted.weights)[rows[i]];
      scales[i] *= weights[i];
    }
  const Penalties penalties{float(wanted.loss.label_smoothing), float(wanted.loss.z_loss)};

  Head result;
  at::Tensor dinput = wanted.dhidden ? at::empty({counted, D}, options) : at::Tensor();
  if (wanted.dweight && !counted)
    result.dweight = at::zeros({V, D}, options);
  std::vector<float> nll(counted), penalty(counted);
  const int64_t most = rows_per_chunk(V, hidden.element_size()), chunks = (counted + most - 1) / most;
  const int64_t chunk =
      chunks ? (counted + chunks - 1) / chunks : 0; // of equal height: a short last one would run slower
  for (int64_t begin = 0; begin < counted; begin += chunk) {
    const int64_t n = std::min(chunk, counted - begin);
    const at::Tensor x = input.narrow(0, begin, n);
    at::Tensor logits = product(x, weight.t());
    with_type(hidden.scalar_type(), [&](auto element) {
      using T = decltype(element);
      T *data = mutable_data_of<T>(logits);
      at::parallel_for(0, n, 1, [&](int64_t from, int64_t to) {
        const int64_t at = begin + from;
        kernels<T>().cross_entropy(data + from * V, to - from, V, targets.data() + at,
                                   wanted.gradient() ? scales.data() + at : nullptr, penalties, nll.data() + at,
                                   penalty.data() + at);
      });
    });
    if (wanted.dhidden)
      dinput.narrow(0, begin, n).copy_(product(logits, weight));
    if (wanted.dweight) {
      if (begin == 0)
        result.dweight = product(logits.t(), x);
      else
        add_product(result.dweight, logits.t(), x);
    }
  }

  if (wanted.dhidden) {
    if (after != 1)
      dinput.mul_(after);
    result.dhidden = all ? dinput : at::zeros({N, D}, options).index_copy_(0, index, dinput);
  }
  if (wanted.dweight && after != 1)
    result.dweight.mul_(after);
  double total = 0;
  for (int64_t i = 0; i < counted; i++)
    total += double(weights[i]) * (double(nll[i]) + penalty[i]);
  result.loss = at::full({}, total / divisor, options.dtype(at::kFloat));
  result.nll = at::zeros({N}, options.dtype(at::kFloat));
  for (int64_t i = 0; i < counted; i++)
    mutable_data_of<float>(result.nll)[rows[i]] = nll[i];
  return result;
}

// What a face's cross_entropy does, by libtorch and with penalties, whose sum over the rows is returned [n].
at::Tensor cross_entropy_of_libtorch(const at::Tensor &logits, const at::Tensor &labels, double scale,
                                     const Wanted &wanted, const at::Tensor &nll) {
  const auto [_, smoothing, z] = wanted.loss;
  at::Tensor x = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  const at::Tensor counted = labels >= 0, at = labels.clamp_min(0).unsqueeze(1);
  at::Tensor lse = x.logsumexp(1), target = x.gather(1, at).squeeze(1);
  nll.copy_((lse - target) * counted);
  at::Tensor penalty = (smoothing * (target - x.mean(1)) + z * lse.square()) * counted;
  if (wanted.gradient()) {
    at::Tensor g = (x - lse.unsqueeze(1)).exp_().mul_((1 + 2 * z * lse).unsqueeze(1)).sub_(smoothing / x.size(1));
    g.scatter_add_(1, at, at::full_like(target, smoothing - 1).unsqueeze(1));
    logits.copy_(g.mul_((counted * scale).unsqueeze(1)));
  }
  return penalty.to(at::kFloat);
}

// The same on another device, and for elements that have no kernel: labels stay where they are, so ignored rows are
// computed like the others and count nothing. A face (or nullptr) serves the loss without penalties.
Head head_elsewhere(const Face *face, const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &labels,
                    const Wanted &wanted) {
  const int64_t N = hidden.size(0), D = hidden.size(1), V = weight.size(0);
  const auto options = hidden.options();
  const double divisor = wanted.loss.divisor;
  at::Tensor count = divisor > 0 ? at::Tensor() : (labels != ignored).sum().clamp_min(1);
  // Where only the device knows the divisor, the gradients are divided at the end.
  const double inside = divisor > 0 ? 1 / divisor : 1;

  Head result;
  if (wanted.dhidden)
    result.dhidden = at::empty({N, D}, options);
  if (wanted.dweight)
    result.dweight = at::empty({V, D}, options);
  result.nll = at::empty({N}, options.dtype(at::kFloat));
  at::Tensor loss = result.nll;
  if (!wanted.plain())
    loss = at::empty_like(loss);
  // Taller chunks than the CPU's: a product must fill the device.
  const int64_t most = std::clamp<int64_t>((int64_t(1) << 29) / (V * hidden.element_size()) / 256 * 256, 256, 4096);
  const int64_t chunks = (N + most - 1) / most, chunk = (N + chunks - 1) / chunks;
  at::Tensor buffer = at::empty({chunk, V}, options);
  for (int64_t begin = 0; begin < N; begin += chunk) {
    const int64_t n = std::min(chunk, N - begin);
    at::Tensor x = hidden.narrow(0, begin, n), logits = buffer.narrow(0, 0, n), nll = result.nll.narrow(0, begin, n);
    const at::Tensor label = labels.narrow(0, begin, n);
    at::mm_out(logits, x, weight.t());
    if (face && wanted.plain())
      face->cross_entropy(logits, label, inside, wanted.gradient(), nll);
    else {
      at::Tensor penalty = cross_entropy_of_libtorch(logits, label, inside, wanted, nll);
      if (!wanted.plain())
        loss.narrow(0, begin, n).copy_(nll + penalty);
    }
    // A row's weight goes to what its gradient is multiplied with, which is far narrower than the gradient.
    at::Tensor by =
        wanted.weights.defined() ? wanted.weights.narrow(0, begin, n).unsqueeze(1).to(x.scalar_type()) : at::Tensor();
    if (wanted.dhidden) {
      at::Tensor into = result.dhidden.narrow(0, begin, n);
      at::mm_out(into, logits, weight);
      if (by.defined())
        into.mul_(by);
    }
    if (wanted.dweight) {
      if (by.defined())
        x = x * by;
      if (begin == 0)
        at::mm_out(result.dweight, logits.t(), x);
      else
        result.dweight.addmm_(logits.t(), x);
    }
  }
  result.loss = (wanted.weights.defined() ? loss * wanted.weights : loss).sum() * inside;
  if (count.defined()) {
    result.loss = result.loss / count;
    for (at::Tensor *t : {&result.dhidden, &result.dweight})
      if (t->defined())
        t->div_(count);
  }
  return result;
}

// The CPU's kernels where they serve the tensors, a face or libtorch elsewhere.
Head fused(const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &labels, const Wanted &wanted) {
  at::NoGradGuard no_grad;
  if (hidden.is_cpu() && has_kernel_type(hidden))
    return head(hidden, weight, labels, wanted);
  return head_elsewhere(face_of(weight) ? face_of(hidden) : nullptr, hidden, weight, labels, wanted);
}

class CrossEntropyHead : public torch::autograd::Function<CrossEntropyHead> {
public:
  static variable_list forward(AutogradContext *ctx, const at::Tensor &hidden, const at::Tensor &weight,
                               const at::Tensor &labels, const std::optional<at::Tensor> &row_weights,
                               const cq_loss &loss) {
    Head done = fused(hidden, weight, labels,
                      {loss, row_weights.value_or(at::Tensor()), hidden.requires_grad(), weight.requires_grad()});
    // Kept outside save_for_backward: the backward hands them over, and a gradient that nobody else holds becomes the
    // parameter's without a copy.
    ctx->saved_data["dhidden"] = done.dhidden;
    ctx->saved_data["dweight"] = done.dweight;
    ctx->mark_non_differentiable({done.nll});
    return {done.loss, done.nll};
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    TORCH_CHECK(!ctx->saved_data.empty(), "cross_entropy_head: its gradients were handed out by an earlier backward");
    at::Tensor dhidden = ctx->saved_data["dhidden"].toTensor(), dweight = ctx->saved_data["dweight"].toTensor();
    ctx->saved_data.clear();
    // A GPU's scale is not waited for. It is one where the loss itself is differentiated.
    if (!grads[0].is_cpu()) {
      for (at::Tensor *t : {&dhidden, &dweight})
        if (const Face *face = face_of(*t))
          face->multiply(*t, grads[0].to(at::kFloat));
        else if (t->defined())
          t->mul_(grads[0]);
      return {dhidden, dweight, {}, {}, {}};
    }
    const double scale = grads[0].item<double>();
    for (at::Tensor *t : {&dhidden, &dweight})
      if (t->defined() && scale != 1)
        t->mul_(scale);
    return {dhidden, dweight, {}, {}, {}};
  }
};

} // namespace

} // namespace conquer

using namespace conquer;

static int give_head(const Head &head, cq_tensor *out_loss, cq_tensor *out_nll) {
  return give(out_loss, head.loss) || (out_nll && give(out_nll, head.nll));
}

int cq_cross_entropy_head(cq_tensor hidden, cq_tensor weight, cq_tensor labels, cq_tensor row_weights,
                          const cq_loss *loss, cq_tensor *out_loss, cq_tensor *out_nll) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::cross_entropy_head");
    const at::Tensor x = tensor_of(hidden), w = tensor_of(weight), target = tensor_of(labels),
                     by = tensor_of(row_weights);
    TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1) && target.dim() == 1 &&
                    target.size(0) == x.size(0) && target.scalar_type() == at::kLong,
                "cross_entropy_head: hidden must be [N,D], weight [V,D] and labels int64 [N], not ", x.sizes(), ", ",
                w.sizes(), " and ", target.sizes());
    TORCH_CHECK(!by.defined() || (by.sizes() == target.sizes() && by.scalar_type() == at::kFloat && by.is_contiguous()),
                "cross_entropy_head: the rows' weights must be float32 [N]");
    const Wanted nothing{*loss, by, false, false};
    // Gradients in float16 need more care than the device's kernels take.
    const bool served = x.device() == w.device() && x.scalar_type() == w.scalar_type() && x.size(0) > 0 &&
                        (x.is_cpu() || !(records_grad(x, w) && x.scalar_type() == at::kHalf));
    if (!served)
      return give_head(head_reference(x, w, target, nothing), out_loss, out_nll);
    if (!records_grad(x, w))
      return give_head(fused(x.contiguous(), w.contiguous(), target.contiguous(), nothing), out_loss, out_nll);
    auto both =
        CrossEntropyHead::apply(x.contiguous(), w.contiguous(), target.contiguous(), optional_of(row_weights), *loss);
    return give_head({both[0], both[1], {}, {}}, out_loss, out_nll);
  });
}

int cq_cross_entropy_head_reference(cq_tensor hidden, cq_tensor weight, cq_tensor labels, cq_tensor row_weights,
                                    const cq_loss *loss, cq_tensor *out_loss, cq_tensor *out_nll) {
  return guarded([&] {
    const Wanted wanted{*loss, tensor_of(row_weights), false, false};
    return give_head(head_reference(tensor_of(hidden), tensor_of(weight), tensor_of(labels), wanted), out_loss,
                     out_nll);
  });
}
