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

// Another device's kernels for x and weight, where they take a product with so few rows and no gradient is asked for.
const Face *face_for(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  const Face *face = face_of(x);
  return face && weight.dim() == 2 && x.dim() >= 1 && x.size(-1) == weight.size(1) && weight.size(0) > 0 &&
                 x.numel() <= face->few_rows * weight.size(1) && face_of(weight) && weight.is_contiguous() &&
                 weight.scalar_type() == x.scalar_type() && weight.size(1) % 16 == 0 &&
                 !records_grad(x, weight, bias) &&
                 (!bias.defined() ||
                  (bias.is_contiguous() && bias.numel() == weight.size(0) && bias.scalar_type() == x.scalar_type()))
             ? face
             : nullptr;
}

at::Tensor rows_of(const at::Tensor &x) { return x.contiguous().view({-1, x.size(-1)}); }

at::Tensor shaped(const at::Tensor &y, const at::Tensor &x) {
  auto shape = x.sizes().vec();
  shape.back() = y.size(-1);
  return y.view(shape);
}

at::Tensor linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  if (const Face *face = face_for(x, weight, bias))
    return shaped(face->linear(rows_of(x), {}, 0, weight, bias, {}), x);
  bool few = x.dim() >= 1 && weight.dim() == 2 && x.size(-1) == weight.size(1) && x.numel() > 0 && weight.size(0) > 0 &&
             x.numel() <= few_rows(x.scalar_type()) * weight.size(1);
  if (few && x.is_cpu() && weight.is_cpu() && has_kernel_type(x) && weight.scalar_type() == x.scalar_type() &&
      weight.is_contiguous() && !records_grad(x, weight, bias) &&
      (!bias.defined() ||
       (bias.is_contiguous() && bias.numel() == weight.size(0) && bias.scalar_type() == x.scalar_type())))
    return linear_few(x, weight, bias);
  return linear_many(x, weight, bias);
}

at::Tensor linear_add(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                      const at::Tensor &residual) {
  if (residual.is_cuda() && residual.scalar_type() == x.scalar_type() && residual.is_contiguous()) {
    const Face *face = face_for(x, weight, bias);
    if (face && !records_grad(residual))
      return shaped(face->linear(rows_of(x), {}, 0, weight, bias, rows_of(residual)), x);
    if (!bias.defined() && x.scalar_type() == weight.scalar_type()) // added as the product is stored
      return shaped(at::addmm(residual.view({-1, residual.size(-1)}), x.reshape({-1, x.size(-1)}), weight.t()), x);
  }
  return residual + linear(x, weight, bias);
}

// Whether another device's product normalizes its input by the way.
bool normalizes(const at::Tensor &x, const at::Tensor &norm) {
  return norm.dim() == 1 && norm.numel() == x.size(-1) && norm.numel() <= 8192 && face_of(norm) &&
         norm.is_contiguous() && norm.scalar_type() == x.scalar_type() && !records_grad(norm);
}

at::Tensor norm_linear(const at::Tensor &x, const at::Tensor &norm, double eps, const at::Tensor &weight,
                       const at::Tensor &bias) {
  const Face *face = face_for(x, weight, bias);
  if (face && normalizes(x, norm))
    return shaped(face->linear(rows_of(x), norm, eps, weight, bias, {}), x);
  return linear(normalized(x, norm, eps), weight, bias);
}

at::Tensor norm_linear_add(const at::Tensor &x, const at::Tensor &norm, double eps, const at::Tensor &weight,
                           const at::Tensor &bias, const at::Tensor &residual) {
  const Face *face = face_for(x, weight, bias);
  if (face && normalizes(x, norm) && residual.scalar_type() == x.scalar_type() && residual.is_contiguous() &&
      !records_grad(residual))
    return shaped(face->linear(rows_of(x), norm, eps, weight, bias, rows_of(residual)), x);
  return linear_add(normalized(x, norm, eps), weight, bias, residual);
}

at::Tensor norm_linear_swiglu(const at::Tensor &x, const at::Tensor &norm, double eps, const at::Tensor &weight,
                              const at::Tensor &bias) {
  const Face *face = face_for(x, weight, bias);
  if (face && weight.size(0) % 32 == 0 && normalizes(x, norm))
    return shaped(face->linear_swiglu(rows_of(x), norm, eps, weight, bias), x);
  return gated(linear(normalized(x, norm, eps), weight, bias));
}

void block_tail(const at::Tensor &x, const at::Tensor &mixed, const Tail &t, at::Tensor &y, at::Tensor &next) {
  const Face *face = face_for(mixed, t.output, t.output_bias);
  if (face && mixed.numel() == mixed.size(-1) && face_for(x, t.gate_up, t.gate_up_bias) &&
      (!t.norm.defined() || normalizes(mixed, t.norm)) && normalizes(x, t.mlp_norm) && x.is_contiguous() &&
      mixed.is_contiguous() && !records_grad(x, mixed, t.down, t.next) && face->block_tail(x, mixed, t, y, next))
    return;
  at::Tensor z = t.norm.defined() ? norm_linear_add(mixed, t.norm, t.eps, t.output, t.output_bias, x)
                                  : linear_add(mixed, t.output, t.output_bias, x);
  y = linear_add(norm_linear_swiglu(z, t.mlp_norm, t.mlp_eps, t.gate_up, t.gate_up_bias), t.down, t.down_bias, z);
  if (t.next.defined())
    next = norm_linear(y, t.next_norm, t.next_eps, t.next, t.next_bias);
}

} // namespace

} // namespace conquer

using namespace conquer;

int cq_block_tail(cq_tensor x, cq_tensor mixed, const cq_tail *t, cq_tensor *out, cq_tensor *out_next) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::block_tail");
    auto get = [](cq_tensor c) { return c ? tensor_of(c) : at::Tensor(); };
    Tail tail{get(t->norm),         get(t->output), get(t->output_bias), get(t->mlp_norm),  get(t->gate_up),
              get(t->gate_up_bias), get(t->down),   get(t->down_bias),   get(t->next_norm), get(t->next),
              get(t->next_bias),    t->eps,         t->mlp_eps,          t->next_eps};
    at::Tensor y, next;
    block_tail(tensor_of(x), tensor_of(mixed), tail, y, next);
    *out_next = nullptr;
    if (next.defined())
      give(out_next, next);
    return give(out, y);
  });
}

int cq_linear_add(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor residual, cq_tensor *out) {
  return guarded(
      [&] { return give(out, linear_add(tensor_of(x), tensor_of(weight), tensor_of(bias), tensor_of(residual))); });
}

int cq_norm_linear(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::norm_linear");
    return give(out, norm_linear(tensor_of(x), tensor_of(norm), eps, tensor_of(weight), tensor_of(bias)));
  });
}

int cq_norm_linear_add(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias, cq_tensor residual,
                       cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::norm_linear_add");
    return give(out, norm_linear_add(tensor_of(x), tensor_of(norm), eps, tensor_of(weight), tensor_of(bias),
                                     tensor_of(residual)));
  });
}

int cq_norm_linear_swiglu(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::norm_linear_swiglu");
    return give(out, norm_linear_swiglu(tensor_of(x), tensor_of(norm), eps, tensor_of(weight), tensor_of(bias)));
  });
}

int cq_linear(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::linear");
    return give(out, linear(tensor_of(x), tensor_of(weight), tensor_of(bias)));
  });
}

int cq_linear_reference(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] { return give(out, at::linear(tensor_of(x), tensor_of(weight), optional_of(bias))); });
}
