// linear.cpp: cq_linear, and linear layers joined with a norm in front and a residual or SwiGLU
// behind. A decode step multiplies one row (a batch of prompts: a few) by every weight of the
// model, which is bound by reading the weight. The devices' kernels are made for few rows; GEMMs of
// libtorch and oneDNN, made for many, reach a third of memory speed there.
#include "blocks.h"

#include <algorithm>

namespace conquer::ops {

namespace {

// The kernels for few rows x and weight, if the device has them and no gradient is recorded.
const Device *kernels_for(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  if (x.dim() < 1 || weight.dim() != 2 || x.size(-1) != weight.size(1))
    return nullptr;
  if (const auto *parts = blocks_of(weight)) // in float32 a GPU's kernels take one row
    if (x.is_cpu() || (x.scalar_type() == at::kFloat && x.numel() != x.size(-1)) ||
        std::any_of(parts->begin(), parts->end(),
                    [](auto &part) { return part.bits == 0 || part.rows % 16 != 0; }))
      return nullptr;
  const Device *device = device_for(x);
  if (!device)
    return nullptr;
  const Limits &limits = device->limits;
  const int64_t rows =
      x.scalar_type() == at::kFloat ? limits.linear_rows_float32 : limits.linear_rows_16bit;
  const bool known =
      blocks_of(weight) ? weight.device() == x.device() : device_for(weight) == device;
  const bool fits = x.numel() <= rows * weight.size(1) && known && weight.is_contiguous() &&
                    weight.scalar_type() == x.scalar_type() &&
                    weight.size(1) % limits.width_multiple == 0 && !records_grad(x, weight, bias) &&
                    (!bias.defined() || (bias.is_contiguous() && bias.numel() == weight.size(0) &&
                                         bias.scalar_type() == x.scalar_type()));
  return fits ? device : nullptr;
}

// The same if they also normalize their input.
const Device *norm_kernels_for(const at::Tensor &x, const at::Tensor &norm,
                               const at::Tensor &weight, const at::Tensor &bias) {
  const Device *device = kernels_for(x, weight, bias);
  const bool fits = device && device->limits.linear_fuses && norm.dim() == 1 &&
                    norm.numel() == x.size(-1) && norm.numel() <= device->limits.norm_width &&
                    device_for(norm) == device && norm.is_contiguous() &&
                    norm.scalar_type() == x.scalar_type() && !records_grad(norm);
  return fits ? device : nullptr;
}

// Whether a kernel can add the residual to its result for x.
bool adds(const at::Tensor &residual, const at::Tensor &x) {
  return residual.device() == x.device() && residual.scalar_type() == x.scalar_type() &&
         residual.is_contiguous();
}

} // namespace

at::Tensor linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  if (blocks_of(weight))
    return block_linear(x, weight, bias);
  if (const Device *device = kernels_for(x, weight, bias))
    return device->linear(x.contiguous(), {}, 0, weight, bias, {});
  return gemm_linear(x, weight, bias);
}

at::Tensor linear_add(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                      const at::Tensor &residual) {
  if (residual.is_cuda() && adds(residual, x)) {
    const Device *device = kernels_for(x, weight, bias);
    if (device && device->limits.linear_fuses && !records_grad(residual))
      return device->linear(x.contiguous(), {}, 0, weight, bias, residual);
    if (!bias.defined() && x.scalar_type() == weight.scalar_type() &&
        !blocks_of(weight)) { // cuBLAS adds the residual as it stores
      at::Tensor y = at::addmm(residual.view({-1, residual.size(-1)}), x.reshape({-1, x.size(-1)}),
                               weight.t());
      return y.view(residual.sizes());
    }
  }
  return residual + linear(x, weight, bias);
}

at::Tensor norm_linear(const at::Tensor &x, const at::Tensor &norm, double eps,
                       const at::Tensor &weight, const at::Tensor &bias) {
  if (const Device *device = norm_kernels_for(x, norm, weight, bias))
    return device->linear(x.contiguous(), norm, eps, weight, bias, {});
  return linear(rms_norm(x, norm, eps), weight, bias);
}

at::Tensor norm_linear_add(const at::Tensor &x, const at::Tensor &norm, double eps,
                           const at::Tensor &weight, const at::Tensor &bias,
                           const at::Tensor &residual) {
  const Device *device = norm_kernels_for(x, norm, weight, bias);
  if (device && adds(residual, x) && !records_grad(residual))
    return device->linear(x.contiguous(), norm, eps, weight, bias, residual);
  return linear_add(rms_norm(x, norm, eps), weight, bias, residual);
}

at::Tensor norm_linear_swiglu(const at::Tensor &x, const at::Tensor &norm, double eps,
                              const at::Tensor &weight, const at::Tensor &bias) {
  const Device *device = norm_kernels_for(x, norm, weight, bias);
  const auto *parts = blocks_of(weight);
  if (device && weight.size(0) % (2 * device->limits.width_multiple) == 0 &&
      (!parts || parts->size() == 1))
    return device->linear_swiglu(x.contiguous(), norm, eps, weight, bias);
  return swiglu(linear(rms_norm(x, norm, eps), weight, bias));
}

} // namespace conquer::ops

using namespace conquer;

int cq_linear_add(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor residual,
                  cq_tensor *out) {
  return guarded([&] {
    return give(out, ops::linear_add(tensor_of(x), tensor_of(weight), tensor_of(bias),
                                     tensor_of(residual)));
  });
}

int cq_norm_linear(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias,
                   cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::norm_linear");
    return give(out, ops::norm_linear(tensor_of(x), tensor_of(norm), eps, tensor_of(weight),
                                      tensor_of(bias)));
  });
}

int cq_norm_linear_add(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias,
                       cq_tensor residual, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::norm_linear_add");
    return give(out, ops::norm_linear_add(tensor_of(x), tensor_of(norm), eps, tensor_of(weight),
                                          tensor_of(bias), tensor_of(residual)));
  });
}

int cq_norm_linear_swiglu(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias,
                          cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::norm_linear_swiglu");
    return give(out, ops::norm_linear_swiglu(tensor_of(x), tensor_of(norm), eps, tensor_of(weight),
                                             tensor_of(bias)));
  });
}

int cq_linear(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::linear");
    return give(out, ops::linear(tensor_of(x), tensor_of(weight), tensor_of(bias)));
  });
}

int cq_linear_reference(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out) {
  return guarded([&] {
    at::Tensor w = tensor_of(weight);
    if (const auto *parts = ops::blocks_of(w))
      w = ops::unpacked(*parts, 0, w.size(0), tensor_of(x).scalar_type());
    return give(out, at::linear(tensor_of(x), w, optional_of(bias)));
  });
}
