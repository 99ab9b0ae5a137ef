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

// Returns why no kernel did it: empty where one did.
std::string block_tail(const at::Tensor &x, const at::Tensor &mixed, const Tail &t, at::Tensor &y, at::Tensor &next) {
  std::string apart = tail_apart(x, mixed, t);
  if (apart.empty()) {
    const Face *face = face_of(x);
    apart = face ? face->block_tail(x, mixed, t, y, next) : "there are no kernels for where the tensors are";
  }
  if (apart.empty())
    return apart;
  at::Tensor z = t.norm.defined() ? norm_linear_add(mixed, t.norm, t.eps, t.output, t.output_bias, x)
                                  : linear_add(mixed, t.output, t.output_bias, x);
  y = linear_add(norm_linear_swiglu(z, t.mlp_norm, t.mlp_eps, t.gate_up, t.gate_up_bias), t.down, t.down_bias, z);
  if (t.next.defined())
    next = norm_linear(y, t.next_norm, t.next_eps, t.next, t.next_bias);
  return apart;
}

} // namespace

std::string tail_apart(const at::Tensor &x, const at::Tensor &mixed, const Tail &t) {
  const int64_t from = mixed.numel(), width = x.numel(), inner = t.down.size(-1),
                ahead = t.next.defined() ? t.next.size(0) : 0;
  if (width != x.size(-1) || from != mixed.size(-1))
    return c10::str("it takes one row, not ", width / std::max<int64_t>(1, x.size(-1)));
  if (x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kHalf)
    return c10::str("it takes bfloat16 and float16, not ",
                    x.scalar_type() == at::kFloat ? "float32" : x.dtype().name());
  if (records_grad(x, mixed, t.norm, t.output, t.mlp_norm, t.gate_up, t.down, t.next_norm, t.next, t.next_bias))
    return "gradients are recorded";
  if (t.output_bias.defined() || t.gate_up_bias.defined() || t.down_bias.defined())
    return "it takes no biases but that of queries, keys and values";
  for (int64_t w : {from, width})
    if (w > 8192)
      return c10::str("it takes rows of up to 8192 numbers, not ", w);
  if (inner > 16384)
    return c10::str("it takes feed-forward layers of up to 16384, not ", inner);
  auto fits = [&](const at::Tensor &w, int64_t rows, int64_t columns) {
    return w.dim() == 2 && w.size(0) == rows && w.size(1) == columns && rows % 16 == 0 && columns % 16 == 0;
  };
  auto weighs = [&](const at::Tensor &w, int64_t rows) { return w.numel() == rows; };
  if (!fits(t.output, width, from) || !fits(t.gate_up, 2 * inner, width) || !fits(t.down, width, inner) ||
      !weighs(t.mlp_norm, width) || (t.norm.defined() && !weighs(t.norm, from)) ||
      (ahead > 0 && (!fits(t.next, ahead, width) || !weighs(t.next_norm, width) ||
                     (t.next_bias.defined() && !weighs(t.next_bias, ahead)))))
    return c10::str("it takes widths that are multiples of 16, not ", width, " with ", from, ", ", inner, " and ",
                    ahead);
  for (const at::Tensor *w :
       {&x, &mixed, &t.norm, &t.output, &t.mlp_norm, &t.gate_up, &t.down, &t.next_norm, &t.next, &t.next_bias})
    if (w->defined() && (w->scalar_type() != x.scalar_type() || w->device() != x.device() || !w->is_contiguous()))
      return "it takes contiguous tensors of one dtype on one device";
  return "";
}

} // namespace conquer

using namespace conquer;

int cq_block_tail(cq_tensor x, cq_tensor mixed, const cq_tail *t, cq_tensor *out, cq_tensor *out_next,
                  const char **apart) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::block_tail");
    auto get = [](cq_tensor c) { return c ? tensor_of(c) : at::Tensor(); };
    Tail tail{get(t->norm),         get(t->output), get(t->output_bias), get(t->mlp_norm),  get(t->gate_up),
              get(t->gate_up_bias), get(t->down),   get(t->down_bias),   get(t->next_norm), get(t->next),
              get(t->next_bias),    t->eps,         t->mlp_eps,          t->next_eps};
    at::Tensor y, next;
    thread_local std::string why;
    why = block_tail(tensor_of(x), tensor_of(mixed), tail, y, next);
    *apart = why.empty() ? nullptr : why.c_str();
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
