// sample.cpp: cq_choose, the next token on the logits' device. It is written with libtorch and
// never reads a value on the host, so that it can be recorded into a CUDA graph. Argmax has a
// kernel on CUDA.
#include "operators.h"

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

using namespace conquer;

namespace {

// The first column of w [B,V] at which the running sum exceeds the share u [B] of the row's total.
at::Tensor draw(const at::Tensor &w, const at::Tensor &u) {
  at::Tensor sums = w.cumsum(-1);
  at::Tensor target = u.unsqueeze(1) * sums.narrow(-1, w.size(1) - 1, 1);
  return at::searchsorted(sums, target, /*out_int32=*/false, /*right=*/true)
      .clamp_max(w.size(1) - 1);
}

at::Tensor choose(at::Tensor logits, const at::Tensor &seen, const at::Tensor &uniform,
                  const cq_sampling &o) {
  const ops::Device *device = ops::device_for(logits);
  if (device && device->argmax && o.temperature == 0 && !seen.defined() && logits.dim() == 2)
    return device->argmax(logits.contiguous());
  logits = logits.to(at::kFloat);
  if (seen.defined()) {
    at::Tensor penalized =
        at::where(logits > 0, logits / o.repetition_penalty, logits * o.repetition_penalty);
    logits = at::where(seen, penalized, logits);
  }
  if (o.temperature == 0) {
    auto [largest, id] = logits.max(-1);
    return id.masked_fill(largest.isnan(), -1);
  }
  at::Tensor p = (logits * (1 / o.temperature)).softmax(-1);
  at::Tensor broken = p.select(-1, 0).isnan();
  const bool by_mass = o.top_p > 0 && o.top_p < 1;
  if (o.top_k == 0 && !by_mass && o.min_p == 0)
    return draw(p.to(at::kDouble), uniform).squeeze(1).masked_fill(broken, -1);
  // By falling probability, ties by id.
  auto [sorted, ids] = p.sort(/*stable=*/true, -1, /*descending=*/true);
  at::Tensor mass = sorted.to(at::kDouble), keep = at::ones_like(sorted, at::kBool), total;
  if (o.top_k > 0) {
    keep = sorted >= sorted.narrow(-1, std::min<int64_t>(o.top_k, sorted.size(-1)) - 1, 1);
    total = mass.masked_fill(keep.logical_not(), 0).sum(-1, true);
  }
  if (by_mass) {
    at::Tensor before = mass.cumsum(-1) - mass;
    keep = keep &
           (before < (total.defined() ? total * o.top_p : at::full({}, o.top_p, mass.options())));
  }
  if (o.min_p > 0)
    keep = keep & (sorted >= sorted.narrow(-1, 0, 1) * static_cast<float>(o.min_p));
  at::Tensor column = draw(mass.masked_fill(keep.logical_not(), 0), uniform);
  return ids.gather(-1, column).squeeze(1).masked_fill(broken, -1);
}

} // namespace

int cq_choose(cq_tensor logits, cq_tensor seen, cq_tensor uniform, const cq_sampling *options,
              cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::choose");
    at::NoGradGuard no_grad;
    return give(out, choose(tensor_of(logits), tensor_of(seen), tensor_of(uniform), *options));
  });
}
