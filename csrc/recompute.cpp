// recompute.cpp: results that cost much memory to keep for a backward pass and little time to compute again. While a
// thread drops (cq_drop_begin to cq_drop_end), the operations that have such results note how each came about. At the
// end, what a backward pass will read of them gives its memory back, but stays in autograd's graph;
// cq_dropped_restore computes it again and puts it where it was. So no operation has a second way to go backward.
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
  std::vector<Result> results; // in the order in which they were computed: one may need another
};

static thread_local std::unique_ptr<cq_dropped> noted; // while the thread drops

at::Tensor conquer::recomputable(const std::function<at::Tensor()> &compute) {
  at::Tensor result = compute();
  if (noted && result.requires_grad())
    noted->results.push_back({result.storage(), compute});
  return result;
}

int cq_drop_begin(void) {
  return guarded([&] {
    TORCH_CHECK(!noted, "this thread drops results already");
    noted = std::make_unique<cq_dropped>();
    return 0;
  });
}

int cq_drop_end(cq_tensor kept, cq_dropped **out) {
  return guarded([&] {
    TORCH_CHECK(noted, "this thread drops no results");
    std::unique_ptr<cq_dropped> dropped = std::move(noted);
    const at::Tensor result = tensor_of(kept);
    auto &list = dropped->results;
    // From the last on, since the recipe for one holds others. What nothing else holds by now no backward pass reads.
    for (size_t i = list.size(); i-- > 0;)
      if (list[i].storage.use_count() == 1 || (result.defined() && result.storage().is_alias_of(list[i].storage)))
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
      TORCH_CHECK(again.storage().nbytes() == r.storage.nbytes(), "what was dropped had ", r.storage.nbytes(),
                  " bytes, and has ", again.storage().nbytes(), " computed again");
      r.storage.set_data_ptr_noswap(again.storage().set_data_ptr(at::DataPtr(nullptr, again.device())));
    }
    dropped->results.clear();
    return 0;
  });
}

void cq_dropped_free(cq_dropped *dropped) { delete dropped; }
