// add_rows.cpp: the gradient of an embedding: rows added to the rows that were looked up.
#include "cpu.h"

#include <algorithm>
#include <numeric>

namespace conquer::cpu {

// grad[ids[i]] += dy[i]; positions of the same id are summed first, and each id belongs to one
// thread.
void add_rows(const at::Tensor &grad, const at::Tensor &ids, const at::Tensor &dy) {
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
    parallel_for(distinct, rows_per_share(D), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        kernels<T>().add_rows(rows, order.data() + first[i], first[i + 1] - first[i], D,
                              into + id[order[first[i]]] * D);
    });
  });
}

} // namespace conquer::cpu
