// cross_entropy.cpp: the cross-entropy of rows of logits, shared out among the threads.
#include "cpu.h"

namespace conquer::cpu {

void cross_entropy(const ops::CrossEntropyRows &rows) {
  const int64_t N = rows.logits.size(0), V = rows.logits.size(1);
  const int64_t *targets = data_of<int64_t>(rows.targets);
  const float *scales = rows.gradient ? data_of<float>(rows.row_scales) : nullptr;
  float *nll = mutable_data_of<float>(rows.nll), *penalty = mutable_data_of<float>(rows.penalty);
  const Penalties penalties{float(rows.label_smoothing), float(rows.z_loss)};
  with_type(rows.logits.scalar_type(), [&](auto element) {
    using T = decltype(element);
    T *data = mutable_data_of<T>(rows.logits);
    parallel_for(N, 1, [&](int64_t begin, int64_t end) {
      kernels<T>().cross_entropy(data + begin * V, end - begin, V, targets + begin,
                                 scales ? scales + begin : nullptr, penalties, nll + begin,
                                 penalty + begin);
    });
  });
}

} // namespace conquer::cpu
