// linear.cpp: cq_linear. A decode step multiplies one row (a batch of prompts: a few) by every weight of the model, and
// a product with so few rows is bound by reading the weight. libtorch's products are made for many rows and reach a
// third of memory speed there; linear.inl is made for few.
#include "cpu.h"

namespace conquer {

namespace {

// Up to how many rows these kernels win over libtorch's blocked products: fewer in bfloat16, where those
// have the processor's own dot products.
int64_t few_rows(at::ScalarType type) { return type == at::kFloat ? 16 : 8; }

// Below how many multiplications one thread is faster than waking a second: some 2 us against 20 G multiply-adds a
// second from the cache.
constexpr int64_t one_thread = 32 * 1024;

at::Tensor linear_few(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  const int64_t depth = weight.size(1), rows = weight.size(0), n = x.numel() / depth;
  auto shape = x.sizes().vec();
  shape.back() = rows;
  at::Tensor out = at::empty(shape, x.options());
  const at::Tensor input = x.contiguous();
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto &k = kernels<T>();
    const T *w = data_of<T>(weight), *b = bias.defined() ? data_of<T>(bias) : nullptr;
    T *y = mutable_data_of<T>(out);
    const float *wide;
    std::vector<float> buffer;
    if constexpr (std::is_same_v<T, float>) {
      wide = data_of<float>(input);
    } else {
      buffer.resize(n * depth);
      k.widen(data_of<T>(input), n * depth, buffer.data());
      wide = buffer.data();
    }
    const int64_t grain = std::max<int64_t>(4, one_thread / (n * depth));
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      k.linear(w + begin * depth, b ? b + begin : nullptr, wide, end - begin, depth, n, y + begin, rows);
    });
  });
  return out;
}

at::Tensor linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  bool few = x.dim() >= 1 && weight.dim() == 2 && x.size(-1) == weight.size(1) && x.numel() > 0 && weight.size(0) > 0 &&
             x.numel() <= few_rows(x.scalar_type()) * weight.size(1);
  if (few && x.is_cpu() && weight.is_cpu() && has_kernel_type(x) && weight.scalar_type() == x.scalar_type() &&
      weight.is_contiguous() && !records_grad(x, weight, bias) &&
      (!bias.defined() ||
       (bias.is_contiguous() && bias.numel() == weight.size(0) && bias.scalar_type() == x.scalar_type())))
    return linear_few(x, weight, bias);
  return at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

} // namespace

} // namespace conquer

using namespace conquer;

int cq_linear(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::linear");
    return give(out, linear(tensor_of(x), tensor_of(weight), tensor_of(bias)));
  });
}

int cq_linear_reference(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] { return give(out, at::linear(tensor_of(x), tensor_of(weight), optional_of(bias))); });
}
