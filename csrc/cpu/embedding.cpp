// embedding.cpp: cq_embedding.
//
// libtorch's dense gradient of an embedding fills a [V,D] tensor with zeros, adds the few rows that were looked up, and
// is then added whole to a gradient that is already there (an embedding tied to the head has one from the loss, and so
// has a second micro-batch): four passes over V D elements for the sake of B L D. Here the rows go straight into the
// gradient that is there.
#include "cpu.h"

#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer {

namespace {

// grad[ids[i]] += dy[i]; positions of the same id are summed first, and each id belongs to one thread.
void add_to_rows(const at::Tensor &grad, const at::Tensor &ids, const at::Tensor &dy) {
  if (const Face *face = face_of(grad)) {
    face->add_rows(grad, ids, dy);
    return;
  }
  const int64_t n = ids.numel(), D = grad.size(1);
  const int64_t *id = data_of<int64_t>(ids);
  std::vector<int64_t> order(n), first; // positions by id; where each id's positions begin
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return id[a] < id[b]; });
  for (int64_t i = 0; i < n; i++)
    if (i == 0 || id[order[i]] != id[order[i - 1]])
      first.push_back(i);
  const int64_t distinct = first.size();
  first.push_back(n);
  with_type(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *rows = data_of<T>(dy);
    T *into = mutable_data_of<T>(grad);
    at::parallel_for(0, distinct, rows_per_share(D), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        kernels<T>().add_rows(rows, order.data() + first[i], first[i + 1] - first[i], D,
                              into + id[order[first[i]]] * D);
    });
  });
}

class Embedding : public torch::autograd::Function<Embedding> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &weight, const at::Tensor &ids) {
    ctx->save_for_backward({ids});
    ctx->saved_data["weight"] = weight; // the parameter itself, for its .grad
    return at::embedding(weight, ids);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    if (!ctx->needs_input_grad(0))
      return {{}, {}};
    at::NoGradGuard no_grad;
    const at::Tensor weight = ctx->saved_data["weight"].toTensor(), ids = ctx->get_saved_variables()[0].contiguous();
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor there = weight.is_leaf() ? weight.grad() : at::Tensor();
    if (there.defined() && there.is_contiguous() && there.scalar_type() == dy.scalar_type()) {
      add_to_rows(there, ids, dy);
      return {{}, {}};
    }
    at::Tensor dweight = at::zeros(weight.sizes(), weight.options());
    add_to_rows(dweight, ids, dy);
    return {dweight, {}};
  }
};

} // namespace

} // namespace conquer

using namespace conquer;

int cq_embedding(cq_tensor weight, cq_tensor ids, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::embedding");
    const at::Tensor w = tensor_of(weight), index = tensor_of(ids);
    const bool served = w.is_cpu() || (face_of(w) && w.scalar_type() != at::kHalf && w.size(-1) % 16 == 0);
    if (served && w.dim() == 2 && has_kernel_type(w) && index.scalar_type() == at::kLong && records_grad(w))
      return give(out, Embedding::apply(w, index));
    return give(out, at::embedding(w, index));
  });
}

int cq_embedding_reference(cq_tensor weight, cq_tensor ids, cq_tensor *out) {
  return guarded([&] { return give(out, at::embedding(tensor_of(weight), tensor_of(ids))); });
}
