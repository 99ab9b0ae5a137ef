// recompute.cpp: results that take much memory until the backward pass and little time to compute
// again. Between cq_drop_begin and cq_drop_end, operators with such results record how each is
// computed. cq_drop_end frees the storage of those that a backward pass will read; their tensors
// stay in autograd's graph. cq_dropped_restore recomputes them into the same storage, so operators
// need no second backward pass.
#include "recompute.h"

#include <ATen/core/grad_mode.h>

using namespace conquer;

namespace {

struct Result {
  c10::Storage storage;
  std::function<at::Tensor()> compute;
};

} // namespace

struct cq_dropped {
  std::vector<Result> results; // in the order of computation, since one may need another
};

static thread_local std::unique_ptr<cq_dropped> recorded; // while the thread drops

at::Tensor conquer::recomputable(const std::function<at::Tensor()> &compute) {
  at::Tensor result = compute();
  if (recorded && result.requires_grad())
    recorded->results.push_back({result.storage(), compute});
  return result;
}

int cq_drop_begin(void) {
  return guarded([&] {
    TORCH_CHECK(!recorded, "cq_drop_begin was called already on this thread");
    recorded = std::make_unique<cq_dropped>();
    return 0;
  });
}

int cq_drop_end(cq_tensor kept, cq_dropped **out) {
  return guarded([&] {
    TORCH_CHECK(recorded, "cq_drop_begin was not called on this thread");
    std::unique_ptr<cq_dropped> dropped = std::move(recorded);
    const at::Tensor result = tensor_of(kept);
    auto &list = dropped->results;
    // From the last on, since a result's function holds others. No backward pass reads a storage
    // without other holders.
    for (size_t i = list.size(); i-- > 0;)
      if (list[i].storage.use_count() == 1 ||
          (result.defined() && result.storage().is_alias_of(list[i].storage)))
        list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
    for (Result &r : list)
      r.storage.set_data_ptr_noswap(at::DataPtr(nullptr, r.storage.device()));
    *out = dropped.release();
    return 0;
  });
}

int cq_dropped_restore(cq_dropped *dropped) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    for (Result &r : dropped->results) {
      at::Tensor again = r.compute();
      TORCH_CHECK(again.storage().nbytes() == r.storage.nbytes(), "a dropped result had ",
                  r.storage.nbytes(), " bytes, and has ", again.storage().nbytes(),
                  " after recomputation");
      r.storage.set_data_ptr_noswap(
          again.storage().set_data_ptr(at::DataPtr(nullptr, again.device())));
    }
    dropped->results.clear();
    return 0;
  });
}

void cq_dropped_free(cq_dropped *dropped) { delete dropped; }
