// embedding.cpp: cq_embedding.
//
// libtorch's gradient of an embedding is a [V,D] tensor of zeros plus the few rows that were looked
// up, which autograd then adds to an existing gradient (from a tied head, or from an earlier
// micro-batch): four passes over V D elements for B L D of them. Here the rows are added to the
// existing gradient.
#include "blocks.h"

#include <torch/csrc/autograd/custom_function.h>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

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
    const at::Tensor weight = ctx->saved_data["weight"].toTensor(),
                     ids = ctx->get_saved_variables()[0].contiguous();
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor there = weight.is_leaf() ? weight.grad() : at::Tensor();
    if (there.defined() && there.is_contiguous() && there.scalar_type() == dy.scalar_type()) {
      registered_device(there).add_rows(there, ids, dy);
      return {{}, {}};
    }
    at::Tensor dweight = at::zeros(weight.sizes(), weight.options());
    registered_device(dweight).add_rows(dweight, ids, dy);
    return {dweight, {}};
  }
};

} // namespace

} // namespace conquer::ops

using namespace conquer;

int cq_embedding(cq_tensor weight, cq_tensor ids, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::embedding");
    const at::Tensor w = tensor_of(weight), index = tensor_of(ids);
    if (ops::blocks_of(w))
      return give(out, ops::block_embedding(w, index));
    const ops::Device *device = ops::device_for(w);
    if (device && w.dim() == 2 && w.size(1) % device->limits.width_multiple == 0 &&
        ops::has_gradients(*device, w.scalar_type()) && index.scalar_type() == at::kLong &&
        ops::records_grad(w))
      return give(out, ops::Embedding::apply(w, index));
    return give(out, at::embedding(w, index));
  });
}

int cq_embedding_reference(cq_tensor weight, cq_tensor ids, cq_tensor *out) {
  return guarded([&] {
    at::Tensor w = tensor_of(weight);
    if (const auto *parts = ops::blocks_of(w))
      w = ops::unpacked(*parts, 0, w.size(0), at::kFloat);
    return give(out, at::embedding(w, tensor_of(ids)));
  });
}
