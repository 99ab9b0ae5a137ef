// cross_entropy.cpp: cq_cross_entropy_head, a language model's head and its loss.
//
// The logits of a batch are the largest tensor of a training step: 2 x 256 tokens by 49,152 words
// are 100 MB in float32, and softmax, its logarithm and their gradients would take as much each. So
// a chunk of rows at a time goes through the GEMM, the loss and, if gradients are needed, both
// GEMMs of the backward pass. The backward pass then only scales the gradients. Rows whose label is
// ignored are dropped first on the host. Operations for each counted row: 2 V D for the loss, 4 V D
// more for both gradients.
#include "blocks.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

constexpr int64_t ignored = -100;

// A chunk needs enough rows for efficient GEMMs and for the weight's gradient, read and written
// once a chunk, to be negligible. More rows only take memory.
int64_t rows_per_chunk(int64_t vocabulary, int64_t element_size) {
  return std::clamp<int64_t>((int64_t(64) << 20) / (vocabulary * element_size) / 64 * 64, 64, 1024);
}

struct Head {
  at::Tensor loss, nll, dhidden, dweight;
};

// The options of the loss, and which gradients are needed.
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
  at::Tensor nll = at::cross_entropy_loss(logits, labels, {}, at::Reduction::None, ignored),
             loss = nll;
  if (!wanted.plain()) {
    at::Tensor smooth = at::cross_entropy_loss(logits, labels, {}, at::Reduction::None, ignored,
                                               wanted.loss.label_smoothing);
    loss = smooth + wanted.loss.z_loss * logits.logsumexp(1).square() * (labels != ignored);
  }
  if (wanted.weights.defined())
    loss = loss * wanted.weights;
  at::Tensor count = wanted.loss.divisor > 0 ? at::full({}, wanted.loss.divisor, nll.options())
                                             : (labels != ignored).sum().clamp_min(1);
  return {loss.sum() / count, nll.detach(), {}, {}};
}

