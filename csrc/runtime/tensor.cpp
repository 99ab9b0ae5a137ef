// tensor.cpp: describing, reading, making and splitting tensors.
#include "handles.h"

#include <chrono>
#include <cstring>

using namespace conquer;

void cq_tensor_describe(cq_tensor t, int *rank, int *dtype, int *device, int64_t *sizes, int room) {
  const auto &tensor = *static_cast<at::Tensor *>(t);
  *rank = static_cast<int>(tensor.dim());
  *dtype = static_cast<int>(tensor.scalar_type());
  *device = tensor.is_cuda() ? tensor.get_device() : -1;
  for (int i = 0; i < *rank && i < room; i++)
    sizes[i] = tensor.size(i);
}

int cq_tensor_read(cq_tensor t, void *data, size_t bytes) {
  return guarded([&] {
    at::Tensor source = tensor_of(t).detach().to(at::kCPU).contiguous();
    if (source.nbytes() != bytes)
      return fail("the tensor has " + std::to_string(source.nbytes()) + " bytes, the buffer " +
                  std::to_string(bytes));
    if (bytes)
      std::memcpy(data, source.const_data_ptr(), bytes);
    return 0;
  });
}

int cq_split(cq_tensor t, int64_t dim, const int64_t *sizes, int n, cq_tensor *out) {
  return guarded([&] {
    auto parts = at::split_with_sizes(tensor_of(t), at::IntArrayRef(sizes, n), dim);
    for (int i = 0; i < n; i++)
      if (give(out + i, parts[i]))
        return 1;
    return 0;
  });
}

int cq_tensor_from(const void *data, size_t bytes, const int64_t *sizes, int rank, int dtype,
                   cq_tensor *out) {
  return guarded([&] {
    at::Tensor t =
        at::empty(at::IntArrayRef(sizes, rank), at::TensorOptions().dtype(at::ScalarType(dtype)));
    if (t.nbytes() != bytes)
      return fail("shape " + c10::str(t.sizes()) + " takes " + std::to_string(t.nbytes()) +
                  " bytes, " + std::to_string(bytes) + " were given");
    if (bytes)
      std::memcpy(t.mutable_data_ptr(), data, bytes);
    return give(out, std::move(t));
  });
}

double cq_time_add(cq_tensor a, cq_tensor b, int64_t n) {
  const at::Tensor &x = tensor_of(a), &y = tensor_of(b);
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < n; i++) {
    cq_scope_open();
    cq_tensor out;
    guarded([&] { return give(&out, at::add(x, y)); });
    cq_scope_close();
  }
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin)
             .count() /
         n;
}
