// upload.cpp: copies from the host to a device. The driver copies pageable memory on one thread and
// makes the host wait for all queued work. The device reads pinned memory by itself: a small tensor
// goes through a pinned copy, a large one through a ring of pinned buffers, which all threads fill
// while the device reads the buffers before.
#include "../runtime/cuda.h"

#include <ATen/Parallel.h>
#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>

#include <mutex>

using namespace conquer;

namespace {

constexpr int64_t small = 1 << 20, buffer_size = 16 << 20;
constexpr int buffers = 4;

struct Ring {
  at::Tensor memory =
      at::empty({buffers, buffer_size}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  // Recorded after the device has read each buffer.
  std::array<std::optional<c10::cuda::CUDAEvent>, buffers> read;
  int next = 0;
};

at::Tensor upload(const at::Tensor &t, int device) {
  c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  at::Tensor from = t.contiguous(),
             to = at::empty(t.sizes(), t.options().device(at::kCUDA, device));
  const int64_t bytes = static_cast<int64_t>(from.nbytes());
  if (bytes <= small) {
    if (bytes)
      to.copy_(from.pin_memory(), /*non_blocking=*/true);
    return to;
  }
  static std::mutex mutex;
  static Ring &ring = *new Ring; // never freed: CUDA may be gone when a process's last objects go
  std::lock_guard<std::mutex> lock(mutex);
  auto stream = c10::cuda::getCurrentCUDAStream();
  const auto *source = static_cast<const uint8_t *>(from.const_data_ptr());
  auto *target = static_cast<uint8_t *>(to.mutable_data_ptr());
  for (int64_t at = 0; at < bytes; at += buffer_size) {
    const int64_t n = std::min(buffer_size, bytes - at);
    auto &read = ring.read[ring.next];
    if (read)
      read->synchronize();
    uint8_t *slot = ring.memory.mutable_data_ptr<uint8_t>() + ring.next * buffer_size;
    at::parallel_for(0, n, 1 << 18, [&](int64_t begin, int64_t end) {
      std::memcpy(slot + begin, source + at + begin, static_cast<size_t>(end - begin));
    });
    C10_CUDA_CHECK(
        cudaMemcpyAsync(target + at, slot, static_cast<size_t>(n), cudaMemcpyHostToDevice, stream));
    read.emplace(cudaEventDisableTiming);
    read->record(stream);
    ring.next = (ring.next + 1) % buffers;
  }
  return to;
}

} // namespace

namespace conquer {

void add_upload(CudaServices &services) { services.upload = upload; }

} // namespace conquer