// On the host labels can be read: rows whose label is ignored are dropped first.
Head head_on_host(const Device &device, const at::Tensor &hidden, const at::Tensor &weight,
                  const at::Tensor &labels, const Wanted &wanted) {
  const int64_t N = hidden.size(0), D = hidden.size(1), V = weight.size(0);
  const auto options = hidden.options();
  const int64_t *label = labels.const_data_ptr<int64_t>();
  std::vector<int64_t> rows, targets;
  for (int64_t i = 0; i < N; i++)
    if (label[i] != ignored) {
      TORCH_CHECK(label[i] >= 0 && label[i] < V, "cross_entropy_head: label ", label[i], " of row ",
                  i, " is outside the vocabulary of ", V);
      rows.push_back(i);
      targets.push_back(label[i]);
    }
  const int64_t counted = rows.size();
  const bool all = counted == N;
  const at::Tensor index = at::from_blob(rows.data(), {counted}, at::kLong);
  const at::Tensor input = all ? hidden : hidden.index_select(0, index);

  const double divisor =
      wanted.loss.divisor > 0 ? wanted.loss.divisor : double(std::max<int64_t>(counted, 1));
  // In float16 (softmax - onehot) / divisor would underflow, so the division follows the GEMMs.
  const double inside = hidden.scalar_type() == at::kHalf ? 1 : 1 / divisor,
               after = 1 / divisor / inside;
  at::Tensor scales = at::full({counted}, inside, at::kFloat), weights;
  if (wanted.weights.defined()) {
    weights = all ? wanted.weights : wanted.weights.index_select(0, index);
    scales.mul_(weights);
  }
  const at::Tensor target = at::from_blob(targets.data(), {counted}, at::kLong);
  at::Tensor nll = at::empty({counted}, at::kFloat), penalty = at::empty({counted}, at::kFloat);
  Head result;
  at::Tensor dinput = wanted.dhidden ? at::empty({counted, D}, options) : at::Tensor();
  if (wanted.dweight && !counted)
    result.dweight = at::zeros({V, D}, options);
  const int64_t most = rows_per_chunk(V, hidden.element_size()),
                chunks = (counted + most - 1) / most;
  const int64_t chunk = chunks ? (counted + chunks - 1) / chunks
                               : 0; // equal chunks: a short last one would be slower
  for (int64_t begin = 0; begin < counted; begin += chunk) {
    const int64_t n = std::min(chunk, counted - begin);
    const at::Tensor x = input.narrow(0, begin, n);
    at::Tensor logits =
        blocks_of(weight) ? block_product(x, weight, wanted.gradient()) : gemm(x, weight.t());
    auto chunk_of = [&](const at::Tensor &t) { return t.narrow(0, begin, n); };
    device.cross_entropy({logits, chunk_of(target), chunk_of(nll), wanted.gradient(), inside,
                          chunk_of(scales), wanted.loss.label_smoothing, wanted.loss.z_loss,
                          chunk_of(penalty)});
    if (wanted.dhidden)
      dinput.narrow(0, begin, n)
          .copy_(blocks_of(weight) ? block_gemm(logits, weight) : gemm(logits, weight));
    if (wanted.dweight) {
      if (begin == 0)
        result.dweight = gemm(logits.t(), x);
      else
        add_gemm(result.dweight, logits.t(), x);
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
  const float *nlls = nll.const_data_ptr<float>(), *penalties = penalty.const_data_ptr<float>(),
              *by = weights.defined() ? weights.const_data_ptr<float>() : nullptr;
  for (int64_t i = 0; i < counted; i++)
    total += double(by ? by[i] : 1.f) * (double(nlls[i]) + penalties[i]);
  result.loss = at::full({}, total / divisor, options.dtype(at::kFloat));
  result.nll = all ? nll : at::zeros({N}, options.dtype(at::kFloat)).index_copy_(0, index, nll);
  return result;
}

// Device::cross_entropy written with libtorch. Returns what label smoothing and z-loss add to each
// row [n].
at::Tensor cross_entropy_of_libtorch(const at::Tensor &logits, const at::Tensor &labels,
                                     double scale, const Wanted &wanted, const at::Tensor &nll) {
  const auto [_, smoothing, z] = wanted.loss;
  at::Tensor x = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  const at::Tensor counted = labels >= 0, at = labels.clamp_min(0).unsqueeze(1);
  at::Tensor lse = x.logsumexp(1), target = x.gather(1, at).squeeze(1);
  nll.copy_((lse - target) * counted);
  at::Tensor penalty = (smoothing * (target - x.mean(1)) + z * lse.square()) * counted;
  if (wanted.gradient()) {
    at::Tensor g = (x - lse.unsqueeze(1))
                       .exp_()
                       .mul_((1 + 2 * z * lse).unsqueeze(1))
                       .sub_(smoothing / x.size(1));
    g.scatter_add_(1, at, at::full_like(target, smoothing - 1).unsqueeze(1));
    logits.copy_(g.mul_((counted * scale).unsqueeze(1)));
  }
  return penalty.to(at::kFloat);
}

// On other devices, and for dtypes without kernels, labels are not read on the host: ignored rows
// are computed like the others and count nothing. device may be null; its kernel computes losses
// without label smoothing and z-loss.
Head head_on_device(const Device *device, const at::Tensor &hidden, const at::Tensor &weight,
                    const at::Tensor &labels, const Wanted &wanted) {
  const int64_t N = hidden.size(0), D = hidden.size(1), V = weight.size(0);
  const auto options = hidden.options();
  const double divisor = wanted.loss.divisor;
  at::Tensor count = divisor > 0 ? at::Tensor() : (labels != ignored).sum().clamp_min(1);
  // If only the device knows the divisor, the gradients are divided at the end.
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
  // Larger chunks than on the CPU, since a GEMM must fill the device.
  const int64_t most =
      std::clamp<int64_t>((int64_t(1) << 29) / (V * hidden.element_size()) / 256 * 256, 256, 4096);
  const int64_t chunks = (N + most - 1) / most, chunk = (N + chunks - 1) / chunks;
  at::Tensor buffer = at::empty({chunk, V}, options);
  for (int64_t begin = 0; begin < N; begin += chunk) {
    const int64_t n = std::min(chunk, N - begin);
    at::Tensor x = hidden.narrow(0, begin, n), logits = buffer.narrow(0, 0, n),
               nll = result.nll.narrow(0, begin, n);
    const at::Tensor label = labels.narrow(0, begin, n);
    at::mm_out(logits, x, weight.t());
    if (device && wanted.plain())
      device->cross_entropy({logits, label, nll, wanted.gradient(), inside, {}});
    else {
      at::Tensor penalty = cross_entropy_of_libtorch(logits, label, inside, wanted, nll);
      if (!wanted.plain())
        loss.narrow(0, begin, n).copy_(nll + penalty);
    }
    // Row weights multiply the narrow factors of the GEMMs instead of the wide gradient of the
    // logits.
    at::Tensor by = wanted.weights.defined()
                        ? wanted.weights.narrow(0, begin, n).unsqueeze(1).to(x.scalar_type())
                        : at::Tensor();
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

Head fused(const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &labels,
           const Wanted &wanted) {
  at::NoGradGuard no_grad;
  const Device *device = device_for(hidden);
  if (!blocks_of(weight) && device != device_for(weight))
    device = nullptr;
  if (device && device->limits.loss_penalties && hidden.is_cpu())
    return head_on_host(*device, hidden, weight, labels, wanted);
  return head_on_device(device, hidden, weight, labels, wanted);
}

class CrossEntropyHead : public torch::autograd::Function<CrossEntropyHead> {
public:
  static variable_list forward(AutogradContext *ctx, const at::Tensor &hidden,
                               const at::Tensor &weight, const at::Tensor &labels,
                               const std::optional<at::Tensor> &row_weights, const cq_loss &loss) {
    Head done = fused(
        hidden, weight, labels,
        {loss, row_weights.value_or(at::Tensor()), hidden.requires_grad(), weight.requires_grad()});
    // Not in save_for_backward: the backward pass moves them out, and autograd then stores them in
    // .grad without a copy.
    ctx->saved_data["dhidden"] = done.dhidden;
    ctx->saved_data["dweight"] = done.dweight;
    ctx->mark_non_differentiable({done.nll});
    return {done.loss, done.nll};
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    TORCH_CHECK(!ctx->saved_data.empty(),
                "cross_entropy_head: an earlier backward pass used up the gradients");
    at::Tensor dhidden = ctx->saved_data["dhidden"].toTensor(),
               dweight = ctx->saved_data["dweight"].toTensor();
    ctx->saved_data.clear();
    // The host does not wait for the scale of a GPU. It is one if the loss itself is
    // differentiated.
    if (!grads[0].is_cpu()) {
      for (at::Tensor *t : {&dhidden, &dweight})
        if (const Device *device = device_for(*t); device && device->multiply)
          device->multiply(*t, grads[0].to(at::kFloat));
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

} // namespace conquer::ops

using namespace conquer;

static int give_head(const ops::Head &head, cq_tensor *out_loss, cq_tensor *out_nll) {
  return give(out_loss, head.loss) || (out_nll && give(out_nll, head.nll));
}

int cq_cross_entropy_head(cq_tensor hidden, cq_tensor weight, cq_tensor labels,
                          cq_tensor row_weights, const cq_loss *loss, cq_tensor *out_loss,
                          cq_tensor *out_nll) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::cross_entropy_head");
    const at::Tensor x = tensor_of(hidden), target = tensor_of(labels), by = tensor_of(row_weights);
    at::Tensor w = tensor_of(weight);
    if (const auto *parts = ops::blocks_of(w); parts && w.is_cuda())
      w = ops::unpacked(*parts, 0, w.size(0), w.scalar_type());
    TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1) && target.dim() == 1 &&
                    target.size(0) == x.size(0) && target.scalar_type() == at::kLong,
                "cross_entropy_head: hidden must be [N,D], weight [V,D] and labels int64 [N], not ",
                x.sizes(), ", ", w.sizes(), " and ", target.sizes());
    TORCH_CHECK(!by.defined() || (by.sizes() == target.sizes() && by.scalar_type() == at::kFloat &&
                                  by.is_contiguous()),
                "cross_entropy_head: row_weights must be contiguous float32 [N]");
    const ops::Wanted nothing{*loss, by, false, false};
    if (ops::blocks_of(w)) {
      TORCH_CHECK(x.is_cpu() && x.scalar_type() == at::kFloat,
                  "cross_entropy_head: a weight in blocks takes float32 on the CPU");
      if (x.size(0) > 0 && !ops::records_grad(x))
        return give_head(ops::fused(x.contiguous(), w, target.contiguous(), nothing), out_loss,
                         out_nll);
    }
    // Gradients in float16 need the CPU's scaling.
    const bool served = x.device() == w.device() && x.scalar_type() == w.scalar_type() &&
                        x.size(0) > 0 &&
                        (x.is_cpu() || !(ops::records_grad(x, w) && x.scalar_type() == at::kHalf));
    if (!served)
      return give_head(ops::head_reference(x, w, target, nothing), out_loss, out_nll);
    if (!ops::records_grad(x, w))
      return give_head(ops::fused(x.contiguous(), w.contiguous(), target.contiguous(), nothing),
                       out_loss, out_nll);
    auto both = ops::CrossEntropyHead::apply(x.contiguous(), w.contiguous(), target.contiguous(),
                                             optional_of(row_weights), *loss);
    return give_head({both[0], both[1], {}, {}}, out_loss, out_nll);
  });
}

int cq_cross_entropy_head_reference(cq_tensor hidden, cq_tensor weight, cq_tensor labels,
                                    cq_tensor row_weights, const cq_loss *loss, cq_tensor *out_loss,
                                    cq_tensor *out_nll) {
  return guarded([&] {
    const ops::Wanted wanted{*loss, tensor_of(row_weights), false, false};
    return give_head(
        ops::head_reference(tensor_of(hidden), tensor_of(weight), tensor_of(labels), wanted),
        out_loss, out_nll);
  });
}
