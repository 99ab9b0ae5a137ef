// cache_write.cpp: cq_cache_write.
#include "operators.h"

using namespace conquer;

int cq_cache_write(cq_tensor cache, cq_tensor fresh, cq_tensor positions) {
  return guarded([&] {
    RECORD_USER_SCOPE("conquer::cache_write");
    at::NoGradGuard no_grad;
    const at::Tensor into = tensor_of(cache), from = tensor_of(fresh), where = tensor_of(positions);
    const bool q8 = into.scalar_type() == at::kByte && from.is_floating_point();
    TORCH_CHECK(into.dim() == 4 && from.dim() == 4 && into.size(0) == from.size(0) &&
                    into.size(1) == from.size(1) &&
                    (q8 ? into.size(3) * 32 == from.size(3) * 34
                        : into.size(3) == from.size(3) && into.scalar_type() == from.scalar_type()),
                "cache_write: ", from.sizes(), " of ", from.scalar_type(),
                " does not go into a cache ", into.sizes(), " of ", into.scalar_type());
    const int64_t B = from.size(0), L = from.size(2);
    TORCH_CHECK(where.scalar_type() == at::kLong && where.dim() == 2 &&
                    (where.size(0) == B || where.size(0) == 1) && where.size(1) == L,
                "cache_write: positions must be int64 [", B, " or 1, ", L, "], not ",
                where.sizes());
    const ops::Device &device = ops::registered_device(into);
    if (q8) {
      TORCH_CHECK(device.cache_write_q8 && into.stride(3) == 1,
                  "cache_write: there are no kernels for a cache in 8 bits on ", into.device());
      device.cache_write_q8(into, from, where.contiguous());
      return 0;
    }
    if (!device.cache_write)
      return cq_cache_write_reference(cache, fresh, positions);
    TORCH_CHECK(into.stride(3) == 1, "cache_write: the cache's last dimension must be contiguous");
    device.cache_write(into, from.stride(3) == 1 ? from : from.contiguous(), where.contiguous());
    return 0;
  });
}

int cq_cache_unpack(cq_tensor cache, int dtype, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor from = tensor_of(cache);
    TORCH_CHECK(from.dim() == 4 && from.scalar_type() == at::kByte && from.size(3) % 34 == 0 &&
                    from.stride(3) == 1,
                "cache_unpack: expected uint8 [B,K,S,P/32*34], not ", from.scalar_type(), " ",
                from.sizes());
    const ops::Device &device = ops::registered_device(from);
    TORCH_CHECK(device.cache_unpack, "cache_unpack: there are no kernels for a cache in 8 bits on ",
                from.device());
    at::Tensor wide = at::empty({from.size(0), from.size(1), from.size(2), from.size(3) / 34 * 32},
                                from.options().dtype(at::kFloat));
    device.cache_unpack(from, wide);
    return give(out, wide.to(at::ScalarType(dtype)));
  });
}

int cq_cache_write_reference(cq_tensor cache, cq_tensor fresh, cq_tensor positions) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const at::Tensor from = tensor_of(fresh);
    tensor_of(cache).scatter_(2, tensor_of(positions).unsqueeze(1).unsqueeze(3).expand_as(from),
                              from);
    return 0;
  });
}
